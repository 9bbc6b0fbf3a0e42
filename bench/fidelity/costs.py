# SPDX-License-Identifier: Apache-2.0
"""What evidence `trace` costs: interleaved pairs of measurements with it and without it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from bench.fidelity import truth
from bench.fidelity.scores import score_intervals
from pymemcg.bench.loads import MIB, make_file
from pymemcg.bench.pairs import Estimate, estimate, interleave
from pymemcg.bench.tracefs import Trace
from pymemcg.bench.worker import Worker
from pymemcg.child import ChildGroup
from pymemcg.sampler import Sampler

_LIMIT_BYTES = 48 * MIB
_TOUCHES = 10_000
_REFUSALS = 10_000
_SWITCHES = 30_000


def measure(pairs: int, progress: Callable[[str], None]) -> tuple[list[list[str]], dict[str, Any]]:
    """Rows of the table, and what they are made of.

    Raises:
        NotSupported: It cannot be measured here.
    """
    progress("costs: an event")
    firing, raw_firing = _firing(pairs)
    progress("costs: a context switch")
    switching, raw_switching = _switching(pairs)
    progress("two truths")
    apart, raw_apart = _apart()
    return [*firing, *switching, *apart], {"firing": raw_firing, "switching": raw_switching, "apart": raw_apart}


def _firing(pairs: int) -> tuple[list[list[str]], dict[str, Any]]:
    """CPU time of a reclaim that finds nothing, so that its two events weigh most; and of the thread that takes them in.

    The first is done by this process: to lower the limit of a group that has nothing to give back is refused after one try.
    """
    with ExitStack() as stack:
        stack.enter_context(_tracefs())
        group = stack.enter_context(ChildGroup("costs", limit_bytes=_LIMIT_BYTES))
        file = stack.enter_context(make_file(_LIMIT_BYTES))
        worker = stack.enter_context(Worker(group))
        worker.call("bench.fidelity.work.prepare", kind="cache", size=2 * _LIMIT_BYTES, path=file.name)
        full = stack.enter_context(ChildGroup("full"))
        stack.enter_context(Worker(full)).call("bench.fidelity.work.hold", size=16 * MIB)
        refused = _refusing(full, stack)

        def once(evidence: str) -> dict[str, float]:
            with Sampler(group.spec, evidence=evidence, adaptive=False) as sampler:
                refusals = refused()
                before = sampler.stats()
                worker.call("bench.fidelity.work.touch", touches=_TOUCHES)
                after = sampler.stats()
            tick = after["tick_cpu_ns"] - before["tick_cpu_ns"]
            return {"fired": refusals, "tick": tick, "events": after["trace_events"] - before["trace_events"]}

        once("trace")
        traced, plain = interleave(lambda: once("trace"), lambda: once("counters"), pairs)
    events = float(np.median([each["events"] for each in traced]))
    fired = [[each["fired"] / 2 for each in side] for side in (traced, plain)]
    ticked = [[each["tick"] / events for each in side] for side in (traced, plain)]
    both = [[one + other for one, other in zip(*sides, strict=True)] for sides in zip(fired, ticked, strict=True)]
    rows = [
        _row("CPU time of a reclaim that finds nothing, per event", fired[0], fired[1], "ns"),
        _row(f"… of the ticking thread, per event (of {events:,.0f} a run)", ticked[0], ticked[1], "ns"),
        _row("… of both", both[0], both[1], "ns", most=1000),
    ]
    return rows, {"traced": traced, "plain": plain}


def _refusing(full: ChildGroup, stack: ExitStack) -> Callable[[], float]:
    """CPU time in ns of a vain reclaim, which fires two events."""
    for name, text in (("memory.swappiness", "0"), ("memory.swap.max", "0")):
        if os.path.exists(f"{full.directory}/{name}"):
            with open(f"{full.directory}/{name}", "w", encoding="ascii") as file:
                file.write(text)
    name, wanted = ("memory.limit_in_bytes", b"4194304")
    if not os.path.exists(f"{full.directory}/{name}"):
        name, wanted = "memory.reclaim", b"4096"
    limit = os.open(f"{full.directory}/{name}", os.O_WRONLY)
    stack.callback(os.close, limit)

    def refused() -> float:
        before = time.thread_time_ns()
        for _ in range(_REFUSALS):
            with contextlib.suppress(OSError):  # as it should be: EBUSY, or EAGAIN
                os.write(limit, wanted)
        return (time.thread_time_ns() - before) / _REFUSALS

    return refused


def _switching(pairs: int) -> tuple[list[list[str]], dict[str, Any]]:
    """Two processes in different groups on one CPU that hand a byte to and fro: each turn is a switch."""
    with ExitStack() as stack:
        stack.enter_context(_tracefs())
        groups = [stack.enter_context(ChildGroup(name, limit_bytes=256 * MIB)) for name in ("ping", "pong")]
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pymemcg-fidelity-"))
        workers = [stack.enter_context(Worker(group)) for group in groups]
        paths = [os.path.join(folder, name) for name in ("there", "back")]
        for path in paths:
            os.mkfifo(path)

        def once(evidence: str) -> float:
            with Sampler(groups[0].spec, evidence=evidence, adaptive=False):
                for first, worker in enumerate(workers):
                    worker.begin("bench.fidelity.work.ping_pong", paths=paths, first=first == 0, turns=_SWITCHES)
                took: list[int] = [worker.end() for worker in workers]
            return sum(took) / (2 * _SWITCHES)

        once("trace")
        traced, plain = interleave(lambda: once("trace"), lambda: once("counters"), pairs)
    row = _row("CPU time of a switch between processes of two groups, pipe and Python included", traced, plain, "ns")
    return [row], {"traced": traced, "plain": plain}


def _apart() -> tuple[list[list[str]], dict[str, Any]]:
    """How far two truths, both by tracefs, are apart: what no evidence can be better than."""
    with ExitStack() as stack:
        traces = [stack.enter_context(Trace(6, truth.EVENTS, name=name)) for name in ("one", "other")]
        group = stack.enter_context(ChildGroup("apart", limit_bytes=_LIMIT_BYTES))
        file = stack.enter_context(make_file(_LIMIT_BYTES))
        worker = stack.enter_context(Worker(group))
        worker.call("bench.fidelity.work.prepare", kind="cache", size=2 * _LIMIT_BYTES, path=file.name)
        for trace in traces:
            trace.start([worker.pid])
        for _ in range(40):
            worker.call("bench.fidelity.work.touch", touches=100, pause_s=0.05)
        found = [truth.read(trace.records()) for trace in traces]
    score = score_intervals(found[0].intervals, found[1].intervals, 0, 2**62)
    rows, raw = [], {"true": score.true, "found": score.found, "invented": score.invented}
    for name, values in (("begin", score.begin_ns), ("end", score.end_ns)):
        middle, far = np.percentile(np.abs(values), (50, 99)) / 1000
        text = f"p50 {middle:.2f} µs, p99 {far:.2f} µs"
        rows.append([f"two tracefs instances, {score.found} of {score.true} intervals: {name} apart", "–", "–", text, "–"])
    return rows, raw


@contextmanager
def _tracefs() -> Iterator[None]:
    """Mounted meanwhile, since the sampler learns events' numbers from it."""
    with Trace(0.1, {}, name="costs"):
        yield


def _row(title: str, traced: list[float], plain: list[float], unit: str, most: float | None = None) -> list[str]:
    difference = estimate([one - other for one, other in zip(traced, plain, strict=True)])
    text = f"{difference.value:+,.0f} {unit}"
    broken = most is not None and difference.value > most
    medians = [f"{np.median(values):,.0f} {unit}" for values in (traced, plain)]
    return [title, *medians, f"**{text}**" if broken else text, _interval(difference, unit)]


def _interval(found: Estimate, unit: str) -> str:
    return f"{found.low:+,.0f}…{found.high:+,.0f} {unit} ({found.pairs} pairs)"
