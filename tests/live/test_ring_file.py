# SPDX-License-Identifier: Apache-2.0
"""The ring as a file: what it holds after its sampler was killed, what becomes of the one before, what may be in its way."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from itertools import pairwise

import facts
import numpy as np
import pytest
from actor import NAMESPACES, Failed, ended, leaves_nothing, ring_file, start, until

import pymemcg
from pymemcg import Sampler, SourceError, schema

pytestmark = pytest.mark.live

KILLS = 5
COPY_MS = 200


# Forty lives of four processes each, which come to the group at the same moment and are killed with the ring in use.
SEATS = """
import os, signal, sys
from pymemcg import cgroup, sharing
from pymemcg.ring import ChannelSpec, create
directory, path = cgroup.resolve(sys.argv[1]).directory, sys.argv[2]
channels = [ChannelSpec("usage", 0, 10, {"t_ns": "ns"})]

def sit(go, answer):
    os.read(go, 1)
    seat = sharing.take_seat(
        directory, lambda fd: create(fd, channels, {}, align=os.sysconf("SC_PAGESIZE"), reserve=True), at=path
    )
    os.write(answer, b"%d " % os.fstat(seat.ring_fd).st_ino)
    signal.pause()

for _ in range(40):
    (go, going), (answers, answer) = os.pipe(), os.pipe()
    pids = []
    for _ in range(4):
        pids.append(os.fork())
        if pids[-1] == 0:
            sit(go, answer)
    os.write(going, b"....")
    told = b""
    while len(told.split()) < 4 or not told.endswith(b" "):
        told += os.read(answers, 100)
    print(told.decode(), flush=True)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for fd in (go, going, answers, answer):
        os.close(fd)
