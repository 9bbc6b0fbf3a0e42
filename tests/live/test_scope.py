# SPDX-License-Identifier: Apache-2.0
"""Where the present group holds processes, cgroup v2 lets it hold no others: a scope of systemd's, a sibling, or a reason."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from booted import UID, Systemd, why_not
from runner import MAIN

from pymemcg.child import PREFIX

pytestmark = pytest.mark.live

PYMEMCG = (sys.executable, "-c", MAIN)
# Where it is, and how much it may have there.
LOOK = "sed s/0:://p -n /proc/self/cgroup; cat /sys/fs/cgroup/$(sed s/0:://p -n /proc/self/cgroup)/memory.max"
RUN = (*PYMEMCG, "run", "--memory-max", "64M", "--", "sh", "-c")
SCOPE = re.compile(rf"{PREFIX}[0-9]+-run-[0-9a-f]+\.scope/{PREFIX}[0-9]+-run")

UNREMOVABLE = """
import os, time
from pymemcg import MemcgError, child
child._PATIENCE_S = 0.3
group = child.ChildGroup("kept")
scope = os.path.dirname(group.directory)
assert scope.endswith(".scope"), scope
os.mkdir(f"{group.directory}/left")
try:
    group.close()
except MemcgError as error:
    print("cannot be removed" if "cannot be removed" in str(error) else error)
deadline = time.monotonic() + 30
while os.path.exists(scope) and time.monotonic() < deadline:
    time.sleep(0.05)
print("the scope is there" if os.path.exists(scope) else "the scope is gone")
group.close()
"""


@pytest.fixture(scope="module")
def systemd() -> Iterator[Systemd]:
    if reason := why_not():
        pytest.skip(reason)
    running = Systemd()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def _leaves_nothing(systemd) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 30
    while systemd.groups() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert systemd.groups() == []


class TestRoot:
    def test_a_command_with_a_limit_gets_a_scope_in_the_same_slice(self, systemd):
        done = systemd.scope(*RUN, LOOK)
        assert done.returncode == 0, done.stderr
        path, limit = done.stdout.split()
        assert path.startswith("/system.slice/")
        assert SCOPE.search(path)
        assert int(limit) == 64 << 20
        assert "limit 64.0 MiB" in done.stderr

    def test_the_status_is_the_commands(self, systemd):
        assert systemd.scope(*RUN, "exit 7").returncode == 7
        assert systemd.scope(*RUN, "kill -9 $$").returncode == 137

    def test_what_is_left_behind_goes_on_and_the_scope_goes(self, systemd):
        done = systemd.scope(*RUN, "sleep 300 > /dev/null 2>&1 & echo $!")
        assert done.returncode == 0, done.stderr
        pid = done.stdout.strip()
        try:
            group = systemd.run("cat", f"/proc/{pid}/cgroup").stdout
            assert ".scope" in group
            assert PREFIX not in group
        finally:
            assert systemd.run("kill", "-9", pid).returncode == 0

    def test_in_a_delegated_group_it_is_a_sibling(self, systemd):
        """Whoever was given groups of their own does with them as they like, and below their own limits."""
        prepare = (
            "top=/sys/fs/cgroup/$(sed s/0:://p -n /proc/self/cgroup); mkdir $top/leaf; echo $$ > $top/leaf/cgroup.procs; "
            'echo +memory > $top/cgroup.subtree_control; echo $top; exec "$@"'
        )
        done = systemd.scope("sh", "-c", prepare, "sh", *RUN, LOOK, properties=("Delegate=yes",))
        assert done.returncode == 0, done.stderr
        top, path, _ = done.stdout.split()
        assert Path(path).parent == Path("/", Path(top).relative_to("/sys/fs/cgroup"))

    def test_without_systemds_tools_there_is_none_and_why_is_said(self, systemd, tmp_path):
        """The slice would take groups, but systemd may switch the controller off there, and with it the limit."""
        done = systemd.scope("env", f"PATH={tmp_path}", *RUN[:-2], "/bin/sh", "-c", "echo it ran")
        assert (done.returncode, done.stdout) == (125, "")
        assert "/system.slice, is systemd's own, and systemd-run cannot be started: No such file" in done.stderr
        assert done.stderr.count("\n") == 1

    def test_a_group_that_cannot_be_removed_keeps_no_scope(self, systemd):
        """Not even as long as the process that asked for it goes on."""
        done = systemd.scope(sys.executable, "-c", UNREMOVABLE)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == ["cannot be removed", "the scope is gone"]


class TestUser:
    def test_in_a_login_session(self, systemd):
        """Its groups are not the user's: that manager has systemd's help to move processes, and then so have we."""
        systemd.user_manager()
        done = systemd.scope(*RUN, LOOK, user=True)
        assert done.returncode == 0, done.stderr
        path, limit = done.stdout.split()
        assert path.startswith(f"/user.slice/user-{UID}.slice/user@{UID}.service/")
        assert SCOPE.search(path)
        assert int(limit) == 64 << 20

    def test_below_the_users_manager(self, systemd):
        systemd.user_manager()
        done = systemd.scope("systemd-run", "--user", "--scope", "--quiet", "--", *RUN, LOOK, user=True)
        assert done.returncode == 0, done.stderr
        assert f"/user@{UID}.service/app.slice/" in done.stdout
        assert SCOPE.search(done.stdout)

    def test_what_a_login_session_leaves_behind(self, systemd):
        systemd.user_manager()
        done = systemd.scope(*RUN, "sleep 300 > /dev/null 2>&1 & echo $!", user=True)
        assert done.returncode == 0, done.stderr
        pid = done.stdout.strip()
        group = systemd.run("cat", f"/proc/{pid}/cgroup").stdout.strip()
        assert systemd.run("kill", "-9", pid).returncode == 0
        assert group.endswith(".scope/holder"), "there is no way back; the scope ends with it"

    @pytest.fixture
    def without_manager(self, systemd):
        systemd.user_manager()
        done = systemd.run("systemctl", "stop", f"user@{UID}.service")
        assert done.returncode == 0, done.stderr

    @pytest.mark.usefixtures("without_manager")
    def test_without_a_manager_it_is_said_what_would_help(self, systemd):
        done = systemd.scope(*RUN, "echo it ran", user=True)
        assert (done.returncode, done.stdout) == (125, "")
        assert "systemd gives no scope" in done.stderr
        assert "loginctl enable-linger" in done.stderr
        assert done.stderr.count("\n") == 1

    @pytest.mark.usefixtures("without_manager")
    def test_demo_without_one_is_of_the_own_group(self, systemd, scratch):
        os.chown(scratch, UID, UID)
        done = systemd.scope("env", f"TMPDIR={scratch}", *PYMEMCG, "demo", user=True)
        assert done.returncode == 0, done.stderr
        text = " ".join(done.stdout.split())
        assert "systemd gives no scope" in text
        assert "So this is your own group" in text


def test_demo_has_a_scope(systemd, scratch):
    done = systemd.scope("env", f"TMPDIR={scratch}", *PYMEMCG, "demo")
    assert done.returncode == 0, done.stderr
    assert "No service can be squeezed" not in done.stdout
    assert re.search(rf"/system\.slice/{PREFIX}[0-9]+-demo-[0-9a-f]+\.scope/{PREFIX}[0-9]+-demo", done.stdout)
    assert "64.0 MiB ┤" in done.stdout
