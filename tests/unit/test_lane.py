# SPDX-License-Identifier: Apache-2.0
"""tests/vm fails loudly: a lane without tests, a kernel that cannot be had, a budget that is passed, a cell that failed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bench.fidelity import guests

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
ROOT = VM.parents[1]


@pytest.mark.parametrize(
    ("output", "status", "complaint"),
    [
        ("== 10 passed in 1.00s ==", 0, None),
        ("SKIPPED [1] a.py:3: no PSI\n== 9 passed, 1 skipped in 1.00s ==", 0, "none may skip, but: no PSI"),
        ("== 8 passed, 1 skipped in 1.00s ==", 0, "1 of 10 tests missing"),
        ("== 9 passed in 1.00s ==", 0, "1 of 10 tests missing"),
        ("== 9 passed, 1 failed in 1.00s ==", 1, "failed with exit status 1"),
        ("== 10 skipped in 1.00s ==", 0, "no test ran"),
        ("tests/live/test_child.py ....", 124, "took too long"),
        ("", 125, "the guest died or could not be had"),
    ],
)
def test_a_lane_complains(output, status, complaint):
    kernel = lane.kernels.Kernel("6.1", Path("vmlinuz"), Path("6.1.0"))
    for who in ("", "reader"):  # the same is asked of everybody
        one = lane.Run("6.1", kernel, who, [f"test_a.py::test_{number}" for number in range(10)])
        assert lane.complaint(lane.pytests.Said.of(output, status), one) == complaint


def test_a_lane_runs_as_everybody():
    options = lane.argparse.Namespace(python=Path(sys.executable), tests=[], kernels=["6.12", "6.1"])
    found = {name: lane.kernels.Kernel(name, Path("vmlinuz"), Path(f"{name}.0")) for name in options.kernels}
    runs = lane.runs(options, found.__getitem__)
    assert [run.title for run in runs[:2]] == ["6.12.0", "6.1.0"]
    assert all(any("test_pressure.py::" in test for test in run.tests) for run in runs[:2])
    assert {run.who for run in runs[2:]} == {"owner", "reader", "container", "beside"}
    for run in runs[2:]:
        assert run.title == f"{run.kernel.name}.0, as {run.who}"
        assert run.command(options.python)[:3] == [VM / "as", run.who, "--"]
        assert all("test_here.py::" in test for test in run.tests)
        assert any("::TestBeside::" in test for test in run.tests) == (run.who == "beside")


def run_lane(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(VM / "lane"), "--python", sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


@pytest.mark.parametrize(
    ("apt", "says"),
    [
        (None, "there is no apt-get to install it: "),
        ("echo E: Unable to locate package >&2; exit 100", "apt-get -q update: E: Unable to locate package"),
    ],
)
def test_a_lane_without_qemu_fails(tmp_path, apt, says):
    """As on a machine that has none and cannot have it installed: its PATH has nothing but what starts pytest."""
    if any((Path(folder) / "qemu-system-x86_64").exists() for folder in ("/sbin", "/usr/sbin")):
        pytest.skip("QEMU is where it is looked for whatever PATH is")
    programs, kernel = tmp_path / "bin", tmp_path / "kernel"
    programs.mkdir()
    (programs / "env").symlink_to(shutil.which("env"))
    if apt is not None:
        (programs / "apt-get").write_text(f"#!/bin/sh\n{apt}\n")
        (programs / "apt-get").chmod(0o755)
    (kernel / "lib/modules/7.0").mkdir(parents=True)
    (kernel / "boot").mkdir()
    (kernel / "boot/vmlinuz-7.0").touch()
    tests = str(Path(__file__).with_name("test_rig.py"))
    done = run_lane(tests, "--kernels", f"{kernel}/", environment={**os.environ, "PATH": str(programs)})
    assert (done.returncode, done.stdout) == (125, "")
    assert says in done.stderr
    assert ("qemu-system-x86" in done.stderr) == (apt is None)


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


@pytest.mark.parametrize("output", ["", "Segmentation fault\n", "[1, 2]\n", '{"release": "6.1.0"}\n'])
def test_a_guest_that_prints_no_figures_is_not_above_the_budget(output):
    with pytest.raises(RuntimeError, match=r"6\.1: no figures in what it printed:(?s:.*)why"):
        budget.read("6.1", output, "why")


def test_a_kernel_that_cannot_be_had_fails_alone_and_in_a_folder_of_its_own(tmp_path):
    told: list[str] = []
    (tmp_path / "kernel").mkdir()
    reports, failed = guests.measure(["9.9z", f"{tmp_path}/kernel/"], str(tmp_path / "kept"), [], told.append)
    assert reports == []
    assert [name for name, _ in failed] == ["the guest with 9.9z", "the guest with kernel"]
    assert all("it ended with status 125" in why for _, why in failed)
    assert sorted(os.listdir(tmp_path / "kept")) == ["9.9z", "kernel"]
    assert os.listdir(tmp_path / "kernel") == []
    assert len(told) == 4


def test_what_was_kept_of_guests_is_found_whatever_they_are_called(tmp_path):
    for name in ("6.12", "uml", "6.1", "mine-7"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "others.json").write_text(f'{{"about": {{"guest": "{name}"}}}}')
    assert [report.about["guest"] for report in guests.kept_reports(str(tmp_path), None)] == ["uml", "6.1", "6.12", "mine-7"]


@pytest.fixture(autouse=True)
def _no_cells(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix.results, "FOLDER", tmp_path)
    monkeypatch.setattr(matrix, "all_files", lambda: list(FILES))
    monkeypatch.setattr(matrix.Cell, "release", "6.1.0")  # else kernels are downloaded


FILES = ("live/test_a.py", "live/test_b.py", "live/test_c.py")
A, B, C = (f"{ROOT}/tests/{file}" for file in FILES)
ALL = [A, B, C]
# As -vv has it, in a guest whose paths begin at the root.
ONE_FAILS = """
tree/tests/live/test_a.py::test_one PASSED
tree/tests/live/test_a.py::TestIt::test_two[a b] SKIPPED (/sys/fs/cgroup/pymemcg-12-x: no (PSI) here)
tree/tests/live/test_a.py::test_three PASSED
tree/tests/live/test_a.py::test_three ERROR
tree/tests/live/test_b.py::test_one FAILED
tree/tests/live/test_c.py::test_one[x] PASSED
SKIPPED [1] tree/tests/live/test_a.py:3: /sys/fs/cgroup/pymemcg-12-x: no (PSI) here
ERROR tree/tests/live/test_a.py::test_three - OSError: a | b
FAILED tree/tests/live/test_b.py::test_one - AssertionError: /tmp/pytest-3/x is there
  and more of it
