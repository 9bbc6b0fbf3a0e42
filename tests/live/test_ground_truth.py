# SPDX-License-Identifier: Apache-2.0
"""A second of truth about a real load: that bench/fidelity measures, and cleans up after itself."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.fidelity import keeping, running, truth
from bench.fidelity.workloads import WORKLOADS
from pymemcg import resolve
from pymemcg.bench.swap import ZramSwap
from pymemcg.bench.tracefs import TRACEFS
from pymemcg.child import ChildGroup
from pymemcg.errors import MemcgError

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("importable_bench", "own_groups", "tracing", "zram")]


def left_behind() -> list[str]:
    instances = [str(path) for path in Path(TRACEFS, "instances").glob(f"pymemcg-{os.getpid()}*")]
    return instances + [str(path) for path in Path(resolve().directory).glob(f"pymemcg-{os.getpid()}-*")]


def workload(name):
    return next(each for each in WORKLOADS if each.name == name)


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_truth_of_bursts(tmp_path, inside):
    before = left_behind()
    with ZramSwap(256 << 20):
        environment = running.Environment(2, inside)
        run = running.run(workload("bursts"), environment, 1, str(tmp_path / "run.memcg"))
    intervals = run.truth.intervals
    assert {each.kind for each in intervals} >= {"memcg"}
    assert all(run.truth.since_ns <= each.start_ns < each.end_ns <= run.truth.until_ns for each in intervals)
    assert any(each.pages > 0 for each in intervals)
    found = truth.episodes(truth.of_intervals(run.truth))
    assert any(each.counts for each in found)
    assert all(each.longest_ns <= each.stall_ns <= each.end_ns - each.start_ns for each in found)
    # What the sampler saw of it: the limit was hit, from the first stall on.
    assert running.rises(run.recording)[-1] >= found[0].start_ns
    keeping.keep(workload("bursts"), environment, run)
    kept_workload, kept_environment, kept = next(keeping.kept(str(tmp_path)))
    assert (kept_workload, kept_environment) == (workload("bursts"), environment)
    assert (kept.truth, kept.touches, kept.evidence) == (run.truth, run.touches, run.evidence)
    assert left_behind() == before


def test_truth_of_touches(tmp_path):
    for seconds in (1, 5, 25):  # until a slow machine has come to the limit
        with ZramSwap(256 << 20):
            run = running.run(workload("thrash"), running.Environment(1, inside=False), seconds, str(tmp_path / "run.memcg"))
        assert run.touches
        assert all(run.begin_ns <= start < end for _tid, start, end in run.touches)
        tids = {tid for tid, _start, _end in run.touches}
        reclaims = [each for each in run.truth.intervals if each.tid in tids and each.start_ns >= run.begin_ns]
        if reclaims:
            break
    assert reclaims
    # Each reclaim of the thread that touched lies within a touch.
    covered = truth.union((start, end) for _tid, start, end in run.touches)
    inside = [truth.overlap(covered, each.start_ns, each.end_ns) == each.end_ns - each.start_ns for each in reclaims]
    assert sum(inside) >= 0.9 * len(inside)


def test_waiting_for_a_cpu_is_seen():
    with truth.tracing(2) as trace, ChildGroup("cpu") as group:
        worker = running.Worker(group)
        try:
            trace.start([worker.pid])
            begin_ns = time.monotonic_ns()
            for _ in range(2):
                worker.call("bench.fidelity.work.prepare", kind="none", size=0, threads=8)
                end_ns = time.monotonic_ns() + 200_000_000
                worker.call("bench.fidelity.work.run", begin_ns=begin_ns, end_ns=end_ns, turns=[[]], spinners=8)
            found = truth.read(trace.records())
        finally:
            worker.close()
    # Eight threads that compute on fewer CPUs: most of the time each of them waits.
    assert sum(end - start for spans in found.waits.values() for start, end in spans) > 200_000_000


def test_a_run_that_fails_leaves_nothing(tmp_path):
    before = left_behind()
    broken = replace(workload("bursts"), kind="no such kind")
    with pytest.raises(MemcgError, match="no such kind"), ZramSwap(256 << 20):
        running.run(broken, running.Environment(1, inside=True), 1, str(tmp_path / "run.memcg"))
    assert left_behind() == before
