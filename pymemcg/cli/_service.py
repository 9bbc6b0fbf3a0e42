# SPDX-License-Identifier: Apache-2.0
"""The processes of `demo` and its experiments, a program of its own: `python _service.py PART …`.

It imports nothing of pymemcg, since it lives under a tight limit. All parts wait for a line on stdin, so that they can be
moved into their group before they use memory; without one they end. Times are ns of CLOCK_MONOTONIC.

serve SECONDS DATA LATENCIES: requests, all alike: touch pages of a mapped file (its "database") and of fresh memory. Writes
each one's begin and duration as int64 to LATENCIES.
batch SECONDS DATA: rests a second, then reads through its own part of the file and fills memory for a second, and so on: what
squeezes the page cache that the requests live on. Prints when it worked, begin and end.
read SECONDS DATA: reads the file once, from its beginning to its end, in about so long. Prints begin and end, and ends at the
next line.
allocate BYTES: at each line either takes so much fresh memory, piece by piece, and prints begin, end, the CPU time, and how
long the slowest piece took; or gives back what it had, and prints when.
grow SECONDS BYTES: takes fresh memory, piece by piece, until it has so much or is killed. Prints the time after each piece.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import time
from array import array
from contextlib import suppress

PAGE = mmap.PAGESIZE
HOT_BYTES = 20 << 20  # of the file, that requests use
HOT_PAGES, FRESH_BYTES = 24, 256 << 10  # a request
PAUSE_S = 0.001
BATCH_REST_S, BATCH_WORK_S = 1.0, 1.0
BATCH_STEP, BATCH_BYTES = 1 << 20, 14 << 20
READ_BYTES = 256 << 10
PIECE = 1 << 20  # of fresh memory


def now_ns() -> int:
    """The time as pymemcg's rows have it."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def serve(seconds: float, data: mmap.mmap, latencies: str) -> None:
    """Answer requests."""
    pages = range(0, HOT_BYTES, PAGE)
    for at in pages:  # the first touch of each is no request's fault
        data[at]
    done, seed = array("q"), random.Random(1)  # noqa: S311 - no secret
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begun = now_ns()
        for at in seed.sample(pages, HOT_PAGES):
            data[at]
        with mmap.mmap(-1, FRESH_BYTES) as fresh:
            for at in range(0, FRESH_BYTES, PAGE):
                fresh[at] = 1
        done.extend((begun, now_ns() - begun))
        time.sleep(PAUSE_S)
    with open(latencies, "wb") as file:
        done.tofile(file)


def batch(seconds: float, file: int, size: int) -> None:
    """Work now and then."""
    end = time.monotonic() + seconds
    at = HOT_BYTES
    while time.monotonic() + BATCH_REST_S < end:
        time.sleep(BATCH_REST_S)
        until, begun = min(time.monotonic() + BATCH_WORK_S, end), now_ns()
        filled: list[bytearray] = []
        while time.monotonic() < until:
            os.pread(file, BATCH_STEP, at)
            at = at + BATCH_STEP if at + 2 * BATCH_STEP <= size else HOT_BYTES
            if len(filled) * BATCH_STEP < BATCH_BYTES:
                filled.append(bytearray(b"\1") * BATCH_STEP)
            time.sleep(0.002)
        os.posix_fadvise(file, HOT_BYTES, 0, os.POSIX_FADV_DONTNEED)  # so that rest is rest, without hits
        print(begun, now_ns(), flush=True)


def read(seconds: float, file: int, size: int) -> None:
    """Read a file at an even pace, into the same few pages.

    Its cache is in small pages, as most file systems have it: newer kernels' large ones are freed hundreds at once.
    """
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    pages = memoryview(bytearray(READ_BYTES))
    begun = now_ns()
    for at in range(0, size, READ_BYTES):
        os.preadv(file, [pages], at)
        time.sleep(max(0.0, seconds * (at + READ_BYTES) / size - (now_ns() - begun) / 1e9))
    print(begun, now_ns(), flush=True)
    sys.stdin.readline()


def fresh_memory(count: int) -> mmap.mmap:
    """Anonymous memory, in small pages: for huge ones it would wait for compaction, too."""
    fresh = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # a shared mapping is a file in a tmpfs
    with suppress(OSError):  # a kernel without huge pages
        fresh.madvise(mmap.MADV_NOHUGEPAGE)
    return fresh


def allocate(count: int) -> None:
    """Take memory, give it back, take it, and so on."""
    piece = b"\1" * PIECE
    while True:
        begun, worked, slowest = now_ns(), time.thread_time_ns(), 0
        with fresh_memory(count) as fresh:
            for at in range(0, count, PIECE):
                since = now_ns()
                fresh[at : at + PIECE] = piece
                slowest = max(slowest, now_ns() - since)
            print(begun, now_ns(), time.thread_time_ns() - worked, slowest, flush=True)
            if not sys.stdin.readline():
                return
        print(now_ns(), flush=True)
        if not sys.stdin.readline():
            return


def grow(seconds: float, count: int) -> None:
    """Take ever more. Whoever is short of memory meanwhile, this process is the one to kill."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    piece, held = b"\1" * PIECE, []
    for _ in range(0, count, PIECE):
        held.append(fresh_memory(PIECE))
        held[-1][:] = piece
        print(now_ns(), flush=True)
        time.sleep(seconds * PIECE / count)


def main() -> None:
    """Do one of them."""
    part, words = sys.argv[1], sys.argv[2:]
    if not sys.stdin.readline():  # whoever started it is gone, and may not have put it into its group
        return
    if part == "allocate":
        allocate(int(words[0]))
        return
    if part == "grow":
        grow(float(words[0]), int(words[1]))
        return
    file = os.open(words[1], os.O_RDONLY)
    size = os.fstat(file).st_size
    if part == "serve":
        with mmap.mmap(file, size, prot=mmap.PROT_READ) as data:
            data.madvise(mmap.MADV_RANDOM)
            serve(float(words[0]), data, words[2])
    else:
        {"batch": batch, "read": read}[part](float(words[0]), file, size)


if __name__ == "__main__":
    main()
