# SPDX-License-Identifier: Apache-2.0
"""Whose PSI it is: the cgroup2 twin of a memory group on hybrid machines."""

from __future__ import annotations

import pytest
from fakecgroup import DATA, PSI, FakeMachine, machine_with_self, mount_line

from pymemcg import pressure
from pymemcg.cgroup import resolve


class TestTwin:
    def build(self, tmp_path, *, unified="/web", also=()):
        machine = FakeMachine(tmp_path, "hybrid")
        for path in ("/web", "/web/a", "/web/b", "/other"):
            machine.group(path)
            machine.unified_group(path)
        machine.process(100, "/web", unified=unified)
        for pid, memory, path in also:
            machine.process(pid, memory, unified=path)
        machine.become(100)
        return machine

    @pytest.mark.parametrize("spec", ["self", "pid:100", "cgroup:/web", "/sys/fs/cgroup/memory/web"])
    def test_a_group_of_its_own(self, spec, tmp_path):
        machine = self.build(tmp_path, unified="/other", also=[(101, "/web/a", "/other")])
        target = resolve(spec, root=machine.root)
        assert target.cgroup2_directory == f"{machine.unified}/other"
        assert target.pressure_scope == "group"

    @pytest.mark.parametrize("spec", ["self", "cgroup:/web"])
    def test_shared_with_another_memory_group(self, spec, tmp_path):
        machine = self.build(tmp_path, unified="/other", also=[(201, "/other", "/other"), (202, "/other", "/other")])
        target = resolve(spec, root=machine.root)
        assert (target.cgroup2_directory, target.pressure_file, target.pressure_scope) == (None, None, None)
        assert "/other also holds processes of other memory groups (pid 201, pid 202)" in target.absent["pressure"]
        assert "cpu" in target.absent

    def test_shared_with_who_is_below(self, tmp_path):
        machine = self.build(tmp_path, unified="/web", also=[(201, "/other", "/web/a")])
        assert "(pid 201)" in resolve("self", root=machine.root).absent["pressure"]

    def test_shared_with_other_pid_namespaces(self, tmp_path):
        machine = self.build(tmp_path)
        (machine.unified / "web/cgroup.procs").write_text("0\n0\n100\n")
        assert "(of another pid namespace)" in resolve("self", root=machine.root).absent["pressure"]

    def test_the_root_speaks_of_the_host(self, tmp_path):
        machine = self.build(tmp_path, unified="/", also=[(201, "/other", "/")])
        target = resolve("self", root=machine.root)
        assert (target.pressure_file, target.pressure_scope) == (f"{machine.root}/proc/pressure/memory", "host")
        assert target.cgroup2_directory == str(machine.unified)

    def test_the_twin_holds_all_processes_of_the_group(self, tmp_path):
        """Its own processes spread over cgroup2 groups: the one above them all, if it holds nobody else."""
        machine = self.build(tmp_path, unified="/web/a", also=[(101, "/web/b", "/web/b")])
        target = resolve("self", root=machine.root)
        assert target.cgroup2_directory == f"{machine.unified}/web"
        machine.process(102, "/other", unified="/web")
        assert "pid 102" in resolve("self", root=machine.root).absent["pressure"]
        assert resolve("cgroup:/web/b", root=machine.root).cgroup2_directory == f"{machine.unified}/web/b"

    def test_a_process_that_ends_meanwhile_is_passed_over(self, tmp_path):
        machine = self.build(tmp_path)
        with (machine.memory / "web/cgroup.procs").open("a") as file:
            file.write("999\n")  # listed, and not in /proc any more
        assert resolve("cgroup:/web", root=machine.root).cgroup2_directory == f"{machine.unified}/web"

    def test_a_process_that_leaves_both_meanwhile_is_nobody_else(self, tmp_path, monkeypatch):
        machine = self.build(tmp_path)
        listed = machine.unified / "web/cgroup.procs"
        listed.write_text("100\n999\n")
        really = pressure.members

        def members(directory: str) -> set[int]:
            found = really(directory)
            if directory.startswith(str(machine.unified)):
                listed.write_text("100\n")
            return found

        monkeypatch.setattr("pymemcg.pressure.members", members)
        assert resolve("self", root=machine.root).pressure_scope == "group"

    def test_an_empty_group_has_the_twin_of_its_name(self, tmp_path):
        machine = self.build(tmp_path)
        assert resolve("cgroup:/other", root=machine.root).cgroup2_directory == f"{machine.unified}/other"
        machine.process(201, "/web", unified="/other")
        assert "also holds" in resolve("cgroup:/other", root=machine.root).absent["pressure"]
        machine.group("/v1-only")
        absent = resolve("cgroup:/v1-only", root=machine.root).absent
        assert absent["pressure"] == "the group holds no process, and the cgroup2 group, /v1-only, cannot be found here"

    def test_cgroup2_not_mounted(self, tmp_path):
        machine = self.build(tmp_path)
        mounts = mount_line("/sys/fs/cgroup/memory", "cgroup", "rw,memory")
        (machine.path / "proc/100/mountinfo").write_text(mounts)
        target = resolve("self", root=machine.root)
        assert target.layout == "v1"
        assert "no cgroup2 hierarchy is mounted here" in target.absent["pressure"]

    def test_v1_alone_has_the_hosts_psi(self, tmp_path):
        """Where cgroup2 was never mounted, everybody is in its root."""
        machine = machine_with_self(tmp_path, "v1")
        target = resolve("self", root=machine.root)
        assert target.layout == "v1"
        assert (target.pressure_file, target.pressure_scope) == (f"{machine.root}/proc/pressure/memory", "host")
        assert target.cgroup2_directory is None
        (machine.path / "proc/pressure/memory").unlink()
        assert "psi=1" in resolve("self", root=machine.root).absent["pressure"]


def test_the_hosts_own_psi_is_what_the_builder_writes():
    """The builder's stand-in has the form that the captured kernels print."""
    real = (DATA / "6.12-v2/proc/pressure/memory").read_text()
    assert [line.split()[0] for line in real.splitlines()] == [line.split()[0] for line in PSI.splitlines()]


@pytest.mark.parametrize(("release", "read"), [("5.4.0", True), ("5.8.0", False), ("6.12.1", False)])
def test_psi_is_read_only_where_nothing_else_tells_that_it_is_off(tmp_path, release, read):
    """A read costs the group the stall time of up to a jiffy, so resolving a target must not be one."""
    machine = machine_with_self(tmp_path, "v2")
    (machine.path / "proc/version").write_text(f"Linux version {release} (builder@fake)\n")
    pressure = machine.path / "sys/fs/cgroup/web/memory.pressure"
    pressure.unlink()
    pressure.mkdir()  # can be opened, but not read
    assert ("pressure" in resolve("self", root=machine.root).absent) == read
