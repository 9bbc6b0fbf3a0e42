# SPDX-License-Identifier: Apache-2.0
"""From a target to files and tables, on captured kernels and built machines."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from fakecgroup import KERNELS, captured, has_psi, machine_with_self

from pymemcg import NotSupported, resolve, schema, tracepoints
from pymemcg.plan import counts_memsw, make_plan
from pymemcg.ring import create

MIB = 1 << 20
DEFAULTS = {"rate_hz": 1000, "stat_rate_hz": 10, "history_s": 60, "adaptive": True}
MEMSW_COUNTS = counts_memsw(os.uname().release)


def plan_of(root, spec="self", **options):
    return make_plan(resolve(spec, root=str(root)), **DEFAULTS | options)


def tables(plan):
    return {spec.name: spec for spec in plan.channels}


def fed(plan, channel):
    return {column for feed in plan.feeds if feed.channel == channel for column in feed.fields.values()}


class TestDepth:
    """The native side has arrays of that length."""

    @pytest.fixture
    def most(self):
        header = Path(__file__).resolve().parents[2] / "csrc/sampler.h"
        return int(re.search(r"MEMCG_LEVELS = (\d+)", header.read_text())[1])

    def test_so_many_levels_are_sampled(self, most, tmp_path):
        machine = machine_with_self(tmp_path, "v1", group="/g" * (most - 1))
        assert len(plan_of(machine.root).target.levels) == most

    def test_more_are_refused_by_name(self, most, tmp_path):
        machine = machine_with_self(tmp_path, "v1", group="/g" * most)
        with pytest.raises(NotSupported, match=rf"{'/g' * most}: is {most} levels below.*at most {most}"):
            plan_of(machine.root)


@pytest.mark.parametrize("kernel", KERNELS)
class TestCapturedKernels:
    def test_every_file_of_the_group_becomes_columns(self, kernel, tmp_path):
        plan = plan_of(captured(kernel, tmp_path)[0])
        v1 = {"limit_hits", "memsw_hits", "oom_kills"} if MEMSW_COUNTS else {"limit_hits", "oom_kills"}
        usage = v1 if plan.target.version == 1 else {"limit_hits", "high_hits", "oom_kills"}
        assert set(tables(plan)["usage"].columns) == usage | {"t_ns", "late_ns", "usage_bytes", "rss_bytes", "shared_bytes"}
        assert {"anon", "file", "inactive_file", "pgfault"} <= set(tables(plan)["stat"].columns)
        assert set(tables(plan)["pressure"].columns if has_psi(kernel) else schema.PRESSURE_UNITS) == set(schema.PRESSURE_UNITS)
        assert ("pressure" in tables(plan)) == has_psi(kernel)
        assert {"pswpin", "pswpout"} <= set(tables(plan)["node"].columns)
        assert {"processes", "clock", "events"} <= set(tables(plan))

    def test_a_column_is_fed_or_the_samplers_own(self, kernel, tmp_path):
        plan = plan_of(captured(kernel, tmp_path)[0])
        own = {"usage": {"t_ns", "late_ns"}, "stat": {"t_ns"}, "node": {"t_ns"}, "pressure": {"t_ns", "since_ns", "cpu_us"}}
        for channel, columns in own.items():
            if channel == "pressure" and not has_psi(kernel):
                continue
            assert fed(plan, channel) | columns == set(tables(plan)[channel].columns)

    def test_evidence_is_said(self, kernel, tmp_path, monkeypatch):
        root = captured(kernel, tmp_path)[0]
        plan = plan_of(root, evidence="counters")
        assert plan.evidence["trace"] == plan.evidence["wchan"] == "evidence 'counters' was asked for"
        assert "reclaim" not in tables(plan)
        monkeypatch.setenv(tracepoints.EVENT_IDS_VARIABLE, "")  # none that could be opened
        plan = plan_of(root)
        assert (plan.evidence["psi"] is None) == has_psi(kernel)
        assert plan.evidence["counters"] is None
        assert "is missing" in plan.evidence["trace"]
        assert (plan.evidence["wchan"] is None) == (plan.target.version == 2)
        assert ("reclaim" in tables(plan)) == (plan.target.version == 2)
        assert plan.info()["evidence"] == plan.evidence

    def test_every_column_has_the_schemas_unit(self, kernel, tmp_path):
        for spec in plan_of(captured(kernel, tmp_path)[0]).channels:
            for name, unit in spec.columns.items():
                assert unit == schema.unit_of(name)

    def test_only_what_the_version_lacks_is_absent(self, kernel, tmp_path):
        plan = plan_of(captured(kernel, tmp_path)[0])
        v1 = {"high"} if MEMSW_COUNTS else {"high", "memsw_hits"}
        lacking = v1 if plan.target.version == 1 else {"memsw_limit", "memsw_hits"}
        lacking = lacking if has_psi(kernel) else lacking | {"pressure"}
        assert set(plan.absent) - {"reclaim"} == lacking  # whether `reclaim` is there is up to the machine that runs this
        assert all(plan.absent.values())

    def test_a_ring_of_the_defaults_costs_the_service_at_most_8_mib(self, kernel, tmp_path):
        plan = plan_of(captured(kernel, tmp_path)[0])
        fd = os.memfd_create("pymemcg-test")
        create(fd, plan.channels, plan.info(), align=os.sysconf("SC_PAGESIZE"), reserve=True)
        size = os.fstat(fd).st_size
        os.close(fd)
        assert size <= 8 * MIB

    def test_what_a_ring_says_of_itself_is_json(self, kernel, tmp_path):
        info = json.loads(json.dumps(plan_of(captured(kernel, tmp_path)[0]).info()))
        assert info["kernel"] == os.uname().release
        assert info["target"]["spec"] == "self"


@pytest.mark.parametrize(
    ("rate_hz", "stat_rate_hz", "history_s"), [(1000, 10, 60), (20000, 100, 1), (0.5, 0.1, 3600), (10, 10, 0.01)]
)
def test_rings_hold_the_history_beside_what_a_window_leaves_to_the_writer(rate_hz, stat_rate_hz, history_s, tmp_path):
    machine = machine_with_self(tmp_path, "v2")
    plan = plan_of(machine.root, rate_hz=rate_hz, stat_rate_hz=stat_rate_hz, history_s=history_s)
    for name, rate in (("usage", rate_hz), ("stat", stat_rate_hz)):
        rows = tables(plan)[name].rows
        assert rows - rows // 16 >= rate * history_s
        assert tables(plan)[name].period_ns == round(1e9 / rate)


class TestWhoseMemory:
    def test_statm_is_of_this_process_and_belongs_to_self_alone(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        assert fed(plan_of(machine.root), "usage") >= {"rss_bytes", "shared_bytes"}
        for spec in ("pid:100", "cgroup:/web"):
            assert fed(plan_of(machine.root, spec), "usage").isdisjoint({"rss_bytes", "shared_bytes"})

    @pytest.mark.parametrize("layout", ["v1", "v2", "hybrid"])
    def test_only_v2_has_a_high_limit(self, layout, tmp_path):
        columns = tables(plan_of(machine_with_self(tmp_path, layout).root))["limits"].columns
        assert ("high_bytes" in columns) == (layout == "v2")


class TestWhatIsMissing:
    """Absent is not zero: there is no column, and a reason."""

    def web(self, tmp_path, layout, **files):
        machine = machine_with_self(tmp_path, layout)
        machine.group("/web", limit=64 * MIB, **files)
        machine.process(100, "/web")
        return machine

    @pytest.mark.parametrize(("memsw_hits", "column"), [(0, MEMSW_COUNTS), (13287, True)])
    def test_failcnt_does_not_count_where_memsw_is_as_low(self, memsw_hits, column, tmp_path):
        files = {"memory__memsw__limit_in_bytes": 64 * MIB, "memory__memsw__failcnt": memsw_hits}
        plan = plan_of(self.web(tmp_path, "v1", **files).root)
        assert "limit_hits" not in tables(plan)["usage"].columns
        assert "does not count" in plan.absent["limit_hits"]
        assert ("memsw_hits" in tables(plan)["usage"].columns) == column
        assert ("memsw_hits" in plan.absent) == (not column)

    @pytest.mark.parametrize("memsw_limit", [64 * MIB + 4096, 9223372036854771712])
    def test_failcnt_counts_where_memsw_is_higher(self, memsw_limit, tmp_path):
        files = {"memory__memsw__limit_in_bytes": memsw_limit, "memory__memsw__failcnt": 1}
        plan = plan_of(self.web(tmp_path, "v1", **files).root)
        assert {"limit_hits", "memsw_hits"} <= set(tables(plan)["usage"].columns)

    @pytest.mark.parametrize(
        ("release", "counts"),
        [("5.15.0-91-generic", True), ("6.1.0-56-cloud-amd64", True), ("6.14.11", True), ("6.15.0-rc1", False), ("7.0", False)],
    )
    def test_kernels_that_count_in_memsw_failcnt(self, release, counts):
        assert counts_memsw(release) == counts

    def test_failcnt_counts_where_nothing_is_limited(self, tmp_path):
        machine = machine_with_self(tmp_path, "v1")
        machine.group("/free", memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 0")
        plan = plan_of(machine.root, "cgroup:/free")
        assert {"limit_hits", "oom_kills"} <= set(tables(plan)["usage"].columns)

    def test_an_old_oom_control_has_no_kills(self, tmp_path):
        plan = plan_of(self.web(tmp_path, "v1", memory__oom_control="oom_kill_disable 0\nunder_oom 0").root)
        assert "oom_kills" not in tables(plan)["usage"].columns
        assert "no oom_kill" in plan.absent["oom_kills"]

    def test_no_memory_stat(self, tmp_path):
        machine = self.web(tmp_path, "v2")
        (machine.memory / "web/memory.stat").unlink()
        plan = plan_of(machine.root)
        assert "stat" not in tables(plan)
        assert "memory.stat" in plan.absent["stat"]

    def test_no_pressure(self, tmp_path):
        machine = self.web(tmp_path, "v2")
        (machine.memory / "web/memory.pressure").unlink()
        plan = plan_of(machine.root)
        assert "pressure" not in tables(plan)
        assert plan.absent["pressure"]

    def test_psi_that_cannot_be_gated_is_left_alone(self, tmp_path):
        machine = self.web(tmp_path, "v2")
        (machine.memory / "web/cpu.stat").unlink()
        plan = plan_of(machine.root)
        assert "pressure" not in tables(plan)
        assert "cpu.stat" in plan.absent["pressure"]

    def test_old_events_without_oom_kill(self, tmp_path):
        machine = self.web(tmp_path, "v2", memory__events="low 0\nhigh 0\nmax 0\noom 0")
        assert set(tables(plan_of(machine.root))["usage"].columns) >= {"limit_hits", "high_hits"}
        assert "oom_kills" not in tables(plan_of(machine.root))["usage"].columns

    def test_the_root_of_v2_has_no_usage_and_the_rest_goes_on(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        plan = plan_of(machine.root, "cgroup:/")
        assert "usage_bytes" not in tables(plan)["usage"].columns
        assert {"stat", "node", "processes"} <= set(tables(plan))
        assert "usage" in plan.absent
