# SPDX-License-Identifier: Apache-2.0
"""Evidence `trace` on real reclaim: against a private tracefs instance, and without what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict

import facts
import pytest

from bench.fidelity import running
from bench.fidelity.workloads import WORKLOADS
from pymemcg import Sampler, tracepoints
from pymemcg._ffi import NONE
from pymemcg.bench.swap import ZramSwap
from pymemcg.errors import NotSupported

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("importable_bench")]


def by_thread(intervals):
    found = defaultdict(list)
    for tid, start_ns, end_ns in intervals:
        found[tid].append((start_ns, end_ns))
    return {tid: sorted(pairs) for tid, pairs in found.items()}


@pytest.mark.parametrize(("name", "inside"), [("bursts", True), ("threads", False), ("fork storm", False)])
@pytest.mark.usefixtures("own_groups", "tracing", "zram")
def test_every_interval_is_found(tmp_path, name, inside):
    workload = next(each for each in WORKLOADS if each.name == name)
    with ZramSwap(512 << 20):
        run = running.run(workload, running.Environment(1, inside), 2, str(tmp_path / "run.memcg"))
    assert run.evidence["trace"] is None
    rows = run.recording.reclaim.window()
    ours = by_thread(zip(*(rows[column].tolist() for column in ("tid", "start_ns", "end_ns")), strict=True))
    true = by_thread((each.tid, each.start_ns, each.end_ns) for each in run.truth.intervals)
    missing = sum(len(pairs) - len(ours.get(tid, [])) for tid, pairs in true.items())
    assert missing <= run.stats["trace_unattributed"], "none is lost in silence"
    for tid, pairs in true.items():
        if len(ours.get(tid, [])) == len(pairs):  # by thread and order; each is the one that overlaps
            assert all(a[0] < b[1] and b[0] < a[1] for a, b in zip(ours[tid], pairs, strict=True))
    within = [
        pair for pairs in ours.values() for pair in pairs if run.truth.since_ns <= pair[0] and pair[1] <= run.truth.until_ns
    ]
    assert len(within) <= sum(map(len, true.values())), "none is invented"
    waits = rows["cpu_wait_ns"]
    known = waits != NONE
    assert (waits[known] <= (rows["end_ns"] - rows["start_ns"])[known]).all()
    assert run.stats["trace_lost"] == 0
    assert run.stats["trace_events"] >= 2 * len(rows)


@pytest.mark.kernel
@pytest.mark.usefixtures("own_groups", "tracing")
def test_reclaim_of_others_is_left_out(make_group, make_actor, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"")
    os.truncate(path, 64 << 20)
    ours, others = make_group("ours", limit_bytes=64 << 20), make_group("others", limit_bytes=24 << 20)
    make_actor(ours)
    program = "import shutil, sys; sys.stdin.readline(); [shutil.copyfile(sys.argv[1], '/dev/null') for _ in range(5)]"
    busy = subprocess.Popen([sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE)
    others.add(busy.pid)
    with Sampler(ours.spec, evidence="trace") as sampler:
        busy.communicate(b"\n", timeout=facts.PATIENCE_S)
        assert busy.returncode == 0
        events = sampler.stats()["trace_events"]
    assert sampler.reclaim.head == 0
    assert events > 0, "the other group's reclaim was seen, and its threads known as others'"


def test_denied_is_a_normal_case():
    """As nobody, with ids of tracepoints handed in: everything works but trace, and a named one is an error that helps."""
    ids = ",".join(f"{name}={number}" for number, name in enumerate(tracepoints.NAMES, 1))
    program = (
        "import os, logging\n"
        "from pymemcg import Sampler\n"
        "from pymemcg.errors import NotSupported\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"  # the interpreter's own folders may be root's alone
        "with Sampler() as sampler:\n"
        "    print(sampler.evidence['trace'])\n"
        "    assert bool(sampler.reclaim.names) == (sampler.evidence['wchan'] is None)\n"  # its rows would be there, too
        "    assert sampler.usage.head > 0\n"
        "try:\n"
        "    Sampler(evidence='trace').start()\n"
        "except NotSupported as error:\n"
        "    print(error)\n"
    )
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody who is not")
    if not os.path.exists("/proc/sys/kernel/perf_event_paranoid"):
        pytest.skip("this kernel has no perf events that could be denied")
    env = os.environ | {tracepoints.EVENT_IDS_VARIABLE: ids}
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "CAP_PERFMON" in first
    assert "CAP_PERFMON" in second
    assert done.stderr == ""


@pytest.mark.kernel
@pytest.mark.usefixtures("tracing")
def test_ids_can_be_handed_in():
    with Sampler(evidence="trace", event_ids=tracepoints.event_ids()) as sampler:
        assert sampler.evidence["trace"] is None
        assert sampler.stats()["trace_ns"] > 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mm_vmscan_memcg_reclaim_begin=1", "mm_vmscan_memcg_reclaim_end is missing"),
        ("mm_vmscan_memcg_reclaim_begin=x,mm_vmscan_memcg_reclaim_end=2", "NAME=ID"),
        ("sched_switch=5", "none of the tracepoints"),
        ("mm_vmscan_memcg_reclaim_begin=70000,mm_vmscan_memcg_reclaim_end=2", "expected 1 to 65535"),
    ],
)
def test_wrong_ids(text, says):
    with pytest.raises(NotSupported, match=says):
        tracepoints.parse_event_ids(text)


@pytest.mark.parametrize("evidence", ["perf", "", "PSI"])
def test_unknown_evidence(evidence):
    with pytest.raises(ValueError, match="expected one of auto, trace, psi, counters"):
        Sampler(evidence=evidence)
