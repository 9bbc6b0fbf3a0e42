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
_SETTLE_S = 0.25
"""Requests before those that count: by then a sampler knows how busy its group is."""
_CHUNK_BYTES = 256 << 10


def serve(*, seconds: float, sampled: bool, period_s: float = 0.0) -> dict[str, Any]:
    """Answer requests, each of which touches fresh pages and computes with them.

    Args:
        seconds: How long.
        sampled: With a default sampler in this process.
        period_s: Between the beginnings of requests; 0 = one after the other.

    Returns:
        took_ns: every request; cpu_ratio: of a core, the sampler's threads of this process; rate: its ticks a second.
    """
    result: dict[str, Any] = {}
    if not sampled:
        _answer(_SETTLE_S, period_s)
        return {"took_ns": _answer(seconds, period_s)}
    with Sampler() as sampler:
        _answer(_SETTLE_S, period_s)
        before, cpu_ns, begun = sampler.usage.head, threads_cpu_ns(), time.monotonic_ns()
        result["took_ns"] = _answer(seconds, period_s)
        elapsed_ns = time.monotonic_ns() - begun
        result["cpu_ratio"] = (threads_cpu_ns() - cpu_ns) / elapsed_ns
        result["rate"] = (sampler.usage.head - before) / elapsed_ns * 1e9
        result["role"] = sampler.role
    return result


def _answer(seconds: float, period_s: float) -> list[int]:
    """Time every request."""
    region = mmap.mmap(-1, _REQUEST_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values = np.frombuffer(region, dtype=np.float64)
    took = []
    due = begun = time.monotonic()
    while due < begun + seconds:
        if period_s > 0:
            time.sleep(max(0.0, due - time.monotonic()))
        started = time.perf_counter_ns()
        region.madvise(mmap.MADV_DONTNEED)
        values[:] = 1.0
        np.add.accumulate(values, out=values)
        took.append(time.perf_counter_ns() - started)
        now = time.monotonic()
        due = max(due + period_s, now)
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
