# SPDX-License-Identifier: Apache-2.0
"""The experiments of `demo`: what they say is what was measured, they hit nobody else, and leave nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import facts
import pytest
from test_cli_live import COMMAND, MIB, WITH_CTRL_C, groups_of, run, run_inside

import pymemcg

pytestmark = pytest.mark.live

LIMIT = 64 * MIB
UNKNOWN = "–"
# Likewise for who runs the tests under nohup.
HEEDING_BOTH = [*WITH_CTRL_C[:2], f"import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); {WITH_CTRL_C[2]}"]
PHASES = ["room", "reading", "resting", "reader gone", "no room"]
# A root that may not read the kernel's log, and finds no journal: what is not in the bounding set is gone with the next exec.
_DROP = (
    "import ctypes, os, sys; assert ctypes.CDLL(None).prctl(24, 34, 0, 0, 0) == 0  # PR_CAPBSET_DROP, CAP_SYSLOG\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'pymemcg', *sys.argv[1:]])"
)
WITHOUT_SYSLOG = [sys.executable, "-c", _DROP]


def show(experiment: str, scratch, *, program: list[str] = COMMAND, **variables: str) -> str:
    """Run it where its file lies in a folder of ours."""
    variables = os.environ | {"COLUMNS": "80", "TMPDIR": str(scratch)} | variables
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*program, "demo", experiment], text=True, env=variables, **pipes) as process:
        out, errors = process.communicate(timeout=facts.PATIENCE_S)
    assert (process.returncode, errors) == (0, "")
    assert groups_of(process.pid) == []
    assert os.listdir(scratch) == []
    assert "What to try next" in out
    return out


def table_of(out: str) -> dict[str, list[str]]:
    """The table below the picture: a row's title to its cells."""
    lines = out.splitlines()
    head = next(i for i, line in enumerate(lines) if re.split(r"\s{2,}", line.strip()) == PHASES)
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[head + 1 : lines.index("", head)]]
    return {title: cells for title, *cells in rows}


def number_of(cell: str) -> float:
    """Bytes of a size, or a count."""
    value, _, unit = cell.partition(" ")
    return float(value.replace(",", "")) * {"": 1, "B": 1, "KiB": 1 << 10, "MiB": MIB}[unit]


@pytest.mark.usefixtures("own_groups")
def test_page_cache_fills_the_limit_and_stays_until_an_allocation_takes_it(scratch):
    out = show("cache", scratch)
    table = table_of(out)
    text = " ".join(out.split())
    usage, anon, file, working = (
        dict(zip(PHASES, map(number_of, table[title]), strict=True))
        for title in ("usage in the end", "anonymous", "page cache", "working set")
    )
    assert usage["reading"] <= LIMIT
    assert min(usage["reading"], usage["resting"]) > 0.8 * LIMIT > 4 * usage["room"]
    assert file["reader gone"] > 0.7 * LIMIT, "nobody uses it, and it stays"
    assert anon["no room"] - anon["reader gone"] == pytest.approx(40 * MIB, abs=MIB)
    assert file["reader gone"] - file["no room"] > 0.3 * LIMIT
    for name, most in usage.items():
        assert working[name] <= most
    if UNKNOWN not in table["limit hits"]:
        hits = dict(zip(PHASES, map(number_of, table["limit hits"]), strict=True))
        assert hits["room"] == hits["reader gone"] == 0 < hits["no room"]
        assert f"The limit was hit {hits['no room']:,.0f} times" in text
    # The sentences are of the same figures.
    for cell in (table["usage in the end"][2], table["usage in the end"][3], table["page cache"][4], table["anonymous"][4]):
        assert cell in text.partition("What it shows")[2]
    assert "container_memory_usage_bytes" in text
    assert "`pymemcg explain` says" in text
    assert "Nobody was killed for it." in text


