# SPDX-License-Identifier: Apache-2.0
"""A recording that was exported to Parquet and made a recording again tells the same."""

from __future__ import annotations

import os

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import parquet as pq
from rowwriter import MS, T0, S, held, limits, node, ticks, write

import pymemcg
from pymemcg._ffi import NONE, ffi
from pymemcg.errors import RecordingError
from pymemcg.export import export
from pymemcg.export.parquet import exported, provenance_of, read, to_recording

INFO = {
    "target": {"directory": "/a/group"},
    "absent": {"stat": "no memory.stat"},
    "evidence": {"trace": None, "psi": "no PSI", "wchan": "no memory.high", "counters": None},
    "page_bytes": 4096,
    "spans": {"pid": 7, "names": ["never", "checkout", "import"], "refs": ["a", "b"], "refs_left_out": 3},
}


def spans_of(*rows: tuple[float, float, int, int, int]) -> dict[str, list[int]]:
    """Rows of `spans`: (ms from T0, for how many ms, tid, name, ref)."""
    start = [T0 + round(at * MS) for at, *_ in rows]
    end = [begin + round(row[1] * MS) for begin, row in zip(start, rows, strict=True)]
    return {
        "start_ns": start,
        "end_ns": end,
        "tid": [row[2] for row in rows],
        "name_id": [row[3] for row in rows],
        "ref_id": [row[4] for row in rows],
        "attribution": [1] * len(rows),
        "ran_start_ns": start,
        "ran_end_ns": end,
    }


@pytest.fixture
def original(tmp_path):
    channels = {
        "usage": ticks(8, hits=[100, 101, 102, 3000, 3001, 5000]),
        "limits": limits((0, 0, 64, 1)),
        "reclaim": held((100, 5, 7), (101, 30, 8), (3000, 0.2, 7), (5000, 12, 9), wait_ms=None),
        "node": node(8, allocstall_normal=[3000]),
        "spans": spans_of((100, 20, 8, 1, -1), (90, 50, 7, 2, 0), (4000, 100, 7, 1, 1)),
        "clock": {"t_ns": [T0, T0 + 4 * S], "realtime_ns": [10**18, 10**18 + 5 * S]},
        "events": {"t_ns": [T0 + 7 * S], "since_ns": [T0 + 7 * S], "kind": [2], "value": [3 << 32 | 19]},
    }
    recording = write(tmp_path / "first.memcg", channels, INFO)
    entry = ffi.typeof("struct memcg_channel_header")
    at = recording.header.channels_offset + recording.node.position * ffi.sizeof(entry)
    with open(recording.path, "r+b") as file:
        for word, value in (("closed_ns", T0 + 7 * S), ("closed_errno", 19)):
            os.pwrite(file.fileno(), np.uint64(value).tobytes(), at + ffi.offsetof(entry, word))
    return pymemcg.open(recording.path)


def assert_tells_the_same(again: pymemcg.Recording, original: pymemcg.Recording) -> None:
    for name in pymemcg.schema.CHANNELS:
        one, other = getattr(again, name), getattr(original, name)
        assert one.names == other.names
        assert dict(one.units) == dict(other.units)
        assert (one.period_ns, one.closed_at, one.position) == (other.period_ns, other.closed_at, other.position)
        for column in set(one.names) - {"name_id", "ref_id"}:
            assert one.window()[column].tolist() == other.window()[column].tolist(), (name, column)
    for word in ("created_ns", "created_realtime_ns"):
        assert getattr(again.header, word) == getattr(original.header, word)
    assert ffi.string(again.header.boot_id) == ffi.string(original.header.boot_id)
    assert {**again.info, "spans": None} == {**original.info, "spans": None}
    assert again.stalls() == original.stalls()
    assert len(original.stalls()) > 1
    assert list(again.hits()) == list(original.hits())
    assert {hit.ref for hit in original.hits()} >= {"a"}
    assert repr(again.summary()) == repr(original.summary())
    assert again.missing == original.missing == {}


def test_by_files(original, tmp_path):
    export(original, "parquet", tmp_path / "out")
    files = exported(tmp_path / "out")
    assert_tells_the_same(to_recording({name: read(of) for name, of in files.items()}, tmp_path / "again.memcg"), original)
    assert sorted(os.listdir(tmp_path)) == ["again.memcg", "first.memcg", "out"]


def test_by_relations_of_duckdb(original, tmp_path):
    """Their metadata is lost on the way, so it is given; rows come in the order that was asked for."""
    (usage, *_), files = export(original, "parquet", tmp_path / "out"), exported(tmp_path / "out")
    with duckdb.connect() as database:
        rows = {
            name: database.sql(f"select * from read_parquet('{path}') order by {getattr(original, name).time}")
            for name, (path,) in files.items()
        }
        again = to_recording(rows, tmp_path / "again.memcg", provenance=provenance_of(usage.path))
    assert_tells_the_same(again, original)


