# SPDX-License-Identifier: Apache-2.0
"""Loads that reclaim at the limit of their group, and the program that runs one: `python -m pymemcg.bench.loads`.

Two ways of touching memory, both steady and neither ever reading back what was reclaimed (a refault would be a stall that no
reclaim tracepoint tells of):

- `cache` reads a file of twice the limit round and round: reclaim drops clean pages, some microseconds at a time.
- `anon` writes fresh pages round and round in a mapping of twice the limit: reclaim swaps them out, which stalls for real.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pymemcg.errors import NotSupported
from pymemcg.mounts import IN_MEMORY, file_system

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
CHUNK_BYTES = 64 << 10
"""Touched between two looks at the clock: some hundred microseconds of swapping."""


@dataclass(frozen=True, slots=True)
class Load:
    """A steady load.

    Attributes:
        name: Its name in the table.
        title: What it does, for people.
        kind: What is reclaimed: "cache" or "anon".
        busy_ms: Of every `period_ms`, each thread works so long.
        period_ms: 0 = without a pause.
        threads: Of each process; their work is spread evenly over the period.
        worker: Whether another thread keeps another CPU half busy with work that never reclaims.
        pinned: Whether each thread stays on a CPU, the first on the first, the next on the next. PSI shows 0.5 to 1.0 of the
            stalls of a lone thread that wanders over two CPUs, sampled or not.
        promised: Whether it belongs to the loads for which a promise is made; others are known losses, or too unlike
            themselves from run to run.
    """

    name: str
    title: str
    kind: Literal["cache", "anon"]
    busy_ms: float = 0
    period_ms: float = 0
    threads: int = 1
    worker: bool = False
    pinned: bool = True
    promised: bool = True

    def shared_by(self, processes: int) -> Load:
        """The part of one of several processes that share the work as gunicorn's workers do: each has its turn less often."""
        return replace(self, period_ms=self.period_ms * processes)


LOADS = (
    Load("cache", "page cache, flat out", "cache"),
    Load("flat-out", "anonymous memory, flat out", "anon"),
    Load("bursts", "100 ms of each 500 ms", "anon", 100, 500),
    Load("threads", "4 threads, each 20 ms of each 200 ms", "anon", 20, 200, threads=4),
    Load("light", "10 ms of each second", "anon", 10, 1000),
    Load("drizzle", "1 ms of each 100 ms", "anon", 1, 100),
    Load("wandering", "10 ms of each second, on any CPU", "anon", 10, 1000, pinned=False, promised=False),
    Load("apart", "5 ms of each 100 ms, beside a thread at work on another CPU", "anon", 5, 100, worker=True, promised=False),
)


def phase_ns(load: Load, process: int, processes: int, thread: int) -> int:
    """When a thread's first turn comes, so that all turns of a period are evenly apart."""
    turns = processes * load.threads
    return round(load.period_ms * 1e6 * (process * load.threads + thread) / turns)


@dataclass(slots=True)
class Part:
    """What one process of a run is told.

    Attributes:
        load: Its part of the load.
        process: Its number, from 0, of `processes`.
        limit_bytes: The group's.
        seconds: How long to work.
        sampler: Whether to sample: "adaptive", "fixed" (rate), or None.
        file: To read, for `cache`.
    """

    load: Load
    process: int
    processes: int
    limit_bytes: int
    seconds: float
    sampler: Literal["adaptive", "fixed"] | None
    file: str | None = None

    def to_json(self) -> str:
        """As a command-line argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Part:
        """The other way."""
        values = json.loads(text)
        return cls(**values | {"load": Load(**values["load"])})


def make_file(limit_bytes: int) -> tempfile._TemporaryFileWrapper[bytes]:
    """A file to read: of holes, so that reading it costs page cache and no disk.

    Raises:
        NotSupported: There is no folder that is on a disk.
    """
    for folder in (tempfile.gettempdir(), "/var/tmp", "."):  # noqa: S108 - a file of tempfile's making
        # A tmpfs gives out one page of zeroes for all holes, which costs its readers no page cache.
        if os.path.isdir(folder) and file_system(folder) not in IN_MEMORY:
            file = tempfile.NamedTemporaryFile(prefix="pymemcg-load-", dir=folder)  # noqa: SIM115 - the caller closes it
            file.truncate(2 * limit_bytes)
            return file
    raise NotSupported("a load of page cache needs a folder that is no tmpfs", hint="set TMPDIR to one on a disk")


def anon_toucher(size: int) -> Callable[[], None]:
    """Writes a chunk of fresh pages, the next one at each call."""
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        region.madvise(mmap.MADV_NOHUGEPAGE)  # where they are always on, one touch would reclaim for the next 31 chunks, too
    base = ctypes.addressof(ctypes.c_char.from_buffer(region))
    noise = os.urandom(CHUNK_BYTES)  # or zram would store a page as one word
    at = 0

    def touch() -> None:
        nonlocal at
        region.madvise(mmap.MADV_DONTNEED, at, CHUNK_BYTES)  # what was here is forgotten, not swapped in
        ctypes.memmove(base + at, noise, CHUNK_BYTES)  # releases the GIL
        at = (at + CHUNK_BYTES) % size

    return touch


def cache_toucher(path: str, size: int, first: int) -> Callable[[], None]:
    """Reads a chunk of the file, the next one at each call."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)  # no readahead: what is read is what is charged
    buffer = [bytearray(CHUNK_BYTES)]
    at = first

    def touch() -> None:
        nonlocal at
        os.preadv(file, buffer, at)
        at = (at + CHUNK_BYTES) % size

    return touch


