# SPDX-License-Identifier: Apache-2.0
"""What the services of test_services.py do, asgi_service.py and wsgi_service.py: some of their requests touch memory.

A request that touches memory writes fresh pages, round and round in a mapping that is too large for the service's group. Each
answer says who gave it and when, so that the test can tell from tracepoints what reclaim did to it.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import logging
import mmap
import os
import sys
import threading
import time
from typing import Any

import numpy  # noqa: F401, ICN001 - as many services do, and a server that preloads shares it among its workers

import pymemcg

CHUNK = 64 << 10
OPTIONS: dict[str, Any] | None = json.loads(os.environ["SERVICE_OPTIONS"])
"""Of the middleware; None = there is to be none."""


class Told(logging.Handler):
    """Writes each hit as a line of JSON, its message with it, for the test to read."""

    def emit(self, record: logging.LogRecord) -> None:
        hit = record.hit.to_dict()  # type: ignore[attr-defined]
        sys.stderr.write(f"HIT {json.dumps(hit | {'line': record.getMessage(), 'pid': os.getpid()})}\n")


logging.getLogger("pymemcg.hits").addHandler(Told())


class Memory:
    """A mapping that is written round and round, from any thread."""

    def __init__(self, size: int) -> None:
        self._region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._region))
        self._noise = os.urandom(CHUNK)  # or zram would store a page as one word
        self._chunks = itertools.cycle(range(size // CHUNK))

    def touch(self, size: int) -> None:
        for _ in range(size // CHUNK):
            at = next(self._chunks) * CHUNK
            self._region.madvise(mmap.MADV_DONTNEED, at, CHUNK)  # what was here is forgotten, not swapped in
            ctypes.memmove(self._base + at, self._noise, CHUNK)  # releases the GIL


_made = threading.Lock()
_memory: list[Memory] = []


def touch(kib: int) -> dict[str, int]:
    """Write so much; the first request of a process fills the whole mapping."""
    with _made:
        if not _memory:
            size = int(os.environ["SERVICE_BYTES"])
            memory = Memory(size)
            memory.touch(size)
            _memory.append(memory)
    start_ns, waited_ns = time.monotonic_ns(), cpu_wait_ns()
    _memory[0].touch(kib << 10)
    return answer(start_ns, waited_ns)


def answer(start_ns: int, waited_ns: int) -> dict[str, int]:
    """Who, when, and for how long of that the thread only waited for a CPU."""
    end_ns, waited_ns = time.monotonic_ns(), cpu_wait_ns() - waited_ns
    tid = threading.get_native_id()
    return {"pid": os.getpid(), "tid": tid, "start_ns": start_ns, "end_ns": end_ns, "waited_ns": waited_ns}


def cpu_wait_ns() -> int:
    """Of this thread, since it is there."""
    with open(f"/proc/self/task/{threading.get_native_id()}/schedstat") as file:
        return int(file.read().split()[1])


def told(sampler: pymemcg.Sampler) -> dict[str, Any]:
    return {"pid": os.getpid(), "role": sampler.role, "evidence": getattr(sampler, "evidence", None)}
