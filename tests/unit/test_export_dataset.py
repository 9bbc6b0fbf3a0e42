# SPDX-License-Identifier: Apache-2.0
"""The data set that grows: its files by host, date and time, each whole when it has its name."""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from glob import glob
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from pyarrow import dataset as ds
from pyarrow import parquet as pq
from ringwriter import ROWS, SPECS, RingWriter, tick

import pymemcg
from pymemcg import schema
from pymemcg.channel import Channel
from pymemcg.errors import MemcgError
from pymemcg.export import dataset
from pymemcg.export.dataset import DataSet
from pymemcg.export.parquet import provenance_of, read, runs, to_recording
from pymemcg.ring import ChannelSpec

S = 10**9
MIDNIGHT = int(datetime(2099, 11, 23, tzinfo=timezone.utc).timestamp())
EXTRA = (
    ChannelSpec("limits", 0, 10, {"t_ns": "ns", "level": "", "limit_bytes": "bytes"}),
    ChannelSpec("events", 0, 10, {"t_ns": "ns", "since_ns": "ns", "kind": "", "value": ""}),
)


class Live:
    """What a data set needs of a sampler: its channels, here over a ring that the test writes, and its description."""

    def __init__(self, writer: RingWriter, host: str = "web-1"):
        self.info = {"host": host, "target": {"directory": "/a/group"}, "absent": {}}
        for name in schema.CHANNELS:
            setattr(self, name, Channel(name, writer.ring, writer.ring.tables.get(name)))

    def describe(self):
        return dict(self.info)


def ring(midnight: int) -> RingWriter:
    """Its first row is of 1 µs before midnight, and the others of every µs from then on."""
    made = RingWriter((*SPECS, *EXTRA))
    made.put("clock", {"t_ns": 1, "realtime_ns": midnight * S - 1000 - 6})
    return made


@pytest.fixture
def writer():
    """Of a time that is not over while tests run."""
    made = ring(MIDNIGHT)
    yield made
    os.close(made.fd)


def files(folder, channel: str = "usage") -> list[str]:
    return sorted(glob(f"{folder}/{channel}/**/*.parquet", recursive=True))


def whole(folder, channel: str = "usage") -> list[int]:
    """`late_ns` of all rows, in the order of the files: the numbers of the rows."""
    return [row for (_, of) in runs(folder).items() for row in pa.table(read(of[channel]))["late_ns"].to_pylist()]


