# SPDX-License-Identifier: Apache-2.0
"""What a process may do where it happens to be, whoever it is: `tests/vm/as WHO` makes the places; without it, right here."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import signal
import subprocess
import sys
from pathlib import Path

import facts
import pytest
from actor import MIB, Actor, start, until
from facts import CONFINED, WHO

import pymemcg
from pymemcg import NotSupported, Sampler, TargetError, tracepoints
from pymemcg.child import ChildGroup
from pymemcg.doctor import examine

pytestmark = pytest.mark.live

GIVEN_FILE, GIVEN_IDS = os.environ.get("PYMEMCG_AS_FILE"), os.environ.get("PYMEMCG_AS_EVENT_IDS")
MOST_TO_READ = 1 << 30
ENOUGH_HITS = 200
"""Of clean page cache each costs some 50 us: PSI must have more than a millisecond of it."""
# By which name the reason stands for a column of `usage` that is not there.
REASONS = {"usage_bytes": "usage", "high_hits": "high", "rss_bytes": "usage", "shared_bytes": "usage"}


@pytest.fixture
def sampler():
    with Sampler(history_s=30) as sampler:
        yield sampler


def fill(own: pymemcg.cgroup.Level, size: int) -> None:
    """Read more than the group may hold, so that reading reclaims, until its limit was hit often enough to be no chance."""
    counter = f"{own.directory}/{own.files['hits']}"
    assert GIVEN_FILE is not None
    buffer, before = bytearray(MIB), hits(counter)
    with open(GIVEN_FILE, "rb", buffering=0) as file:
        for _ in range(3 * size // MIB):
            if not file.readinto(buffer):
                file.seek(0)
            if hits(counter) > before + ENOUGH_HITS:
                break
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # or the group would stay at its limit


def hits(path: str) -> int:
    with open(path) as file:
        words = file.read().split()
    return int(words[words.index("max") + 1] if "max" in words else words[0])


def names_of_what_works(sampler: Sampler) -> set[str]:
    return {name for name, why in sampler.evidence.items() if why is None}


def works_for_own_group() -> set[str]:
    """By what its stalls must be known, as the kernel's files say it."""
    memory, unified = facts.own_group()
    assert memory is not None
    return facts.evidence(memory, unified)


def told_by(sampler: Sampler, evidence: str) -> list[pymemcg.Stall]:
    told = [stall for stall in pymemcg.stalls(sampler) if stall.cause == "limit"]
    return told if any(evidence in stall.evidence for stall in told) else []


