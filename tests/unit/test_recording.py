# SPDX-License-Identifier: Apache-2.0
"""Recordings: written from a ring whose every row is known, mapped back, and read by numpy alone."""

from __future__ import annotations

import ctypes
import gc
import glob
import json
import os
import resource

import numpy as np
import pytest
from ringwriter import ROWS, SPECS, RingWriter, tick

import pymemcg
from pymemcg import RecordingError, schema
from pymemcg._ffi import ffi
from pymemcg.channel import Channel
from pymemcg.mounts import IN_MEMORY, file_system
from pymemcg.recorder import Recorder, join
from pymemcg.ring import RECORDING_ALIGN, ChannelSpec

INFO = {"target": {"spec": "test"}, "absent": {"high": "cgroup v1 has no memory.high"}}
EXTRA = (
    ChannelSpec("limits", 0, 10, {"t_ns": "ns", "level": "", "limit_bytes": "bytes"}),
    ChannelSpec("events", 0, 10, {"t_ns": "ns", "since_ns": "ns", "kind": "", "value": ""}),
    ChannelSpec("node", 100_000_000, 10, {"t_ns": "ns", "pswpin": "pages"}),
)


class Live:
    """What a recorder needs of a sampler: its channels, here over a ring that the test writes, and its description."""

    def __init__(self, writer: RingWriter):
        for name in schema.CHANNELS:
            setattr(self, name, Channel(name, writer.ring, writer.ring.tables.get(name)))

    def describe(self):
        return INFO