"""


@pytest.fixture(params=["tmpfs", "scratch"])
def path(request):
    """A ring file in memory and one on a disk."""
    return request.getfixturevalue(request.param) / "ring"


@pytest.fixture
def on_disk(scratch):
    return scratch / "ring"


def rows(path, channel="usage") -> dict[str, list[int]]:
    window = getattr(pymemcg.open(path), channel).window()
    return {name: window[name].tolist() for name in window}


def created(path) -> int:
    """Which ring a file is."""
    return pymemcg.open(path).usage._ring.header.created_ns


def writer(path) -> int:
    return pymemcg.open(path).usage._ring.header.state.writer_pid


class TestKilled:
    @pytest.mark.usefixtures("importable_bench")
    def test_at_any_moment(self, path, group):
        command = [sys.executable, "-m", "bench.kills", path, "--target", group.spec, "--kills", str(KILLS)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=facts.PATIENCE_S, check=False)
        assert done.returncode == 0, done.stderr
        told = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(told) == KILLS
        assert [one["wrong"] for one in told] == [[]] * KILLS
        assert statistics.median(one["rows"] for one in told) > 0
        assert statistics.median(one["missing_ns"] for one in told) < COPY_MS * 1e6

    def test_all_that_was_sampled_is_there(self, tmpfs, group, make_actor):
        actor = make_actor(group)
        assert start(actor, f"ring_file={str(tmpfs / 'ring')!r}") == "sampling"
        until(lambda: actor.do("s.stat.head") >= 3)
        seen = actor.do("{n: getattr(s, n).read()[0].to_numpy().tolist() for n in ('usage', 'stat', 'limits', 'clock')}")
        actor.kill()
        recording = pymemcg.open(tmpfs / "ring")
        for name, before in seen.items():
            assert getattr(recording, name).window().to_numpy().tolist()[: len(before)] == [tuple(row) for row in before]
        assert writer(tmpfs / "ring") == actor.pid
        assert recording.info["target"]["directory"] == group.directory

    def test_the_next_goes_on_with_nothing_and_keeps_it(self, path, group, make_actor):
        for _ in range(5):
            actor = make_actor(group)
            start(actor, f"ring_file={str(path)!r}")
            until(lambda: pymemcg.open(path).usage.head > 0)
            actor.kill()
        names = sorted(name.name for name in path.parent.iterdir())
        assert names == ["ring", "ring.1", "ring.2", "ring.3"]
        lives = [created(path.parent / name) for name in names]
        assert lives == sorted(lives, reverse=True)
        assert len(set(lives)) == 4


class TestSeveral:
    """Processes of one group that are all asked for the same file, as gunicorn's workers are."""

    def workers(self, path, group, make_actor, count=3):
        workers = [make_actor(group) for _ in range(count)]
        roles = [start(worker, f"ring_file={str(path)!r}") for worker in workers]
        assert sorted(roles) == ["attached"] * (count - 1) + ["sampling"]
        return workers

    def test_it_goes_on_after_each_of_them(self, path, group, make_actor):
        workers = self.workers(path, group, make_actor)
        which = created(path)
        for left in (2, 1):
            sampling = next(worker for worker in workers if worker.do("s.role") == "sampling")
            sampling.kill()
            workers.remove(sampling)
            killed_at = rows(path)["t_ns"][-1]
            assert len(workers) == left
            until(lambda killed_at=killed_at: rows(path)["t_ns"][-1] > killed_at + 200_000_000)
            assert created(path) == which
        workers[0].do("s.stop()")
        assert writer(path) == 0
        assert [name.name for name in path.parent.iterdir()] == ["ring"]
        assert not ring_file(group.directory).exists()
        events = rows(path, "events")
        assert events["kind"].count(1) == 2

    def test_all_at_once_where_there_was_one_before(self, path, group, make_actor):
        for _ in range(3):
            workers = [make_actor(group) for _ in range(4)]
            for worker in workers:
                worker.do("from pymemcg import Sampler")
            for worker in workers:
                worker.send(f"s = Sampler(ring_file={str(path)!r}).start()")
            for worker in workers:
                worker.answer()
            until(lambda: pymemcg.open(path).usage.head > 0)
            for worker in workers:
                worker.kill()
        names = sorted(name.name for name in path.parent.iterdir())
        assert names == ["ring", "ring.1", "ring.2"]
        assert len({created(path.parent / name) for name in names}) == 3

    def test_what_a_life_left_is_no_ring_for_the_next(self, tmpfs, group):
        """Workers that come to it at the same moment do not take each other for its users."""
        done = subprocess.run(
            [sys.executable, "-c", SEATS, group.spec, str(tmpfs / "ring")],
            capture_output=True,
            text=True,
            timeout=facts.PATIENCE_S,
            check=False,
        )
        assert done.stderr == ""
        lives = [line.split() for line in done.stdout.splitlines()]
        assert len(lives) == 40
        assert all(len(set(life)) == 1 for life in lives), "all of a life have the same ring"
        assert all(before[0] != after[0] for before, after in pairwise(lives))

    def test_a_child_that_was_forked_leaves_it_alone(self, path, group, make_actor):
        actor = make_actor(group)
        start(actor, f"ring_file={str(path)!r}")
        pid = actor.do("os.fork() or os._exit(0)")
        until(lambda: ended(pid))
        newest = rows(path)["t_ns"][-1] if pymemcg.open(path).usage.head else 0
        until(lambda: pymemcg.open(path).usage.head and rows(path)["t_ns"][-1] > newest)
        actor.do("s.stop()")
        assert writer(path) == 0

    def test_another_ring_is_copied(self, tmpfs, group, make_actor):
        """The first of a group was asked for none."""
        first, second = make_actor(group), make_actor(group)
        assert start(first) == "sampling"
        assert start(second, f"ring_file={str(tmpfs / 'ring')!r}") == "attached"
        until(lambda: pymemcg.open(tmpfs / "ring").usage.head > 0)
        second.do("s.stop()")
        first.do("s.stop()")
        ours, theirs = rows(tmpfs / "ring"), first.do("s.usage.read()[0]['t_ns'].tolist()")
        assert ours["t_ns"] == theirs[theirs.index(ours["t_ns"][0]) :][: len(ours["t_ns"])]

    def test_a_group_of_its_own_for_each_file(self, path, group, make_group, make_actor):
        actor = make_actor(group)
        start(actor, f"ring_file={str(path)!r}")
        with pytest.raises(SourceError, match="another sampler writes it") as caught:
            Sampler(make_group("other").spec, ring_file=path).start()
        assert str(path) in str(caught.value)
        assert actor.do("s.role") == "sampling"
        assert [name.name for name in path.parent.iterdir()] == ["ring"]


