# SPDX-License-Identifier: Apache-2.0
"""The small service of `demo`, a program of its own: `python _service.py serve|batch SECONDS DATA [LATENCIES]`.

It imports nothing of pymemcg, since it lives under a tight limit. Both parts wait for a line on stdin, so that they can be
moved into their group before they use memory.

serve: requests, all alike: touch pages of a mapped file (its "database") and of fresh memory. Writes each one's begin and
duration as int64 ns (CLOCK_MONOTONIC) to LATENCIES.
batch: rests a second, then reads through its own part of the file and fills memory for a second, and so on: what squeezes
the page cache that the requests live on. Prints when it worked, begin and end in ns.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import time
from array import array

PAGE = mmap.PAGESIZE
HOT_BYTES = 20 << 20  # of the file, that requests use
HOT_PAGES, FRESH_BYTES = 24, 256 << 10  # a request
PAUSE_S = 0.001
BATCH_REST_S, BATCH_WORK_S = 1.0, 1.0
BATCH_STEP, BATCH_BYTES = 1 << 20, 14 << 20


def serve(seconds: float, data: mmap.mmap, latencies: str) -> None:
    """Answer requests."""
    pages = range(0, HOT_BYTES, PAGE)
    for at in pages:  # the first touch of each is no request's fault
        data[at]
    done, clock, seed = array("q"), time.CLOCK_MONOTONIC, random.Random(1)  # noqa: S311 - no secret
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.clock_gettime_ns(clock)
        for at in seed.sample(pages, HOT_PAGES):
            data[at]
        with mmap.mmap(-1, FRESH_BYTES) as fresh:
            for at in range(0, FRESH_BYTES, PAGE):
                fresh[at] = 1
        done.extend((begun, time.clock_gettime_ns(clock) - begun))
        time.sleep(PAUSE_S)
    with open(latencies, "wb") as file:
        done.tofile(file)


def batch(seconds: float, file: int, size: int) -> None:
    """Work now and then."""
    end = time.monotonic() + seconds
    at = HOT_BYTES
    while time.monotonic() + BATCH_REST_S < end:
        time.sleep(BATCH_REST_S)
        until, begun = min(time.monotonic() + BATCH_WORK_S, end), time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        filled: list[bytearray] = []
        while time.monotonic() < until:
            os.pread(file, BATCH_STEP, at)
            at = at + BATCH_STEP if at + 2 * BATCH_STEP <= size else HOT_BYTES
            if len(filled) * BATCH_STEP < BATCH_BYTES:
                filled.append(bytearray(b"\1") * BATCH_STEP)
            time.sleep(0.002)
        os.posix_fadvise(file, HOT_BYTES, 0, os.POSIX_FADV_DONTNEED)  # so that rest is rest, without hits
        print(begun, time.clock_gettime_ns(time.CLOCK_MONOTONIC), flush=True)


def main() -> None:
    """Do one of the two."""
    part, seconds, path = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    if not sys.stdin.readline():  # whoever started it is gone, and may not have put it into its group
        return
    file = os.open(path, os.O_RDONLY)
    size = os.fstat(file).st_size
    if part == "serve":
        with mmap.mmap(file, size, prot=mmap.PROT_READ) as data:
            data.madvise(mmap.MADV_RANDOM)
            serve(seconds, data, sys.argv[4])
    else:
        batch(seconds, file, size)


if __name__ == "__main__":
    main()
