# SPDX-License-Identifier: Apache-2.0
"""Looking on from another process while one samples."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
from actor import Failed, files, maps, ring_file, start, until

import pymemcg
from pymemcg import RecordingError, Sampler, TargetError, attach

pytestmark = pytest.mark.live

# Who becomes another user cannot be looked at by that one, until it says so; nor read Python's library, perhaps: what it
# will need is loaded before.
NOBODY = """
import ctypes, logging, numpy, pymemcg
from pymemcg import Sampler, attach
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
"""


@pytest.fixture
def sampling(group, make_actor):
    actor = make_actor(group)
    start(actor, "adaptive=False")
    return actor


def grows(attached) -> None:
    head = attached.usage.head
    until(lambda: attached.usage.head > head)


class TestSees:
    @pytest.mark.parametrize("place", ["tmpfs", "scratch"])
    def test_what_the_sampler_sees(self, place, request, group, make_actor):
        actor, path = make_actor(group), request.getfixturevalue(place) / "ring"
        start(actor, f"ring_file={str(path)!r}, adaptive=False")
        until(lambda: pymemcg.open(path).usage.head)
        seen = attach(path)
        grows(seen)
        window, cursor, lost = seen.usage.read()
        first, end = window.first_row, window.first_row + len(window)
        theirs = actor.do(f"(lambda w: w.to_numpy()[{first} - w.first_row:{end} - w.first_row].tolist())(s.usage.read()[0])")
        names = actor.do("list(s.usage.names)")
        ours = [[int(row[name]) for name in names] for row in window.to_numpy()]
        assert ours == theirs
        assert (cursor, lost) == (end, 0)
        assert seen.writer_pid == actor.pid
        assert seen.info["target"]["directory"] == group.directory
        assert seen.state()["ticks"] > 0

    def test_by_pid(self, sampling):
        seen = attach(f"pid:{sampling.pid}")
        assert seen.writer_pid == sampling.pid
        grows(seen)

    def test_a_memfd_by_pid(self, group, sampling, make_actor, only_root):
        """Another user's sampler cannot attach, and has a ring without a name."""
        alone = make_actor(group)
        alone.do(NOBODY)
        assert start(alone) == "alone"
        assert any("memfd:pymemcg" in path for path in files(alone.pid))
        reader = make_actor()
        reader.do(NOBODY)
        assert reader.do(f"pymemcg.attach('pid:{alone.pid}').writer_pid") == alone.pid

    def test_the_ring_rather_than_its_copy_on_a_disk(self, group, make_actor, scratch):
        actor = make_actor(group)
        start(actor, f"ring_file={str(scratch / 'ring')!r}")
        until(lambda: pymemcg.open(scratch / "ring").usage.head)
        seen = attach(f"pid:{actor.pid}")
        assert os.path.samefile(seen.path, ring_file(group.directory))

    def test_the_ring_rather_than_what_is_recorded(self, sampling, tmp_path):
        sampling.do(f"from pymemcg.recorder import Recorder; r = Recorder(s, {str(tmp_path / 'run')!r}); r.write()")
        seen = attach(f"pid:{sampling.pid}")
        assert seen.writer_pid == sampling.pid

    def test_what_it_says_of_itself_is_believed_once(self, tmpfs, group, make_actor):
        """Whoever may write the file could change it under a reader, who may be root."""
        actor = make_actor(group)
        start(actor, f"ring_file={str(tmpfs / 'ring')!r}")
        seen = attach(tmpfs / "ring")
        grows(seen)
        with open(tmpfs / "ring", "r+b") as file:
            for at in range(16, 72, 8):  # all that says where something is
                file.seek(at)
                file.write(b"\xff" * 8)
        assert len(seen.usage.window()) == len(seen.usage.window()["t_ns"])
        grows(seen)
        assert "reclaim" in seen.info["absent"] or seen.reclaim.names

    def test_stalls_that_the_ring_still_has(self, sampling):
        seen = attach(f"pid:{sampling.pid}")
        grows(seen)
        assert list(seen.stalls()) == []

    def test_without_a_copy_and_read_only(self, sampling):
        seen = attach(f"pid:{sampling.pid}")
        grows(seen)
        window = seen.usage.window(rows=10)
        assert not window["t_ns"].flags.writeable
        assert np.shares_memory(window["t_ns"], seen.usage.window()["t_ns"])
        with pytest.raises(ValueError, match="read-only"):
            window["t_ns"][0] = 0


