# SPDX-License-Identifier: Apache-2.0
"""What moves in the seconds before a snapshot: growth, hits, and stalls where a sampler can run.

PSI is read by the sampler alone, which waits until a read is harmless.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from pymemcg.cgroup import Target, resolve
from pymemcg.errors import MemcgError
from pymemcg.explain._makeup import unwritten
from pymemcg.explain._snapshot import Meanwhile, StallsSeen
from pymemcg.explain._take import read_events, read_stat, read_usage
from pymemcg.explain._tree import Tree

if TYPE_CHECKING:
    from pymemcg._stall import Stall

_LOOK_S: Final = 0.1
_STAT_EACH: Final = 3  # looks
_SAMPLERS_BYTES: Final = 64 << 20
"""Room that our own group must have for a sampler in it: with numpy that takes some 20 MiB, and watching must not fill it."""


def watch(spec: str, seconds: float) -> Meanwhile:
    """Watch a group for so long.

    Raises:
        TargetError: There is no such target, or it vanished.
        NotSupported: This place has no memory cgroups.
    """
    target = resolve(spec)
    first, begun = _Ends(target), time.monotonic()
    usage: list[tuple[float, int]] = []
    anon: list[tuple[float, int]] = []
    dirty: list[tuple[float, int]] = []
    with _sampled(target) as seen:
        while (now := time.monotonic() - begun) < seconds:
            tree = Tree()
            _add(usage, now, read_usage(tree, target.directory, target.version))
            if len(usage) % _STAT_EACH == 1:  # it takes locks of the kernel's
                stat = read_stat(tree, target.directory, target.version)
                _add(anon, now, anonymous(stat))
                _add(dirty, now, unwritten(stat))
            time.sleep(min(_LOOK_S, max(0.0, seconds - now)))
    last, lasted = _Ends(resolve(spec)), time.monotonic() - begun
    return Meanwhile(
        seconds=lasted,
        growth_bytes_per_s=trend(usage),
        anon_growth_bytes_per_s=trend(anon),
        anon_grows=grows([count for _, count in anon]),
        most_dirty_bytes=max((count for _, count in dirty), default=None),
        events={name: moved(events, last.events.get(name, {})) for name, events in first.events.items()},
        stat=moved({name: count for name, count in first.stat.items() if _counts(name)}, last.stat),
        vmstat=moved({name: count for name, count in first.vmstat.items() if _counts(name)}, last.vmstat),
        stalls=seen.stalls,
        why_no_stalls=seen.why,
    )


class _Ends:
    """What counters say at one end of the watch."""

    def __init__(self, target: Target) -> None:
        tree = Tree()
        self.stat = read_stat(tree, target.directory, target.version)
        self.vmstat = tree.keyed("/proc/vmstat")
        self.events = {}
        for i, level in enumerate(target.levels):
            events = read_events(tree, level.directory, target.version)
            if i and target.version == 2:  # what happened to groups below an ancestor is no news of its own limit
                events = tree.keyed(f"{level.directory}/memory.events.local") or events
            self.events[level.name] = events


def _add(points: list[tuple[float, int]], now: float, count: int | None) -> None:
    if count is not None:
        points.append((now, count))


def anonymous(stat: Mapping[str, int]) -> int | None:
    """Memory without a file: anonymous, shmem and tmpfs."""
    return stat["anon"] + stat["shmem"] if {"anon", "shmem"} <= stat.keys() else None


def grows(counts: list[int]) -> bool | None:
    """Whether they grow and do not only breathe: the least of the last third is above the most of the first."""
    third = len(counts) // 3
    return min(counts[-third:]) > max(counts[:third]) if third else None


_COUNTERS: Final = ("pg", "workingset_", "pswp", "zswp", "thp_", "allocstall", "compact_", "oom_kill", "swpin_", "swpout_")


def _counts(name: str) -> bool:
    """Whether a figure of memory.stat or vmstat is a counter, and not how much there is of something."""
    return name.startswith(
        ("pg", "workingset_", "pswp", "zswp", "thp_", "allocstall", "compact_", "oom_kill", "swpin", "swpout")
    )


def moved(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """By how much counters rose; those that did not, or went backwards (another group of that name), are left out."""
    return {name: after[name] - count for name, count in before.items() if after.get(name, 0) > count}


def trend(points: list[tuple[float, int]]) -> float | None:
    """The median slope of all pairs of points, as `pymemcg.metrics.growth` has it (Theil 1950, Sen 1968), without numpy.

    Args:
        points: Seconds and bytes.

    Returns:
        Bytes a second; None with fewer than two distinct times.
    """
    slopes = sorted(
        (later[1] - point[1]) / (later[0] - point[0])
        for i, point in enumerate(points)
        for later in points[i + 1 :]
        if later[0] > point[0]
    )
    middle = len(slopes) // 2
    if not slopes:
        return None
    return slopes[middle] if len(slopes) % 2 else (slopes[middle - 1] + slopes[middle]) / 2


# ---- Stalls --------------------------------------------------------------------------------------------------------


class _Seen:
    """What a sampler saw, or why none ran."""

    stalls: StallsSeen | None = None
    why: str | None = None


@contextmanager
def _sampled(target: Target) -> Iterator[_Seen]:
    """Sample meanwhile, where that can be done without harm."""
    seen = _Seen()
    seen.why = _why_not(target)
    if seen.why is not None:
        yield seen
        return
    from pymemcg.detecting import stalls
    from pymemcg.sampler import Sampler

    try:
        sampler = Sampler(target.spec)
        sampler.start()
    except MemcgError as error:
        seen.why = str(error)
        yield seen
        return
    try:
        if sampler.role == "disabled":
            seen.why = "sampling is disabled by PYMEMCG_DISABLE=1"
            yield seen
            return
        begun_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        yield seen
        told = [stall for stall in stalls(sampler) if (stall.end_ns or stall.start_ns) >= begun_ns]
        evidence = tuple(name for name, why_not in sampler.evidence.items() if why_not is None)
        seen.stalls = _counted(told, evidence)
    except MemcgError as error:
        seen.why = str(error)
    finally:
        sampler.stop()


def _why_not(target: Target) -> str | None:
    if find_spec("numpy") is None:
        return "numpy is not installed, which a sampler needs"
    if target.own and (room := _room(target)) is not None and room < _SAMPLERS_BYTES:
        return f"a sampler in this group itself would need {_SAMPLERS_BYTES >> 20} MiB of room, and there is less"
    return None


def _room(target: Target) -> int | None:
    from pymemcg.explain._take import read_limit

    tree, room = Tree(), []
    for level in target.levels:
        limit, usage = (read(tree, level.directory, target.version) for read in (read_limit, read_usage))
        if limit is not None and usage is not None:
            room.append(limit - usage)
    return min(room, default=None)


def _counted(told: list[Stall], evidence: tuple[str, ...]) -> StallsSeen:
    """Those of a millisecond and more; those of unknown length; and the rest."""
    long = [stall for stall in told if stall.harmless is False]
    known = [stall.stall_ns for stall in long if stall.stall_ns is not None]
    causes: dict[str, int] = {}
    for stall in long:
        causes[stall.cause] = causes.get(stall.cause, 0) + 1
    return StallsSeen(
        count=len(long),
        stall_ns=sum(known) if len(known) == len(long) else None,
        worst_ns=max(known, default=None),
        causes=causes,
        unknown=sum(stall.harmless is None for stall in told),
        evidence=evidence,
        harmless_ns=sum(stall.stall_ns or 0 for stall in told if stall.harmless),
    )
