# SPDX-License-Identifier: Apache-2.0
"""`pymemcg run` as its tests start it, as any process and as pid 1 of a namespace, and a command that tells its signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import facts
import pytest

# Who runs the tests in a shell's background ignores SIGINT and hands that down; a person's Ctrl-C is what is meant.
HEEDING = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
MAIN = HEEDING + "from pymemcg.cli import main; sys.exit(main())"
RUN = [sys.executable, "-c", MAIN, "run"]
PID_1 = ["unshare", "--pid", "--fork", "--mount-proc", *RUN]

# Says which signals came, how often, and ends with SIGTERM.
LISTENER = """
import os, signal, sys, time
told = {signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGWINCH, signal.SIGRTMIN + 3}
def tell(number, _frame):
    os.write(1, b"%d\\n" % number)
    if number == signal.SIGTERM:
        os._exit(7)
for number in {*told, signal.SIGTERM}:
    signal.signal(number, tell)
os.write(1, b"ready\\n")
while True:
    time.sleep(0.01)  # not pause(): what comes just before that would be told only after the next one
"""
SIGNALS = (
    *(signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGWINCH, signal.SIGRTMIN + 3),
    signal.SIGTERM,
)


def run(*words: str, program: list[str] = RUN, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program, *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=facts.PATIENCE_S,
        check=False,
        env=os.environ | variables,
    )


def shell(script: str, *options: str, program: list[str] = RUN) -> subprocess.CompletedProcess[str]:
    return run(*options, "--", "sh", "-c", script, program=program)


def as_pid_1() -> list[str]:
    """The program in a pid namespace of its own; where none may be made, the test skips."""
    try:
        done = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare (util-linux)")
    if done.returncode != 0:
        pytest.skip(f"a pid namespace may not be made here: {done.stderr.strip()}")
    return PID_1


def children_of(pid: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        try:
            text = Path("/proc", entry, "stat").read_text() if entry.isdigit() else ""
        except OSError:
            continue
        if text and int(text.rpartition(")")[2].split()[1]) == pid:
            found.append(int(entry))
    return found
