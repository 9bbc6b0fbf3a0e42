# SPDX-License-Identifier: Apache-2.0
"""Exports of a real group's samples, and the data set that grows meanwhile, also when its writer is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from glob import glob

import facts
import polars as pl
import pyarrow as pa
import pytest
from actor import until
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent
from pyarrow import parquet as pq

import pymemcg
from pymemcg import Sampler
from pymemcg.export import export
from pymemcg.export.dataset import DataSet
from pymemcg.export.parquet import exported, read, runs, to_recording
from pymemcg.recorder import Recorder

pytestmark = pytest.mark.live

MIB = 1 << 20
FILL = (
    "f = open('{path}', 'wb')\n"
    "for _ in range(64): f.write(bytes(1 << 20)); f.flush(); os.fdatasync(f.fileno())\n"  # clean pages can be reclaimed
    "f.close()"
)


@pytest.fixture
def squeezed(make_group, make_actor, scratch):
    """A group of 32 MiB whose process writes 64 MiB of page cache."""
    group = make_group("export", limit_bytes=32 * MIB)
    actor = make_actor(group)
    return group, lambda: actor.do(FILL.format(path=scratch / "pages"))


def test_a_squeezed_group_tells_the_same_after_parquet(squeezed, tmp_path):
    group, squeeze = squeezed
    with Sampler(group.spec, adaptive=False) as sampler, Recorder(sampler, tmp_path / "run.memcg") as recorder:
        with sampler.span("squeeze", ref="here"):
            squeeze()
        until(lambda head=sampler.usage.head: sampler.usage.head > head + 100)
        recorder.write()
    recording = pymemcg.open(tmp_path / "run.memcg")
    assert recording.stalls(), "it was squeezed"
    export(recording, "parquet", tmp_path / "out")
    again = to_recording({name: read(of) for name, of in exported(tmp_path / "out").items()}, tmp_path / "again.memcg")
    assert again.stalls() == recording.stalls()
    assert list(again.hits()) == list(recording.hits())
    assert repr(again.summary()) == repr(recording.summary())
    assert again.info == recording.info

    (one,) = export(recording, "perfetto", tmp_path / "run.pftrace")
    trace = Trace()
    with open(one.path, "rb") as file:
        trace.ParseFromString(file.read())
    begun = {packet.timestamp for packet in trace.packet if packet.track_event.type == TrackEvent.TYPE_SLICE_BEGIN}
    assert {stall.start_ns for stall in recording.stalls()} <= begun


def test_a_live_window_goes_to_analysis_code(group, make_actor):
    make_actor(group)
    with Sampler(group.spec, adaptive=False) as sampler:
        until(lambda: sampler.usage.head > 200)
        window = sampler.usage.window(rows=100)
        expected = {name: window[name].tolist() for name in window}
        for rows in (pa.table(window), pl.DataFrame(window)):
            assert {name: rows[name].to_numpy().tolist() for name in window} == expected
        whole = pa.table(sampler.usage)
        assert whole.num_rows >= 200
        assert (whole["t_ns"].to_numpy()[1:] > whole["t_ns"].to_numpy()[:-1]).all()


def test_a_data_set_of_a_squeezed_group_has_its_stalls(squeezed, tmp_path):
    group, squeeze = squeezed
    with (
        Sampler(group.spec, adaptive=False) as sampler,
        Recorder(sampler, tmp_path / "run.memcg") as recorder,
        DataSet(sampler, tmp_path / "set", roll_s=0.5) as written,
    ):
        for _ in range(3):
            squeeze()
            written.write()
        until(lambda head=sampler.usage.head: sampler.usage.head > head + 100)
        sampler.stop()  # or one of them has a row more
        recorder.write()
    (of,) = runs(tmp_path / "set").values()
    assert len(of["usage"]) > 1
    again = to_recording({name: read(paths) for name, paths in of.items()}, tmp_path / "again.memcg")
    recording = pymemcg.open(tmp_path / "run.memcg")
    assert again.info["target"] == recording.info["target"]
    assert again.info["evidence"] == recording.info["evidence"]
    first = int(again.usage.window()["t_ns"][0])
    stalls = [stall for stall in again.stalls() if stall.start_ns > first]
    assert stalls
    assert stalls == [stall for stall in recording.stalls() if stall.start_ns > first]
    assert (written.lost, recorder.lost) == (0, 0)


def test_files_of_a_writer_that_is_killed_are_readable(group, make_actor, tmp_path):
    make_actor(group)
    code = (
        "import sys, time, pymemcg\n"
        "from pymemcg.export import dataset\n"
        "from pymemcg.export.dataset import DataSet\n"
        "dataset._LATE_NS = 0\n"
        "with pymemcg.Sampler(sys.argv[1], rate_hz=5000, adaptive=False) as s, DataSet(s, sys.argv[2], roll_s=0.25) as d:\n"
        "    while True: time.sleep(0.02); d.write()"
    )
    with subprocess.Popen([sys.executable, "-c", code, group.spec, tmp_path]) as process:
        try:
            until(lambda: all(glob(f"{tmp_path}/{name}/*/*/*.parquet") for name in ("usage", "limits", "clock")))
            until(lambda: len(glob(f"{tmp_path}/usage/*/*/*.parquet")) >= 3)
        finally:
            process.send_signal(signal.SIGKILL)
    (of,) = runs(tmp_path).values()
    times = pa.table(read(of["usage"]))["t_ns"].to_numpy()
    assert len(times) > 500
    assert (times[1:] > times[:-1]).all()
    for path in glob(f"{tmp_path}/**/*.parquet", recursive=True):
        assert pq.read_table(path).num_rows > 0
    assert to_recording({name: read(paths) for name, paths in of.items()}, tmp_path / "again.memcg").usage.head == len(times)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, None])
def test_the_command_writes_until_it_is_ended(group, make_actor, end, tmp_path):
    make_actor(group)
    words = ["record", group.spec, "--parquet", str(tmp_path / "set"), *([] if end else ["--duration", "1s"])]
    heeding = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", f"{heeding}from pymemcg.cli import main; sys.exit(main())", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if end:
            until(lambda: os.path.isdir(tmp_path / "set") or process.poll() is not None)
            time.sleep(1)
            process.send_signal(end)
        out, errors = process.communicate(timeout=facts.PATIENCE_S)
    assert process.returncode == (128 + end if end else 0), errors
    (_, run), of = next(iter(runs(tmp_path / "set").items()))
    assert pa.table(read(of["usage"])).num_rows > 10
    assert f"their names have {run}\n" in out
    assert "evidence of stalls" in out
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if not name.endswith(".parquet")]


@pytest.mark.parametrize("words", [[], ["-o", "x", "--parquet", "y"], ["-o", "x"]])
def test_the_command_wants_one_place(words):
    done = subprocess.run([sys.executable, "-m", "pymemcg", "record", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--parquet" in done.stderr