def test_every_row_once_by_host_and_date(writer, tmp_path):
    with DataSet(Live(writer), tmp_path) as written:
        for rows in (1, 100, ROWS // 2, ROWS - 1, ROWS - 1, 0, 300):
            writer.tick(rows)
            written.write()
    assert written.lost == 0
    assert [Path(path).relative_to(tmp_path).parts[:3] for path in files(tmp_path)] == [
        ("usage", "host=web-1", "date=2099-11-22"),
        ("usage", "host=web-1", "date=2099-11-23"),
    ]
    assert whole(tmp_path) == list(range(writer.heads["usage"]))
    assert written.rows["usage"] == writer.heads["usage"]
    assert written.files == 3  # one is of the clock


def test_rows_before_it_began_are_left_out_but_what_holds_is_there(writer, tmp_path):
    writer.put("limits", {"t_ns": 5, "level": 0, "limit_bytes": 4096})
    writer.tick(50)
    with DataSet(Live(writer), tmp_path):
        writer.tick(10)
    assert whole(tmp_path) == list(range(50, 60))
    assert pq.read_table(files(tmp_path, "limits")[0])["limit_bytes"].to_pylist() == [4096]
    assert len(files(tmp_path, "clock")) == 1


def test_readers_of_partitions_see_host_and_date(writer, tmp_path):
    for host in ("web-1", "db/ä"):
        with DataSet(Live(writer, host), tmp_path):
            writer.tick(10)
    rows = ds.dataset(tmp_path / "usage", partitioning="hive").to_table()
    assert set(rows["host"].to_pylist()) == {"web-1", "db/ä"}
    query = (
        f"select host, date, count(*) from read_parquet('{tmp_path}/usage/**/*.parquet', hive_partitioning=true) group by all"
    )
    assert {(host, str(date)): count for host, date, count in duckdb.sql(query).fetchall()} == {
        ("web-1", "2099-11-22"): 1,
        ("web-1", "2099-11-23"): 9,
        ("db/ä", "2099-11-23"): 10,
    }
    assert {host for host, _ in runs(tmp_path)} == {"web-1", "db/ä"}


def test_files_roll_by_time(writer, tmp_path):
    with DataSet(Live(writer), tmp_path, roll_s=1e-4) as written:
        for _ in range(5):
            writer.tick(100)
            written.write()
    names = [os.path.basename(path)[:6] for path in files(tmp_path)]
    assert len(names) == 6  # the row before midnight, and 499 rows of 1 µs each by 100 µs
    assert names[-1] == "000000"
    assert whole(tmp_path) == list(range(500))
    for path in files(tmp_path):
        realtime_us = pq.read_table(path)["time"].cast(pa.int64()).to_numpy() // 1000
        assert len(set((realtime_us // 100).tolist())) == 1


def test_files_roll_by_size(writer, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_GROUP_BYTES", 4096)
    with DataSet(Live(writer), tmp_path, roll_bytes=4_000) as written:
        for _ in range(40):
            writer.tick(ROWS // 2)
            written.write()
    found = [path for path in files(tmp_path) if "date=2099-11-23" in path]
    assert len(found) > 2
    for path in found[:-1]:
        assert 4_000 <= os.path.getsize(path) < 20_000
        assert pq.ParquetFile(path).num_row_groups > 1
    assert whole(tmp_path) == list(range(40 * (ROWS // 2)))


def test_a_file_whose_time_is_over_is_closed_though_nothing_more_comes(tmp_path):
    writer = ring(MIDNIGHT - 36525 * 86400)
    with DataSet(Live(writer), tmp_path) as written:
        writer.tick(ROWS // 2)
        written.write()
        assert [os.path.basename(path)[:6] for path in files(tmp_path)] == ["230000", "000000"]
        assert whole(tmp_path) == list(range(ROWS // 2))
    os.close(writer.fd)


def test_rows_that_come_seldom_do_not_wait_for_more(tmp_path, monkeypatch):
    """Of what holds from the beginning on there may be one row in all: it is taken when the next time begins."""
    now_ns = time.time_ns()
    monkeypatch.setattr(dataset, "_LATE_NS", 0)
    old = ring(now_ns // S)
    with DataSet(Live(old), tmp_path, roll_s=0.01) as written:
        while not files(tmp_path, "clock"):
            assert time.time_ns() < now_ns + 30 * S
            time.sleep(0.01)
            written.write()
    os.close(old.fd)


def test_what_is_not_closed_is_no_data_file(writer, tmp_path):
    """A writer that is killed leaves what no reader takes for data."""
    written = DataSet(Live(writer), tmp_path)
    writer.tick(ROWS // 2)
    written.write()
    (left,) = [name for _, _, names in os.walk(tmp_path / "usage") for name in names if not name.endswith(".parquet")]
    assert left.startswith(".")
    assert left.endswith(".unfinished")
    rows = ds.dataset(tmp_path / "usage", partitioning="hive").to_table()
    assert rows["late_ns"].to_pylist() == [0]  # of the day before, whose file is closed
    query = f"select count(*) from read_parquet('{tmp_path}/usage/**/*.parquet')"
    assert duckdb.sql(query).fetchall() == [(1,)]
    with DataSet(Live(writer), tmp_path):
        writer.tick(10)
    assert len(files(tmp_path)) == 2
    written.drop()
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if not name.endswith(".parquet")]


def test_an_error_of_the_caller_loses_nothing(writer, tmp_path):
    def fail():
        with DataSet(Live(writer), tmp_path) as written:
            writer.tick(ROWS // 2)
            written.write()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert whole(tmp_path) == list(range(ROWS // 2))
    assert all(name.endswith(".parquet") for _, _, names in os.walk(tmp_path) for name in names)


def test_a_channel_that_cannot_be_written_keeps_no_other_from_being(writer, tmp_path):
    writer.put("limits", {"t_ns": 5, "level": 0, "limit_bytes": 4096})
    (tmp_path / "usage").write_text("")

    def fail(*, by_the_caller: bool):
        with DataSet(Live(writer), tmp_path) as written:
            writer.tick(ROWS // 2)
            if by_the_caller:
                written.write()

    for times, by_the_caller in enumerate((False, True), 1):
        with pytest.raises(MemcgError, match=r"usage/host.*cannot be written"):
            fail(by_the_caller=by_the_caller)
        assert [len(files(tmp_path, name)) for name in ("limits", "clock")] == [times, times]


def test_what_the_ring_lapped_is_counted(writer, tmp_path):
    with DataSet(Live(writer), tmp_path) as written:
        writer.tick(3 * ROWS)
    assert written.lost == 3 * ROWS - (ROWS - 1)
    assert whole(tmp_path) == list(range(3 * ROWS - (ROWS - 1), 3 * ROWS))


def test_a_run_of_it_is_a_recording(writer, tmp_path):
    live = Live(writer)
    with DataSet(live, tmp_path / "set", roll_s=1e-4) as written:
        for _ in range(5):
            writer.tick(100)
            written.write()
        writer.close("usage", 4711, 19)
        live.info["absent"] = {"usage": "closed"}
        writer.tick(1)
    (((host, run), of),) = runs(tmp_path / "set").items()
    assert (host, run) == ("web-1", written.run)
    again = to_recording({name: read(paths) for name, paths in of.items()}, tmp_path / "again.memcg")
    window = again.usage.window()
    assert window["late_ns"].tolist() == list(range(501))
    assert window["t_ns"].tolist() == [tick(row)["t_ns"] for row in range(501)]
    assert again.usage.closed == os.strerror(19), "the last file says how it ended"
    assert again.info["absent"] == {"usage": "closed"}
    assert again.info["host"] == "web-1"
    assert again.events.names == ("t_ns", "since_ns", "kind", "value"), "a channel without rows has no file, but is known"
    assert again.usage.realtime_ns(window["t_ns"][:1]).tolist() == [MIDNIGHT * S - 1000]


def test_a_file_says_what_it_is(writer, tmp_path):
    with DataSet(Live(writer), tmp_path) as written:
        writer.tick(10)
    for path in files(tmp_path):
        said = provenance_of(path)
        assert said["channel"] == "usage"
        assert said["run"] == written.run
        assert said["channels"]["usage"]["period_ns"] == 1_000_000
        assert pq.read_schema(path).field("usage_bytes").metadata == {b"unit": b"bytes"}


def test_where_nothing_can_be_written(writer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MemcgError, match=r"file.*cannot be written"):
        DataSet(Live(writer), tmp_path / "file/set")
    (tmp_path / "usage").write_text("")
    written = DataSet(Live(writer), tmp_path)
    writer.tick(10)
    with pytest.raises(MemcgError, match="cannot be written"):
        written.close()


def test_spans_come_with_their_texts(tmp_path):
    try:
        sampler = pymemcg.Sampler(adaptive=False).start()
    except MemcgError as error:
        pytest.skip(str(error))
    with sampler, DataSet(sampler, tmp_path / "set") as written:
        for number in range(10):
            with sampler.span(f"work {number % 2}", ref=number):
                pass
        written.write()
    ((_, of),) = runs(tmp_path / "set").items()
    table = pa.table(read(of["spans"]))
    assert table["name"].to_pylist() == [f"work {number % 2}" for number in range(10)]
    assert table["ref"].to_pylist() == [str(number) for number in range(10)]
    again = to_recording({name: read(paths) for name, paths in of.items()}, tmp_path / "again.memcg")
    assert again.info["spans"]["refs"] == list(range(10))
    assert [row.name for row in again.summary()] == ["work 0", "work 1"]
