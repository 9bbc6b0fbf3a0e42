# SPDX-License-Identifier: Apache-2.0
"""Windows and channels as Arrow, and recordings as Parquet, Arrow and CSV: the same rows, nulls where something is absent."""

from __future__ import annotations

import csv
import errno
import gc
import json
import os
import resource
import subprocess
import sys
import time

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import parquet as pq
from ringwriter import ROWS, RingWriter, tick
from rowwriter import MS, T0, held, limits, ticks, write

import pymemcg
from pymemcg._ffi import NONE
from pymemcg.channel import Channel
from pymemcg.errors import MemcgError
from pymemcg.export import SUFFIXES, export
from pymemcg.recorder import Recorder

MADE_TEXT = {"target": {"directory": "/a/group"}, "spans": {"pid": 7, "names": ["get", "put"], "refs": [5, "five"]}}


@pytest.fixture
def made(tmp_path):
    """A recording of rows that are known."""
    spans = {
        "start_ns": [T0, T0 + MS, T0 + 2 * MS],
        "end_ns": [T0 + MS, T0 + 2 * MS, T0 + 3 * MS],
        "tid": [7, 7, 8],
        "name_id": [1, 0, 1],
        "ref_id": [0, -1, 1],
        "attribution": [1, 1, 1],
        "ran_start_ns": [T0, T0 + MS, T0 + 2 * MS],
        "ran_end_ns": [T0 + MS, T0 + 2 * MS, T0 + 3 * MS],
    }
    channels = {
        "usage": ticks(3, hits=[100, 101]),
        "limits": limits((0, 0, 64, 1)),
        "reclaim": held((100, 5, 7), wait_ms=None),
        "spans": spans,
    }
    return write(tmp_path / "made.memcg", channels, MADE_TEXT)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A recording of this process's own group."""
    path = tmp_path_factory.mktemp("real") / "real.memcg"
    try:
        with pymemcg.Sampler(adaptive=False) as sampler, Recorder(sampler, path) as recorder:
            deadline = time.monotonic() + 30
            while recorder.write() < 300 and time.monotonic() < deadline:
                with sampler.span("wait", ref="a"):
                    time.sleep(0.05)
    except MemcgError as error:
        pytest.skip(str(error))
    return pymemcg.open(path)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


# ---- The C stream interface ----------------------------------------------------------------------------------------


def test_pyarrow_takes_a_window_without_a_copy(real):
    window = real.usage.window(rows=200)
    table = pa.table(window)
    assert table.column_names == list(window.names)
    for name in window:
        (chunk,) = table[name].chunks
        assert chunk.buffers()[1].address == address(window[name])
        assert chunk.to_numpy().tolist() == window[name].tolist()


def test_polars_takes_a_window_without_a_copy(real):
    window = real.usage.window()
    frame = pl.DataFrame(window)
    for name in window:
        assert address(frame[name].to_numpy(allow_copy=False)) == address(window[name])


def test_duckdb_takes_a_channel_as_a_table(real):
    usage = real.usage
    found = duckdb.sql("select count(*), sum(t_ns), max(usage_bytes) from usage").fetchall()[0]
    window = usage.window()
    assert found == (len(window), sum(window["t_ns"].tolist()), int(window["usage_bytes"].max()))


def test_pandas_takes_a_channel(real):
    from_arrow = getattr(pd.DataFrame, "from_arrow", lambda rows: pa.table(rows).to_pandas())  # pandas 3 has it
    frame = from_arrow(real.usage)
    assert frame["usage_bytes"].tolist() == real.usage.window()["usage_bytes"].tolist()


def test_every_channel_comes_with_units_and_provenance(real):
    for name in pymemcg.schema.CHANNELS:
        channel = getattr(real, name)
        table = pa.table(channel)
        assert table.num_rows == channel.head
        assert {field.name: (field.metadata or {}).get(b"unit", b"").decode() for field in table.schema} == dict(channel.units)
        if channel.names:
            said = json.loads(table.schema.metadata[b"pymemcg"])
            assert said["channel"] == name
            assert said["info"]["target"] == real.info["target"]
            assert said["channels"][name]["units"] == dict(channel.units)