class TestStopped:
    def test_the_whole_ring_stays(self, path, group):
        with Sampler(group.spec, ring_file=path, history_s=1) as sampler:
            until(lambda: sampler.stat.head >= 3)
            assert sampler.ring_file == str(path)
        assert not ring_file(group.directory).exists()
        assert writer(path) == 0
        assert path.stat().st_mode & 0o777 == 0o600
        recording = pymemcg.open(path)
        for name in schema.CHANNELS:
            kept = getattr(sampler, name).window() if name != "spans" else ()
            window = getattr(recording, name).window()
            assert len(window) >= len(kept)
            for column in kept:
                assert np.array_equal(window[column][len(window) - len(kept) :], kept[column]), f"{name}.{column}"

    def test_again_while_arrays_of_it_are_used(self, path, group):
        """A mapping keeps the lock of the file that it is of."""
        with Sampler(group.spec, ring_file=path) as sampler:
            until(lambda: sampler.usage.head > 1)
        kept = sampler.usage.window()["t_ns"]
        with Sampler(group.spec, ring_file=path):
            assert created(path.with_name("ring.1")) != created(path)
        assert kept.size

    def test_it_is_allocated_at_the_start_and_nothing_else_stays(self, path, group):
        with leaves_nothing(group.directory), Sampler(group.spec, ring_file=path, history_s=1):
            status = path.stat()
            assert status.st_blocks * 512 >= status.st_size > 0

    def test_links_to_files_that_are_gone_are_swept(self, tmpfs, group, make_group, make_actor):
        actor = make_actor(group)
        (tmpfs / "folder").mkdir()
        start(actor, f"ring_file={str(tmpfs / 'folder/ring')!r}")
        actor.kill()
        link = ring_file(group.directory)
        assert link.is_symlink()
        shutil.rmtree(tmpfs / "folder")
        with Sampler(make_group("other").spec):
            assert not link.is_symlink()

    def test_the_default_place(self, group, make_actor, only_root):
        actor = make_actor(group)
        actor.do(NAMESPACES)
        actor.do("own_mounts(); system('mount', 'none', '/dev/shm', 'tmpfs', 0, None); sys.argv[0] = '/srv/shop/__main__.py'")
        start(actor, "ring_file=True")
        assert actor.do("s.ring_file") == "/dev/shm/pymemcg/shop.ring"
        assert actor.do("os.stat('/dev/shm/pymemcg').st_mode & 0o7777") == 0o1777
        assert actor.do("os.path.samestat(os.stat('/dev/shm/pymemcg'), os.lstat('/dev/shm/pymemcg'))")


