# SPDX-License-Identifier: Apache-2.0
"""Recordings: written from a ring whose every row is known, mapped back, and read by numpy alone."""

from __future__ import annotations

import gc
import json
import os
import resource

import numpy as np
import pytest
from recordedring import EXTRA, INFO, Live, open_files, rows_of
from ringwriter import ROWS, SPECS, RingWriter

import pymemcg
from pymemcg import RecordingError
from pymemcg.recorder import Recorder
from pymemcg.ring import RECORDING_ALIGN


@pytest.fixture
def writer():
    made = RingWriter((*SPECS, *EXTRA))
    made.put("clock", {"t_ns": 1, "realtime_ns": 10**18 + 1})
    yield made
    os.close(made.fd)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "run.pmc")


class TestRoundTrip:
    def test_every_row_once_across_many_wraps(self, writer, path):
        with Recorder(Live(writer), path) as recorder:
            for rows in (1, 100, ROWS // 2, ROWS - 1, ROWS - 1, 0, 300):
                writer.tick(rows)
                recorder.write()
        assert recorder.lost == 0
        recording = pymemcg.open(path)
        assert rows_of(recording.usage.window()) == list(range(writer.heads["usage"]))

    def test_rows_before_the_recording_are_not_in_it_but_what_holds_is(self, writer, path):
        writer.put("limits", {"t_ns": 5, "level": 0, "limit_bytes": 4096})
        writer.tick(50)
        with Recorder(Live(writer), path):
            writer.tick(10)
        recording = pymemcg.open(path)
        assert rows_of(recording.usage.window()) == list(range(50, 60))
        assert recording.limits.window()["limit_bytes"].tolist() == [4096]
        assert recording.clock.window()["realtime_ns"].tolist() == [10**18 + 1]

    def test_what_the_ring_lapped_is_counted(self, writer, path):
        with Recorder(Live(writer), path) as recorder:
            writer.tick(3 * ROWS)
        assert recorder.lost == 3 * ROWS - (ROWS - 1)
        assert rows_of(pymemcg.open(path).usage.window()) == list(range(3 * ROWS - (ROWS - 1), 3 * ROWS))

    def test_units_info_and_absence_come_back(self, writer, path):
        with Recorder(Live(writer), path):
            writer.tick(1)
        recording = pymemcg.open(path)
        assert recording.info == INFO
        assert dict(recording.usage.units) == SPECS[0].columns
        assert recording.usage.period_ns == 1_000_000
        assert recording.stat.names == ()
        assert len(recording.stat.window()) == 0
        assert "run.pmc" in repr(recording)

    def test_cursors_and_frames_work_as_on_a_live_ring(self, writer, path):
        pd = pytest.importorskip("pandas")
        with Recorder(Live(writer), path):
            writer.tick(5)
        recording = pymemcg.open(path)
        window, cursor, lost = recording.usage.read()
        assert (rows_of(window), cursor, lost) == ([0, 1, 2, 3, 4], 5, 0)
        assert recording.usage.read(cursor)[0].to_numpy().size == 0
        assert recording.usage.to_pandas().index[0] == pd.Timestamp(10**18 + 7, tz="UTC")

    def test_an_exactly_full_recording_lends_all_its_rows(self, writer, path):
        writer.tick(10)
        with Recorder(Live(writer), path) as recorder:
            wanted = RECORDING_ALIGN // 8
            while recorder.write() < wanted:
                writer.tick(min(ROWS - 1, wanted - (writer.heads["usage"] - 10)))
        recording = pymemcg.open(path)
        assert recording.usage.capacity == wanted
        assert rows_of(recording.usage.window()) == list(range(10, 10 + wanted))
        assert recording.usage.window().valid()
        window, _, lost = recording.usage.read(0)
        assert (len(window), lost) == (wanted, 0)

    def test_a_channel_that_closed_says_so_in_the_recording_too(self, writer, path):
        with Recorder(Live(writer), path) as recorder:
            writer.tick(5)
            recorder.write()
            writer.close("usage", 4711, 19)
        recording = pymemcg.open(path)
        assert recording.usage.closed == os.strerror(19)
        assert recording.node.closed is None

    def test_an_event_speaks_of_the_recordings_own_channels(self, writer, path):
        """MEMCG_EVENT_CLOSED carries a position in the channel table; the recording's table must be meant."""
        position = writer.ring.tables["node"].index
        with Recorder(Live(writer), path):
            writer.put("events", {"t_ns": 1, "since_ns": 1, "kind": 2, "value": position << 32 | 19})
        recording = pymemcg.open(path)
        (value,) = recording.events.window()["value"].tolist()
        assert list(tables_by_numpy(path)[1])[value >> 32] == "node"
        assert recording.node.position == value >> 32


class TestFile:
    def test_it_appears_under_its_name_only_when_it_is_whole(self, writer, path, tmp_path):
        with Recorder(Live(writer), path):
            writer.tick(5)
            assert not os.path.exists(path)
        assert os.listdir(tmp_path) == ["run.pmc"]

    def test_an_older_recording_stays_until_it_is_replaced(self, writer, path):
        with Recorder(Live(writer), path):
            writer.tick(5)
        old = pymemcg.open(path)
        with Recorder(Live(writer), path) as recorder:
            writer.tick(7)
            recorder.write()
            assert rows_of(pymemcg.open(path).usage.window()) == list(range(5))
        assert rows_of(pymemcg.open(path).usage.window()) == list(range(5, 12))
        assert rows_of(old.usage.window()) == list(range(5))

    def test_what_a_killed_recorder_leaves_is_readable(self, writer, path):
        recorder = Recorder(Live(writer), path)
        writer.tick(5)
        recorder.write()
        (left,) = [name for name in os.listdir(os.path.dirname(path)) if name.startswith("run.pmc")]
        assert rows_of(pymemcg.open(f"{os.path.dirname(path)}/{left}").usage.window()) == list(range(5))
        recorder.close()

    def test_it_has_no_room_that_is_not_used(self, writer, path):
        with Recorder(Live(writer), path):
            writer.tick(5)
        columns = sum(len(spec.columns) for spec in (*SPECS, *EXTRA))
        assert os.stat(path).st_size <= (columns + 1) * RECORDING_ALIGN
        assert os.stat(path).st_blocks * 512 <= 2 * (columns + 1) * 4096 + 65536

    def test_arrays_outlive_the_recording_and_its_file(self, writer, path):
        with Recorder(Live(writer), path):
            writer.tick(100)
        array = pymemcg.open(path).usage.window()["late_ns"]
        os.unlink(path)
        gc.collect()
        assert array.tolist() == list(range(100))
        assert not array.flags.writeable

    def test_nothing_stays_open(self, writer, path):
        before = open_files()
        for _ in range(5):
            with Recorder(Live(writer), path):
                writer.tick(1)
            pymemcg.open(path)
        assert open_files() == before

    def test_where_nothing_can_be_created(self, writer, tmp_path):
        before = open_files()
        with pytest.raises(RecordingError, match=r"no/such/folder/run\.pmc.*cannot be created"):
            Recorder(Live(writer), tmp_path / "no/such/folder/run.pmc")
        assert open_files() == before

    def test_a_file_that_may_not_grow_so_large(self, writer, path, tmp_path):
        """Disk quotas and full disks end in the same place: an error of ours, and nothing left open or lying about."""
        before, limits = open_files(), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            with pytest.raises(pymemcg.MemcgError):
                Recorder(Live(writer), path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert open_files() == before
        assert os.listdir(tmp_path) == []


class TestOpen:
    def test_what_is_not_there(self, path):
        with pytest.raises(RecordingError, match=r"run\.pmc: cannot be opened: No such file"):
            pymemcg.open(path)

    @pytest.mark.parametrize("data", [b"", b"PYMEMCG\0", b"\0" * 200_000, b"not a recording at all\n" * 10_000])
    def test_what_is_no_recording(self, path, data):
        with open(path, "wb") as file:
            file.write(data)
        before = open_files()
        with pytest.raises(RecordingError, match=r"run\.pmc"):
            pymemcg.open(path)
        assert open_files() == before

    def test_a_folder(self, tmp_path):
        with pytest.raises(RecordingError):
            pymemcg.open(tmp_path)

    def test_a_pipe_is_not_waited_for(self, path):
        os.mkfifo(path)
        with pytest.raises(RecordingError, match="is no file"):
            pymemcg.open(path)

    def test_a_recording_that_was_cut_short(self, writer, path):
        with Recorder(Live(writer), path):
            writer.tick(5)
            writer.put("node", {"t_ns": 3, "pswpin": 5})
        size = os.stat(path).st_size
        whole = pymemcg.open(path)
        assert whole.missing == {}
        os.truncate(path, size - 1)
        nothing_lost = pymemcg.open(path)
        assert rows_of(nothing_lost.usage.window()) == list(range(5))
        assert list(nothing_lost.missing) == ["file"]
        os.truncate(path, size - RECORDING_ALIGN)
        without_last = pymemcg.open(path)
        assert rows_of(without_last.usage.window()) == list(range(5))
        assert without_last.node.names == ("t_ns",)
        assert "pswpin" in without_last.missing["node"]
        for left in (4096, 128):
            os.truncate(path, left)
            if left == 4096:
                assert "usage" in pymemcg.open(path).missing
                continue
            with pytest.raises(RecordingError, match="damaged"):
                pymemcg.open(path)


def tables_by_numpy(path):
    """Header and columns of a recording by nothing but numpy, as docs/file-format.md tells."""
    u4, u8 = "<u4", "<u8"
    header = np.fromfile(
        path,
        dtype=[
            *[("magic", "S8"), ("byte_order", u4), ("version", u4), ("file_bytes", u8), ("align_bytes", u4), ("channels", u4)],
            *[("columns", u4), ("info_bytes", u4), ("channels_offset", u8), ("columns_offset", u8), ("info_offset", u8)],
            *[("created_ns", u8), ("created_realtime_ns", u8), ("boot_id", "S40"), ("reserved", u8)],
        ],
        count=1,
    )[0]
    channel = [
        *[("name", "S16"), ("capacity", u8), ("period_ns", u8), ("first_column", u4), ("columns", u4), ("reserved", u8, 3)],
        *[("head", u8), ("closed_ns", u8), ("closed_errno", u8), ("padding", u8, 5)],
    ]
    column = [("name", "S48"), ("unit", "S16"), ("dtype", "S8"), ("offset", u8)]
    columns = np.fromfile(path, column, header["columns"], offset=int(header["columns_offset"]))
    tables = {}
    for entry in np.fromfile(path, channel, header["channels"], offset=int(header["channels_offset"])):
        mine = columns[entry["first_column"] : entry["first_column"] + entry["columns"]]
        tables[entry["name"].decode()] = {
            c["name"].decode(): np.fromfile(path, c["dtype"].decode(), int(entry["head"]), offset=int(c["offset"]))
            for c in mine
        }
    return header, tables


@pytest.mark.skipif(np.dtype("=u4") != np.dtype("<u4"), reason="recordings are native-endian and this reads little-endian")
def test_numpy_alone_reads_a_recording(writer, path):
    with Recorder(Live(writer), path):
        writer.tick(1000 % ROWS)
        writer.put("node", {"t_ns": 3, "pswpin": 5})
    header, tables = tables_by_numpy(path)
    assert header["magic"] == b"PYMEMCG"
    assert (header["version"], header["align_bytes"]) == (2, RECORDING_ALIGN)
    assert header["file_bytes"] == os.stat(path).st_size
    with open(path, "rb") as file:
        file.seek(int(header["info_offset"]))
        assert json.loads(file.read(int(header["info_bytes"]))) == INFO
    recording = pymemcg.open(path)
    for name, columns in tables.items():
        window = getattr(recording, name).window()
        for column, values in columns.items():
            assert values.tolist() == window[column].tolist()
    assert len(tables["usage"]["t_ns"]) == 1000 % ROWS


def test_the_sampler_that_is_recorded_may_lack_channels(path):
    writer = RingWriter(SPECS[:1])
    with Recorder(Live(writer), path):
        writer.tick(3)
    recording = pymemcg.open(path)
    assert rows_of(recording.usage.window()) == [0, 1, 2]
    assert recording.clock.head == 0
    os.close(writer.fd)