class TestSelf:
    def test_it_samples(self, sampler):
        if WHO:
            assert sampler.role == "sampling"
        until(lambda: len(sampler.usage.window()) > 20)
        row = sampler.usage.window(rows=1)
        if "usage_bytes" in row:
            assert row["usage_bytes"][0] > 0
        else:
            assert "root" in sampler.absent["usage"]
        if sampler.role == "sampling":
            assert row["rss_bytes"][0] > MIB

    def test_what_is_absent_has_its_reason(self, sampler):
        for name in ("usage_bytes", "limit_hits", "high_hits", "memsw_hits", "oom_kills"):
            if name not in sampler.usage.names:
                role = REASONS.get(name, name)
                assert len(sampler.absent.get(role) or sampler.absent["hits"]) > 10, name
        for name in ("stat", "pressure", "node", "processes", "reclaim"):
            if not getattr(sampler, name).names:
                assert len(sampler.absent[name]) > 10, name

    def test_evidence_that_works_is_used_and_what_does_not_is_said(self, sampler):
        assert set(sampler.evidence) == {"trace", "psi", "wchan", "counters"}
        shown = {
            "trace": "reclaim" not in sampler.absent,
            "psi": "some_us" in sampler.pressure.names,
            "counters": any(name.endswith("_hits") for name in sampler.usage.names),
        }
        for name, works in shown.items():
            assert (sampler.evidence[name] is None) == works, (name, sampler.evidence[name])
        for name, why in sampler.evidence.items():
            assert why is None or len(why) > 5, name
            if why is not None and name != "wchan":
                with pytest.raises(NotSupported, match="cannot be had"):
                    Sampler(evidence=name).start()

    def test_doctor_says_the_same(self, sampler):
        command = [sys.executable, "-m", "pymemcg", "doctor", "--json"]
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        assert done.returncode == (0 if "usage_bytes" in sampler.usage.names else 4)  # v2's root group has no usage
        report = json.loads(done.stdout)
        said = {check["name"]: check["state"] for check in report["checks"]}
        assert ("reclaim" in said) == (sampler.evidence["trace"] is not None)
        assert (said["pressure"] == "no") == (sampler.evidence["psi"] is not None)
        for name, why in sampler.absent.items():
            if name in said and name != "sharing":
                assert any(check["says"] == why for check in report["checks"] if check["name"] == name), name

    def test_every_limit_that_can_be_seen_has_a_row(self, sampler):
        levels = sampler.target.levels
        sampled = {number for number, level in enumerate(levels) if "usage" in level.files}  # the root of cgroup2 has none
        until(lambda: set(sampler.limits.window()["level"].tolist()) == sampled)
        rows = sampler.limits.window()
        limit, level = sampler.target.limit()
        if level is not None:
            at = rows["level"] == levels.index(level)
            assert limit in rows["limit_bytes"][at].tolist()
        if CONFINED:
            assert [level.name for level in levels] == ["/"], "what is outside of the namespace is not to be seen"
            assert limit is not None

    def test_memory_that_cannot_be_locked_is_used_unlocked(self, sampler):
        if sampler.role != "sampling":
            pytest.skip("another process samples this group")
        locked, most = sampler.stats()["locked_bytes"], resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        check = next(check for check in examine()["checks"] if check.name == "locked memory")
        assert (check.state == "yes") == (locked > 0)
        if CONFINED:
            assert locked <= most
            assert "RLIMIT_MEMLOCK is 64 KiB" in check.says

    def test_perf_events_that_are_denied_are_done_without(self):
        try:
            ids = tracepoints.parse_event_ids(GIVEN_IDS) if GIVEN_IDS else tracepoints.event_ids()
        except NotSupported as error:
            pytest.skip(f"{error}; no ids were handed in, as tests/vm/as does where there are some")
        with Sampler(event_ids=ids) as sampler:
            why = sampler.evidence["trace"]
            until(lambda: len(sampler.usage.window()) > 5)
        if facts.no_tracepoints():
            assert why is not None
            assert "perf_event_open is denied" in why
            assert "CAP_PERFMON" in why
        else:
            assert why is None

    def test_another_process_attaches_and_goes_on(self):
        own = Actor()
        try:
            if start(own, "history_s=5") != "sampling":
                pytest.skip("another process samples this group")
            with Sampler(history_s=5) as sampler:
                assert sampler.role == "attached"
                before = sampler.usage.head
                until(lambda: sampler.usage.head > before)
                own.do("s.stop()")
                until(lambda: sampler.role == "sampling")
                before = sampler.usage.head
                until(lambda: sampler.usage.head > before)
        finally:
            own.close()

    def test_a_stall_at_the_own_limit_is_told(self, sampler):
        limit, level = sampler.target.limit()
        own = sampler.target.levels[0]
        if limit is None or level != own or limit > MOST_TO_READ:
            pytest.skip("this group has no limit of its own that a test could come to: tests/vm/as WHO sets one")
        if GIVEN_FILE is None:
            pytest.skip("no file whose cache can be reclaimed: temporary files are in memory here")
        fill(own, limit)
        works = works_for_own_group() if sampler.role == "sampling" else names_of_what_works(sampler)
        best = next(name for name in ("trace", "psi", "counters") if name in works)
        told = until(lambda: told_by(sampler, best), 120)  # PSI is read seldom where little happens
        for stall in told:
            assert set(stall.evidence) <= works
            assert stall.limit_bytes == limit
        assert sum(stall.limit_hits or 0 for stall in told) > 0
        assert any((stall.stall_ns is not None) == (best != "counters") for stall in told)


