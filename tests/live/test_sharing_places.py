# SPDX-License-Identifier: Apache-2.0
"""Where rings have their names, and what stands in their way there."""

from __future__ import annotations

import fcntl
import os
import threading

import pytest
from actor import NAMESPACES, files, lock_is_free, ring_file, start

from pymemcg import Sampler

pytestmark = pytest.mark.live

# What is mounted at /dev/shm, and what happens there.
PLACES = {
    "read-only": (("none", "tmpfs", "RDONLY", None), "None"),
    "full": (("none", "tmpfs", "0", "size=64k"), "None"),
    "without inodes": (("none", "tmpfs", "0", "nr_inodes=2"), "None"),
    "on a disk": (("/usr", None, "BIND", None), "None"),
    "writable by others": (("none", "tmpfs", "0", None), "os.mkdir(home); os.chmod(home, 0o777)"),
    "of another user": (("none", "tmpfs", "0", None), "os.mkdir(home, 0o700); os.chown(home, 65534, 0)"),
    "a link": (("none", "tmpfs", "0", None), "os.mkdir('/dev/shm/x', 0o700); os.symlink('/dev/shm/x', home)"),
    "a file": (("none", "tmpfs", "0", None), "open(home, 'w').close()"),
    "read-only later": (
        ("none", "tmpfs", "0", None),
        "os.mkdir(home, 0o700); system('mount', 'none', '/dev/shm', 'tmpfs', REMOUNT | RDONLY, None)",
    ),
    "gone": (("none", "tmpfs", "0", None), "system('mount', 'none', '/dev', 'tmpfs', 0, None)"),
}


class TestPlaces:
    """Where the rings cannot have a name, or not a good one."""

    def mounted(self, group, make_actor, code: str):
        """A process with its own view of /dev/shm."""
        actor = make_actor(group)
        actor.do(NAMESPACES)
        actor.do(f"own_mounts()\n{code}")
        return actor

    @pytest.mark.parametrize("place", PLACES)
    def test_a_memfd_and_a_note(self, only_root, place, group, make_actor):
        (source, kind, flags, options), code = PLACES[place]
        actor = self.mounted(
            group,
            make_actor,
            f"system('mount', {source!r}, '/dev/shm', {kind!r}, {flags}, {options!r})\nhome = '/dev/shm/pymemcg-0'\n{code}",
        )
        before = files(actor.pid)
        assert start(actor) == "sampling"
        assert "others cannot attach" in actor.do("s.absent['sharing']")
        assert "/dev/shm" in actor.do("s.absent['sharing']")
        assert any("memfd:pymemcg" in path for path in files(actor.pid))
        assert actor.do("int(s.usage.window(rows=1)['usage_bytes'][0])") > 0
        if place == "full":
            assert start(make_actor(group)) == "alone", "another cannot find the ring"
        actor.do("s.stop()")
        assert files(actor.pid) == before
        assert lock_is_free(group.directory)
        if place not in ("on a disk", "a file"):
            assert actor.do("[name for top, _, names in os.walk('/dev/shm') for name in names]") == []

    def test_what_a_killed_process_leaves_is_swept(self, make_group, make_actor):
        group, other = make_group("killed"), make_group("other")
        actor = make_actor(group)
        start(actor)
        actor.kill()
        left = ring_file(group.directory)
        assert left.exists()
        with Sampler(other.spec, history_s=1):
            assert not left.exists()

    def test_what_a_killed_process_leaves_of_the_same_group_is_not_gone_on_with(self, group, make_actor):
        actor = make_actor(group)
        start(actor, "history_s=2")
        actor.kill()
        with Sampler(group.spec, history_s=1) as sampler:
            assert sampler.stats()["takeovers"] == 0
            assert 5 not in sampler.events.window()["kind"]
            assert sampler.usage.window()["t_ns"][0] >= sampler.stats()["writer_started_ns"]
        assert not ring_file(group.directory).exists()

    def test_a_ring_of_another_version_is_let_alone(self, group, tmp_path):
        """Two releases in one container, as during a rolling upgrade."""
        with Sampler(group.spec, history_s=1) as sampler:
            path = ring_file(group.directory, os.geteuid())
            data = bytearray(path.read_bytes())
            del sampler
        data[12] += 1  # its version
        lock = os.open(group.directory, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        path.write_bytes(data)
        with open(path, "rb") as theirs:
            fcntl.flock(theirs, fcntl.LOCK_SH)
            with Sampler(group.spec, history_s=1) as sampler:
                assert sampler.role == "alone"
                assert "another version" in sampler.absent["sharing"]
            os.close(lock)
            with Sampler(group.spec, history_s=1) as sampler:
                assert sampler.role == "sampling"
                assert "another version" in sampler.absent["sharing"]
            assert path.read_bytes() == bytes(data)
        with Sampler(group.spec, history_s=1) as sampler:
            assert "sharing" not in sampler.absent, "nobody uses it any more"
        assert not path.exists()

    @pytest.mark.parametrize("data", [b"", b"\0" * 65536, b"no ring"])
    def test_rubbish_under_the_rings_name(self, data, group):
        with Sampler(group.spec, history_s=1):
            path = ring_file(group.directory, os.geteuid())
        path.write_bytes(data)
        with Sampler(group.spec, history_s=1) as sampler:
            assert (sampler.role, "sharing" in sampler.absent) == ("sampling", False)
        assert not path.exists()

    @pytest.mark.parametrize("removed", [True, False])
    def test_a_name_that_another_is_removing(self, removed, group):
        """The last one out, and who sweeps, hold it for a moment; a memfd would leave all later workers alone for life."""
        with Sampler(group.spec, history_s=1):
            path = ring_file(group.directory, os.geteuid())
        theirs = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(theirs, fcntl.LOCK_EX)
        remover = threading.Timer(0.3, os.unlink, [path])
        if removed:
            remover.start()
        with Sampler(group.spec, history_s=1) as sampler:
            assert sampler.role == "sampling"
            assert ("others cannot attach" in sampler.absent.get("sharing", "")) == (not removed)
        os.close(theirs)
        if not removed:
            path.unlink()
        assert not path.exists()

    def test_nobody_else_can_open_a_ring(self, group):
        with Sampler(group.spec, history_s=1):
            status = ring_file(group.directory, os.geteuid()).stat()
            assert status.st_mode & 0o077 == 0
            assert ring_file(group.directory, os.geteuid()).parent.stat().st_mode & 0o077 == 0