== 1 failed, 3 passed, 1 skipped, 1 error in 1.0s ==
"""
DIES = """
tree/tests/live/test_a.py::test_one PASSED
tree/tests/live/test_b.py::test_one PASSED
tree/tests/live/test_b.py::test_two """


def test_a_table_tells_what_skips_what_failed_and_where_it_is_from():
    matrix.Cell("host", "root").keep(ONE_FAILS, 1, ALL, marked=False)
    table = matrix.table()
    assert "| 3 passed, 1 skipped, 1 failed, 1 error | – | – | – | – |" in table
    assert f"commit {matrix.commit()}: host root 3 files" in table
    assert "| …: no (PSI) here | host root 1 |" in table
    assert "- host root: `live/test_b.py::test_one`: AssertionError: … is there\n" in table
    assert "- host root: `live/test_a.py::test_three`: OSError: a ¦ b\n" in table
    assert "| uml (not run yet) |" in table


def test_a_run_replaces_what_is_known_of_its_files_alone():
    cell = matrix.Cell("6.1 v1", "root")
    cell.keep(ONE_FAILS, 1, ALL, marked=False)
    cell.keep("tests/live/test_b.py::test_one PASSED\n== 1 passed in 1.0s ==", 0, [B], marked=False)
    assert matrix._verdict(cell) == "4 passed, 1 skipped, 1 error"
    cell.keep("tests/live/test_a.py::test_one PASSED\n== 1 passed in 1.0s ==", 0, [A], marked=False)
    assert matrix._verdict(cell) == "3 passed"
    assert matrix.results.load("6.1-v1-root").skipped == {}


def test_a_run_that_is_stopped_keeps_the_files_that_were_done():
    cell = matrix.Cell("6.1 v1", "root")
    cell.keep(DIES, 124, ALL, marked=False)
    assert matrix._verdict(cell) == "2 of 3 files: 2 passed, 1 file unfinished"
    assert "- 6.1 v1 root: `live/test_b.py` is unfinished: took too long" in matrix.table()
    assert cell.missing == ["live/test_c.py", "live/test_b.py"]
    cell.keep("", 125, [C, B], marked=False)
    assert cell.missing == ["live/test_c.py", "live/test_b.py"]
    done = "tests/live/test_c.py::test_one PASSED\ntests/live/test_b.py::test_one PASSED\n== 2 passed in 1.0s =="
    cell.keep(done, 0, [C, B], marked=False)
    assert matrix._verdict(cell) == "3 passed"
    assert cell.missing == []


def test_marked_tests_are_told_where_not_all_are_known():
    cell = matrix.Cell("6.1", "owner")
    assert matrix._verdict(cell) == "–"
    one = [f"{A}::test_one", f"{C}::test_one"]
    cell.keep("tests/live/test_a.py::test_one FAILED\n== 1 failed in 1.0s ==", 1, one, marked=True)
    assert matrix._verdict(cell) == "marked: 1 failed"
    cell.keep("tests/live/test_a.py::test_one PASSED\n== 1 passed in 1.0s ==", 0, [A], marked=False)
    assert matrix._verdict(cell) == "1 of 3 files: 1 passed; marked: 1 failed"
    assert cell.told.failed == {}  # a whole file says more
    cell.keep("tests/live/test_b.py::test_one PASSED\n== 1 passed in 1.0s ==", 0, [B, C], marked=False)
    assert matrix._verdict(cell) == "2 passed"


def test_of_single_tests_nothing_is_kept():
    cell = matrix.Cell("6.1", "root")
    found = cell.keep("tests/live/test_a.py::test_one PASSED\n== 1 passed in 1.0s ==", 0, [f"{A}::test_one"], marked=False)
    assert found.summary == "1 passed"
    assert matrix._verdict(cell) == "–"


@pytest.mark.parametrize(
    ("output", "status", "verdict"),
    [
        ("tests/live/test_a.py::test_one PASSED\n== 1 passed in 1.0s ==", 0, "1 passed"),
        ("tests/live/test_a.py::test_one PASSED\n== 1 passed in 1.0s ==\nKilled", 137, "1 passed, 1 file unfinished"),
        ("tests/live/test_a.py::test_one PASSED\n== 1 passed in 1.0s ==", 1, "1 passed, 1 file unfinished"),
        ("tests/live/test_a.py::test_one SKIPPED (why)\n== 1 skipped in 1.0s ==", 0, "1 skipped"),
        ("tests/live/test_a.py::test_one PASSED\nKilled", 125, "1 of 3 files: 1 passed, 1 file unfinished"),
        ("tests/live/test_a.py::test_one ", 124, "1 of 3 files: 1 file unfinished"),
        ("no kernel", 125, "–"),
    ],
)
def test_a_cell_tells_how_its_tests_ended(output, status, verdict):
    matrix.Cell("host", "reader").keep(output, status, ALL, marked=False)
    assert f"| – | – | {verdict} | – | – |" in matrix.table()


def test_what_is_kept_is_read_back_the_same(tmp_path):
    found = matrix.Result.of(ONE_FAILS, 1, list(FILES), {"release": "6.1", "commit": "1a2b", "date": "2026-01-02"})
    matrix.results.save("x", found)
    assert matrix.results.load("x") == found
    lines = (tmp_path / "x.json").read_text().splitlines()
    assert len([line for line in lines if "test_a.py" in line]) == 3  # its numbers, its reason, its error
