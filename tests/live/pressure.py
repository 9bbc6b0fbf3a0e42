# SPDX-License-Identifier: Apache-2.0
"""Processes that need more memory than they may have, and what was seen of it: by a sampler, by tracepoints, by themselves."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import facts
import outside
from actor import MIB, Actor, Failed, until

from pymemcg import Sampler, stalls
from pymemcg._stall import Stall
from pymemcg.bench.tracefs import Reclaim, Trace
from pymemcg.child import ChildGroup
from pymemcg.errors import NotSupported

LIMIT = 24 * MIB
"""An interpreter and its libraries take 10 MiB of it."""

# What is there by now, the interpreter above all, stays: all that waits for memory is then what a test tells it to touch.
# Each says when it began, when it was done, and how long each touch took, in order of that.
LOAD = """
import ctypes, mmap, random
STEP = 64 << 10
noise = os.urandom(STEP)
dice = random.Random(1)
def region(mib):
    view = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return view, ctypes.addressof(ctypes.c_char.from_buffer(view))
def timed(touches, enough=None):
    begin = last = time.monotonic_ns()
    took = []
    for touch in touches:
        touch()
        now = time.monotonic_ns()
        took.append(now - last)
        last = now
        if enough and took[-1] > enough: break
    return begin, last, sorted(took)
def spin(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until: pass
def fill(region, first, end, enough=None):
    base = region[1]
    chunks = range(first << 20, end << 20, STEP)
    return timed([lambda at=at: ctypes.memmove(base + at, noise, STEP) for at in chunks], enough)
def some(touch, mib):  # as many pages as there are, any: of those in use some are more so
    count = (mib << 20) // mmap.PAGESIZE
    return timed([lambda at=dice.randrange(count) * mmap.PAGESIZE: touch(at) for _ in range(count)])
if ctypes.CDLL(None, use_errno=True).mlockall(1) != 0:
    raise OSError(ctypes.get_errno(), "mlockall")
"""


def loaded(actor: Actor) -> Actor:
    """It knows how to touch memory.

    Who may lock little has the load itself reclaimed, too, and read again: `or_thrash`.
    """
    try:
        actor.do(LOAD)
    except Failed as failed:
        if "mlockall" not in str(failed) or not may_lock_little():
            raise
    return actor


def may_lock_little() -> bool:
    """As containers may, and users whom nobody could give more."""
    return not facts.is_root() and resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY


def or_thrash(*causes: str) -> set[str]:
    """These causes, and that of loads which are not locked."""
    return {*causes, "thrash"} if may_lock_little() else set(causes)


def counted(group: ChildGroup, key: str) -> int:
    """What memory.events, or on v1 memory.failcnt, says."""
    if group.cgroup2_directory != group.directory:
        return int(Path(group.directory, "memory.failcnt").read_text()) if key == "max" else 0
    return keyed(Path(group.directory, "memory.events"))[key]


def keyed(path: str | Path) -> dict[str, int]:
    """A file of keys and values."""
    pairs = (line.split() for line in Path(path).read_text().splitlines())
    return {key: int(value) for key, value, *_ in pairs}


def stalled_us(group: ChildGroup) -> int:
    """What memory.pressure says, which nobody may ask often; 0 where the kernel has no PSI."""
    if not Path(str(group.cgroup2_directory), "memory.pressure").exists():
        return 0
    return int(Path(str(group.cgroup2_directory), "memory.pressure").read_text().split("total=")[1].split()[0])


def slept_ns(took: list[int]) -> int:
    """Of the times that touches took, those that only a sleep can have taken."""
    return sum(ns for ns in took if ns > 200_000_000)


def evict(group: ChildGroup, pages: int) -> None:
    """Reclaim all that can be, at least so many pages, as an administrator does."""
    stat = Path(group.directory, "memory.stat")
    before = keyed(stat)
    for _ in range(5):
        try:
            name, text = ("memory.reclaim", f"{64 * MIB}") if is_v2(group) else ("memory.force_empty", "0")
            outside.write(group, name, text)
        except BlockingIOError:  # there was not as much
            pass
        after = keyed(stat)
        if sum(before[key] - after[key] for key in pool(group)) >= pages * 4096:
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {after}")


def pool(group: ChildGroup) -> tuple[str, str]:
    """What can be reclaimed, by its keys in memory.stat."""
    return ("anon", "file") if is_v2(group) else ("total_rss", "total_cache")


def is_v2(group: ChildGroup) -> bool:
    return group.cgroup2_directory == group.directory


class Watch:
    """A sampler that looks from outside, beside the truth.

    Attributes:
        truth: What tracepoints said of the processes, when all is over; None = they cannot be had.
    """

    def __init__(self, sampler: Sampler, trace: Trace | None) -> None:
        self.sampler = sampler
        self.truth: Reclaim | None = None
        self._trace = trace
        self._since_ns = time.monotonic_ns()

    def settle(self, actor: Actor) -> None:
        """All that happened by now is known: limits and node were looked at, and PSI was read, as it is of who is busy."""
        now = time.monotonic_ns()
        if self._trace is not None:
            self.truth = self._trace.stop()
            assert self.truth.lost == 0
        until(lambda: last(self.sampler, "node") > now, 60)
        if self.works("psi"):
            until(lambda: actor.do("spin(0.2)") or last(self.sampler, "pressure") > now, 60)

    def works(self, evidence: str) -> bool:
        return self.sampler.evidence[evidence] is None

    def stalls(self, evidence: str = "auto") -> list[Stall]:
        """Those since it watches, harmless ones, too."""
        return [s for s in stalls(self.sampler, evidence=evidence) if s.end_ns is None or s.end_ns >= self._since_ns]

    def harmful(self, evidence: str = "auto") -> list[Stall]:
        return [stall for stall in self.stalls(evidence) if not stall.harmless]


def last(sampler: Sampler, channel: str) -> int:
    rows = getattr(sampler, channel).window(rows=1)
    return int(rows["t_ns"][-1]) if len(rows) else 0


@contextmanager
def watching(group: ChildGroup, *pids: int, seconds: float = 8, evidence: str = "auto") -> Iterator[Watch]:
    """Sample a group from outside, and trace the reclaim of these processes."""
    with ExitStack() as stack:
        trace = None
        with suppress(NotSupported):
            trace = stack.enter_context(Trace(seconds, name="pressure"))
        sampler = stack.enter_context(Sampler(group.spec, evidence=evidence))
        if evidence == "auto":
            works = {name for name, why in sampler.evidence.items() if why is None}
            assert works == facts.evidence(group.directory, group.cgroup2_directory), sampler.evidence
        if trace is not None:
            trace.start(pids)
        until(lambda: last(sampler, "limits"))
        yield Watch(sampler, trace)


def total_ns(found: list[Stall], of: Callable[[Stall], Any] = lambda stall: stall.stall_ns) -> int:
    """Their durations together."""
    return sum(of(stall) or 0 for stall in found)


def within(found: list[Stall], begin: int, end: int) -> list[Stall]:
    """Those of a load."""
    return [stall for stall in found if (stall.end_ns is None or stall.end_ns >= begin) and stall.start_ns <= end]


def causes(found: list[Stall]) -> dict[str, int]:
    """How long each held somebody in all."""
    took: dict[str, int] = {}
    for stall in found:
        took[stall.cause] = took.get(stall.cause, 0) + (stall.stall_ns or 0)
    return took


def whole_machine() -> bool:
    """Whether the machine is the test's own, to do as it likes."""
    return facts.MACHINE_IS_OURS