def _take_turns(load: Load, touch: Callable[[], None], begin_ns: int, end_ns: int, cpu: int | None) -> None:
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    period, busy, turn = round(load.period_ms * 1e6), round(load.busy_ms * 1e6), begin_ns
    while turn < end_ns:
        time.sleep(max(0, turn - time.monotonic_ns()) / 1e9)
        until = min(time.monotonic_ns() + busy, end_ns) if period else end_ns
        while time.monotonic_ns() < until:
            touch()
        turn = max(turn + period, time.monotonic_ns())


def _work(end_ns: int, cpu: int) -> None:
    """Half of the time, in turns of 20 ms, without a reclaim."""
    os.sched_setaffinity(0, {cpu})
    buffer = ctypes.create_string_buffer(256 << 10)  # stays in a cache
    while (now := time.monotonic_ns()) < end_ns:
        while time.monotonic_ns() < now + 20_000_000:
            ctypes.memset(buffer, 1, len(buffer))  # releases the GIL
        time.sleep(0.02)


def _threads(part: Part, touchers: list[Callable[[], None]], begin_ns: int) -> list[threading.Thread]:
    load, end_ns = part.load, begin_ns + round(part.seconds * 1e9)
    cpus = sorted(os.sched_getaffinity(0))
    threads = []
    for number, touch in enumerate(touchers):
        first = begin_ns + phase_ns(load, part.process, part.processes, number)
        # Beside a worker all that stalls is on one CPU, and the worker on another.
        cpu = cpus[0] if load.worker else cpus[(part.process * load.threads + number) % len(cpus)]
        threads.append(threading.Thread(target=_take_turns, args=(load, touch, first, end_ns, cpu if load.pinned else None)))
    if load.worker and part.process == 0:
        threads.append(threading.Thread(target=_work, args=(end_ns, cpus[-1])))
    return threads


def run_part(part: Part) -> None:
    """Run one process's part.

    It says `ready`, is moved into the group and told so, says `warm`, is told when to begin, says `done`, and when it is asked,
    what its sampler knows of itself.
    """
    _say("ready")
    sys.stdin.readline()
    load, share = part.load, 2 * part.limit_bytes // (part.processes * part.load.threads)
    share -= share % CHUNK_BYTES
    if part.file is not None:
        size = 2 * part.limit_bytes
        first = range(0, size - size % part.processes, size // part.processes)[part.process]
        touchers = [cache_toucher(part.file, size, first - first % CHUNK_BYTES)]
    else:
        touchers = [anon_toucher(share) for _ in range(load.threads)]
    for touch in touchers:
        for _ in range(share // CHUNK_BYTES):
            touch()
    stats: dict[str, Any] = {}
    with ExitStack() as stack:
        if part.sampler is not None:
            from pymemcg import Sampler

            sampler = stack.enter_context(Sampler("self", adaptive=part.sampler == "adaptive"))
        _say("warm")
        threads = _threads(part, touchers, int(sys.stdin.readline()))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _say("done")
        sys.stdin.readline()  # PSI has been read: from here on nothing counts
        if part.sampler is not None:
            stats = sampler.stats()
    _say(json.dumps(stats))


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    run_part(Part.from_json(sys.argv[1]))
