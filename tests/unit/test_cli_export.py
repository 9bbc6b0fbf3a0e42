# SPDX-License-Identifier: Apache-2.0
"""`pymemcg export`: where it writes, what it says, and how it fails."""

from __future__ import annotations

import csv
import io
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace
from pyarrow import parquet as pq
from rowwriter import held, limits, ticks, write

from pymemcg import errors
from pymemcg.export import SUFFIXES

INFO = {"target": {"directory": "/a/group"}, "evidence": {"trace": None, "psi": None, "counters": None}}
CHANNELS = ("usage", "limits", "reclaim")


def export(*words: object, **options) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "pymemcg", "export", *map(str, words)]
    return subprocess.run(command, **{"capture_output": True} | options, timeout=60, check=False)


@pytest.fixture
def recording(tmp_path):
    channels = {"usage": ticks(2, hits=[100]), "limits": limits((0, 0, 64, 1)), "reclaim": held((100, 5, 7))}
    return write(tmp_path / "run.memcg", channels, INFO)


@pytest.mark.parametrize("to", [to for to in SUFFIXES if to != "perfetto"])
def test_tables_go_into_a_folder_beside_the_recording(recording, to, tmp_path):
    done = export(recording.path, "--to", to)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "run")) == sorted(f"{name}{SUFFIXES[to]}" for name in CHANNELS)
    assert done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert [re.sub(r"[\d.]+ Ki?B|[\d.]+ B", "SIZE", line) for line in lines] == [
        f"{tmp_path}/run/usage{SUFFIXES[to]}: 2,000 rows, SIZE",
        f"{tmp_path}/run/limits{SUFFIXES[to]}: 1 rows, SIZE",
        f"{tmp_path}/run/reclaim{SUFFIXES[to]}: 1 rows, SIZE",
    ]


def test_a_trace_is_one_file(recording, tmp_path):
    done = export(recording.path, "--to", "perfetto")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"{tmp_path}/run\.pftrace: \d+ events, [\d.]+ (Ki)?B\n", done.stderr.decode())
    trace = Trace()
    trace.ParseFromString((tmp_path / "run.pftrace").read_bytes())
    assert len(trace.packet) > 5


def test_one_channel_is_one_file(recording, tmp_path):
    assert export(recording.path, "--to", "parquet", "--channel", "usage").returncode == 0
    assert pq.read_table(tmp_path / "run-usage.parquet").num_rows == 2000
    assert export(recording.path, "--to", "csv", "--channel", "usage", "-o", tmp_path / "mine").returncode == 0
    assert len((tmp_path / "mine").read_text().splitlines()) == 2001


def test_a_recording_without_a_suffix_keeps_its_name(recording, tmp_path):
    os.rename(recording.path, tmp_path / "plain")
    assert export(tmp_path / "plain", "--to", "csv").returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["plain", "plain-csv"]


def test_rings_of_several_lives_do_not_write_over_each_other(recording, tmp_path):
    names = ("service.ring", "service.ring.1", "service.ring.2")
    for name in names:
        os.link(recording.path, tmp_path / name)
    os.unlink(recording.path)
    for name in names:
        assert export(tmp_path / name, "--to", "csv").returncode == 0
        assert export(tmp_path / name, "--to", "csv", "--channel", "usage").returncode == 0
        assert export(tmp_path / name, "--to", "perfetto").returncode == 0
    made = ("service", "service-usage.csv", "service.pftrace")
    made += tuple(f"service.ring.{n}{suffix}" for n in (1, 2) for suffix in ("-csv", "-usage.csv", ".pftrace"))
    assert sorted(os.listdir(tmp_path)) == sorted(names + made)


@pytest.mark.parametrize("to", SUFFIXES)
def test_stdout_takes_one_table_or_trace(recording, to, tmp_path):
    channel = () if to == "perfetto" else ("--channel", "limits")
    done = export(recording.path, "--to", to, *channel, "-o", "-")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(b"stdout: ")
    if to == "parquet":
        assert pq.read_table(io.BytesIO(done.stdout))["level"].to_pylist() == [0]
    elif to == "arrow":
        assert pa.ipc.open_file(done.stdout).read_all()["level"].to_pylist() == [0]
    elif to == "csv":
        assert [row["level"] for row in csv.DictReader(io.StringIO(done.stdout.decode()))] == ["0"]
    else:
        trace = Trace()
        trace.ParseFromString(done.stdout)
        assert len(trace.packet) > 5
    assert os.listdir(tmp_path) == ["run.memcg"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--to", "parquet", "-o", "-"), "name one with --channel"),
        (("--to", "perfetto", "--channel", "usage"), "a trace has all"),
        (("--to", "excel"), "invalid choice: 'excel'"),
        (("--to", "csv", "--channel", "sizes"), "invalid choice: 'sizes'"),
        ((), "required: --to"),
    ],
)
def test_wrong_arguments_are_named(recording, words, says, tmp_path):
    done = export(recording.path, *words)
    assert done.returncode == 2
    assert says in done.stderr.decode()
    assert os.listdir(tmp_path) == ["run.memcg"]


def test_a_channel_that_was_not_recorded(recording, tmp_path):
    done = export(recording.path, "--to", "csv", "--channel", "stat")
    assert done.returncode == 1
    assert done.stderr.decode() == f"pymemcg: {recording.path}: has no channel 'stat', but usage, limits, reclaim\n"
    assert os.listdir(tmp_path) == ["run.memcg"]


def test_what_is_no_recording(tmp_path):
    (tmp_path / "note.txt").write_text("nothing")
    done = export(tmp_path / "note.txt", "--to", "csv")
    assert done.returncode == errors.RecordingError.exit_code
    assert b"note.txt" in done.stderr


def test_a_full_disk_behind_stdout(recording):
    with open("/dev/full", "wb") as full:
        done = export(
            recording.path, "--to", "csv", "--channel", "usage", "-o", "-", capture_output=False, stdout=full, stderr=-1
        )
    assert done.returncode == 1
    assert done.stderr.decode() == "pymemcg: stdout: cannot be written: No space left on device\n"


def test_a_reader_that_goes_away(tmp_path):
    rows = 400_000
    long = write(tmp_path / "long.memcg", {"usage": {"t_ns": 1 + np.arange(rows), "usage_bytes": np.arange(rows)}})
    command = [sys.executable, "-m", "pymemcg", "export", long.path, "--to", "csv", "--channel", "usage", "-o", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b'"time","t_ns","usage_bytes"\n'
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


@pytest.mark.parametrize("rich", [True, False])
def test_a_terminal_shows_how_far_it_is(recording, rich, tmp_path):
    hidden = "" if rich else "sys.modules['rich'] = None; "
    code = f"import sys; {hidden}from pymemcg.cli import main; sys.exit(main())"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", code, "export", recording.path, "--to", "parquet"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
        assert process.wait(60) == 0
    os.close(ours)
    text = shown.decode()
    assert "usage.parquet: 2,000 rows" in text
    assert "2,002 rows of 2,002 to parquet" in text if not rich else "exporting" in text


def test_a_terminal_is_not_filled_with_bytes(recording):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pymemcg", "export", recording.path, "--to", "perfetto", "-o", "-"]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        assert process.wait(60) == 2
        assert b"this is for no terminal" in process.stderr.read()
    os.close(ours)
