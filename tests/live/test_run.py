# SPDX-License-Identifier: Apache-2.0
"""`pymemcg run`: what it does to a command, which is nothing, and for it, as a parent, as pid 1 and in front of a terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import facts
import pytest
from runner import LISTENER, MAIN, RUN, SIGNALS, as_pid_1, children_of, run, shell

import pymemcg
import pymemcg.once
from pymemcg.child import PREFIX

pytestmark = pytest.mark.live

MIB = 1 << 20


@pytest.fixture(scope="module")
def pid_1() -> list[str]:
    return as_pid_1()


# ---- The command notices nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
)
@pytest.mark.parametrize("first", [False, True], ids=["", "pid 1"])
def test_the_exit_status_is_the_commands(script, status, first, request):
    done = shell(script, program=request.getfixturevalue("pid_1") if first else RUN)
    assert done.returncode == status
    assert done.stderr.startswith("pymemcg: sh ")


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("no-such-command", 127, "command not found"),
        ("./no/such/command", 127, "command not found"),
        ("/etc", 126, "Permission denied"),
        ("{folder}/plain", 126, "Permission denied"),
        ("{folder}/orphaned", 126, "first line names is missing"),
        ("{folder}/no-interpreter", 126, "#!/bin/sh"),
    ],
)
def test_what_cannot_be_executed_has_a_shells_status(command, status, says, tmp_path):
    for name, text, mode in (("plain", "", 0o644), ("orphaned", "#!/no/such\n", 0o755), ("no-interpreter", "exit 0\n", 0o755)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    done = run("--", command.format(folder=tmp_path))
    assert done.returncode == status
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_a_command_the_usage_is_shown():
    done = run()
    assert done.returncode == 2
    assert "a command is missing" in done.stderr


def test_input_and_output_are_the_commands():
    done = run("cat", stdin="a line\n")
    assert (done.returncode, done.stdout) == (0, "a line\n")


def test_the_command_has_the_signals_that_we_had():
    command = ["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]
    ignoring = ["sh", "-c", 'trap "" HUP TERM USR1; exec "$@"', "sh"]
    for before in ([], ignoring):
        heeding = ["env", "--default-signal=INT"]  # as RUN does
        bare = subprocess.run([*before, *heeding, *command], capture_output=True, text=True, check=True).stdout
        # Python itself cannot tell how SIGPIPE and SIGXFSZ were before it ignored them; SIGINT is as the tests make it.
        assert run("--", *command, program=[*before, *RUN]).stdout == bare


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-", "2> /dev/full"])
def test_the_command_runs_whatever_is_closed(closed, tmp_path):
    script = f'"$@" sh -c "echo it ran > {tmp_path}/ran; exit 4" {closed}'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *RUN, "--"], capture_output=True, text=True, check=False, timeout=facts.PATIENCE_S
    )
    assert done.returncode == 4, done.stderr
    assert (tmp_path / "ran").exists()
    if "2" in closed:
        assert done.stderr == ""
        assert done.stdout == ""


def test_a_reader_of_the_report_that_went_away_changes_nothing():
    with subprocess.Popen(
        [*RUN, "--", "sh", "-c", "read line; exit 6"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        process.stderr.close()
        process.stderr = None
        process.communicate(b"\n", timeout=facts.PATIENCE_S)
    assert process.returncode == 6


# ---- Signals -------------------------------------------------------------------------------------------------------


@contextmanager
def listening(program: list[str]) -> Iterator[subprocess.Popen[str]]:
    command = [*program, "--", sys.executable, "-c", LISTENER]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_signals_reach_the_command_once_each():
    with listening(RUN) as process:
        for number in SIGNALS:
            process.send_signal(number)
            assert process.stdout.readline() == f"{int(number)}\n"
        assert process.wait(facts.PATIENCE_S) == 7
        assert process.stdout.read() == ""


def test_signals_reach_the_command_through_pid_1(pid_1):
    with listening(pid_1) as process:
        (first,) = children_of(process.pid)
        for number in SIGNALS:
            os.kill(first, number)
            assert process.stdout.readline() == f"{int(number)}\n"
        assert process.wait(facts.PATIENCE_S) == 7
        assert process.stdout.read() == ""


def test_a_command_that_signals_its_own_group_is_not_told_of_it_twice():
    script = (
        "import os, signal, time; seen = []\n"
        "signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))\n"
        "os.kill(0, signal.SIGUSR1); time.sleep(0.3); sys = __import__('sys'); sys.exit(len(seen))"
    )
    command = [*RUN, "--", sys.executable, "-c", script]
    assert (
        subprocess.run(command, start_new_session=True, capture_output=True, timeout=facts.PATIENCE_S, check=False).returncode
        == 1
    )


# ---- Orphans -------------------------------------------------------------------------------------------------------

ORPHANS = """
for i in 1 2 3 4 5; do (sleep 0.1 &); done
sleep 0.5
grep -l "^State:.Z" /proc/[0-9]*/status
exit 9
"""


def test_pid_1_reaps_orphans(pid_1):
    done = shell(ORPHANS, program=pid_1)
    assert (done.returncode, done.stdout) == (9, "")


def test_pid_1_says_what_the_command_was_killed_by(pid_1):
    done = shell("kill -9 $$", program=pid_1)
    assert "sh was killed by signal 9 (SIGKILL)" in done.stderr


def test_whoever_is_made_a_reaper_reaps():
    """PR_SET_CHILD_SUBREAPER outlives an exec, and so do children."""
    become = (
        "import ctypes, os, sys\n"
        "assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0\n"
        "if os.fork() == 0: os._exit(5)\n"
        "os.execv(sys.executable, sys.argv[1:])"
    )
    script = "for i in 1 2 3; do (sleep 0.1 &); done; sleep 0.5; ps -o stat= --ppid $PPID | grep -c Z; exit 9"
    done = shell(script, program=[sys.executable, "-c", become, *RUN])
    assert (done.returncode, done.stdout) == (9, "0\n")


# ---- Groups --------------------------------------------------------------------------------------------------------


def test_with_a_limit_the_command_is_in_a_group_of_its_own_which_is_removed(own_groups):
    done = shell("cat /proc/self/cgroup", "--memory-max", "48M")
    assert done.returncode == 0
    name = f"/{PREFIX}"
    assert name in done.stdout
    assert ", limit 48.0 MiB" in " ".join(done.stderr.split())
    directory = next(word.rstrip(",") for word in done.stderr.split() if name in word)
    assert not os.path.exists(directory)


def test_without_a_limit_the_command_is_where_we_are():
    bare = subprocess.run(["cat", "/proc/self/cgroup"], capture_output=True, text=True, check=True).stdout
    assert run("cat", "/proc/self/cgroup").stdout == bare


def test_an_oom_kill_is_said_plainly(make_group):
    group = make_group("oom", limit_bytes=160 * MIB)
    for name in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
        file = Path(group.directory, name)
        if file.exists():
            file.write_text("0" if "max" in name else str(160 * MIB))
    if "oom_kills" not in pymemcg.once.read_once(pymemcg.resolve(group.directory)):
        pytest.skip("this kernel does not count OOM kills by group")
    inside = ["sh", "-c", 'read line; exec "$@"', "sh", *RUN, "--", sys.executable, "-c", "x = b'x' * (1 << 30)"]
    with subprocess.Popen(inside, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        group.add(process.pid)
        _, errors = process.communicate("\n", timeout=facts.PATIENCE_S)
    assert process.returncode == 137
    assert re.match(r"pymemcg: \S+ was killed by signal 9 \(SIGKILL\) after .*, most likely by the OOM killer\n", errors)
    assert re.search(r"OOM kills +1 in the group meanwhile\n", errors)


TOO_MUCH = f"""
import pymemcg
from pathlib import Path
for name, limit in (("memory.memsw.limit_in_bytes", {64 * MIB}), ("memory.swap.max", 0)):
    file = Path(pymemcg.resolve().directory, name)
    if file.exists():
        file.write_text(str(limit))
