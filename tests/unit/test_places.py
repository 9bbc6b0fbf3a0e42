# SPDX-License-Identifier: Apache-2.0
"""Where groups are found: containers, namespaces, mounts."""

from __future__ import annotations

import os

import pytest
from fakecgroup import FakeMachine, machine_with_self, mount_line

from pymemcg import places
from pymemcg.cgroup import resolve
from pymemcg.errors import NotSupported, SourceError, TargetError

DOCKER = "9cc6fa5f1509a722f564405207f45bbe" * 2
OTHER = "9cc6fa5f1509ffffffffffffffffffff" * 2
MIB = 1 << 20


class TestContainers:
    @pytest.mark.parametrize("layout", ["v1", "v2"])
    @pytest.mark.parametrize(
        "group",
        [
            f"/docker/{DOCKER}",
            f"/system.slice/docker-{DOCKER}.scope",
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-{DOCKER}.scope",
            f"/kubepods/besteffort/pod9df61518-c02a-11e9-9694-246e967d5d94/{DOCKER}",
            f"/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{DOCKER}",
            f"/machine.slice/libpod-{DOCKER}.scope/container",
            f"/kubepods.slice/crio-{DOCKER}.scope",
        ],
    )
    def test_any_runtime_by_the_whole_id_or_its_beginning(self, layout, group, tmp_path):
        machine = machine_with_self(tmp_path, layout)
        found = str(machine.group(group)).removesuffix("/container")
        machine.group(f"/machine.slice/libpod-conmon-{DOCKER}.scope")
        machine.group(f"/kubepods.slice/crio-conmon-{DOCKER}.scope")
        for spec in (DOCKER, DOCKER[:12], DOCKER[:3], f"containerd://{DOCKER}"):
            assert resolve(f"container:{spec}", root=machine.root).directory == found

    @pytest.mark.parametrize("group", ["/lxc.payload.mail", "/lxc/mail", "/machine.slice/machine-mail.scope", "/default/mail"])
    def test_runtimes_that_have_names(self, group, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        machine.group("/system.slice/mail.service")
        found = str(machine.group(group))
        assert resolve("container:mail", root=machine.root).directory == found

    def test_an_ambiguous_beginning_lists_the_candidates(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        machine.group(f"/docker/{DOCKER}")
        machine.group(f"/docker/{OTHER}")
        with pytest.raises(TargetError, match=rf"names 2 containers.*{DOCKER}.*{OTHER}.*give more of the id"):
            resolve(f"container:{DOCKER[:12]}", root=machine.root)
        assert resolve(f"container:{OTHER[:13]}", root=machine.root).directory.endswith(OTHER)

    def test_groups_inside_of_a_containers_are_the_containers(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        scope = str(machine.group(f"/machine.slice/libpod-{DOCKER}.scope"))
        machine.group(f"/machine.slice/libpod-{DOCKER}.scope/libpod-payload-{DOCKER}")
        assert resolve(f"container:{DOCKER}", root=machine.root).directory == scope

    def test_parts_of_other_names_are_no_ids(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        machine.group("/kubepods/pod9df61518-c02a-11e9-9694-246e967d5d94")
        with pytest.raises(TargetError, match=r"container '246e967d5d94' below .*/sys/fs/cgroup"):
            resolve("container:246e967d5d94", root=machine.root)


class TestNamespaces:
    """Paths and mounts as the reader's cgroup namespace shows them."""

    def test_private_namespace(self, tmp_path):
        machine = FakeMachine(tmp_path, "v2", true_root=False)
        machine.group("/", limit=32 * MIB)
        machine.process(100, "/")
        machine.become(100)
        target = resolve("self", root=machine.root)
        assert [level.name for level in target.levels] == ["/"]
        assert target.limit() == (32 * MIB, target.levels[0])
        assert target.pressure_scope == "group"

    @pytest.mark.parametrize("layout", ["v1", "v2"])
    def test_bind_mounted_part_with_the_hosts_namespace(self, layout, tmp_path):
        machine = FakeMachine(tmp_path, layout, true_root=False)
        kind, options = ("cgroup2", "rw") if layout == "v2" else ("cgroup", "rw,memory")
        point = str(machine.memory).removeprefix(machine.root)
        mounts = mount_line(point, kind, options, root=f"/docker/{DOCKER}")
        machine.group("/inner")
        machine.process(100, "/inner", shown=f"/docker/{DOCKER}/inner", mounts=mounts)
        machine.become(100)
        target = resolve("self", root=machine.root)
        assert target.directory == f"{machine.memory}/inner"
        assert [level.name for level in target.levels] == ["/inner", "/"]
        for spec in (f"cgroup:/docker/{DOCKER}/inner", "cgroup:/inner"):
            assert resolve(spec, root=machine.root).directory == target.directory

    def test_outside_of_what_is_mounted(self, tmp_path):
        machine = FakeMachine(tmp_path, "v2")
        machine.process(100, "/", shown="/docker/b", mounts=mount_line("/sys/fs/cgroup", "cgroup2", root="/docker/a"))
        machine.become(100)
        with pytest.raises(TargetError, match=r"group /docker/b of process 100 cannot be found \(.*shows /docker/a alone"):
            resolve("self", root=machine.root)

    @pytest.mark.parametrize("layout", ["v1", "v2", "hybrid"])
    def test_a_process_of_another_namespace_is_found_through_its_root(self, layout, tmp_path):
        machine = FakeMachine(tmp_path, layout)
        theirs = FakeMachine(tmp_path / "container", layout, true_root=False)
        theirs.group("/", limit=16 * MIB)
        machine.process(100, "/")
        machine.become(100)
        mounts = theirs.mounts
        for number in (31, 32, 33):
            mounts = mounts.replace(f"0:{number} / ", f"0:{number} /../other ")
        machine.group("/other")
        machine.process(200, "/other", shown="/../other", shown_unified="/../other", mounts=mounts)
        theirs.process(200, "/")
        machine.root_of(200, "container")
        target = resolve("pid:200", root=machine.root)
        inside = f"{machine.root}/proc/200/root/sys/fs/cgroup"
        assert target.directory == (inside if layout == "v2" else f"{inside}/memory")
        assert target.limit() == (16 * MIB, target.levels[0])
        assert not target.own
        if layout != "v1":
            assert target.pressure_file == f"{target.cgroup2_directory}/memory.pressure"
            assert target.cgroup2_directory == (inside if layout == "v2" else f"{inside}/unified")
        again = resolve(target.directory, root=machine.root)
        assert (again.directory, again.levels) == (target.directory, target.levels)

    def test_a_process_whose_mounts_hide_its_group_is_not_taken_for_self(self, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        machine.group("/other")
        machine.process(200, "/other", shown="/../other", mounts="")
        with pytest.raises(TargetError, match=r"group /../other of process 200 cannot.*shows / alone.*host's cgroup namespace"):
            resolve("pid:200", root=machine.root)

    def test_names_that_a_namespace_hides_are_found_by_membership(self, tmp_path):
        """unshare -C without a new mount: our path is /, and the mount begins two levels above it."""
        machine = FakeMachine(tmp_path, "v2")
        for group in ("/a/x", "/a/y/inner", "/b/y"):
            machine.group(group)
        mounts = mount_line("/sys/fs/cgroup", "cgroup2", root="/../..")
        machine.process(100, "/a/y", shown="/", mounts=mounts)
        machine.process(200, "/b/y", shown="/../../b/y", mounts=mounts)
        machine.process(300, "/a/x", shown="/../x", mounts=mounts)
        machine.become(100)
        where = {spec: resolve(spec, root=machine.root).levels[0].name for spec in ("self", "pid:200", "pid:300")}
        assert where == {"self": "/a/y", "pid:200": "/b/y", "pid:300": "/a/x"}
        paths = {"/": "/a/y", "/inner": "/a/y/inner", "/..": "/a", "/../x": "/a/x", "/../../b": "/b"}
        assert {path: resolve(f"cgroup:{path}", root=machine.root).levels[0].name for path in paths} == paths
        assert resolve("cgroup:/..", root=machine.root).own
        assert not resolve("cgroup:/../x", root=machine.root).own

    def test_from_outside_of_its_own_namespace_hidden_names_stay_hidden(self, tmp_path):
        """A process that was moved out of its namespace is no way to that namespace's root."""
        machine = FakeMachine(tmp_path, "v2")
        machine.group("/a/b/x")
        machine.process(100, "/a/b", shown="/../b", mounts=mount_line("/sys/fs/cgroup", "cgroup2", root="/../.."))
        machine.become(100)
        assert resolve("self", root=machine.root).levels[0].name == "/a/b"
        with pytest.raises(TargetError, match="no memory group /x"):
            resolve("cgroup:/x", root=machine.root)

    @pytest.mark.parametrize("spec", ["self", "pid:100"])
    def test_a_process_that_is_moved_meanwhile_is_found_where_it_went(self, spec, tmp_path, monkeypatch):
        machine = machine_with_self(tmp_path, "v2")
        machine.group("/new")
        really = places.holds

        def holds(directory: str, pid: int) -> bool | None:
            if directory == f"{machine.memory}/web":
                (machine.memory / "web/cgroup.procs").write_text("")
                machine.process(100, "/new")
            return really(directory, pid)

        monkeypatch.setattr("pymemcg.places.holds", holds)
        target = resolve(spec, root=machine.root)
        assert (target.levels[0].name, target.own) == ("/new", True)


class TestMounts:
    def test_escaped_mount_point_and_root(self, tmp_path):
        machine = FakeMachine(tmp_path, "v2")
        machine.group("/a b\\c")
        machine.memory.rename(machine.path / "sys/fs/c g\t\\x\n#")
        line = mount_line(r"/sys/fs/c\040g\011\134x\012\043", "cgroup2", root=r"/top\040level")
        machine.memory = machine.path / "sys/fs/c g\t\\x\n#"
        machine.process(100, "/a b\\c", shown="/top level/a b\\c", mounts=line)
        machine.become(100)
        assert resolve("self", root=machine.root).directory == f"{machine.memory}/a b\\c"

    @pytest.mark.parametrize("name", ["a:b", "a\x85b", "a\u2028b", "ä\udcffb", "a\rb", "a (deleted)", "..."])
    def test_names_of_any_bytes(self, name, tmp_path):
        machine = FakeMachine(tmp_path, "hybrid")
        machine.group(f"/{name}")
        machine.process(100, "/", unified="/")
        (machine.path / "proc/100/cgroup").write_bytes(os.fsencode(f"4:memory:/{name}\n0::/\n"))
        (machine.memory / name / "cgroup.procs").write_text("100\n")
        machine.become(100)
        assert resolve("self", root=machine.root).levels[0].name == f"/{name}"

    @pytest.mark.parametrize("parent", [33, 20])
    def test_what_lies_below_another_mount_is_not_used(self, parent, tmp_path):
        """A tmpfs over the mount itself, or over a directory above it."""
        machine = machine_with_self(tmp_path, "v2")
        over = mount_line("/sys/fs/cgroup" if parent == 33 else "/sys", "tmpfs", number=50, parent=parent)
        elsewhere = mount_line("/mnt/cg", "cgroup2", number=51)
        (machine.path / "mnt").mkdir()
        (machine.path / "mnt/cg").symlink_to(machine.memory)
        (machine.path / "proc/100/mountinfo").write_text(machine.mounts + over + elsewhere)
        assert resolve("self", root=machine.root).directory == f"{machine.root}/mnt/cg/web"
        (machine.path / "proc/100/mountinfo").write_text(machine.mounts + over)
        with pytest.raises(NotSupported, match="cgroup2 is not mounted here"):
            resolve("self", root=machine.root)

    def test_the_widest_view_wins(self, tmp_path):
        """A monitor's container has its own narrow mount, and the host's below /host."""
        machine = machine_with_self(tmp_path, "v2", f"/docker/{DOCKER}", shown="/")
        (machine.path / "host").symlink_to(machine.memory)
        (machine.path / "own").symlink_to(machine.memory / "docker" / DOCKER)
        mounts = mount_line("/own", "cgroup2", number=40) + mount_line("/host", "cgroup2", root="/../..", number=41)
        (machine.path / "proc/100/mountinfo").write_text(mounts)
        target = resolve("self", root=machine.root)
        assert [level.name for level in target.levels] == [f"/docker/{DOCKER}", "/docker", "/"]
        assert resolve(f"container:{DOCKER}", root=machine.root).own

    @pytest.mark.parametrize(
        ("file", "text"),
        [
            ("mountinfo", "33 20 0:33 / /sys/fs/cgroup rw cgroup2 cgroup2 rw\n"),
            ("mountinfo", "33 20 0:33 / - cgroup2 cgroup2 rw\n"),
            ("mountinfo", "33 20 0:33 / /sys/fs/cgroup rw - cgroup2\n"),
            ("cgroup", "memory:/web\n"),
            ("cgroup", "x:memory:/web\n"),
            ("cgroup", "4:memory:web\n"),
        ],
    )
    def test_malformed_lines_are_errors(self, file, text, tmp_path):
        machine = machine_with_self(tmp_path, "v2")
        (machine.path / "proc/100" / file).write_text(text)
        with pytest.raises(SourceError, match=f"/proc/self/{file}: '.* is no"):
            resolve("self", root=machine.root)