class TestEnds:
    def test_the_arrays_stay(self, sampling):
        seen = attach(f"pid:{sampling.pid}")
        grows(seen)
        sampling.do("s.stop()")
        assert seen.writer_pid is None
        kept = seen.usage.window()["t_ns"].tolist()
        sampling.kill()
        assert seen.usage.window()["t_ns"].tolist() == kept

    def test_nothing_of_it_is_left(self, sampling):
        before = files(), maps()
        seen = attach(f"pid:{sampling.pid}")
        grows(seen)
        del seen
        assert (files(), maps()) == before

    @pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
    def test_a_reader_that_is_stopped_or_killed(self, how, sampling, make_actor):
        reader = make_actor()
        reader.do(f"import pymemcg; a = pymemcg.attach('pid:{sampling.pid}'); _, cursor, _ = a.usage.read()")
        os.kill(reader.pid, how)
        head = sampling.do("s.usage.head")
        until(lambda: sampling.do("s.usage.head") > head + 100)
        if how == signal.SIGSTOP:
            os.kill(reader.pid, signal.SIGCONT)
        sampling.do("s.stop()")
        assert not ring_file(sampling.do("s.target.directory")).exists(), "a reader holds nothing"

    def test_a_slow_reader_knows_what_it_lost(self, group, make_actor):
        actor = make_actor(group)
        start(actor, "adaptive=False, history_s=0.2")
        seen = attach(f"pid:{actor.pid}")
        grows(seen)
        _, cursor, _ = seen.usage.read()
        lent = seen.usage.window()
        until(lambda: seen.usage.head > cursor + 2 * seen.usage.capacity)
        assert not lent.valid()
        window, end, lost = seen.usage.read(cursor)
        assert lost > 0
        assert cursor + lost + len(window) == end
        assert (np.diff(window["t_ns"]) > 0).all()


class TestCannot:
    def test_a_process_without_a_sampler(self, make_actor):
        with pytest.raises(TargetError, match="has no sampler"):
            attach(f"pid:{make_actor().pid}")

    def test_several_samplers(self, sampling, make_group):
        sampling.do(f"t = Sampler({make_group('other').spec!r}).start()")
        with pytest.raises(TargetError, match="has 2 samplers") as caught:
            attach(f"pid:{sampling.pid}")
        paths = caught.value.hint.removeprefix("name one of ").split(", ")
        directories = {attach(path).info["target"]["directory"] for path in paths}
        assert directories == {sampling.do("s.target.directory"), sampling.do("t.target.directory")}

    def test_no_process(self, make_actor):
        actor = make_actor()
        actor.kill()
        with pytest.raises(TargetError, match="no such process"):
            attach(f"pid:{actor.pid}")
        with pytest.raises(TargetError, match="expected the number of a process"):
            attach("pid:self")

    @pytest.mark.parametrize("nobody", [False, True])
    def test_one_that_may_not_be_looked_at(self, nobody, group, make_actor, only_root):
        """Of another user, or not dumpable."""
        sampling, reader = make_actor(group), make_actor()
        if nobody:
            sampling.do(NOBODY)
            sampling.do("ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)")
        start(sampling)
        reader.do(NOBODY)
        with pytest.raises(Failed, match="may not be looked at") as caught:
            reader.do(f"pymemcg.attach('pid:{sampling.pid}')")
        assert caught.value.name == "TargetError"
        assert "dumpable" in caught.value.text

    def test_a_file_of_another_user(self, tmpfs, group, make_actor, only_root):
        sampling, reader = make_actor(group), make_actor()
        tmpfs.chmod(0o755)
        start(sampling, f"ring_file={str(tmpfs / 'ring')!r}")
        reader.do(NOBODY)
        with pytest.raises(Failed, match="Permission denied") as caught:
            reader.do(f"pymemcg.attach({str(tmpfs / 'ring')!r})")
        assert "its owner, or root, can" in caught.value.text

    def test_a_ring_that_nobody_writes(self, tmpfs, group):
        with Sampler(group.spec, ring_file=tmpfs / "ring"):
            time.sleep(0.01)
        with pytest.raises(RecordingError, match="is written by nobody now") as caught:
            attach(tmpfs / "ring")
        assert "pymemcg.open" in str(caught.value)
        assert len(pymemcg.open(tmpfs / "ring").usage.window())

    def test_no_ring(self, tmp_path):
        with pytest.raises(TargetError, match="No such file"):
            attach(tmp_path / "none")
        (tmp_path / "text").write_text("dear diary" * 200)
        with pytest.raises(RecordingError, match="no ring"):
            attach(tmp_path / "text")
        with pytest.raises(RecordingError, match="is no file"):
            attach(tmp_path)