x = b"x" * {256 * MIB}
"""


@pytest.mark.parametrize(
    ("then", "status", "says"),
    [
        ("exit 2", 2, "sh ended with exit status 2 "),
        ("kill $$", 143, "sh was killed by signal 15 (SIGTERM) "),
        ("kill -9 $$", 137, "sh was killed by signal 9 (SIGKILL) "),
    ],
)
def test_another_victim_of_the_oom_killer_is_told(then, status, says, own_groups):
    """Whether it was the command itself is not known for sure: the kernel counts alone."""
    done = run("--memory-max", "64M", "--", "sh", "-c", f'"$@"; echo $? survived; {then}', "sh", sys.executable, "-c", TOO_MUCH)
    assert (done.returncode, done.stdout) == (status, "137 survived\n")
    assert f"pymemcg: {says}" in done.stderr
    assert ("most likely by the OOM killer" in done.stderr) is (status == 137)
    assert re.search(r"OOM kills +1 in the group meanwhile\n", done.stderr)


def test_without_an_oom_kill_none_is_told(own_groups):
    done = shell("kill -9 $$", "--memory-max", "64M")
    assert done.returncode == 137
    assert "OOM" not in done.stderr


def test_what_is_left_behind_goes_on_outside_of_the_group(own_groups):
    done = shell("sleep 300 > /dev/null 2>&1 & echo $!", "--memory-max", "48M")
    pid = int(done.stdout)
    try:
        assert Path(f"/proc/{pid}/cgroup").read_text() == Path("/proc/self/cgroup").read_text()
        assert "1 processes that it started go on" in done.stderr
    finally:
        os.kill(pid, signal.SIGKILL)


IMPATIENT = [sys.executable, "-c", f"import pymemcg.child; pymemcg.child._PATIENCE_S = 0.3; {MAIN}", "run"]


def test_a_group_that_cannot_be_removed_does_not_change_the_status(own_groups):
    script = """
