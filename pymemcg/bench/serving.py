# SPDX-License-Identifier: Apache-2.0
"""A service to be a victim, and company for it. The functions run in a worker."""

from __future__ import annotations

import mmap
import os
import time
from typing import Any

import numpy as np

from pymemcg.bench.ticking import threads_cpu_ns
from pymemcg.sampler import Sampler

_REQUEST_BYTES = 512 << 10
"""Fresh memory that a request touches: with the work on it about 0.3 ms."""
_SETTLE_S = 0.2
"""Requests before those that count: by then a sampler knows how busy its group is."""
_CHUNK_BYTES = 256 << 10


def serve(*, seconds: float, sampled: bool, period_s: float = 0.0, phase: float = 0.0) -> dict[str, Any]:
    """Answer requests, each of which touches fresh pages and computes with them.

    Args:
        seconds: How long.
        sampled: With a default sampler in this process.
        period_s: Between the beginnings of requests; 0 = one after the other.
        phase: Where in a period they begin, 0 to 1, so that the requests of several processes keep out of each other's way.

    Returns:
        took_ns: every request; cpu_ratio: of a core, the sampler's threads of this process; rate: its ticks a second.
    """
    if not sampled:
        _answer(_SETTLE_S, period_s, phase)
        return {"took_ns": _answer(seconds, period_s, phase)}
    with Sampler() as sampler:
        _answer(_SETTLE_S, period_s, phase)
        before, cpu_ns, begun = sampler.usage.head, threads_cpu_ns(), time.monotonic_ns()
        took = _answer(seconds, period_s, phase)
        elapsed_ns = time.monotonic_ns() - begun
        return {
            "took_ns": took,
            "cpu_ratio": (threads_cpu_ns() - cpu_ns) / elapsed_ns,
            "rate": (sampler.usage.head - before) / elapsed_ns * 1e9,
        }


def _answer(seconds: float, period_s: float, phase: float) -> list[int]:
    """Time every request."""
    region = mmap.mmap(-1, _REQUEST_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values = np.frombuffer(region, dtype=np.float64)
    took = []
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        if period_s > 0:
            time.sleep(period_s - (now - phase * period_s) % period_s)
        begun = time.perf_counter_ns()
        region.madvise(mmap.MADV_DONTNEED)
        values[:] = 1.0
        np.add.accumulate(values, out=values)
        took.append(time.perf_counter_ns() - begun)
    return took


def churn(*, path: str, bytes_per_s: int) -> None:
    """Read a file through the page cache at a steady rate, over and over, for good."""
    period_s = _CHUNK_BYTES / bytes_per_s
    buffer = [bytearray(_CHUNK_BYTES)]
    with open(path, "rb", buffering=0) as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        due = time.monotonic()
        while True:
            os.preadv(file.fileno(), buffer, at)
            at = (at + _CHUNK_BYTES) % (size - size % _CHUNK_BYTES)
            due = max(due + period_s, time.monotonic())
            time.sleep(due - time.monotonic() if due > time.monotonic() else 0)