@pytest.mark.kernel
class TestEvidence:
    """What must work in a place follows from the kernel's files and from who one is."""

    def test_of_the_own_group(self):
        if not facts.psi_is_free(*facts.own_group()):
            pytest.skip("another process reads the PSI that this group is seen by")
        with Sampler(history_s=5) as sampler:
            if sampler.role != "sampling":
                pytest.skip("another process samples this group")
            assert names_of_what_works(sampler) == works_for_own_group(), sampler.evidence

    def test_of_another_group(self, make_group, make_actor):
        group = make_group("evidence", limit_bytes=64 * MIB)
        make_actor(group)
        must = facts.evidence(group.directory, group.cgroup2_directory)
        assert "counters" in must
        with Sampler(group.spec) as sampler:
            assert names_of_what_works(sampler) == must, sampler.evidence
        for name in ("trace", "psi", "counters"):
            if name in must:
                with Sampler(group.spec, evidence=name, history_s=5) as sampler:
                    assert sampler.evidence[name] is None
            else:
                with pytest.raises(NotSupported, match="cannot be had"):
                    Sampler(group.spec, evidence=name).start()


@pytest.mark.skipif(not WHO, reason="nobody has made this place: tests/vm/as does")
class TestPlace:
    """It is what tests/vm/as says of it."""

    def test_ids(self):
        inside = WHO == "container"
        assert os.getuid() == {"root": 0, "owner": 60123, "reader": 60123, "container": 65534, "beside": 65534}[WHO]
        first, outside, count = map(int, Path("/proc/self/uid_map").read_text().split())
        assert (first, outside != 0, count == 65536) == (0, inside, inside)

    def test_perf_events(self):
        number = {"x86_64": 298, "aarch64": 241}[platform.machine()]
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.syscall(number, None, 0, -1, -1, 0) == -1  # without an address it can only fail
        # The kernel itself says EACCES, or that there is no address, or no such call.
        assert (ctypes.get_errno() == errno.EPERM) == CONFINED

    def test_locked_memory(self):
        most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if CONFINED:
            assert most == (64 << 10, 64 << 10)
        elif WHO != "root" and facts.MACHINE_IS_OURS:  # elsewhere root itself may not be allowed to raise it
            assert most == (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    def test_what_may_be_written(self):
        memory, unified = facts.own_group()
        for directory in {memory, unified} - {None}:
            assert os.access(directory, os.W_OK) == (WHO in ("root", "owner"))
            assert bool(os.statvfs(directory).f_flag & os.ST_RDONLY) == CONFINED
        assert bool(os.statvfs("/").f_flag & os.ST_RDONLY) == CONFINED


class TestOwnGroups:
    """Groups that the process makes itself."""

    def test_who_may_make_groups_can_and_who_may_not_is_told(self):
        why = ChildGroup.possible()
        if facts.groups_can_be_made():
            assert why is None
            with ChildGroup("here", limit_bytes=64 * MIB) as group:
                assert pymemcg.resolve(group.directory).limit()[0] == 64 * MIB
        elif not WHO:
            pytest.skip("whether systemd makes groups for this user is not known")
        else:
            assert why is not None
            assert ("read-only" in why) == CONFINED
            assert "delegated" in why or "read-only" in why


@pytest.mark.skipif(WHO != "beside", reason="there is no container beside this one: tests/vm/as beside makes one")
class TestBeside:
    """The first process of the pid namespace is in another group, and in another cgroup namespace."""

    def test_its_group_is_found_through_its_root_directory(self):
        target = pymemcg.resolve("pid:1")
        assert target.directory.startswith("/proc/1/root/")
        assert not target.own
        assert os.stat(target.directory).st_ino != os.stat(pymemcg.resolve().directory).st_ino

    def test_its_stalls_are_told(self):
        with Sampler("pid:1", history_s=30) as sampler:
            assert sampler.role == "sampling"
            if GIVEN_FILE is None:
                pytest.skip("no file whose cache can be reclaimed: temporary files are in memory here")
            os.kill(1, signal.SIGUSR1)
            told = until(lambda: [stall for stall in pymemcg.stalls(sampler) if stall.cause == "limit"], 60)
            assert told[0].limit_bytes == sampler.target.limit()[0]

    def test_a_process_of_another_user_is_refused_with_what_would_help(self):
        foreign = os.environ["PYMEMCG_AS_FOREIGN"]
        uid = os.stat(f"/proc/{foreign}").st_uid
        assert uid != os.getuid()
        with pytest.raises(TargetError, match=rf"belongs to uid {uid}: run as that user, or with CAP_SYS_PTRACE"):
            Sampler(f"pid:{foreign}").start()
