# SPDX-License-Identifier: Apache-2.0
"""The commands as programs: what they import, how they fail, how they end."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

import pymemcg
import pymemcg.once
from pymemcg.cli import COMMANDS, main, make_parser

COMMAND = [sys.executable, "-m", "pymemcg"]
# Who runs the tests in a shell's background ignores SIGINT and hands that down; a person's Ctrl-C is what is meant.
WITH_CTRL_C = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from pymemcg.cli import main; sys.exit(main())"
)
NO_RICH = (
    "import sys; sys.modules.update({'rich': None, 'rich_argparse': None}); from pymemcg.cli import main; sys.exit(main())"
)


def run(*words: str, program: list[str] = COMMAND, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program, *words], capture_output=True, text=True, timeout=60, check=False, env=os.environ | variables
    )


@pytest.fixture
def needs_a_group():
    try:
        usage = "usage_bytes" in pymemcg.once.read_once(pymemcg.resolve())
    except pymemcg.MemcgError as error:
        pytest.skip(str(error))
    if not usage:
        pytest.skip("this process is in the root, which has no usage")


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"pymemcg {pymemcg.__version__}\n")


def test_without_a_command_the_help_is_shown():
    done = run()
    assert done.returncode == 2
    assert done.stdout.startswith("usage: pymemcg") or done.stdout.startswith("Usage: pymemcg")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("program", [COMMAND, [sys.executable, "-c", NO_RICH]], ids=["rich", "no rich"])
def test_every_command_has_help(command, program):
    done = run(command, "--help", program=program)
    assert done.returncode == 0, done.stderr
    assert f"pymemcg {command}" in done.stdout
    assert command in help_of_all(tuple(program))


@cache
def help_of_all(program: tuple[str, ...]) -> str:
    return run("--help", program=list(program)).stdout


def test_help_is_no_markup():
    assert "pymemcg[cli]" in run("watch", "--help").stdout


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["dokter"], "dokter"),
        (["watch", "--interval", "often"], "often"),
        (["record", "--duration", "1s"], "--output"),
        (["record", "--duration", "1s", "--rate", "50000", "-o", "x"], "50000"),
    ],
)
def test_wrong_arguments_are_named(words, names):
    done = run(*words)
    assert done.returncode == 2
    assert names in done.stderr


@pytest.mark.parametrize("command", [["doctor"], ["watch"], ["watch", "--once"], ["record", "--duration", "1s", "-o", "x"]])
@pytest.mark.parametrize(
    ("target", "says"), [("nonsense", "is no target"), ("pid:4194305", "no process 4194305"), ("/nowhere", "/nowhere")]
)
def test_an_unknown_target_is_told_in_one_line(command, target, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*command, target)
    assert done.returncode == pymemcg.TargetError.exit_code
    assert done.stdout == ""
    assert says in done.stderr
    assert done.stderr.startswith("pymemcg: ")
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("words", [["doctor"], ["doctor", "--json"], ["watch", "--once"], ["watch", "--once", "--json"]])
def test_what_must_run_in_a_full_container_imports_nothing_heavy(words):
    code = (
        "import sys; from pymemcg.cli import main; status = main()\n"
        "heavy = {'numpy', 'rich', 'rich_argparse', 'logging', 'shutil', 'subprocess', 'asyncio', 'ctypes'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)\n"
        "sys.exit(status)"
    )
    done = run(*words, program=[sys.executable, "-c", code])
    assert done.returncode in (0, pymemcg.NotSupported.exit_code)
    assert done.stderr == "[]\n"


def test_only_the_command_that_is_asked_for_is_imported():
    code = "import sys; from pymemcg.cli import make_parser; make_parser(['doctor']); print('pymemcg.cli.watch' in sys.modules)"
    assert run(program=[sys.executable, "-c", code]).stdout == "False\n"


def test_the_parser_knows_all_commands():
    needs = {"record": "--duration 1s -o x", "postmortem": "x", "report": "x -o y", "export": "x --to csv", "fleet": "report x"}
    for command in COMMANDS:
        words = needs.get(command, "").split()
        if command != "bench":
            assert callable(make_parser().parse_args([command, *words]).run)


def test_disabled_sampling_is_told():
    done = run("watch", "--json", PYMEMCG_DISABLE="1")
    assert done.returncode == pymemcg.NotSupported.exit_code
    assert "PYMEMCG_DISABLE" in done.stderr


def test_a_reader_that_goes_away_is_no_error(needs_a_group):
    with subprocess.Popen(
        [*COMMAND, "watch", "--json", "--interval", "50ms"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        json.loads(process.stdout.readline())
        process.stdout.close()
        errors = process.stderr.read()
        assert (process.wait(timeout=30), errors) == (128 + signal.SIGPIPE, b"")


LOG = Path(__file__).parent.parent / "data" / "6.12-v2" / "dmesg-oom.txt"


def run_with(redirection: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run(*words, program=["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND], **variables)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("to", "why"), [("> /dev/full", "No space left on device"), (">&-", "Bad file descriptor")])
@pytest.mark.parametrize("words", [["oom", LOG], ["oom", "--json", LOG], ["doctor"], ["stalls", "--help"], []], ids=str)
def test_a_stdout_that_takes_nothing_is_told_in_one_line(words, to, why, unbuffered):
    done = run_with(to, *map(str, words), PYTHONUNBUFFERED=unbuffered)
    assert done.stderr == f"pymemcg: stdout: cannot be written: {why}\n"
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("closed", ["<&-", "<&- 2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_a_stdin_that_is_closed_is_told_in_one_line(closed):
    done = run_with(closed, "oom", "-")
    assert done.returncode == pymemcg.SourceError.exit_code
    assert (done.stdout, done.stderr) == (
        "",
        "" if "2" in closed else "pymemcg: stdin: cannot be read: Bad file descriptor\n",
    )


@pytest.mark.parametrize("to", ["2> /dev/full", "2>&-"])
def test_an_error_that_cannot_be_told_is_in_the_exit_status(to):
    done = run_with(to, "oom", "/there/is/no/log")
    assert (done.returncode, done.stdout, done.stderr) == (pymemcg.SourceError.exit_code, "", "")


def test_other_errors_of_the_system_are_not_said_to_be_of_stdout(monkeypatch):
    def fail(args):
        raise OSError(errno.ENOSPC, "No space left on device", "/another/file")

    monkeypatch.setattr("pymemcg.cli.oom.run", fail)
    with pytest.raises(OSError, match="/another/file"):
        main(["oom", "-"])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_command_quietly(needs_a_group, number, status):
    command = [sys.executable, "-c", WITH_CTRL_C, "watch", "--json", "--interval", "50ms"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (status, b"")


def test_a_terminal_without_the_characters_is_no_error(needs_a_group):
    done = run("watch", "--once", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


def test_main_restores_the_handler_of_sigterm(capsys, needs_a_group):
    before = signal.getsignal(signal.SIGTERM)
    assert main(["watch", "--once"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert "usage" in capsys.readouterr().out


def test_once_has_numbers_with_their_unit_and_says_what_is_absent(needs_a_group):
    before = time.time_ns()
    done = run("watch", "--once", "--json")
    reading = json.loads(done.stdout)
    assert reading["usage_bytes"] > 0
    assert before < reading["realtime_ns"] < time.time_ns()
    assert reading["working_set_bytes"] <= reading["usage_bytes"]
    assert "not read" in reading["absent"]["pressure"] or "PSI" in reading["absent"]["pressure"]
    assert not {"some_us", "some_ratio"} & reading.keys()
    for name, value in reading.items():
        if value is None:
            assert name.rpartition("_")[0] in {"limit", "headroom"}
            assert "limit" in reading["absent"]


def test_once_in_words_has_what_json_has(needs_a_group):
    text = run("watch", "--once").stdout
    for word in ("usage", "working set", "anon", "file", "faults", "pressure"):
        assert f"\n  {word}" in text
