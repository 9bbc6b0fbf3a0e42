# SPDX-License-Identifier: Apache-2.0
"""`stalls`, `record` and `run` of groups that are made to reclaim: what is told of it, and how telling ends."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import facts
import pytest
from actor import lock_is_free, until
from pressure import counted

import pymemcg
from pymemcg.child import ChildGroup
from pymemcg.detecting import Stall, stalls

pytestmark = pytest.mark.live

MIB = 1 << 20
LIMIT = 40 * MIB
# Who runs the tests in a shell's background ignores SIGINT and hands that down; a person's Ctrl-C is what is meant.
HEEDING = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
PYMEMCG = [sys.executable, "-c", HEEDING + "from pymemcg.cli import main; sys.exit(main())"]
# Fills the group with page cache again and again, and makes room for anonymous memory in it.
SQUEEZE = """
import os
file = os.open({path!r}, os.O_RDONLY)
for _ in range({times}):
    os.lseek(file, 0, os.SEEK_SET)
    while os.read(file, 1 << 20): pass
    kept = b"x" * (20 << 20)
    del kept
"""


@pytest.fixture
def data(scratch: Path) -> str:
    """A file that is in nobody's page cache, but could be."""
    path = scratch / "data"
    path.write_bytes(os.urandom(MIB) * 64)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    return str(path)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYMEMCG, *words], capture_output=True, text=True, timeout=facts.PATIENCE_S, check=False)


@contextmanager
def following(*words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([*PYMEMCG, "stalls", *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process
        process.kill()


def ends_within(process: subprocess.Popen[str], seconds: float) -> bool:
    """Whether it ends; meanwhile an episode does, which is then told: one that goes on is told every 10 s."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.poll() is not None


def until_sampled(group: ChildGroup) -> None:
    """Somebody has begun to sample the group."""
    until(lambda: not lock_is_free(group.directory))


@pytest.fixture
def recording(own_groups, data, tmp_path) -> Path:
    """Of a group that is squeezed meanwhile."""
    path = tmp_path / "squeezed.memcg"
    program = SQUEEZE.format(path=data, times=3)
    done = run("run", "--memory-max", str(LIMIT), "-o", str(path), "--", sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    return path


def test_a_recordings_stalls_as_json_are_the_detectors(recording):
    done = run("stalls", str(recording), "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows
    opened = pymemcg.open(recording)
    realtimes = [row.pop("start_realtime_ns") for row in rows]
    assert rows == json.loads(json.dumps(stalls(opened).to_dicts()))
    assert all(set(row) == set(Stall.__dataclass_fields__) for row in rows)
    assert {row["state"] for row in rows} == {"closed"}
    assert "limit" in {row["cause"] for row in rows}
    assert sum(row["limit_hits"] or 0 for row in rows) > 0
    created, until = os.stat(recording).st_ctime_ns - 90 * 10**9, os.stat(recording).st_mtime_ns
    assert all(created < realtime < until for realtime in realtimes)


def test_only_long_ones_are_told_where_that_is_asked_for(recording):
    rows = [json.loads(line) for line in run("stalls", str(recording), "--json").stdout.splitlines()]
    assert rows
    longest = max(row["longest_ns"] or 0 for row in rows)
    least = max(1, longest // 2)
    done = run("stalls", str(recording), "--json", "--min", f"{least / 1000:.3f}us")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told == [row for row in rows if (row["longest_ns"] or 0) >= least]
    assert run("stalls", str(recording), "--json", "--min", "3600s").stdout == ""


def test_in_words_each_stall_is_a_line_of_the_table(recording):
    rows = [json.loads(line) for line in run("stalls", str(recording), "--json").stdout.splitlines()]
    assert rows
    table, _, figures = run("stalls", str(recording)).stdout.partition("\n\n")
    assert sum(line[2:3] == ":" for line in table.splitlines()) == len(rows)
    harmful = sum(not row["harmless"] for row in rows)
    assert figures.split()[:2] == ["stalls", str(harmful) if harmful else "none"]


def test_a_runs_report_is_of_the_same_stalls(own_groups, data):
    program = SQUEEZE.format(path=data, times=2)
    done = run("run", "--memory-max", str(LIMIT), "--evidence", "counters", "--", sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\(limit \d+\); the duration .*is not known", done.stderr), done.stderr
    assert "\n  evidence   counters\n" in done.stderr


def test_a_groups_stalls_are_told_as_they_happen(make_group, make_actor, data):
    group = make_group("squeezed", limit_bytes=LIMIT)
    actor = make_actor(group)
    with following(group.spec, "--json") as process:
        assert process.stdout is not None
        until_sampled(group)
        before, out_fd = counted(group, "max"), process.stdout.fileno()
        until(lambda: actor.do(SQUEEZE.format(path=data, times=1)) or select.select([out_fd], [], [], 0.5)[0])
        assert counted(group, "max") > before
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=facts.PATIENCE_S)
    assert (process.returncode, errors) == (143, "")
    rows = [json.loads(line) for line in out.splitlines()]
    closed = [row["start_ns"] for row in rows if row["state"] == "closed"]
    assert closed
    assert len(set(closed)) == len(closed)
    assert {row["start_ns"] for row in rows} == set(closed), "what was told as open is told as closed"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_ends_it_gets_the_sum(make_group, number, status):
    group = make_group("quiet")
    with following(group.spec) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("when ")
        process.send_signal(number)
        out, errors = process.communicate(timeout=facts.PATIENCE_S)
    assert (process.returncode, errors) == (status, "")
    assert out.startswith("\n  stalls     none\n")


def test_it_ends_with_its_group(make_group):
    group = make_group("gone")
    with following(group.spec) as process:
        assert process.stdout is not None
        process.stdout.readline()
        group.close()
        out, errors = process.communicate(timeout=facts.PATIENCE_S)
    assert process.returncode == pymemcg.SourceError.exit_code
    assert "no longer sampled" in errors
    assert errors.count("\n") == 1
    assert "\n  evidence " in out


def test_a_reader_that_goes_away_is_no_error(make_group, make_actor, data):
    group = make_group("unread", limit_bytes=LIMIT)
    actor = make_actor(group)
    with following(group.spec, "--json") as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        until_sampled(group)
        until(lambda: actor.do(SQUEEZE.format(path=data, times=1)) or ends_within(process, 4))
        _, errors = process.communicate(timeout=facts.PATIENCE_S)
    assert (process.returncode, errors) == (128 + signal.SIGPIPE, "")