def test_by_frames_of_polars(original, tmp_path):
    export(original, "parquet", tmp_path / "out")
    files = {name: path for name, (path,) in exported(tmp_path / "out").items()}
    frames = {name: pl.read_parquet(path) for name, path in files.items()}
    assert_tells_the_same(to_recording(frames, tmp_path / "again.memcg", provenance=provenance_of(files["spans"])), original)


def test_by_the_channels_themselves(original, tmp_path):
    channels = {name: getattr(original, name) for name in pymemcg.schema.CHANNELS if getattr(original, name).names}
    again = to_recording(channels, tmp_path / "again.memcg")
    assert_tells_the_same(again, original)
    assert again.info == original.info


@pytest.mark.parametrize("refs", [[12, 7, 0], [12, 7, 0, None]], ids=["recording", "ring with spans that have none"])
def test_references_that_were_numbers_are_numbers_again(tmp_path, refs):
    info = {"spans": {"pid": 7, "names": ["get"], "refs": refs, "refs_left_out": 0}}
    spans = spans_of((1, 1, 7, 0, 1), (3, 1, 7, 0, -1), (5, 1, 7, 0, 2), (7, 1, 7, 0, 3))
    original = write(tmp_path / "first.memcg", {"usage": ticks(1), "spans": spans}, info)
    export(original, "parquet", tmp_path / "out")
    again = to_recording({name: read(of) for name, of in exported(tmp_path / "out").items()}, tmp_path / "again.memcg")
    assert again.info["spans"] == {"pid": 7, "names": ["get"], "refs": [7, 0], "refs_left_out": 0}
    assert again.spans.window()["ref_id"].tolist() == [0, -1, 1, -1]


def test_a_channel_that_is_not_given_has_no_rows_but_is_there(original, tmp_path):
    """Where tracepoints were asked and told nothing, nothing was held."""
    export(original, "parquet", tmp_path / "out")
    again = to_recording({"usage": read([str(tmp_path / "out/usage.parquet")])}, tmp_path / "again.memcg")
    assert again.usage.head == original.usage.head
    assert (again.reclaim.head, again.reclaim.names) == (0, original.reclaim.names)
    assert again.stat.names == ()


def test_what_is_null_is_none_again(original, tmp_path):
    export(original, "parquet", tmp_path / "out")
    assert pq.read_table(tmp_path / "out/reclaim.parquet")["cpu_wait_ns"].null_count == 4
    again = to_recording({"reclaim": read([str(tmp_path / "out/reclaim.parquet")])}, tmp_path / "again.memcg")
    assert set(again.reclaim.window()["cpu_wait_ns"].tolist()) == {NONE}


class TestErrors:
    def test_a_table_of_somebody_else(self, tmp_path):
        pq.write_table(pa.table({"t_ns": [1]}), tmp_path / "usage.parquet")
        with pytest.raises(RecordingError, match=r"usage\.parquet.*no metadata 'pymemcg'"):
            read([str(tmp_path / "usage.parquet")])
        with pytest.raises(RecordingError, match="no metadata 'pymemcg'"):
            to_recording({"usage": pa.table({"t_ns": [1]})}, tmp_path / "again.memcg")

    def test_what_is_no_parquet(self, original):
        with pytest.raises(RecordingError, match=r"first\.memcg: cannot be read"):
            provenance_of(original.path)
        with pytest.raises(RecordingError, match="cannot be read"):
            provenance_of("/no/such/file")

    def test_a_table_that_lacks_a_column(self, original, tmp_path):
        table = pa.table(original.usage).drop_columns(["usage_bytes"])
        with pytest.raises(RecordingError, match="table of usage has no column 'usage_bytes'"):
            to_recording({"usage": table}, tmp_path / "again.memcg")
        assert sorted(os.listdir(tmp_path)) == ["first.memcg"]

    def test_a_table_of_no_channel(self, original, tmp_path):
        with pytest.raises(RecordingError, match="tables sizes are of no channel"):
            to_recording({"usage": original.usage, "sizes": original.usage}, tmp_path / "again.memcg")

    def test_a_folder_without_files(self, tmp_path):
        with pytest.raises(RecordingError, match="has no Parquet files"):
            exported(tmp_path)

    def test_where_nothing_can_be_written(self, original, tmp_path):
        with pytest.raises(pymemcg.MemcgError, match="cannot be written"):
            to_recording({"usage": original.usage}, tmp_path / "no/such/folder.memcg")
