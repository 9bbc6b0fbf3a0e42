# SPDX-License-Identifier: Apache-2.0
"""Groups made for a while, on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import facts
import pytest

from pymemcg import Sampler, child, resolve
from pymemcg.child import PREFIX, ChildGroup
from pymemcg.errors import NotSupported, SourceError, TargetError

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("own_groups")]

MIB = 1 << 20
SLEEPER = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(SLEEPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def left_behind() -> list[str]:
    tops = {Path(level.directory) for level in resolve().levels}
    if above := resolve().cgroup2_directory:
        tops.add(Path(above))
    return [str(path) for top in tops for path in top.glob(f"{PREFIX}{os.getpid()}-*")]


@pytest.mark.kernel
def test_a_group_with_a_limit_is_found_by_its_spec_and_leaves_nothing():
    with ChildGroup("limit", limit_bytes=64 * MIB) as group:
        target = resolve(group.spec)
        assert target.directory == group.directory
        limit, level = target.limit()
        assert limit == 64 * MIB
        assert level == target.levels[0]
        assert Path(group.directory).name.startswith(PREFIX)
    assert not os.path.exists(group.directory)
    assert left_behind() == []


def test_swap_can_be_forbidden():
    with ChildGroup("dry", limit_bytes=64 << 20) as group:
        files = [Path(group.directory, name) for name in ("memory.swap.max", "memory.swappiness")]
        there = [file for file in files if file.exists()]
        if not there:
            pytest.skip("this kernel has no swap")
        group.forbid_swap()
        assert [file.read_text() for file in there] == ["0\n"]


def test_handed_over_processes_are_members_on_both_sides_and_end_with_the_group(sleeper):
    with ChildGroup("member") as group:
        group.add(sleeper.pid)
        target = resolve(f"pid:{sleeper.pid}")
        assert target.directory == group.directory
        assert target.cgroup2_directory == group.cgroup2_directory
        if group.cgroup2_directory is not None and Path(group.cgroup2_directory, "memory.pressure").exists():
            assert target.pressure_scope == "group"
    assert sleeper.wait(facts.PATIENCE_S) == -9


@pytest.mark.kernel
def test_nested_groups_close_from_the_inside(sleeper):
    with ChildGroup("outer", limit_bytes=64 * MIB) as outer:
        inner = outer.child("inner", limit_bytes=128 * MIB)
        inner.add(sleeper.pid)
        assert Path(inner.directory).parent == Path(outer.directory)
        if outer.cgroup2_directory is not None:
            assert Path(str(inner.cgroup2_directory)).parent == Path(outer.cgroup2_directory)
        assert resolve(inner.spec).limit()[0] == 64 * MIB
    assert left_behind() == []


def test_what_a_member_started_ends_too():
    code = f"import subprocess; p = subprocess.Popen({SLEEPER!r}, stdin=subprocess.PIPE); print(p.pid, flush=True); p.wait()"
    # It waits to be handed over first.
    command = [sys.executable, "-c", "import sys; sys.stdin.readline()\n" + code]
    with ChildGroup("tree") as group, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        group.add(process.pid)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        started = int(process.stdout.readline())
        assert str(started) in Path(group.directory, "cgroup.procs").read_text().split()
        group.close()
        assert not _runs(started)


def test_what_a_member_starts_while_the_group_is_closed_ends_too():
    """Its parent is killed, and then nothing tells whose it was."""
    mark = f"{PREFIX}{os.getpid()}-forks"
    code = (
        "import os, sys, time; sys.stdin.readline()\n"
        "for _ in range(3): os.fork()\n"
        f"for i in range({30 if facts.EMULATED else 100}):\n"  # by each of eight: so many take a while to be looked at
        "    if os.fork() == 0: time.sleep(300); os._exit(0)\n"
        "    if i == 25: os.write(1, b'\\n')\n"
        "time.sleep(300)"
    )
    command = [sys.executable, "-c", code, mark]
    try:
        with ChildGroup("forks") as group, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            group.add(process.pid)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
            group.close()
        left = _running(mark)
        assert left == []
    finally:
        for pid in _running(mark):
            os.kill(pid, signal.SIGKILL)


def _running(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "cmdline").read_bytes() and _runs(int(folder.name)):
                found.append(int(folder.name))
    return found


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.kernel
def test_who_was_moved_in_by_others_lives_on(sleeper):
    with ChildGroup("guest") as group:
        Path(group.directory, "cgroup.procs").write_text(str(sleeper.pid))
    assert sleeper.poll() is None
    assert resolve(f"pid:{sleeper.pid}").directory == resolve().directory
    assert not os.path.exists(group.directory)


def test_an_exception_leaves_nothing(sleeper):
    def fail() -> None:
        with ChildGroup("raises") as group:
            group.add(sleeper.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert sleeper.wait(facts.PATIENCE_S) == -9
    assert left_behind() == []


def test_what_cannot_be_removed_keeps_nothing_else_from_being_closed(sleeper, monkeypatch):
    monkeypatch.setattr(child, "_PATIENCE_S", 0.3)
    outer = ChildGroup("outer")
    kept, other = outer.child("kept"), outer.child("other")
    other.add(sleeper.pid)
    os.mkdir(f"{kept.directory}/left")
    try:
        with pytest.raises(SourceError, match="cannot be removed"):
            outer.close()
        assert sleeper.wait(facts.PATIENCE_S) == -9
        assert not os.path.exists(other.directory)
        assert os.path.isdir(kept.directory)
    finally:
        os.rmdir(f"{kept.directory}/left")
        outer.close()
    assert left_behind() == []


def test_a_group_that_others_removed_together_with_that_above_is_closed():
    with ChildGroup("outer") as outer:
        inner = ChildGroup("inner", parent=outer.directory)
        os.rmdir(inner.directory)
        os.rmdir(outer.directory)
        inner.close()
    assert left_behind() == []


@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside others"])
def test_the_controller_is_taken_back_from_nobody_who_uses_it(others):
    if resolve().version == 1:
        pytest.skip("cgroup v1 hands no controllers down")
    with ChildGroup("outer") as outer:
        handed_down = Path(outer.directory, "cgroup.subtree_control")
        inner = ChildGroup("inner", parent=outer.directory, limit_bytes=64 * MIB)
        assert handed_down.read_text().split() == ["memory"]
        limit = Path(outer.directory, "other", "memory.max")
        if others:
            limit.parent.mkdir()
            limit.write_text(str(32 * MIB))
        inner.close()
        assert ("memory" in handed_down.read_text()) is others
        if others:
            assert int(limit.read_text()) == 32 * MIB
            limit.parent.rmdir()


@pytest.mark.kernel
def test_a_limit_that_the_kernel_refuses_leaves_nothing():
    with pytest.raises(NotSupported, match="Invalid argument"):
        ChildGroup("refused", limit_bytes=-7)
    assert left_behind() == []


def test_the_same_name_twice_is_an_error_and_keeps_the_first():
    with ChildGroup("twice") as group:
        with pytest.raises(NotSupported, match="File exists"):
            ChildGroup("twice")
        assert os.path.isdir(group.directory)


def test_no_such_process(sleeper):
    sleeper.kill()
    sleeper.wait()
    with ChildGroup("nobody") as group, pytest.raises(SourceError, match=f"no process {sleeper.pid}"):
        group.add(sleeper.pid)


def test_this_very_process_cannot_be_handed_over():
    with ChildGroup("self") as group, pytest.raises(ValueError, match="cannot end itself"):
        group.add(os.getpid())


@pytest.mark.parametrize("pid", [0, -1])
def test_what_the_kernel_would_take_for_somebody_else_is_no_process(pid):
    with ChildGroup("zero") as group:
        with pytest.raises(ValueError, match="no process"):
            group.add(pid)
        assert resolve().directory != group.directory


def test_below_a_directory_that_is_no_group(tmp_path):
    assert "is no cgroup" in str(ChildGroup.possible(tmp_path))
    with pytest.raises(TargetError):
        ChildGroup("nowhere", parent=tmp_path)


@pytest.mark.usefixtures("only_root")
def test_another_user_is_told_why_not():
    code = "import os; from pymemcg.child import ChildGroup; os.setuid(65534); print(ChildGroup.possible())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "no group can be made" in answer or "Permission denied" in answer
    assert "delegated to this user" in answer


def test_a_group_is_sampled_by_its_spec(sleeper):
    with ChildGroup("sampled", limit_bytes=64 * MIB) as group:
        group.add(sleeper.pid)
        with Sampler(group.spec) as sampler:
            row = sampler.usage.window(rows=1)
            assert 0 <= int(row["usage_bytes"][-1]) <= 64 * MIB
