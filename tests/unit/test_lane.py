# SPDX-License-Identifier: Apache-2.0
"""tests/vm fails loudly: a lane without tests, a kernel that cannot be had, a budget that is passed, a cell that failed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

VM = Path(__file__).resolve().parents[1] / "vm"


def program(name: str) -> ModuleType:
    """A command of tests/vm, as a module."""
    loader = importlib.machinery.SourceFileLoader(f"vm_{name}", str(VM / name))
    loader_spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(loader_spec)
    sys.modules[loader.name] = module  # dataclasses look there
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module


lane, budget, matrix = program("lane"), program("budget"), program("matrix")


@pytest.mark.parametrize(
    ("output", "status", "complaint"),
    [
        ("== 10 passed in 1.00s ==", 0, None),
        ("== 8 passed, 2 skipped in 1.00s ==", 0, None),
        ("== 7 passed, 3 skipped in 1.00s ==", 0, "too many skipped"),
        ("== 9 passed in 1.00s ==", 0, "1 of 10 tests missing"),
        ("== 9 passed, 1 failed in 1.00s ==", 1, "failed with exit status 1"),
        ("== 10 skipped in 1.00s ==", 0, "no test ran"),
        ("tests/live/test_child.py ....", 124, "took too long"),
        ("", 125, "the guest died or could not be had"),
    ],
)
def test_a_lane_complains(output, status, complaint):
    assert lane.complaint(lane.pytests.Said.of(output, status), wanted=10) == complaint


def run_lane(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(VM / "lane"), "--python", sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_lane_without_its_kernel_fails():
    done = run_lane(str(Path(__file__).with_name("test_rig.py")), "--kernels", "/nowhere/")
    assert done.returncode == 125
    assert "no kernel" in done.stderr


def test_a_lane_without_tests_fails(tmp_path):
    (tmp_path / "test_none.py").write_text("")
    done = run_lane(str(tmp_path / "test_none.py"), "--kernels", "/nowhere/")
    assert done.returncode == 125
    assert "no tests to run" in done.stderr


RECORDED = {"release": "6.1.0", "ratios": {"sample": 1.05, "tick": 1.2}}


@pytest.mark.parametrize(
    ("figures", "above"),
    [
        ({"sample": [1050, 1000], "tick": [1200, 1000]}, []),
        ({"sample": [1070, 1000], "tick": [1200, 1000]}, []),  # within the margin
        ({"sample": [1072, 1000], "tick": [1200, 1000]}, ["6.1 sample"]),
        ({"sample": [900, 1000], "tick": [1300, 1000]}, ["6.1 tick"]),
        ({"sample": [1050, 1000]}, ["6.1 tick, which is recorded or measured, not both"]),
    ],
)
def test_a_budget_that_is_passed_is_named(figures, above, capsys):
    assert budget.judge("6.1", budget.Measured("6.1.0", figures), RECORDED, margin=0.02) == above
    printed = capsys.readouterr().out
    assert printed.count("ABOVE THE BUDGET") == sum("which" not in name for name in above)
    assert "recorded on" not in printed


def test_a_budget_of_another_kernel_is_said(capsys):
    figures = {"sample": [1050, 1000], "tick": [1200, 1000]}
    assert budget.judge("6.1", budget.Measured("6.1.9", figures), RECORDED, margin=0.02) == []
    assert "6.1 is 6.1.9; recorded on 6.1.0" in capsys.readouterr().out


def test_a_table_tells_what_failed_and_where_it_is_from(tmp_path, monkeypatch):
    monkeypatch.setenv("PYMEMCG_VM_CACHE", str(tmp_path))
    output = (
        "SKIPPED [2] tests/live/test_a.py:3: there is no PSI\n"
        "FAILED tests/live/test_a.py::test_b - AssertionError\n== 1 failed, 3 passed, 2 skipped in 1.0s =="
    )
    matrix.Cell("host", "root").keep(output, 1)
    table = matrix.table()
    assert "| 1 failed, 3 passed, 2 skipped | – | – | – | – |" in table
    assert f"At commit {matrix.commit()}: host root." in table
    assert "| there is no PSI | host root 2 |" in table
    assert "- host, root: `live/test_a.py::test_b`" in table
    assert "| uml (not run yet) |" in table
