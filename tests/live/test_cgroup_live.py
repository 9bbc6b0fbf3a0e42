# SPDX-License-Identifier: Apache-2.0
"""Targets in real cgroups and real namespaces of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import facts
import pytest

from pymemcg.cgroup import resolve
from pymemcg.child import ChildGroup
from pymemcg.errors import NotSupported
from pymemcg.pressure import is_root

pytestmark = pytest.mark.live

MIB = 1 << 20

# What a process of a test can do before it looks at targets. Namespaces are entered by system calls, so that nothing but
# the interpreter is needed, and another user can be become after everything was imported.
PRELUDE = """
import ctypes, json, os, sys
from pymemcg.cgroup import resolve
from pymemcg.errors import MemcgError

libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWCGROUP, NEWPID = 0x00020000, 0x02000000, 0x20000000
RDONLY, REMOUNT, BIND, REC, PRIVATE = 1, 32, 4096, 16384, 1 << 18

def system(name, *args):
    args = [arg.encode() if isinstance(arg, str) else arg for arg in args]
    if getattr(libc, name)(*args) != 0:
        raise OSError(ctypes.get_errno(), name)

def join(*directories):
    for directory in directories:
        with open(directory + "/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))

def unshare(flags):
    system("unshare", flags)
    if flags & NEWNS:
        system("mount", None, "/", None, REC | PRIVATE, None)

def hide_hosts_cgroups():
    system("mount", "none", "/sys/fs/cgroup", "tmpfs", 0, None)

def container():
    "What a runtime does: a cgroup namespace, and in it mounts that show nothing else."
    unshare(NEWCGROUP | NEWNS)
    hide_hosts_cgroups()
    if VERSION == 1:
        os.mkdir("/sys/fs/cgroup/memory")
        system("mount", "none", "/sys/fs/cgroup/memory", "cgroup", 0, "memory")
        os.mkdir("/sys/fs/cgroup/unified")
        system("mount", "none", "/sys/fs/cgroup/unified", "cgroup2", 0, None)
    else:
        system("mount", "none", "/sys/fs/cgroup", "cgroup2", 0, None)

def show(*specs):
    for spec in specs:
        try:
            target = resolve(spec)
            answer = target.describe() | {"inode": os.stat(target.directory).st_ino, "effective": target.limit()[0]}
        except MemcgError as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        print(json.dumps(answer), flush=True)

def stay():
    print("ready", flush=True)
    sys.stdin.read()
"""


class Machine(NamedTuple):
    version: int
    memory: Path
    unified: Path | None


def find_machine() -> Machine:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    unified = next((Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"), None)
    for fields in mounts:
        if fields[2] == "cgroup" and "memory" in fields[3].split(","):
            return Machine(1, Path(fields[1]), unified)
    if unified is None:
        pytest.skip("no memory cgroups are mounted here")
    return Machine(2, unified, unified)


class Groups:
    """Makes groups and processes in them, and removes both."""

    def __init__(self, machine: Machine):
        self.machine = machine
        self._made: list[Path] = []
        self._processes: list[subprocess.Popen[str]] = []

    def _make(self, top: Path, name: str) -> Path:
        directory = top / name
        directory.mkdir()
        self._made.append(directory)
        return directory

    def memory(self, name: str, limit: int | None = None, *, inside: Path | None = None) -> Path:
        """Make a memory group, with a limit if one is given, at the root or inside of another."""
        if inside and self.machine.version == 2:
            (inside / "cgroup.subtree_control").write_text("+memory")
        directory = self._make(inside or self.machine.memory, f"pymemcg-{os.getpid()}-{name}")
        if limit is not None:
            (directory / ("memory.max" if self.machine.version == 2 else "memory.limit_in_bytes")).write_text(str(limit))
        return directory

    def unified(self, name: str) -> Path:
        """Make a cgroup2 group beside v1."""
        if self.machine.version == 2 or self.machine.unified is None:
            pytest.skip("needs memory on v1 beside a cgroup2 mount")
        return self._make(self.machine.unified, f"pymemcg-{os.getpid()}-{name}")

    def start(self, code: str) -> subprocess.Popen[str]:
        """Start a process with the prelude; its output is a pipe."""
        if os.geteuid() != 0 and any(what in code for what in ("unshare(", "container()", "setuid(")):
            pytest.skip("only root may become another user, and enter namespaces without one of users")
        script = f"VERSION = {self.machine.version}\n{PRELUDE}\n{code}"
        command = [sys.executable, "-c", script]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._processes.append(process)
        return process

    def run(self, code: str) -> list[dict[str, Any]]:
        """Run a process to its end and read what it shows."""
        process = self.start(code)
        out, _ = process.communicate(timeout=facts.PATIENCE_S)
        assert process.returncode == 0
        return [json.loads(line) for line in out.splitlines()]

    def member(self, *directories: Path, code: str = "") -> int:
        """Start a process that joins groups and stays."""
        process = self.start(f"join(*{[str(path) for path in directories]})\n{code}\nstay()")
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process.pid

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        for directory in reversed(self._made):
            directory.rmdir()


@pytest.fixture
def groups() -> Iterator[Groups]:
    machine = find_machine()
    try:
        with ChildGroup("home") as home:
            made = [Path(directory).parent for directory in (home.directory, home.cgroup2_directory) if directory]
    except NotSupported as error:
        pytest.skip(str(error))
    if os.geteuid() != 0:  # not at the top, but where a user was given a part
        machine = Machine(machine.version, made[0], made[-1] if machine.unified else None)
    if machine.version == 2 and "memory" not in (machine.memory / "cgroup.subtree_control").read_text().split():
        pytest.skip(f"{machine.memory}/cgroup.subtree_control does not hand memory down")
    made = Groups(machine)
    try:
        yield made
    finally:
        made.close()


def test_own_group_lists_this_process():
    find_machine()
    target = resolve()
    assert target.own
    if target.version == 2 and "group" in target.absent:
        pytest.skip(f"memory of this process is charged elsewhere: {target.absent['group']}")
    assert str(os.getpid()) in Path(target.directory, "cgroup.procs").read_text().split()
    assert [Path(level.directory) for level in target.levels[1:]] == list(
        Path(target.directory).parents[: len(target.levels) - 1]
    )


@pytest.mark.kernel
def test_a_process_in_nested_groups(groups):
    outer = groups.memory("outer", 64 * MIB)
    inner = groups.memory("inner", 128 * MIB, inside=outer)
    target = resolve(f"pid:{groups.member(inner)}")
    assert [level.directory for level in target.levels[:2]] == [str(inner), str(outer)]
    assert target.limit() == (64 * MIB, target.levels[1])
    assert not target.own
    assert resolve(inner).levels == target.levels
    assert resolve(f"cgroup:{target.levels[0].name}").levels == target.levels


@pytest.mark.kernel
def test_every_named_file_can_be_read(groups):
    group = groups.memory("files", 64 * MIB)
    target = resolve(f"pid:{groups.member(group)}")
    assert {"usage", "limit", "hits"} <= set(target.levels[0].files)
    for level in target.levels:
        for name in level.files.values():
            assert Path(level.directory, name).read_text()
    if target.pressure_file is not None:
        assert Path(target.pressure_file).read_text().startswith("some ")
    else:
        assert target.absent["pressure"]


def test_a_container_by_its_id(groups):
    ident = os.urandom(32).hex()
    group = groups.memory(ident, inside=groups.memory("runtime"))
    assert resolve(f"container:{ident[:12]}").directory == str(group)


class TestHybrid:
    def test_psi_of_a_group_of_its_own_and_of_the_host(self, groups):
        memory, unified = groups.memory("psi"), groups.unified("psi")
        if not is_root(str(unified.parent)):
            pytest.skip("only root may move a process to the root of cgroup2")
        pid = groups.member(memory, unified.parent)
        assert resolve(f"pid:{pid}").pressure_scope == "host"
        (unified / "cgroup.procs").write_text(str(pid))
        for spec in (f"pid:{pid}", str(memory)):
            target = resolve(spec)
            assert (target.layout, target.pressure_scope) == ("hybrid", "group")
            assert target.pressure_file == str(unified / "memory.pressure")

    def test_psi_shared_with_another_memory_group_is_absent(self, groups):
        unified = groups.unified("shared")
        first, second = groups.memory("first"), groups.memory("second")
        pid, other = groups.member(first, unified), groups.member(second, unified)
        target = resolve(f"pid:{pid}")
        assert target.pressure_file is None
        assert f"(pid {other})" in target.absent["pressure"]

    def test_psi_switched_off(self, groups):
        memory, unified = groups.memory("off"), groups.unified("off")
        switch = unified / "cgroup.pressure"
        if not switch.exists():
            pytest.skip("cgroup.pressure came with 6.1")
        switch.write_text("0")
        pid = groups.member(memory, unified)
        assert f"write 1 to {switch}" in resolve(f"pid:{pid}").absent["pressure"]

    def test_psi_shared_with_another_pid_namespace_is_absent(self, groups):
        """v1 hides such processes and cgroup2 lists them as 0, so that nobody can tell whether they are of the group."""
        memory, unified = groups.memory("outside"), groups.unified("outside")
        (inside,) = groups.run(
            f"join({str(memory)!r}, {str(unified)!r}); unshare(NEWPID)\n"
            "if child := os.fork():\n"
            "    os.waitpid(child, 0)\n"
            "else:\n"
            "    unshare(NEWNS); system('mount', 'proc', '/proc', 'proc', 0, None); show('self')\n"
        )
        assert "(of another pid namespace)" in inside["absent"]["pressure"]

    def test_an_empty_group_has_the_twin_of_its_name(self, groups):
        memory, unified = groups.memory("empty"), groups.unified("empty")
        top = find_machine()
        if top.unified is None or memory.relative_to(top.memory) != unified.relative_to(top.unified):
            pytest.skip("what this user was given has not the same path in both hierarchies")
        assert resolve(memory).cgroup2_directory == str(unified)


class TestNamespaces:
    def test_cgroup_namespace_with_the_hosts_mounts(self, groups):
        """/proc/self/cgroup says / and the mount begins above it, so that only membership tells which group it is."""
        outer = groups.memory("plain")
        group, sibling = groups.memory("group", 64 * MIB, inside=outer), groups.memory("sibling", inside=outer)
        pid = groups.member(sibling)
        mine, top, other, sibling_by_path = groups.run(
            f"join({str(group)!r}); unshare(NEWCGROUP)\nshow('self', 'cgroup:/', 'pid:{pid}', 'cgroup:/../{sibling.name}')"
        )
        assert mine["directory"] == top["directory"] == str(group)
        assert mine["effective"] == 64 * MIB
        assert other["directory"] == sibling_by_path["directory"] == str(sibling)
        assert (mine["own"], top["own"], other["own"]) == (True, True, False)

    @pytest.mark.kernel
    def test_container(self, groups):
        group = groups.memory("box", 64 * MIB)
        (inside,) = groups.run(f"join({str(group)!r}); container(); show('self')")
        assert inside["inode"] == group.stat().st_ino
        assert [level["name"] for level in inside["levels"]] == ["/"]
        assert inside["effective"] == 64 * MIB

    @pytest.mark.kernel
    def test_a_container_seen_from_another(self, groups):
        ours, theirs = groups.memory("ours", 64 * MIB), groups.memory("theirs", 32 * MIB)
        pid = groups.member(theirs, code="container()")
        mine, other = groups.run(f"join({str(ours)!r}); container(); show('self', 'pid:{pid}')")
        assert mine["inode"] == ours.stat().st_ino
        assert other["inode"] == theirs.stat().st_ino
        assert other["directory"].startswith(f"/proc/{pid}/root/sys/fs/cgroup")
        assert (mine["effective"], other["effective"]) == (64 * MIB, 32 * MIB)
        assert not other["own"]

    def test_a_group_that_neither_side_shows_is_an_error_and_not_self(self, groups):
        ours, theirs = groups.memory("ours"), groups.memory("theirs")
        pid = groups.member(theirs, code="unshare(NEWNS); hide_hosts_cgroups()")
        (other,) = groups.run(f"join({str(ours)!r}); container(); show('pid:{pid}')")
        assert other["error"] == "TargetError"
        assert f"/../{theirs.name} of process {pid} cannot be found" in other["text"]

    def test_another_users_process(self, groups):
        ours, theirs = groups.memory("ours"), groups.memory("theirs")
        pid = groups.member(theirs, code="container()")
        (other,) = groups.run(f"join({str(ours)!r}); container(); os.setuid(65534); show('pid:{pid}')")
        assert other["error"] == "TargetError"
        assert "Permission denied" in other["text"]
        assert "belongs to uid 0: run as that user, or with CAP_SYS_PTRACE" in other["text"]

    def test_an_unprivileged_process_finds_its_own(self, groups):
        group = groups.memory("nobody", 64 * MIB)
        (mine,) = groups.run(f"join({str(group)!r}); os.setuid(65534); show('self')")
        assert (mine["directory"], mine["effective"]) == (str(group), 64 * MIB)

    def test_read_only_bind_mount_of_a_part_with_an_odd_name(self, groups, tmp_path):
        group = groups.memory("a b", 64 * MIB)
        point = tmp_path / "with space\tand\\more"
        point.mkdir()
        (mine,) = groups.run(
            f"join({str(group)!r}); unshare(NEWNS); point = {str(point)!r}\n"
            f"system('mount', {str(group)!r}, point, None, BIND, None)\n"
            "system('mount', None, point, None, BIND | REMOUNT | RDONLY, None)\n"
            "hide_hosts_cgroups(); show('self')"
        )
        assert mine["directory"] == str(point)
        assert mine["inode"] == group.stat().st_ino

    def test_nothing_mounted(self, groups):
        group = groups.memory("none")
        (mine,) = groups.run(f"join({str(group)!r}); unshare(NEWNS); hide_hosts_cgroups(); show('self')")
        assert mine["error"] == "NotSupported"

    @pytest.mark.parametrize("own_proc", [False, True])
    def test_pid_namespace(self, groups, own_proc):
        """With the host's /proc in a pid namespace, the numbers in /proc are not those in lists of members."""
        group = unified = groups.memory("pids")
        if groups.machine.version == 1 and groups.machine.unified:
            unified = groups.unified("pids-too")
        proc = "system('mount', 'proc', '/proc', 'proc', 0, None)" if own_proc else ""
        (mine,) = groups.run(
            "unshare(NEWPID)\n"
            "if child := os.fork():\n"
            "    os.waitpid(child, 0)\n"
            "else:\n"
            f"    join({str(group)!r}, {str(unified)!r}); unshare(NEWNS | NEWCGROUP); {proc}\n"
            "    assert os.getpid() == 1; show('self')\n"
        )
        assert mine["directory"] == str(group)
        assert (mine["pid"] == 1) == own_proc
        if groups.machine.unified:
            assert mine["cgroup2_directory"] == str(unified)


def test_what_goes_away_is_an_error_with_its_number(groups):
    group = groups.memory("short")
    target = resolve(group)
    group.rmdir()
    try:
        with pytest.raises(OSError, match=f"{group.name}/memory.*cannot be read") as caught:
            target.limit()
        assert caught.value.errno in (2, 19)
    finally:
        group.mkdir()  # for the fixture to remove