def test_what_is_absent_is_null_by_a_bitmap_that_is_only_there_where_something_is(made):
    table = pa.table(made.limits)
    assert table["high_bytes"].to_pylist() == [None]
    assert table["high_bytes"].chunk(0).buffers()[0] is not None
    assert table["limit_bytes"].to_pylist() == [64 << 20]
    assert table["limit_bytes"].chunk(0).buffers()[0] is None
    assert pl.DataFrame(made.reclaim)["cpu_wait_ns"].to_list() == [None]


def test_a_bitmap_tells_each_row(tmp_path):
    values = np.arange(1000)
    values[[0, 7, 8, 63, 64, 999]] = NONE
    recording = write(
        tmp_path / "run.memcg", {"limits": limits(*((row, 0, 1, 0) for row in range(1000))) | {"limit_bytes": values}}
    )
    column = pa.table(recording.limits.window(rows=990))["limit_bytes"]
    column.validate(full=True)
    assert column.to_pylist() == [None if value == NONE else value for value in values.tolist()[10:]]


def test_large_channels_come_in_batches_that_are_all_lent(tmp_path):
    rows = (1 << 21) + 5
    recording = write(tmp_path / "long.memcg", {"usage": {"t_ns": 1 + np.arange(rows)}})
    chunks = pa.table(recording.usage)["t_ns"].chunks
    assert [len(chunk) for chunk in chunks] == [1 << 20, 1 << 20, 5]
    begin = address(recording.usage.window()["t_ns"])
    assert [chunk.buffers()[1].address - begin for chunk in chunks] == [0, 8 << 20, 16 << 20]


def test_rows_of_a_live_ring_are_copied_so_that_they_stay_what_they_were():
    writer = RingWriter()
    writer.tick(100)
    window = writer.channel().window()
    table = pa.table(window)
    whole = pa.table(writer.channel())
    writer.tick(3 * ROWS)
    for rows in (table, whole):
        assert rows["late_ns"].to_pylist() == list(range(100))
        assert rows["t_ns"].to_pylist() == [tick(row)["t_ns"] for row in range(100)]
    assert not window.valid()
    owned = writer.channel().read()[0]
    assert pa.table(owned)["late_ns"].chunk(0).buffers()[1].address == address(owned["late_ns"])
    os.close(writer.fd)


def test_arrow_keeps_the_file_mapped(made):
    table = pa.table(made.usage)
    expected = made.usage.window()["t_ns"].tolist()
    os.unlink(made.path)
    del made
    assert table["t_ns"].to_pylist() == expected


def test_where_sampling_is_switched_off_there_are_no_columns():
    assert pa.table(Channel("usage", None, None)).num_columns == 0


def test_a_part_of_a_window_is_a_window(made):
    window = made.usage.window(rows=100)
    for whole in (window, window.copy()):
        part = whole.part(10, 20)
        assert len(part) == 10
        assert part["t_ns"].tolist() == window["t_ns"].tolist()[10:20]
        assert len(whole.part(90, 200)) == 10
        assert len(whole.part(100, 200)) == 0


def test_without_pyarrow_an_error_says_what_to_install(made):
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "import pymemcg\n"
        f"try: pymemcg.open({made.path!r}).usage.__arrow_c_stream__()\n"
        "except pymemcg.NotSupported as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'pymemcg[arrow]'" in done.stdout


# ---- Files ---------------------------------------------------------------------------------------------------------


def tables(recording, to, folder):
    """Channel to the table that was read back."""
    read = {
        "parquet": pq.read_table,
        "arrow": lambda path: pa.ipc.open_file(path).read_all(),
    }
    return {os.path.basename(one.path).split(".")[0]: read[to](one.path) for one in export(recording, to, folder)}


