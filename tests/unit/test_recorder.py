# SPDX-License-Identifier: Apache-2.0
"""Long recordings: written in parts that become one, and what a kill leaves of them."""

from __future__ import annotations

import ctypes
import glob
import os

import numpy as np
import pytest
from recordedring import EXTRA, INFO, Live, open_files, rows_of
from ringwriter import ROWS, SPECS, RingWriter

import pymemcg
from pymemcg import RecordingError
from pymemcg._ffi import ffi
from pymemcg.mounts import IN_MEMORY, file_system
from pymemcg.recorder import Recorder, join
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


def resident_pages(path) -> int:
    """How many pages of a recording's columns are in memory."""
    data = np.memmap(path, np.uint8, mode="r")
    told = np.empty(data.size // 4096 + 1, np.uint8)
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.size), told.ctypes) == 0
    return int((told[RECORDING_ALIGN // 4096 : data.size // 4096] & 1).sum())


def test_a_folder_is_refused_before_anything_is_sampled(writer, tmp_path):
    with pytest.raises(RecordingError, match=rf"{tmp_path}: is a folder"):
        Recorder(Live(writer), tmp_path)
    assert os.listdir(tmp_path) == []


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
