# SPDX-License-Identifier: Apache-2.0
"""What the processes of a group do; the functions run in a worker there. Nothing here loads numpy: its memory would be charged.

`prepare` makes ready and warms up, `run` works from one moment to another and gives back what only the load itself can know:
the touches that took long.
"""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from pymemcg.bench.loads import CHUNK_BYTES, anon_toucher, cache_toucher
from pymemcg.sampler import Sampler

PAGE_BYTES = mmap.PAGESIZE
_SPIN_BYTES = 2 << 20
"""Some tenth of a millisecond at a time: threads that pass the GIL on more often fill the trace with their switches."""
_CHILD_BYTES = 2 << 20
_MCL_CURRENT = 1
_BY_PAGE = ("again", "pages", "above")
"""Kinds whose touch is one of a page, so that its length tells whether it had to wait."""
_PAGE_NS = 1_000
"""What a touch of a page that is there takes on the machine that `Workload.touch_ns` is said for."""

Turns = list[list[float]]
"""Begin and length, in ms from when the run begins."""
Touch = Callable[[], None]

_ready: dict[str, Any] = {}


def prepare(*, kind: str, size: int, threads: int = 1, path: str | None = None, first: int = 0) -> None:
    """Set up `threads` touchers of `kind`, each of its own part of `size` bytes, and let each go round once.

    Args:
        kind: "anon": fresh anonymous pages; "cache": reads `path`, from byte `first`; "write": writes to it; "again": touches
            anonymous pages in no order, whatever has become of them since; "pages": reads pages of `path` in no order;
            "above": fresh anonymous pages, one at a time, which are all given back when the last one was touched; "none":
            nothing at all.
        size: Of the memory or the file.
        threads: How many touchers.
        path: A file.
        first: Where a reader begins.
    """
    share = size // threads // CHUNK_BYTES * CHUNK_BYTES
    if kind in _BY_PAGE:
        # What is there by now, the interpreter above all, stays: waiting for that would be in nobody's log.
        ctypes.CDLL(None).mlockall(_MCL_CURRENT)
    make: dict[str, Callable[[], Touch]] = {
        "anon": lambda: anon_toucher(share),
        "cache": lambda: cache_toucher(str(path), size // CHUNK_BYTES * CHUNK_BYTES, first - first % CHUNK_BYTES),
        "write": lambda: _writer(str(path), share),
        "again": lambda: _again_toucher(share),
        "pages": lambda: _page_reader(str(path), share),
        "above": lambda: _above_toucher(share),
        "none": lambda: _nothing,
    }
    touchers = [make[kind]() for _ in range(threads)]
    step = PAGE_BYTES if kind in _BY_PAGE else CHUNK_BYTES
    for touch in touchers:
        for _ in range(share // step if kind != "none" else 0):
            touch()
    _ready["touchers"] = touchers


def run(
    *,
    begin_ns: int,
    end_ns: int,
    turns: list[Turns],
    long_ns: int | None = None,
    spinners: int = 0,
    wander: bool = False,
    cpu: int = 0,
) -> dict[str, list[list[int]]]:
    """Let each toucher take its turns.

    Args:
        begin_ns: When, CLOCK_MONOTONIC.
        end_ns: Until when.
        turns: Of each toucher.
        long_ns: Note each touch that takes longer, which then should be one of a page; None = none.
        spinners: Threads beside them that compute without a pause and never reclaim.
        wander: Whether threads run on any CPU, not each on its own.
        cpu: Which the first one has.

    Returns:
        By thread, [begin, end] of each touch that took so long.
    """
    touches: dict[str, list[list[int]]] = {}
    cpus = sorted(os.sched_getaffinity(0))

    def work(number: int) -> None:
        if not wander:
            os.sched_setaffinity(0, {cpus[(cpu + number) % len(cpus)]})
        touched = take_turns(_ready["touchers"][number], turns[number % len(turns)], begin_ns, end_ns, long_ns=long_ns)
        touches[str(threading.get_native_id())] = touched

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(_ready["touchers"]))]
    threads += [threading.Thread(target=spin, kwargs={"begin_ns": begin_ns, "end_ns": end_ns}) for _ in range(spinners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return touches


def take_turns(touch: Touch, turns: Turns, begin_ns: int, end_ns: int, *, long_ns: int | None) -> list[list[int]]:
    """Touch during each turn, and note touches that took long."""
    starts, ends = array.array("q"), array.array("q")
    for begin_ms, length_ms in turns:
        turn_ns = begin_ns + round(begin_ms * 1e6)
        if turn_ns >= end_ns:
            break
        _sleep_until(turn_ns)
        until = min(time.monotonic_ns() + round(length_ms * 1e6), end_ns)
        while (now := time.monotonic_ns()) < until:
            touch()
            if long_ns is not None and (done := time.monotonic_ns()) - now >= long_ns:
                starts.append(now)
                ends.append(done)
    _sleep_until(end_ns)
    return [list(pair) for pair in zip(starts, ends, strict=True)]


def spin(*, begin_ns: int, end_ns: int, cpu: int | None = None) -> None:
    """Compute without a pause and without touching fresh memory, where `cpu` is said on that one."""
    if cpu is not None:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[cpu]})
    buffer = ctypes.create_string_buffer(_SPIN_BYTES)
    _sleep_until(begin_ns)
    while time.monotonic_ns() < end_ns:
        ctypes.memset(buffer, 1, len(buffer))  # releases the GIL