@pytest.mark.parametrize("to", ["parquet", "arrow"])
@pytest.mark.parametrize("which", ["made", "real"])
def test_tables_have_every_row_of_every_channel(to, which, tmp_path, request):
    recording = request.getfixturevalue(which)
    found = tables(recording, to, tmp_path / "out")
    assert set(found) == {name for name in pymemcg.schema.CHANNELS if getattr(recording, name).names}
    for name, table in found.items():
        channel = getattr(recording, name)
        window = channel.window()
        assert table.column_names[0] == "time"
        assert table.schema.field("time").type == pa.timestamp("ns", "UTC")
        assert table["time"].cast(pa.int64()).to_pylist() == channel.realtime_ns(window[channel.time]).tolist()
        for column in window:
            if column not in ("name_id", "ref_id"):
                expected = [None if value == NONE else value for value in window[column].tolist()]
                assert table[column].to_pylist() == expected
                unit = (table.schema.field(column).metadata or {}).get(b"unit", b"").decode()
                assert unit == channel.units[column]
        assert json.loads(table.schema.metadata[b"pymemcg"])["info"]["target"] == recording.info["target"]


def test_spans_have_their_texts(made, tmp_path):
    table = tables(made, "parquet", tmp_path / "out")["spans"]
    assert table["name"].to_pylist() == ["put", "get", "put"]
    assert table["ref"].to_pylist() == ["5", None, "five"]
    assert "name_id" not in table.column_names


