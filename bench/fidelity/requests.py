# SPDX-License-Identifier: Apache-2.0
"""Spans of a service at its limit beside the true reclaim time of its requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench.fidelity import truth
from bench.fidelity.truth import LEAST_NS, Truth
from bench.fidelity.workloads import LIMIT_BYTES, PROCESS_BYTES
from pymemcg.bench.worker import Worker
from pymemcg.child import ChildGroup
from pymemcg.errors import MemcgError

THREADS = (1, 4)
EVIDENCE = ("trace", "psi", "counters")
BY_TICK = ("psi", "counters")
"""What the length of ticks decides: a second time where the sampler never yields."""
PROMISED_F1, PROMISED_RATIO = 0.9, 0.01
_SETTLE_S = 1.0
_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the service itself noted it."""

    tid: int
    ref: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Hit:
    """What the sampler says of one: None = it does not know."""

    ref: int
    own_ns: int | None
    lost_ns: int | None


@dataclass(slots=True)
class Found:
    """How well requests were told.

    Attributes:
        requests: How many there were.
        true: … of which truly lost a millisecond or more.
        named: … of which were said to have.
        right: Both.
        true_ns: What all of them truly lost; beside evidence that tells the thread's own time in reclaim, that, with the time
            for which it waited for a CPU meanwhile.
        said_ns: What was said of it.
        close: Of those that truly lost a millisecond, of how many that was told within 1 %.
    """

    requests: int = 0
    true: int = 0
    named: int = 0
    right: int = 0
    true_ns: int = 0
    said_ns: int = 0
    close: int = 0

    @property
    def f1(self) -> float | None:
        """None where there was nothing to find and nothing was named."""
        return 2 * self.right / (self.true + self.named) if self.true + self.named else None

    def row(self, what: str, evidence: str) -> list[str]:
        """Of the table."""
        ratio = self.said_ns / self.true_ns if self.true_ns else None
        exact = evidence == "trace"
        f1 = "–" if self.f1 is None else f"{self.f1:.3f}"
        said = "–" if ratio is None or not self.said_ns else f"{ratio:.3f}"
        close = f"{self.close} of {self.true}"
        if self.f1 is not None and self.f1 < PROMISED_F1:
            f1 = f"**{f1}**"
        if exact and ratio is not None and abs(ratio - 1) > PROMISED_RATIO:
            said = f"**{said}**"
        if exact and self.close < self.true:
            close = f"**{close}**"
        return [what, f"`{evidence}`", f"{self.true} of {self.requests}", str(self.named), f1, said, close if exact else "–"]


def score_requests(requests: list[Request], hits: list[Hit], found: Truth) -> Found:
    """Compare. What a request truly lost is the time for which its own thread was held in reclaim meanwhile."""
    held, spent = _by_thread(found)
    said = {hit.ref: hit for hit in hits}
    result = Found(requests=len(requests))
    for request in requests:
        lost_ns = truth.overlap(held.get(request.tid, ()), request.start_ns, request.end_ns)
        hit = said.get(request.ref, Hit(request.ref, None, 0))
        named = hit.lost_ns is None or hit.lost_ns >= LEAST_NS  # None: it was hit, and nobody knows for how long
        result.true += lost_ns >= LEAST_NS
        result.named += named
        result.right += named and lost_ns >= LEAST_NS
        if hit.own_ns is None:
            true_ns, said_ns = lost_ns, hit.lost_ns or 0
        else:
            true_ns, said_ns = truth.overlap(spent.get(request.tid, ()), request.start_ns, request.end_ns), hit.own_ns
        result.true_ns += true_ns
        result.said_ns += said_ns
        result.close += lost_ns >= LEAST_NS and abs(said_ns - true_ns) <= PROMISED_RATIO * true_ns
    return result


def _by_thread(found: Truth) -> tuple[dict[int, list[truth.Span]], dict[int, list[truth.Span]]]:
    """When each thread was held by reclaim, and when it was in reclaim, waiting for a CPU or not."""
    held: dict[int, list[truth.Span]] = {}
    spent: dict[int, list[truth.Span]] = {}
    for moment in truth.of_intervals(found):
        held.setdefault(moment.tid, []).extend(moment.pieces)
        spent.setdefault(moment.tid, []).append((moment.start_ns, moment.end_ns))
    return {tid: truth.union(each) for tid, each in held.items()}, {tid: truth.union(each) for tid, each in spent.items()}


def measure(seconds: float, progress: Callable[[str], None]) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Rows of the table, and what they are made of. What cannot be measured is a row too."""
    rows, raw = [], []
    for threads in THREADS:
        for evidence, adaptive in (*((each, True) for each in EVIDENCE), *((each, False) for each in BY_TICK)):
            what = f"one after the other in {threads} thread{'s' if threads > 1 else ''}"
            what += "" if adaptive else ", ticks always at 1 kHz"
            progress(f"requests {what}, {evidence}")
            try:
                requests, hits, found = run(threads, evidence, seconds, adaptive=adaptive)
            except MemcgError as error:
                rows.append([what, f"`{evidence}`", f"failed: {error}", *["–"] * 4])
                continue
            result = score_requests(requests, hits, found)
            rows.append(result.row(what, evidence))
            scores = {name: getattr(result, name) for name in Found.__slots__}
            raw.append({"threads": threads, "evidence": evidence, "adaptive": adaptive, "found": list(scores.values())})
    return rows, raw


def run(threads: int, evidence: str, seconds: float, *, adaptive: bool = True) -> tuple[list[Request], list[Hit], Truth]:
    """Serve, sampled from inside.

    Raises:
        MemcgError: It cannot be run here, or the truth is not whole.
    """
    with ExitStack() as stack:
        trace = stack.enter_context(truth.tracing(seconds + 4))
        limit_bytes = LIMIT_BYTES + PROCESS_BYTES
        group = stack.enter_context(ChildGroup("requests", limit_bytes=limit_bytes))
        worker = stack.enter_context(Worker(group))
        worker.call("bench.fidelity.work.prepare", kind="anon", size=2 * limit_bytes, threads=threads)
        worker.call("bench.fidelity.work.sample", evidence=evidence, adaptive=adaptive)
        time.sleep(_SETTLE_S)
        trace.start([worker.pid])
        begin_ns = time.monotonic_ns() + 300_000_000
        end_ns = begin_ns + round(seconds * 1e9)
        served = worker.call("bench.fidelity.serving.serve", begin_ns=begin_ns, end_ns=end_ns)
        found, lost = truth.read(trace.records()), trace.lost()
        told = worker.call("bench.fidelity.serving.hits", until_ns=time.monotonic_ns(), patience_s=_PATIENCE_S)
    if lost:
        raise MemcgError(f"the trace lost {lost} events: its buffer is too small for this machine")
    return [Request(*each) for each in served], [Hit(*each) for each in told], found
