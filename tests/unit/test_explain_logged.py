# SPDX-License-Identifier: Apache-2.0
"""Which kills of the kernel's log are a group's: none where its path may be another group's."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from pymemcg.cgroup import Level, resolve
from pymemcg.explain._logged import host_path, logged_kills
from pymemcg.mounts import CgroupPath, parse_mounts, read_text

FIRST = os.path.exists("/proc/self/ns/cgroup") and os.stat("/proc/self/ns/cgroup").st_ino == 4026531835
here_only = pytest.mark.skipif(not FIRST, reason="not in the first cgroup namespace")

_INSIDE = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).unshare(0x02000000):  # CLONE_NEWCGROUP
    sys.exit(77)
from pymemcg.explain._logged import logged_kills
print(logged_kills(sys.argv[1]))
"""


@pytest.mark.parametrize("path", ["/", "/docker/9cc6"])
def test_in_a_cgroup_namespace_the_log_is_not_searched(path):
    ran = subprocess.run([sys.executable, "-c", _INSIDE, path], capture_output=True, text=True, check=False)
    if ran.returncode == 77:
        pytest.skip("no namespace can be made here")
    assert "from inside of a cgroup namespace" in ran.stdout, ran.stderr
    assert ran.stdout.startswith("((), ")


@pytest.mark.parametrize("path", [None, "/../other", "relative"])
def test_a_path_that_is_not_the_hosts_is_not_searched_for(path):
    kills, why = logged_kills(path)
    assert kills == ()
    assert "is not the one in the log" in why


@here_only
def test_the_root_group_has_everybodys_kills():
    assert logged_kills("/") == ((), "every kill is one below the root group: run `pymemcg oom`")


@here_only
def test_a_group_that_never_was_has_no_kills():
    kills, why = logged_kills("/pymemcg-never-was")
    assert kills == ()
    assert why is None or "pymemcg oom" in why or "/dev/kmsg" in why


def test_a_path_is_that_of_the_whole_hierarchy():
    """What is mounted may be a part: its top is another group than the hierarchy's."""
    target = resolve("self")
    place = target.levels[-1].directory
    root = next(mount.root for mount in parse_mounts(read_text("/proc/self/mountinfo")) if mount.directory == place)
    below = dataclasses.replace(target, levels=(Level("/a/b", f"{place}/a/b", {}),))
    assert host_path(below) == str(CgroupPath(root.up, (*root.names, "a", "b")))
    at_top = dataclasses.replace(target, levels=(Level("/", place, {}),))
    assert host_path(at_top) == str(root)


def test_a_mount_of_somebody_else_tells_no_path():
    other = Level("/a", "/proc/1/root/sys/fs/cgroup/a", {})
    assert host_path(dataclasses.replace(resolve("self"), levels=(other,))) is None