def test_csv_is_what_other_programs_read(made, tmp_path):
    export(made, "csv", tmp_path / "out")
    with open(tmp_path / "out/limits.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["limit_bytes"] == str(64 << 20)
    assert row["high_bytes"] == ""
    assert pd.Timestamp(row["time"]) == pd.Timestamp(int(made.limits.realtime_ns(np.array([T0]))[0]), tz="UTC")
    frame = pd.read_csv(tmp_path / "out/usage.csv")
    assert frame["limit_hits"].tolist() == made.usage.window()["limit_hits"].tolist()


def test_parquet_is_read_by_others_too(made, tmp_path):
    (one,) = export(made, "parquet", tmp_path / "usage.parquet", channel="usage")
    window = made.usage.window()
    assert duckdb.sql(f"select max(limit_hits), count(*) from '{one.path}'").fetchall()[0] == (2, len(window))
    assert pl.read_parquet(one.path)["t_ns"].to_list() == window["t_ns"].tolist()
    assert pd.read_parquet(one.path)["usage_bytes"].tolist() == window["usage_bytes"].tolist()
    assert (one.rows, one.size_bytes) == (len(window), os.path.getsize(one.path))


def test_row_groups_are_bounded(tmp_path):
    rows = (1 << 18) * 2 + 7
    recording = write(tmp_path / "long.memcg", {"usage": {"t_ns": 1 + np.arange(rows), "usage_bytes": np.arange(rows) % 1000}})
    told: list[int] = []
    (one,) = export(recording, "parquet", tmp_path / "usage.parquet", channel="usage", tell=told.append)
    groups = pq.ParquetFile(one.path).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == told == [1 << 18, 1 << 18, 7]
    assert pq.read_table(one.path)["usage_bytes"].to_numpy().tolist() == (np.arange(rows) % 1000).tolist()


@pytest.mark.parametrize(("to", "rows"), [("parquet", 4_000_000), ("arrow", 4_000_000), ("csv", 1_000_000)])
def test_memory_does_not_grow_with_the_recording(to, rows, tmp_path):
    """Ten times as many rows take no more anonymous memory, but for what the allocator keeps."""
    code = (
        "import sys, pymemcg\n"
        "from pymemcg.export import export\n"
        "most = 0\n"
        "def tell(rows):\n"
        "    global most\n"
        "    status = open('/proc/self/status').read()\n"
        "    most = max(most, int(status.partition('RssAnon:')[2].split()[0]) << 10)\n"
        "export(pymemcg.open(sys.argv[1]), sys.argv[2], sys.argv[1] + '.out', channel='usage', tell=tell)\n"
        "print(most)"
    )
    held_bytes = []
    for some in (rows // 10, rows):
        columns = {name: 1 + np.arange(some) for name in ("t_ns", "usage_bytes", "limit_hits", "rss_bytes")}
        path = write(tmp_path / f"{some}.memcg", {"usage": columns}).path
        done = subprocess.run([sys.executable, "-c", code, path, to], capture_output=True, text=True, timeout=300, check=True)
        held_bytes.append(int(done.stdout))
    columns_bytes = 5 * 8 * (rows - rows // 10)
    assert held_bytes[1] - held_bytes[0] < columns_bytes / 2, held_bytes
    assert held_bytes[1] < 300 << 20


class TestUnfinished:
    """What is not whole is not there."""

    @pytest.mark.parametrize("to", [to for to in SUFFIXES if to != "perfetto"])
    def test_an_interrupted_export_leaves_nothing(self, made, to, tmp_path):
        def interrupt(rows):
            assert not [name for name in os.listdir(tmp_path / "out") if not name.startswith(".")]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            export(made, to, tmp_path / "out", tell=interrupt)
        assert not (tmp_path / "out").exists()

    def test_what_was_there_before_stays(self, made, tmp_path):
        export(made, "parquet", tmp_path / "usage.parquet", channel="usage")
        before = (tmp_path / "usage.parquet").read_bytes()

        def interrupt(rows):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            export(made, "csv", tmp_path / "usage.parquet", channel="usage", tell=interrupt)
        assert (tmp_path / "usage.parquet").read_bytes() == before
        assert sorted(os.listdir(tmp_path)) == ["made.memcg", "usage.parquet"]

    @pytest.mark.parametrize("to", SUFFIXES)
    def test_a_file_that_may_not_grow_so_large(self, real, to, tmp_path):
        """A full disk ends in the same place."""
        gc.collect()
        before, soft = os.listdir("/proc/self/fd"), resource.getrlimit(resource.RLIMIT_FSIZE)
        channel = None if to == "perfetto" else "usage"
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, soft[1]))
        try:
            with pytest.raises(MemcgError, match=rf"out: cannot be written: {os.strerror(errno.EFBIG)}"):
                export(real, to, tmp_path / "out", channel=channel)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, soft)
        assert os.listdir(tmp_path) == []
        assert len(os.listdir("/proc/self/fd")) == len(before)

    def test_its_name_is_on_the_disk_too(self, made, tmp_path, monkeypatch):
        """After it has it: the folder is synced when the file is there."""
        synced, fsync = [], os.fsync

        def noting(fd):
            synced.append((os.readlink(f"/proc/self/fd/{fd}"), sorted(os.listdir(tmp_path))))
            fsync(fd)

        monkeypatch.setattr(os, "fsync", noting)
        export(made, "csv", tmp_path / "usage.csv", channel="usage")
        assert synced[-1] == (str(tmp_path), ["made.memcg", "usage.csv"])

    def test_a_folder_that_one_may_only_write_to(self, made, tmp_path, monkeypatch):
        (tmp_path / "box").mkdir(mode=0o300)
        monkeypatch.chdir(tmp_path / "box")
        was = os.geteuid()
        if was == 0:  # who may read all
            os.chown(".", 65534, -1)
            os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                os.listdir(".")
            export(made, "csv", "usage.csv", channel="usage")
        finally:
            os.seteuid(was)
        assert (tmp_path / "box/usage.csv").stat().st_size > 0

    def test_a_folder_that_is_a_file(self, made, tmp_path):
        with pytest.raises(MemcgError, match="is no folder"):
            export(made, "csv", made.path)

    def test_a_file_that_is_a_device(self, made):
        with pytest.raises(MemcgError, match="/dev/full: is there already, and no file"):
            export(made, "csv", "/dev/full", channel="usage")

    def test_a_folder_that_cannot_be_made(self, made, tmp_path):
        with pytest.raises(MemcgError, match=r"no/such.*cannot be written: No such file"):
            export(made, "csv", tmp_path / "no/such")

    def test_a_channel_that_was_not_recorded(self, made, tmp_path):
        with pytest.raises(MemcgError, match="has no channel 'stat', but usage, limits"):
            export(made, "csv", tmp_path / "out", channel="stat")
        assert os.listdir(tmp_path) == ["made.memcg"]
