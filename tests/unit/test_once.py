# SPDX-License-Identifier: Apache-2.0
"""One reading, on built machines and captured kernels; and what doctor makes of these."""

from __future__ import annotations

import json

import pytest
from fakecgroup import KERNELS, FakeMachine, captured

from pymemcg import resolve
from pymemcg.doctor import examine
from pymemcg.once import read_levels, read_limits, read_once
from pymemcg.surroundings import Check

MIB = 1 << 20
LAYOUTS = ["v1", "v2", "hybrid"]


def machine(tmp_path, layout, **files) -> FakeMachine:
    built = FakeMachine(tmp_path, layout)
    stat = {"v2": "anon 3000\nfile 5000\ninactive_file 2000\npgfault 7"}.get(
        layout, "rss 1\ntotal_rss 3000\ntotal_cache 5000\ntotal_inactive_file 2000\ntotal_pgfault 7"
    )
    built.group("/top", usage=60 * MIB, limit=64 * MIB)
    built.group("/top/web", usage=10 * MIB, limit=32 * MIB, hits=5, **{"memory__stat": stat} | files)
    built.group("/top/web/one", usage=9 * MIB)
    built.process(100, "/top/web/one")
    built.become(100)
    return built


@pytest.mark.parametrize("layout", LAYOUTS)
class TestEveryLayout:
    def test_the_least_limit_holds_and_the_nearest_may_be_another(self, tmp_path, layout):
        target = resolve("self", root=machine(tmp_path, layout).root)
        assert read_limits(target) == {
            "limit_bytes": 32 * MIB,
            "limit_level": "/top/web",
            "headroom_bytes": 4 * MIB,
            "headroom_level": "/top",
        }

    def test_levels_without_a_limit_have_none(self, tmp_path, layout):
        levels = read_levels(resolve("self", root=machine(tmp_path, layout).root))
        assert [level["limit_bytes"] for level in levels[:3]] == [None, 32 * MIB, 64 * MIB]
        assert [level["usage_bytes"] for level in levels[:3]] == [9 * MIB, 10 * MIB, 60 * MIB]
        assert levels[0]["high_bytes"] is None

    def test_a_reading_has_the_same_names_everywhere(self, tmp_path, layout):
        reading = read_once(resolve("cgroup:/top/web", root=machine(tmp_path, layout).root))
        assert reading["usage_bytes"] == 10 * MIB
        assert reading["limit_hits"] == 5
        assert reading["working_set_bytes"] == 10 * MIB - 2000
        assert (reading["anon_bytes"], reading["file_bytes"], reading["faults"]) == (3000, 5000, 7)
        assert "shmem_bytes" not in reading
        assert json.loads(json.dumps(reading)) == reading

    def test_a_working_set_is_never_negative(self, tmp_path, layout):
        stat = "anon 0\nfile 0\ninactive_file 99999999" if layout == "v2" else "total_inactive_file 99999999"
        reading = read_once(resolve("cgroup:/top/web", root=machine(tmp_path, layout, memory__stat=stat).root))
        assert reading["working_set_bytes"] == 0

    def test_no_limit_is_told_and_not_zero(self, tmp_path, layout):
        built = FakeMachine(tmp_path, layout)
        built.group("/free")
        built.process(100, "/free")
        built.become(100)
        reading = read_once(resolve("self", root=built.root))
        assert reading["limit_bytes"] is None
        assert reading["headroom_bytes"] is None
        assert reading["absent"]["limit"]

    def test_doctor_says_which_level_limits(self, tmp_path, layout):
        report = examine("self", root=machine(tmp_path, layout).root)
        assert report["group"]["limit_level"] == "/top/web"
        assert report["group"]["layout"] == layout
        checks: dict[str, Check] = {check.name: check for check in report["checks"]}
        assert checks["usage"].state == "yes"
        assert ("pressure" in checks) == (layout != "v1" or checks["pressure"].state == "no")


def test_counters_that_do_not_count_are_absent_and_doctor_says_why(tmp_path):
    built = machine(tmp_path, "v1", memory__memsw__limit_in_bytes=32 * MIB)
    reading = read_once(resolve("cgroup:/top/web", root=built.root))
    assert "limit_hits" not in reading
    assert "memsw" in reading["absent"]["limit_hits"]
    checks = {check.name: check for check in examine("cgroup:/top/web", root=built.root)["checks"]}
    assert checks["limit_hits"].state == "no"
    assert checks["limit_hits"].needs


def test_the_root_of_v2_has_no_usage_and_doctor_does_not_call_it_measurable(tmp_path):
    built = FakeMachine(tmp_path, "v2")
    built.process(100, "/")
    built.become(100)
    reading = read_once(resolve("self", root=built.root))
    assert "usage_bytes" not in reading
    assert "root" in reading["absent"]["usage"]
    checks = [check for check in examine("self", root=built.root)["checks"] if check.name == "usage"]
    assert [(check.state, bool(check.needs)) for check in checks] == [("no", True)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_captured_kernels_read_whole(tmp_path, kernel):
    reading = read_once(resolve("self", root=str(captured(kernel, tmp_path)[0])))
    assert reading["usage_bytes"] > 0
    assert reading["anon_bytes"] > 0
    assert {"limit_hits", "oom_kills", "faults"} <= reading.keys()