import os, pymemcg
own = pymemcg.resolve().directory
os.mkdir(own + "/left")
print(own, flush=True)
os._exit(6)
"""
    done = run("--memory-max", "64M", "--", sys.executable, "-c", script, program=IMPATIENT)
    own = done.stdout.strip()
    os.rmdir(f"{own}/left")
    os.rmdir(own)
    assert done.returncode == 6
    assert "cannot be removed" in done.stderr


# ---- Where it cannot look ------------------------------------------------------------------------------------------

NO_CGROUPS = ["unshare", "--mount", "sh", "-c", 'umount -l /sys/fs/cgroup; exec "$@"', "sh", *RUN]


@pytest.fixture
def without_cgroups() -> list[str]:
    probe = ["unshare", "--mount", "sh", "-c", "umount -l /sys/fs/cgroup"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cgroups cannot be hidden here: {done.stderr.strip()}")
    return NO_CGROUPS


def test_without_cgroups_the_command_runs_and_stderr_says_why_there_is_no_report(without_cgroups):
    done = shell("echo it ran; exit 5", program=without_cgroups)
    assert (done.returncode, done.stdout) == (5, "it ran\n")
    assert "there will be no report of stalls: " in done.stderr


@pytest.mark.parametrize("options", [["--evidence", "psi"], ["-o", "{folder}/x.memcg"], ["--memory-max", "64M"]])
def test_what_was_asked_for_and_cannot_be_had_is_an_error_before_the_command_begins(options, without_cgroups, tmp_path):
    done = shell("echo it ran", *(word.format(folder=tmp_path) for word in options), program=without_cgroups)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("pymemcg: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [[], ["--evidence", "psi"], ["-o", "{folder}/x.memcg"]])
def test_sampling_that_is_switched_off_keeps_nothing_from_running(options, tmp_path):
    words = [word.format(folder=tmp_path) for word in options]
    done = run(*words, "--", "sh", "-c", "echo it ran; exit 5", PYMEMCG_DISABLE="1")
    assert (done.returncode, done.stdout) == (5, "it ran\n")
    assert "PYMEMCG_DISABLE" in done.stderr
    assert list(tmp_path.iterdir()) == []


# ---- Recordings ----------------------------------------------------------------------------------------------------


@pytest.fixture
def needs_samples():
    try:
        with pymemcg.Sampler():
            pass
    except pymemcg.MemcgError as error:
        pytest.skip(str(error))


def test_a_recording_holds_the_commands_time(needs_samples, tmp_path):
    done = shell("sleep 0.3", "-o", str(tmp_path / "it.memcg"))
    assert done.returncode == 0
    assert "it.memcg" in done.stderr
    t_ns = pymemcg.open(tmp_path / "it.memcg").usage.window()["t_ns"]
    assert t_ns[-1] - t_ns[0] > 200_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it.memcg"]


def test_a_command_that_did_not_begin_leaves_the_recording_of_before(needs_samples, tmp_path):
    (tmp_path / "it.memcg").write_text("yesterday's")
    assert run("-o", str(tmp_path / "it.memcg"), "--", "no-such-command").returncode == 127
    assert (tmp_path / "it.memcg").read_text() == "yesterday's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it.memcg"]