def hold(*, size: int) -> None:
    """Have so much anonymous memory from now on."""
    size -= size % PAGE_BYTES
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    noise = os.urandom(PAGE_BYTES)
    for at in range(0, size, PAGE_BYTES):
        region[at : at + PAGE_BYTES] = noise
    _ready["held"] = region


def fork_storm(*, begin_ns: int, end_ns: int, pause_ms: float) -> int:
    """Start children, one after the other, each of which touches some memory and ends; and touch as much between them.

    Returns:
        How many.
    """
    _sleep_until(begin_ns)
    children = 0
    noise = os.urandom(PAGE_BYTES)
    while time.monotonic_ns() < end_ns:
        child = os.fork()
        if child == 0:
            region = mmap.mmap(-1, _CHILD_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for at in range(0, _CHILD_BYTES, PAGE_BYTES):
                region[at : at + PAGE_BYTES] = noise
            os._exit(0)
        os.waitpid(child, 0)
        children += 1
        for _ in range(_CHILD_BYTES // CHUNK_BYTES):  # or children would only ever take what those before them left
            _ready["touchers"][0]()
        time.sleep(pause_ms / 1000)
    return children


def slowness() -> float:
    """How many times longer a touch of a page that is there takes here, at least 1: in an emulated machine it may be ten."""
    touch, spent = _again_toucher(64 * PAGE_BYTES), []
    for _ in range(2_000):
        before = time.monotonic_ns()
        touch()
        spent.append(time.monotonic_ns() - before)
    return max(1.0, sorted(spent)[len(spent) // 2] / _PAGE_NS)


def sample(**options: Any) -> None:
    """Start a sampler in this process and keep it."""
    _ready["sampler"] = Sampler("self", **options).start()


def prepared(name: str) -> Any:
    """What `prepare` ("touchers") or `sample` ("sampler") made."""
    return _ready[name]


def stats() -> dict[str, Any]:
    """Of the sampler that `sample` started, which goes on."""
    sampler: Sampler = _ready["sampler"]
    return sampler.stats() | {"absent": sampler.absent}


def touch(*, touches: int, pause_s: float = 0.0) -> int:
    """So many touches of the first toucher, after a pause.

    Returns:
        CPU time of this thread, in ns.
    """
    time.sleep(pause_s)
    toucher, before = _ready["touchers"][0], time.thread_time_ns()
    for _ in range(touches):
        toucher()
    return time.thread_time_ns() - before


def ping_pong(*, paths: list[str], first: bool, turns: int) -> int:
    """Hand a byte to another process through one pipe and wait for it in the other, both processes on one CPU.

    Returns:
        CPU time of this process for all turns, in ns: others who want this CPU too do not count.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    there, back = (os.open(path, os.O_RDWR) for path in paths)
    read, write = (back, there) if first else (there, back)
    if first:
        os.write(write, b"0")
    before = time.thread_time_ns()
    for turn in range(turns):
        os.read(read, 1)
        if not first or turn < turns - 1:
            os.write(write, b"0")
    took = time.thread_time_ns() - before
    os.close(there)
    os.close(back)
    return took


def _sleep_until(at_ns: int) -> None:
    while (left := at_ns - time.monotonic_ns()) > 0:
        time.sleep(left / 1e9)


def _nothing() -> None:
    time.sleep(0.001)


def _writer(path: str, size: int) -> Touch:
    """Writes a chunk of the file, the next one at each call: dirty pages, which must be written back before they can go."""
    file = os.open(path, os.O_RDWR)
    noise, at = os.urandom(CHUNK_BYTES), 0

    def touch() -> None:
        nonlocal at
        os.pwrite(file, noise, at)
        at = (at + CHUNK_BYTES) % size

    return touch


def _again_toucher(size: int) -> Touch:
    """Writes a word into a page, the first time round in order, then into any page: what was swapped out comes back."""
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    noise, pages = os.urandom(PAGE_BYTES), size // PAGE_BYTES
    dice, at = random.Random(1), 0

    def touch() -> None:
        nonlocal at
        if at < pages:
            region[at * PAGE_BYTES : (at + 1) * PAGE_BYTES] = noise
            at += 1
        else:
            region[dice.randrange(pages) * PAGE_BYTES] = 1

    return touch


def _above_toucher(size: int) -> Touch:
    """Touches a fresh page, and gives all back before it begins again."""
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    noise, pages, at = os.urandom(PAGE_BYTES), size // PAGE_BYTES, 0

    def touch() -> None:
        nonlocal at
        region[at * PAGE_BYTES : (at + 1) * PAGE_BYTES] = noise
        at += 1
        if at == pages:
            region.madvise(mmap.MADV_DONTNEED)
            at = 0

    return touch


def _page_reader(path: str, size: int) -> Touch:
    """Reads a page of the file twice, so that it counts as in use; the first time round in order, then any."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    buffer, pages = [bytearray(PAGE_BYTES)], size // PAGE_BYTES
    dice, at = random.Random(1), 0

    def touch() -> None:
        nonlocal at
        page = at if at < pages else dice.randrange(pages)
        at += 1
        for _ in range(2):
            os.preadv(file, buffer, page * PAGE_BYTES)

    return touch