@pytest.fixture
def writer():
    made = RingWriter((*SPECS, *EXTRA))
    made.put("clock", {"t_ns": 1, "realtime_ns": 10**18 + 1})
    yield made
    os.close(made.fd)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "run.pmc")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident_pages(path) -> int:
    """How many pages of a recording's columns are in memory."""
    data = np.memmap(path, np.uint8, mode="r")
    told = np.empty(data.size // 4096 + 1, np.uint8)
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.size), told.ctypes) == 0
    return int((told[RECORDING_ALIGN // 4096 : data.size // 4096] & 1).sum())


def rows_of(window) -> list[int]:
    rows = window["late_ns"].tolist()
    assert window["t_ns"].tolist() == [tick(row)["t_ns"] for row in rows]
    assert window["usage_bytes"].tolist() == [-row for row in rows]
    return rows


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


class TestParts:
    """A long recording is written in parts, which are one when it ends."""

    def write(self, recorder, writer, times=5) -> None:
        for n in range(times):
            writer.tick(10 + n)
            recorder.write()

    def parts(self, path) -> list[str]:
        """In their order."""
        return sorted(glob.glob(f"{path}.*"), key=lambda name: (not name.endswith("whole"), len(name), name))

    def rows(self, names) -> list[int]:
        return [row for name in names for row in rows_of(pymemcg.open(name).usage.window())]

    @pytest.fixture
    def soon(self, monkeypatch):
        """The next part begins at each `write`."""
        monkeypatch.setattr("pymemcg.recorder.SEGMENT_S", 0)

    def test_by_time(self, soon, writer, path, tmp_path):
        with Recorder(Live(writer), path) as recorder:
            self.write(recorder, writer)
            names = self.parts(path)
            assert len(names) == 6
            assert self.rows(names) == list(range(60))
        assert os.listdir(tmp_path) == ["run.pmc"]
        recording = pymemcg.open(path)
        assert rows_of(recording.usage.window()) == list(range(60))
        assert recording.clock.window()["realtime_ns"].tolist() == [10**18 + 1]

    def test_by_room(self, monkeypatch, writer, path):
        monkeypatch.setattr("pymemcg.recorder.SEGMENT_S", 1)
        with Recorder(Live(writer), path) as recorder:
            room = pymemcg.open(f"{path}.part").usage.capacity
            while writer.heads["usage"] < 2.5 * room:
                writer.tick(ROWS - 1)
                recorder.write()
            names = self.parts(path)
            assert len(names) == 3
            assert pymemcg.open(names[0]).usage.head == room
            assert self.rows(names) == list(range(writer.heads["usage"]))
        assert rows_of(pymemcg.open(path).usage.window()) == list(range(writer.heads["usage"]))
        assert recorder.lost == 0

    @pytest.mark.parametrize("after", range(6))
    def test_all_is_somewhere_while_they_become_one(self, after, soon, monkeypatch, writer, path):
        recorder = Recorder(Live(writer), path)
        self.write(recorder, writer)
        drop, dropped = Recorder._drop, []

        def interrupted(self, part):
            if len(dropped) == after:
                raise KeyboardInterrupt
            dropped.append(part)
            drop(self, part)

        monkeypatch.setattr(Recorder, "_drop", interrupted)
        with pytest.raises(KeyboardInterrupt):
            recorder.close()
        names = [path] if os.path.exists(path) else self.parts(path)
        assert sorted(set(self.rows(names))) == list(range(60))
        assert len(dropped) == after

    def test_parts_that_are_full_take_nothing_of_the_process(self, soon, writer, path):
        before = open_files()
        with Recorder(Live(writer), path) as recorder:
            self.write(recorder, writer, times=20)
            assert len(self.parts(path)) == 21
            assert open_files() == before + 1
            with open("/proc/self/maps") as maps:
                assert path not in maps.read()
        assert open_files() == before
        assert rows_of(pymemcg.open(path).usage.window()) == list(range(writer.heads["usage"]))

    def test_an_error_is_no_list_of_all_of_them(self, soon, writer, tmp_path):
        (tmp_path / "here").mkdir()
        recorder = Recorder(Live(writer), tmp_path / "here/run.pmc")
        self.write(recorder, writer, times=10)
        (tmp_path / "here").rename(tmp_path / "there")
        with pytest.raises(
            RecordingError, match=r"run\.pmc\.part to .*run\.pmc\.part\.10, 11 files, are recordings too"
        ) as caught:
            recorder.write()
        assert "part.9" not in str(caught.value)
        with pytest.raises(RecordingError), recorder:
            pass

    def test_an_error_tells_where_they_are(self, soon, writer, path):
        recorder = Recorder(Live(writer), path)
        self.write(recorder, writer)
        os.mkdir(path)
        with pytest.raises(RecordingError, match="cannot be written: Is a directory") as caught:
            recorder.close()
        assert "is a recording too" in str(caught.value) or "are recordings too" in str(caught.value)
        left = [name for name in self.parts(path) if name in str(caught.value)]
        assert sorted(set(self.rows(left))) == list(range(60))

    def test_memory_is_given_back(self, soon, writer, path):
        """What a part holds is on the disk when the next begins, and need not stay in the page cache."""
        recorder = Recorder(Live(writer), path)
        writer.tick(ROWS - 1)
        recorder.write()
        assert resident_pages(f"{path}.part.1") > 0
        recorder.write()
        if file_system(path + ".part") in IN_MEMORY:
            pytest.skip("the temporary folder is in memory")
        assert resident_pages(f"{path}.part.1") == 0
        recorder.close()


class TestBrokenOff:
    """A kill leaves the files as they are, and their locks are gone."""

    @pytest.fixture
    def soon(self, monkeypatch):
        """The next part begins at each `write`."""
        monkeypatch.setattr("pymemcg.recorder.SEGMENT_S", 0)

    def broken_off(self, writer, path, times) -> None:
        recorder = Recorder(Live(writer), path)
        for _ in range(times):
            writer.tick(10)
            recorder.write()
        recorder._let_go()

    def test_the_next_recording_leaves_it_alone(self, soon, writer, path, tmp_path):
        self.broken_off(writer, path, 2)
        self.broken_off(writer, path, 1)
        with Recorder(Live(writer), path) as recorder:
            assert recorder.left == f"{path}.left-2"
            writer.tick(5)
        assert rows_of(pymemcg.open(path).usage.window()) == list(range(30, 35))
        parts = ["left-1.part", "left-1.part.1", "left-1.part.2", "left-2.part", "left-2.part.1"]
        assert sorted(os.listdir(tmp_path)) == ["run.pmc", *(f"run.pmc.{part}" for part in parts)]
        join(f"{path}.left-1")
        join(f"{path}.left-2")
        assert sorted(os.listdir(tmp_path)) == ["run.pmc", "run.pmc.left-1", "run.pmc.left-2"]
        assert rows_of(pymemcg.open(f"{path}.left-1").usage.window()) == list(range(20))
        assert rows_of(pymemcg.open(f"{path}.left-2").usage.window()) == list(range(20, 30))

    def test_after_a_whole_recording_nothing_is_left(self, writer, path):
        for _ in range(2):
            with Recorder(Live(writer), path) as recorder:
                writer.tick(5)
            assert recorder.left is None

    @pytest.mark.parametrize("after", range(6))
    def test_joined_from_any_moment_of_the_end(self, after, soon, monkeypatch, writer, path):
        """Some of its parts are in the whole one, and one of them may be there still."""
        recorder = Recorder(Live(writer), path)
        for _ in range(4):
            writer.tick(10)
            recorder.write()
        writer.close("node", 4711, 19)
        drop, dropped = Recorder._drop, []

        def interrupted(self, part):
            if len(dropped) == after:
                raise KeyboardInterrupt
            dropped.append(part)
            drop(self, part)

        with monkeypatch.context() as patched:
            patched.setattr(Recorder, "_drop", interrupted)
            with pytest.raises(KeyboardInterrupt):
                recorder.close()
        join(path)
        assert os.listdir(os.path.dirname(path)) == ["run.pmc"]
        recording = pymemcg.open(path)
        assert rows_of(recording.usage.window()) == list(range(40))
        assert recording.clock.head == 1
        assert recording.node.closed == os.strerror(19)
        assert recording.info == INFO

    def test_its_clocks_are_those_of_its_rows(self, soon, writer, path):
        self.broken_off(writer, path, 2)
        was = pymemcg.open(f"{path}.part").header
        join(path)
        header = pymemcg.open(path).header
        assert (header.created_ns, header.created_realtime_ns) == (was.created_ns, was.created_realtime_ns)
        assert ffi.string(header.boot_id) == ffi.string(was.boot_id)

    @pytest.mark.parametrize("laid_out", [b"", bytes(200_000)])
    def test_a_file_that_was_just_being_made_has_no_rows(self, laid_out, soon, writer, path, tmp_path):
        self.broken_off(writer, path, 2)
        for name in ("part.3", "whole"):
            (tmp_path / f"run.pmc.{name}").write_bytes(laid_out)
        join(path)
        assert os.listdir(tmp_path) == ["run.pmc"]
        assert rows_of(pymemcg.open(path).usage.window()) == list(range(20))

    def test_there_is_nothing_to_join(self, path):
        with pytest.raises(RecordingError, match=r"nothing is left of it: there is no run\.pmc\.part"):
            join(path)

    def test_what_is_of_another_recording_is_not_joined(self, writer, path, tmp_path):
        self.broken_off(writer, path, 1)
        other = RingWriter(SPECS[:1])
        self.broken_off(other, f"{path}2", 1)
        os.close(other.fd)
        os.rename(f"{path}2.part", f"{path}.part.1")
        with pytest.raises(RecordingError, match=r"part\.1: is no part of the same recording"):
            join(path)
        assert sorted(os.listdir(tmp_path)) == ["run.pmc.part", "run.pmc.part.1"]

    def test_two_at_once(self, soon, monkeypatch, writer, path, tmp_path):
        """The second is refused from the first's beginning to its end, and does the first no harm."""
        before, refused, drop = open_files(), [], Recorder._drop

        def refuse(*_):
            for second in (lambda: Recorder(Live(writer), path), lambda: join(path)):
                with pytest.raises(RecordingError, match="is being written by another recorder"):
                    second()
                refused.append(second)

        def dropping(self, part):
            if os.path.exists(f"{path}.whole"):
                refuse()
            drop(self, part)

        monkeypatch.setattr(Recorder, "_drop", dropping)
        with Recorder(Live(writer), path) as recorder:
            for _ in range(3):
                refuse()
                writer.tick(10)
                recorder.write()
        assert len(refused) > 2 * 3
        assert os.listdir(tmp_path) == ["run.pmc"]
        assert rows_of(pymemcg.open(path).usage.window()) == list(range(30))
        assert open_files() == before

    def test_its_files_are_gone(self, writer, path, tmp_path):
        """The error says what is the matter, and no other hides it."""
        recorder = Recorder(Live(writer), path)
        writer.tick(5)
        recorder.write()
        os.unlink(f"{path}.part")
        with pytest.raises(RecordingError, match=r"run\.pmc: cannot be written: No such file"):
            recorder.close()
        assert os.listdir(tmp_path) == []


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