@pytest.mark.usefixtures("own_groups")
def test_growth_ends_in_a_kill_of_the_one_that_grew(scratch):
    out = show("oom", scratch)
    text = " ".join(out.split())
    victim = re.search(r"the process that grew \(pid (\d+)\) was killed after .*? when it had taken ([0-9.]+) MiB", text)
    assert victim is not None
    assert LIMIT / 2 < float(victim[2]) * MIB <= LIMIT
    assert "sees that signal 9 (SIGKILL) ended it" in text
    assert "137 (128 + 9)" in text
    if "the kernel does not count OOM kills by group here" not in text:
        assert "counter of its kills rose by 1, and nobody else was in the group" in text
        assert "OOMKilled" in text
    assert "the group's own, of 64.0 MiB" in text
    told = text.partition("What the kernel's log says of it")[2]
    readable = run("oom").returncode == 0
    assert ("own-limit" in told) == readable
    if readable and facts.is_root():  # elsewhere the log counts pids otherwise
        assert f"(pid {victim[1]}) was killed" in told
        assert told.count("was killed") == 1, "of others' kills nothing is said"


@pytest.mark.usefixtures("own_groups")
def test_where_the_log_may_not_be_read_demo_oom_says_what_would_help(scratch):
    if not facts.is_root():
        pytest.skip("only root has a capability to lose")
    if facts.read("/proc/sys/kernel/dmesg_restrict") != "1\n":
        pytest.skip("here everybody may read the kernel's log")
    out = show("oom", scratch, program=WITHOUT_SYSLOG, PATH="/nowhere")
    told = " ".join(out.partition("What the kernel's log says of it")[2].split())
    assert "needs CAP_SYSLOG" in told
    assert "was killed" not in told


@pytest.mark.parametrize(("experiment", "number"), [("cache", signal.SIGINT), ("oom", signal.SIGINT), ("cache", signal.SIGHUP)])
@pytest.mark.usefixtures("own_groups")
def test_ctrl_c_and_a_closed_terminal_leave_nothing(experiment, number, scratch):
    variables = os.environ | {"TMPDIR": str(scratch)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*HEEDING_BOTH, "demo", experiment], text=True, env=variables, **pipes) as process:
        deadline = time.monotonic() + facts.PATIENCE_S
        members: set[int] = set()
        while not members and process.poll() is None and time.monotonic() < deadline:
            for path in groups_of(process.pid):
                members |= {int(pid) for pid in (facts.read(path / "cgroup.procs") or "").split()}
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=facts.PATIENCE_S)
    assert members
    assert (process.returncode, errors) == (130, "")
    assert groups_of(process.pid) == []
    assert os.listdir(scratch) == []
    assert not any(os.path.exists(f"/proc/{pid}") for pid in members)


@pytest.mark.parametrize("experiment", ["cache", "oom"])
def test_nothing_is_filled_where_its_own_group_has_little_left(experiment, make_group):
    group = make_group("small", limit_bytes=128 * MIB)
    done = run_inside(group, *COMMAND, "demo", experiment)
    assert (done.returncode, done.stdout) == (pymemcg.MemcgError.exit_code, "")
    assert "left below your own limit" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("experiment", ["cache", "oom"])
def test_where_no_group_can_be_made_it_says_what_would_help(experiment):
    if not facts.is_root():
        pytest.skip("only root can become somebody who may not")
    become = "import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.exit(pymemcg.cli.main())"
    # Whoever it becomes may not be allowed to read where the interpreter lies.
    imports = "import datetime, pymemcg.cli.demo, pymemcg.cli._demo_cache, pymemcg.cli._demo_oom; "
    done = run("demo", experiment, program=[sys.executable, "-c", imports + become])
    assert (done.returncode, done.stdout) == (pymemcg.MemcgError.exit_code, "")
    assert "no group of its own" in done.stderr
    assert re.search(r"run as root|set a limit from outside|below your own limit", done.stderr)


def test_an_unknown_experiment_is_a_wrong_argument():
    assert run("demo", "nonsense").returncode == 2
