# SPDX-License-Identifier: Apache-2.0
"""Containers that are full: how much room a program needs beside what is there is that above a bare interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import facts
import pytest

from pymemcg.child import ChildGroup

ROOM = 6 << 20
"""What must run in a full container may take this much above a bare interpreter."""


def run_inside(group: ChildGroup, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program that is in the group from its first page on."""
    shell = ["/bin/sh", "-c", 'read line; exec "$@"', "sh", *command]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(shell, text=True, env=os.environ | variables, **pipes) as process:
        group.add(process.pid)
        out, errors = process.communicate("\n", timeout=facts.PATIENCE_S)
        return subprocess.CompletedProcess(command, process.returncode, out, errors)


def peak_bytes(group: ChildGroup) -> int:
    """The most that a group has used."""
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        if os.path.exists(f"{group.directory}/{name}"):
            return int(Path(group.directory, name).read_text())
    pytest.skip("this kernel keeps no peak of a group's usage (cgroup v2 before 5.19)")


def run_in_full(
    make_group: Callable[..., ChildGroup], folder: Path, *command: str
) -> tuple[ChildGroup, subprocess.CompletedProcess[str]]:
    """Run a program where there is `ROOM` above a bare interpreter, compiled beforehand, as pip leaves an installed package.

    Args:
        make_group: The fixture.
        folder: For what is compiled.
        command: The program.
    """
    variables = {"PYTHONPYCACHEPREFIX": str(folder), "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run(command, capture_output=True, timeout=facts.PATIENCE_S, check=False, env=os.environ | variables)
    bare = make_group("bare")
    assert run_inside(bare, sys.executable, "-c", "pass", **variables).returncode == 0
    full = make_group("full", limit_bytes=peak_bytes(bare) + ROOM)
    return full, run_inside(full, *command, **variables)
