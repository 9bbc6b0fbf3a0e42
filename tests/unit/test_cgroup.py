# SPDX-License-Identifier: Apache-2.0
"""Targets on captured trees and on built ones."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest
from fakecgroup import KERNELS, V1_UNLIMITED, FakeMachine, captured, has_psi, machine_with_self, mount_line

from pymemcg.cgroup import resolve
from pymemcg.errors import NotSupported, SourceError, TargetError

MIB = 1 << 20


class TestCapturedKernels:
    @pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel.endswith("v2")])
    def test_v2(self, kernel, tmp_path):
        root, pid = captured(kernel, tmp_path)
        target = resolve("self", root=root)
        group = f"{root}/sys/fs/cgroup/pmc-parent/pmc-child"
        assert (target.layout, target.version, target.directory) == ("v2", 2, group)
        assert [level.name for level in target.levels] == ["/pmc-parent/pmc-child", "/pmc-parent", "/"]
        files = {"usage": "memory.current", "limit": "memory.max", "high": "memory.high", "hits": "memory.events"}
        assert target.levels[0].files == files
        assert target.levels[1].files == files | {"hits": "memory.events.local"}
        assert target.levels[2].files == {}
        assert target.limit() == (64 * MIB, target.levels[0])
        psi = (f"{group}/memory.pressure", "group") if has_psi(kernel) else (None, None)
        assert (target.pressure_file, target.pressure_scope) == psi
        assert target.cgroup2_directory == group
        assert (target.pid, target.own) == (pid, True)
        assert set(target.absent) - {"pressure"} == {"memsw_limit", "memsw_hits"}
        assert ("pressure" in target.absent) == (not has_psi(kernel))

    @pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if not kernel.endswith("v2")])
    def test_hybrid_whose_cgroup2_path_differs(self, kernel, tmp_path):
        root, pid = captured(kernel, tmp_path)
        target = resolve("self", root=root)
        assert (target.layout, target.version) == ("hybrid", 1)
        assert target.directory == f"{root}/sys/fs/cgroup/memory/pmc-parent/pmc-child"
        assert target.levels[0].files == {
            "usage": "memory.usage_in_bytes",
            "limit": "memory.limit_in_bytes",
            "hits": "memory.failcnt",
            "memsw_limit": "memory.memsw.limit_in_bytes",
            "memsw_hits": "memory.memsw.failcnt",
        }
        assert target.limit() == (64 * MIB, target.levels[0])
        assert target.cgroup2_directory == f"{root}/sys/fs/cgroup/unified/pmc-child"
        assert target.pressure_file == f"{root}/sys/fs/cgroup/unified/pmc-child/memory.pressure"
        assert target.pressure_scope == "group"
        assert resolve(f"pid:{pid}", root=root).directory == target.directory
        assert set(target.absent) == {"high"}

    def test_a_description_is_plain_json(self, tmp_path):
        root, _ = captured("6.18-hybrid", tmp_path)
        target = resolve("self", root=root)
        described = json.loads(json.dumps(target.describe()))
        assert described["levels"][1]["name"] == "/pmc-parent"
        assert described["pressure_scope"] == "group"
        assert set(described) == set(target.__slots__)
        assert pickle.loads(pickle.dumps(target)) == target


class TestSpecs:
    @pytest.mark.parametrize("layout", ["v1", "v2", "hybrid"])
    def test_all_ways_to_name_a_group_find_it(self, layout, tmp_path):
        machine = machine_with_self(tmp_path, layout, "/a/web")
        directory = f"{machine.memory}/a/web"
        specs = ["self", "pid:100", "cgroup:/a/web", directory, machine.memory / "a/web", directory.removeprefix(machine.root)]
        found = [resolve(spec, root=machine.root) for spec in specs]
        assert {target.directory for target in found} == {directory}
        assert {target.levels for target in found} == {found[0].levels}
        assert {target.pressure_file for target in found} == {found[0].pressure_file}
        assert [target.pid for target in found] == [100, 100, None, None, None, None]
        assert all(target.own for target in found)
        assert found[0].layout == layout

    def test_who_lives_elsewhere_is_not_own(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        machine.group("/web2")
        machine.process(200, "/web2")
        assert not resolve("pid:200", root=machine.root).own
        assert not resolve("cgroup:/web2", root=machine.root).own
        assert resolve("cgroup:/", root=machine.root).own  # its root is above us

    @pytest.mark.parametrize(
        "spec", ["", "web", "pid:", "pid:-1", "pid:1x", "pid:\u0663", "cgroup:", "cgroup:web", "cgroup:/a/../b", "container:"]
    )
    def test_what_is_no_target(self, spec, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        with pytest.raises(TargetError, match=r"no target|no path of a group"):
            resolve(spec, root=machine.root)

    def test_what_does_not_exist(self, tmp_path):
        machine = machine_with_self(tmp_path, "hybrid")
        with pytest.raises(TargetError, match=r"/proc/4711: there is no process 4711 here \(pids are those of this"):
            resolve("pid:4711", root=machine.root)
        with pytest.raises(TargetError, match=r"no memory group /nix .*memory/nix.*this process is in /web"):
            resolve("cgroup:/nix", root=machine.root)
        with pytest.raises(TargetError, match="No such file or directory"):
            resolve("/sys/fs/cgroup/memory/nix", root=machine.root)
        with pytest.raises(TargetError, match=r"is no cgroup.*that is at .*/sys/fs/cgroup/memory"):
            resolve("/proc/pressure", root=machine.root)
        with pytest.raises(TargetError, match=r"not in the memory controller's hierarchy .*/sys/fs/cgroup/memory"):
            resolve("/sys/fs/cgroup/unified/web", root=machine.root)

    def test_a_process_that_has_ended(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        machine.process(200, "/", state="Z")
        with pytest.raises(TargetError, match="200 has ended"):
            resolve("pid:200", root=machine.root)

    def test_a_process_is_never_taken_for_another_groups_member(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        machine.group("/elsewhere")
        machine.process(200, "/elsewhere", shown="/web")
        with pytest.raises(TargetError, match=r"process 200 cannot be found \(.*/web does not hold it"):
            resolve("pid:200", root=machine.root)

    def test_a_thread_is_a_member_too(self, tmp_path):
        machine = machine_with_self(tmp_path, "v1")
        machine.process(101, "/web")
        (machine.memory / "web/cgroup.procs").write_text("100\n")
        (machine.memory / "web/tasks").write_text("100\n101\n")
        assert resolve("pid:101", root=machine.root).directory == f"{machine.memory}/web"


class TestLimits:
    def test_the_least_of_all_levels_counts(self, tmp_path):
        machine = FakeMachine(tmp_path, "v2")
        machine.group("/a", limit=30 * MIB)
        machine.group("/a/b", limit=20 * MIB)
        machine.group("/a/b/c", memory__high=1 * MIB)
        machine.process(100, "/a/b/c")
        machine.become(100)
        target = resolve("self", root=machine.root)
        assert target.limit() == (20 * MIB, target.levels[1])
        (machine.memory / "a/b/memory.max").write_text("max\n")
        assert target.limit() == (30 * MIB, target.levels[2])
        (machine.memory / "a/memory.max").write_text("0\n")
        assert target.limit() == (0, target.levels[2])

    @pytest.mark.parametrize("unlimited", [V1_UNLIMITED, 2**63 - 1, 2**63 - 2**16])
    def test_v1s_unlimited_is_none_whatever_the_page_size(self, unlimited, tmp_path):
        machine = machine_with_self(tmp_path, "v1")
        (machine.memory / "web/memory.limit_in_bytes").write_text(f"{unlimited}\n")
        assert resolve("self", root=machine.root).limit() == (None, None)

    @pytest.mark.parametrize("text", ["", "-1\n", "12 MiB\n", "\u0663\n"])
    def test_a_malformed_limit_is_an_error(self, text, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        target = resolve("self", root=machine.root)
        (machine.memory / "web/memory.max").write_text(text)
        with pytest.raises(SourceError, match=r"/web/memory.max: '.*' is no limit: expected bytes, or max"):
            target.limit()

    def test_a_limit_that_went_away(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        target = resolve("self", root=machine.root)
        (machine.memory / "web/memory.max").unlink()
        with pytest.raises(OSError, match="cannot be read: No such file") as caught:
            target.limit()
        assert caught.value.errno == 2

    def test_parents_without_hierarchy_do_not_limit(self, tmp_path):
        machine = FakeMachine(tmp_path, "v1")
        machine.group("/a", limit=1 * MIB, memory__use_hierarchy=0)
        machine.group("/a/b", limit=30 * MIB)
        machine.group("/a/b/c", limit=40 * MIB, memory__use_hierarchy=0)  # its own flag is about its children
        machine.process(100, "/a/b/c")
        machine.become(100)
        target = resolve("self", root=machine.root)
        assert [level.name for level in target.levels] == ["/a/b/c", "/a/b"]
        assert target.limit() == (30 * MIB, target.levels[1])
        assert "from /a upwards do not apply: memory.use_hierarchy is 0" in target.absent["ancestors"]


class TestWhatIsAbsent:
    def test_the_root_of_v2(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2", "/")
        target = resolve("self", root=machine.root)
        assert [level.files for level in target.levels] == [{}]
        assert target.limit() == (None, None)
        assert target.absent["usage"] == "the root of cgroup v2 has no memory.current: name a group below it"
        assert set(target.absent) == {"usage", "limit", "high", "hits", "memsw_limit", "memsw_hits"}
        assert (target.pressure_file, target.pressure_scope) == (f"{machine.root}/proc/pressure/memory", "host")

    def test_a_group_without_the_controller_is_charged_above(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2", "/a/session")
        for file in (machine.memory / "a/session").glob("memory.*"):
            file.unlink()
        target = resolve("self", root=machine.root)
        assert target.directory == f"{machine.memory}/a"
        assert "not enabled for /a/session: its memory is charged to /a" in target.absent["group"]
        assert target.pressure_file == f"{machine.memory}/a/memory.pressure"

    def test_the_controller_enabled_nowhere(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        for name in ("memory.current", "memory.max", "memory.high", "memory.events", "memory.stat"):
            (machine.memory / "web" / name).unlink()
        target = resolve("self", root=machine.root)
        assert target.directory == f"{machine.memory}/web"
        assert "memory.current: the memory controller is not enabled here" in target.absent["usage"]
        assert "memory.stat" in target.absent["stat"]

    def test_an_old_kernel_without_local_events_and_psi(self, tmp_path):
        machine = FakeMachine(tmp_path, "v2", psi=False)
        for group in ("/a", "/a/b"):
            (machine.group(group) / "memory.events.local").unlink()
        machine.process(100, "/a/b")
        machine.become(100)
        target = resolve("self", root=machine.root)
        assert target.levels[1].files["hits"] == "memory.events"
        assert (target.pressure_file, target.pressure_scope) == (None, None)
        assert "boot with psi=1" in target.absent["pressure"]
        assert target.cgroup2_directory == target.directory

    def test_no_swap_accounting(self, tmp_path):
        machine = machine_with_self(tmp_path, "v1")
        for file in (machine.memory / "web").glob("memory.memsw.*"):
            file.unlink()
        target = resolve("self", root=machine.root)
        assert "memsw_limit" not in target.levels[0].files
        assert "swapaccount=1" in target.absent["memsw_hits"]

    def test_psi_switched_off_for_the_group(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        (machine.memory / "web/memory.pressure").unlink()
        (machine.memory / "web/cgroup.pressure").write_text("0\n")
        target = resolve("self", root=machine.root)
        assert target.pressure_file is None
        assert target.absent["pressure"].endswith(f"write 1 to {machine.memory}/web/cgroup.pressure")

    def test_no_cpu_stat(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        (machine.memory / "web/cpu.stat").unlink()
        assert "cpu.stat" in resolve("self", root=machine.root).absent["cpu"]

    def test_no_cgroups_at_all(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        (machine.path / "proc/100/cgroup").write_text("")
        with pytest.raises(
            NotSupported, match=r"/proc/self/cgroup: names neither the memory controller nor cgroup2, but nothing"
        ):
            resolve("self", root=machine.root)
        (machine.path / "proc/100/cgroup").write_text("3:cpuset:/\n")
        with pytest.raises(NotSupported, match=r"but cpuset.*cgroup_disable=memory"):
            resolve("self", root=machine.root)
        (machine.path / "proc/100/cgroup").unlink()
        with pytest.raises(NotSupported, match="the kernel must have cgroups"):
            resolve("self", root=machine.root)

    def test_nothing_mounted(self, tmp_path):
        machine = machine_with_self(tmp_path, "hybrid")
        mounts = mount_line("/sys/fs/cgroup/unified", "cgroup2")
        (machine.path / "proc/100/mountinfo").write_text(mounts)
        with pytest.raises(NotSupported, match="the v1 memory hierarchy is not mounted here"):
            resolve("self", root=machine.root)


def test_a_full_container_need_not_load_numpy():
    code = "import sys, pymemcg.cgroup; print('numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
