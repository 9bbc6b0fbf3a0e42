# SPDX-License-Identifier: Apache-2.0
"""Stalls in words and as JSON: what is printed of them, and which arguments say which."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from itertools import pairwise

import pytest

import pymemcg
from pymemcg._tally import Tally
from pymemcg._words import between
from pymemcg.cli import make_parser
from pymemcg.cli._arguments import bytes_of, short_duration
from pymemcg.cli._stalls import StallLines, figures, thread_name
from pymemcg.detecting import Stall
from pymemcg.recorder import Recorder

MS = 1_000_000
EPOCH_NS = 1_700_000_000 * 10**9
CLOSED = Stall(
    start_ns=5_000 * MS,
    end_ns=5_015 * MS,
    stall_ns=13 * MS,
    stall_lo_ns=11 * MS,
    stall_hi_ns=15 * MS,
    longest_ns=10 * MS,
    cpu_wait_ns=None,
    cause="limit",
    harmless=False,
    evidence=("trace", "psi"),
    tids=(),
    intervals=3,
    limit_hits=12,
    reclaimed_pages=800,
    usage_bytes=64 << 20,
    limit_bytes=64 << 20,
    anon=16 << 20,
    file=47 << 20,
    state="closed",
    incomplete=None,
)
HARMLESS = replace(
    CLOSED, end_ns=15_000 * MS, stall_ns=100 * MS, harmless=True, intervals=7_672, longest_ns=MS // 2, evidence=("trace",)
)
UNKNOWN = replace(CLOSED, stall_ns=None, stall_lo_ns=None, stall_hi_ns=None, longest_ns=None, evidence=("counters",))


def lines_of(*stalls: Stall, width: int = 80, **options: object) -> list[str]:
    lines = StallLines(lambda t_ns: EPOCH_NS + t_ns, width, **options)
    return [lines.header(), *(line for stall in stalls for line in lines.lines(stall))]


@pytest.mark.parametrize(
    ("text", "ns"), [("500us", 500_000), ("500µs", 500_000), ("1ms", MS), ("0.2s", 200 * MS), ("2 ms", 2 * MS)]
)
def test_the_least_of_a_stall_is_parsed(text, ns):
    assert short_duration(text) == ns


@pytest.mark.parametrize("text", ["", "1", "ms", "-1ms", "1m", "1 h", "1e3us", "many"])
def test_what_is_no_duration_of_a_stall_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number and us, ms or s"):
        short_duration(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("512M", 512 << 20), ("1.5GiB", 3 << 29), ("64mib", 64 << 20), ("1048576", 1 << 20), ("100KB", 100 << 10)],
)
def test_sizes_are_parsed(text, count):
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "M", "0", "-5M", "12X", "1e9", "99999999T"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number and K, M, G or T"):
        bytes_of(text)


def test_the_name_of_a_thread_is_not_for_the_terminal():
    lines = StallLines(lambda t_ns: t_ns, 120, name_of=lambda *_: "\x1b[2J")
    told = "".join(lines.lines(replace(CLOSED, tids=(7,))))
    assert r"7 \x1b[2J" in told
    assert "\x1b" not in told


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (11 * MS, 15 * MS, "11.0–15.0 ms"),
        (340_000, 1_200_000, "340 µs–1.2 ms"),
        (0, 2 * MS, "0–2.0 ms"),
        (MS, MS, ""),
        (None, None, ""),
    ],
)
def test_what_a_duration_lies_between_has_its_unit_once(low, high, text):
    assert between(low, high) == text


@pytest.mark.parametrize("width", [40, 80, 100, 120])
def test_a_stall_is_a_line_below_its_columns_titles(width):
    header, _day, line, *_ = lines_of(CLOSED, width=width)
    for word in ("13.0 ms", "11.0–15.0 ms", "limit", "trace+psi", "12", "3.1 MiB"):
        assert word in line
    for title, cell in (("cause", "limit"), ("evidence", "trace+psi")):
        assert header.index(title) == line.index(cell)
    for title, cell in (("stalled", "13.0 ms"), ("between", "15.0 ms"), ("reclaimed", "3.1 MiB")):
        assert header.index(title) + len(title) == line.index(cell) + len(cell)


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(width):
    stalls = (
        replace(
            CLOSED, tids=tuple(range(4_000_000, 4_000_100)), cpu_wait_ns=3 * MS, incomplete="4 rows of reclaim were lost " * 5
        ),
        replace(
            CLOSED, stall_ns=3_599 * 10**9, stall_lo_ns=MS // 2, stall_hi_ns=359 * 10**9, evidence=("trace", "psi", "wchan")
        ),
        replace(CLOSED, cause="oom_wait", limit_hits=99_999, reclaimed_pages=1 << 28),
        replace(CLOSED, reclaimed_pages=250),
        replace(HARMLESS, evidence=("trace", "psi", "counters", "wchan"), cause="ancestor"),
    )
    lines = lines_of(*stalls, width=width)
    assert max(map(len, lines)) <= width, lines


@pytest.mark.parametrize(
    ("stall", "least", "told"),
    [
        (HARMLESS, 0, True),
        (HARMLESS, MS, False),
        (UNKNOWN, 0, True),
        (UNKNOWN, 1, False),
        (CLOSED, 10 * MS, True),
        (CLOSED, 13 * MS, True),
        (CLOSED, 14 * MS, False),
        (replace(CLOSED, longest_ns=2 * MS), 3 * MS, False),
        (replace(CLOSED, stall_ns=500 * MS), 200 * MS, True),
        (replace(CLOSED, stall_ns=500 * MS, longest_ns=9 * MS), 200 * MS, False),
    ],
)
def test_how_big_a_stall_is(stall, least, told):
    assert stall.reaches(least) is told


def test_a_smaller_least_never_tells_less():
    some = [replace(CLOSED, longest_ns=longest * MS, stall_ns=stall * MS) for longest in (1, 5, 10) for stall in (10, 20, 300)]
    told = [{id(stall) for stall in some if stall.reaches(least)} for least in (0, 1, MS, 5 * MS, 10 * MS, 11 * MS, 300 * MS)]
    assert all(less >= more for less, more in pairwise(told))
    assert told[-1]


def test_what_is_not_known_is_a_dash_and_never_0():
    line = lines_of(replace(UNKNOWN, reclaimed_pages=None, limit_hits=None))[-1]
    assert re.fullmatch(r"\S+ +– +limit +counters +– +–", line)


def test_harmless_ones_are_one_line_with_their_share_of_the_time():
    line = lines_of(HARMLESS)[-1]
    assert "harmless, 7,672 times, 100 ms of 10 s (1.0 %)" in line
    assert lines_of(HARMLESS, colours=True)[-1] == f"\x1b[2m{line}\x1b[0m"


def test_the_day_is_said_where_it_changes():
    lines = lines_of(CLOSED, CLOSED, replace(CLOSED, start_ns=CLOSED.start_ns + 86_400 * 10**9))
    days = [line for line in lines if re.fullmatch(r"\w+ \d\d \w+ \d{4}", line)]
    assert len(days) == 2
    assert lines.index(days[0]) == 1


def test_threads_have_their_names_where_they_live():
    def told() -> None:
        os_tid.append(threading.get_native_id())
        begun.set()
        over.wait()

    os_tid, begun, over = [], threading.Event(), threading.Event()
    thread = threading.Thread(target=told)
    thread.start()
    begun.wait()
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    name = thread_name(os_tid[0], now)
    assert name
    assert thread_name(os_tid[0], now - 3600 * 10**9) is None, "another thread had this number then"
    for width in (80, 120):
        text = "\n".join(lines_of(replace(CLOSED, tids=(os_tid[0],), end_ns=now), width=width))
        assert f"{os_tid[0]} {name}" in text
        assert name not in "\n".join(
            lines_of(replace(CLOSED, tids=(os_tid[0],), end_ns=now), width=width, name_of=lambda *_: None)
        )
    over.set()
    thread.join()


def test_of_many_threads_some_are_named():
    text = " ".join("\n".join(lines_of(replace(CLOSED, tids=tuple(range(4_194_305, 4_194_405))))).split())
    assert "94 more" in text


def test_what_a_record_lacks_is_told_below_it():
    text = "\n".join(lines_of(replace(CLOSED, incomplete="the group vanished", cpu_wait_ns=2 * MS)))
    assert "the group vanished" in text
    assert "2.0 ms of waiting for a CPU left out" in text


def test_the_sum_counts_what_is_over():
    tally = Tally(keep=2)
    for i in range(5):
        tally.add(replace(CLOSED, start_ns=i * 100 * MS, stall_ns=(i + 1) * MS, cause="high" if i == 4 else "limit"))
    tally.add(replace(CLOSED, state="open", stall_ns=10**12))
    tally.add(HARMLESS)
    assert tally.says() == "5 (limit 4, high 1), 15.0 ms in all, the worst 5.0 ms"
    assert [stall.stall_ns for stall in tally.worst()] == [4 * MS, 5 * MS]
    tally.add(UNKNOWN)
    assert "of 1 the duration is not known" in tally.says()
    text = "\n".join(figures(tally, {"trace": None, "psi": None, "wchan": "cgroup v1 has no memory.high"}, 80, colours=False))
    assert "100 ms of 10 s (1.0 %)" in text
    assert "trace, psi" in text
    assert "no wchan: cgroup v1 has no memory.high" in text


def test_without_stalls_the_sum_says_so():
    tally = Tally()
    assert tally.says() == "none"
    tally.add(UNKNOWN)
    assert tally.says() == "1 (limit 1); the duration is not known"


# ---- The command ---------------------------------------------------------------------------------------------------


def stalls(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pymemcg", "stalls", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | variables,
    )


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("stalls") / "quiet.memcg"
    try:
        with pymemcg.Sampler(evidence="counters") as sampler, Recorder(sampler, path) as recorder:
            deadline = time.monotonic() + 30
            while recorder.write() < 5 and time.monotonic() < deadline:
                time.sleep(0.05)
    except pymemcg.MemcgError as error:
        pytest.skip(str(error))
    return path


def test_a_recording_is_told_in_words(recording):
    done = stalls(str(recording))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("when ")
    assert "\n  stalls     " in done.stdout
    assert "counters" in done.stdout.partition("\n  evidence")[2]
    assert "\x1b" not in done.stdout


def test_evidence_that_a_recording_lacks_is_an_error(recording):
    done = stalls(str(recording), "--evidence", "trace")
    assert done.returncode == pymemcg.NotSupported.exit_code
    assert str(recording) in done.stderr
    assert "'trace' cannot be had" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_is_no_recording_is_an_error(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("nothing")
    done = stalls(str(path))
    assert done.returncode == pymemcg.RecordingError.exit_code
    assert str(path) in done.stderr


def test_json_has_all_fields_of_a_stall():
    names = {field.name for field in fields(Stall)}
    promised = (
        "start_ns end_ns stall_ns stall_lo_ns stall_hi_ns cpu_wait_ns cause harmless evidence tids limit_hits reclaimed_pages "
        "usage_bytes limit_bytes anon file state"
    )
    assert set(promised.split()) <= names
    row = json.loads(json.dumps(CLOSED.to_dict()))
    assert row.keys() == names
    assert row["evidence"] == ["trace", "psi"]
    assert row["tids"] == []
    assert row["cpu_wait_ns"] is None


def test_a_groups_stalls_end_after_the_time():
    done = stalls("--duration", "300ms", "--evidence", "counters")
    if done.returncode == pymemcg.NotSupported.exit_code:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert "\n  evidence " in done.stdout


def test_a_wrong_least_is_named():
    done = stalls("--min", "soon")
    assert done.returncode == 2
    assert "'soon'" in done.stderr


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["--", "ls", "-l"], ["--", "ls", "-l"]),
        (["ls", "-l", "--", "x"], ["ls", "-l", "--", "x"]),
        (["--memory-max", "1G", "--", "ls", "--help"], ["--", "ls", "--help"]),
    ],
)
def test_a_commands_own_options_are_its_own(words, command):
    assert make_parser(["run"]).parse_args(["run", *words]).words == command
