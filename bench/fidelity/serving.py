# SPDX-License-Identifier: Apache-2.0
"""A service whose requests are spans; the functions run in a worker, after `work.prepare` and `work.sample`."""

from __future__ import annotations

import ctypes
import random
import threading
import time
from typing import Any

from bench.fidelity.work import Touch, prepared

_ALLOCATING = 0.3
_CHUNKS = 48
_COMPUTED_BYTES = 1 << 20


def serve(*, begin_ns: int, end_ns: int) -> list[list[int]]:
    """Answer requests in a thread for each toucher: three of ten touch fresh memory, all compute a little.

    Returns:
        [tid, ref, start, end] of each.
    """
    noted: list[list[int]] = []
    touchers, sampler = prepared("touchers"), prepared("sampler")
    threads = [
        threading.Thread(target=_answer, args=(number, touch, sampler, noted), kwargs={"begin_ns": begin_ns, "end_ns": end_ns})
        for number, touch in enumerate(touchers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return noted


def _answer(number: int, touch: Touch, sampler: Any, noted: list[list[int]], *, begin_ns: int, end_ns: int) -> None:
    dice, tid, ref = random.Random(number), threading.get_native_id(), number << 32
    buffer = ctypes.create_string_buffer(_COMPUTED_BYTES)
    time.sleep(max(0, begin_ns - time.monotonic_ns()) / 1e9)
    while (now := time.monotonic_ns()) < end_ns:
        chunks = round(_CHUNKS ** dice.random()) if dice.random() < _ALLOCATING else 0
        ref += 1
        with sampler.span("allocating" if chunks else "computing", ref=ref):
            for _ in range(chunks):
                touch()
            for _ in range(dice.randrange(4, 16)):
                ctypes.memset(buffer, 1, len(buffer))
        noted.append([tid, ref, now, time.monotonic_ns()])
        time.sleep(dice.uniform(0.002, 0.03))


def hits(*, until_ns: int, patience_s: float) -> list[list[int | None]]:
    """[ref, own_ns, lost_ns] of all hits so far, once they are final or patience ends."""
    sampler, deadline = prepared("sampler"), time.monotonic() + patience_s
    found = sampler.hits()
    while found.final_until_ns < until_ns and time.monotonic() < deadline:
        time.sleep(0.25)
        found = sampler.hits()
    return [[hit.ref, hit.own_ns, getattr(hit, "lost_ns", None)] for hit in found]