class TestInItsWay:
    """An error at the start, and nothing is lost."""

    @pytest.mark.parametrize(
        ("what", "says"),
        [("text", "is no ring of pymemcg"), ("link", "is a symbolic link"), ("folder", "no file of this user's")],
    )
    def test_something_else(self, what, says, path, group):
        other = path.parent / "other"
        other.write_text("dear diary")
        {"text": lambda: path.write_text("dear diary"), "link": lambda: path.symlink_to(other), "folder": path.mkdir}[what]()
        before = path.lstat()
        with pytest.raises(SourceError, match=says) as caught, leaves_nothing(group.directory):
            Sampler(group.spec, ring_file=path).start()
        assert str(path) in str(caught.value)
        assert (path.lstat().st_ino, path.lstat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert other.read_text() == "dear diary"
        assert not path.with_name("ring.new").exists()

    @pytest.mark.parametrize("n", [1, 2, 3])
    @pytest.mark.parametrize("what", ["text", "folder"])
    def test_something_else_among_those_that_are_kept(self, what, n, path, group):
        other = path.with_name(f"ring.{n}")
        other.write_text("dear diary") if what == "text" else other.mkdir()
        with Sampler(group.spec, ring_file=path):
            pass
        before = created(path)
        with pytest.raises(SourceError, match="cannot be created: what is there is no") as caught:
            Sampler(group.spec, ring_file=path).start()
        assert str(other) in str(caught.value)
        assert created(path) == before
        assert sorted(name.name for name in path.parent.iterdir()) == ["ring", other.name]
        assert what == "folder" or other.read_text() == "dear diary"

    def test_a_default_folder_of_another_user(self, only_root, group, make_actor):
        """Its owner could remove what is in it."""
        actor = make_actor(group)
        actor.do(NAMESPACES)
        actor.do("own_mounts(); system('mount', 'none', '/dev/shm', 'tmpfs', 0, None)")
        actor.do(
            "os.mkdir('/dev/shm/pymemcg'); os.chmod('/dev/shm/pymemcg', 0o1777); os.chown('/dev/shm/pymemcg', 65534, 65534)"
        )
        with pytest.raises(Failed, match="uid 65534, could remove it"):
            start(actor, "ring_file=True")

    def test_a_file_of_another_user(self, path, group, only_root):
        with Sampler(group.spec, ring_file=path):
            pass
        os.chown(path, 65534, 0)
        with pytest.raises(SourceError, match="no file of this user's"):
            Sampler(group.spec, ring_file=path).start()

    @pytest.mark.parametrize("blank", [b"", bytes(100_000)])
    def test_what_a_machine_without_power_leaves(self, blank, path, group):
        path.write_bytes(blank)
        with Sampler(group.spec, ring_file=path):
            assert path.with_name("ring.1").read_bytes() == blank

    def test_what_a_killed_start_leaves(self, path, group):
        path.with_name("ring.new").write_bytes(bytes(100))
        with Sampler(group.spec, ring_file=path):
            assert [name.name for name in path.parent.iterdir()] == ["ring"]

    @pytest.mark.parametrize(
        ("options", "says"),
        [("size=64k", "full"), ("ro", "read-only"), ("nr_inodes=1", "full")],
        ids=["full", "read-only", "inodes"],
    )
    @pytest.mark.usefixtures("only_root")
    def test_a_place_that_takes_none(self, options, says, group, make_actor, tmpfs):
        actor = make_actor(group)
        actor.do(NAMESPACES)
        flags, data = (1, None) if options == "ro" else (0, options)
        actor.do(f"own_mounts(); system('mount', 'none', {str(tmpfs)!r}, 'tmpfs', {flags}, {data!r})")
        with pytest.raises(Failed, match=says) as caught:
            start(actor, f"ring_file={str(tmpfs / 'ring')!r}")
        assert caught.value.name == "SourceError"
        assert str(tmpfs / "ring") in caught.value.text
        assert actor.do(f"os.listdir({str(tmpfs)!r})") == []

    def test_no_folder(self, tmp_path, group):
        with pytest.raises(SourceError, match="its folder must be there"):
            Sampler(group.spec, ring_file=tmp_path / "none" / "ring").start()

    @pytest.mark.parametrize("name", ["", "/tmp/"])
    def test_no_file(self, name):
        with pytest.raises(ValueError, match="expected the path of a file"):
            Sampler(ring_file=name)

    def test_a_disk_that_fails_while_it_is_written(self, on_disk, group, make_actor):
        """A limit of the process on the size of files stands for all that a disk may refuse later."""
        actor = make_actor(group)
        actor.do("import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)")
        start(actor, f"ring_file={str(on_disk)!r}")
        until(lambda: pymemcg.open(on_disk).usage.head > 0)
        actor.do("resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))")
        why = until(lambda: actor.do("s.absent.get('ring_file', '')"))
        assert f"{on_disk} could not be written: File too large" in why
        head = actor.do("s.usage.head")
        until(lambda: actor.do("s.usage.head") > head)
        other = make_actor(group)
        start(other, f"ring_file={str(on_disk)!r}")
        newest = rows(on_disk)["t_ns"][-1]
        until(lambda: rows(on_disk)["t_ns"][-1] > newest)  # who may write, writes
        actor.do("s.stop()")
