# SPDX-License-Identifier: Apache-2.0
"""On what kind of file system a path lies."""

from __future__ import annotations

import os
import subprocess

import pytest

from pymemcg.mounts import IN_MEMORY, file_system


@pytest.mark.parametrize(("path", "kind"), [("/proc", "proc"), ("/proc/self/status", "proc"), ("/sys/kernel", "sysfs")])
def test_the_kernels_own(path, kind):
    assert file_system(path) == kind


def test_a_link_lies_where_it_leads(tmp_path):
    (tmp_path / "link").symlink_to("/proc/self")
    assert file_system(str(tmp_path / "link")) == "proc"


@pytest.mark.parametrize("folder", ["/dev/shm", "/tmp", "/var/tmp", "."])
def test_what_is_in_memory_is_what_stat_says(folder):
    if not os.path.isdir(folder):
        pytest.skip(f"there is no {folder}")
    said = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout.strip()
    assert (file_system(folder) in IN_MEMORY) == (said in IN_MEMORY)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        file_system(str(tmp_path / "none"))
