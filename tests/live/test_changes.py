# SPDX-License-Identifier: Apache-2.0
"""The group changes while it is sampled: its limits, its PSI, and what stands under its name."""

from __future__ import annotations

import errno
import os
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import outside
import pytest
from actor import MIB, Actor, until

from pymemcg import Sampler
from pymemcg._ffi import NONE
from pymemcg.detecting import stalls

pytestmark = pytest.mark.live

# Page cache and nothing else: reclaimed without swap.
CACHE = """
def cache(mib):
    with open({path!r}, "wb", buffering=0) as file:
        for _ in range(mib): file.write(bytes(1 << 20)); os.fdatasync(file.fileno())
    os.unlink({path!r})
"""


def last(channel, name: str) -> int:
    return int(channel.window(rows=1)[name][0])


def grows(channel) -> bool:
    head = channel.head
    return bool(until(lambda: channel.head > head))


def write(group, role: str, value: int | str) -> None:
    """Set a limit by its name in v2."""
    v1 = {"memory.max": "memory.limit_in_bytes"}
    name = role if os.path.exists(f"{group.directory}/{role}") else v1.get(role, role)
    if not os.path.exists(f"{group.directory}/{name}"):
        pytest.skip(f"there is no {role} here")
    outside.write(group, name, str(value))


@pytest.fixture
def cacher(make_actor, scratch):
    """Makes a process in a group that reads or writes so many MiB: `cacher(group).do("cache(40)")`."""

    def make(group) -> Actor:
        actor = make_actor(group)
        actor.do(CACHE.format(path=str(scratch / f"{group.directory.rpartition('/')[2]}.data")))
        return actor

    return make


class TestLimit:
    @pytest.mark.kernel
    def test_stalls_tell_the_limit_that_held_then(self, make_group, cacher):
        group = make_group("moving", limit_bytes=32 * MIB)
        actor = cacher(group)
        with Sampler(group.spec, history_s=30) as sampler:
            for limit in (32 * MIB, 56 * MIB, 24 * MIB):
                write(group, "memory.max", limit)
                until(lambda limit=limit: last_limit(sampler) == limit)
                time.sleep(1.2)  # what comes now is of no episode that began before
                hits = last(sampler.usage, "limit_hits")
                since = int(sampler.usage.window(rows=1)["t_ns"][0])
                actor.do("cache(80)")
                until(lambda hits=hits: last(sampler.usage, "limit_hits") > hits)

                def told(since=since) -> list:
                    return [stall for stall in stalls(sampler) if stall.start_ns > since]

                found = until(told)
                assert {stall.limit_bytes for stall in found} == {limit}
                assert {stall.cause for stall in found} <= {"limit", "thrash"}
            assert sampler.usage.window()["usage_bytes"].max() <= 57 * MIB

    def test_room_ends_the_hits(self, make_group, cacher):
        group = make_group("room", limit_bytes=24 * MIB)
        actor = cacher(group)
        with Sampler(group.spec) as sampler:
            actor.do("cache(40)")
            until(lambda: last(sampler.usage, "limit_hits") > 0)
            write(group, "memory.max", 512 * MIB)
            grows(sampler.usage)
            hits = last(sampler.usage, "limit_hits")
            actor.do("cache(40)")
            grows(sampler.stat)
            assert last(sampler.usage, "limit_hits") == hits
            until(lambda: sampler.stats()["period_ns"] == 10_000_000)

    def test_a_limit_lowered_below_usage_is_the_administrators_reclaim(self, make_group, make_actor, scratch):
        """It runs in the process that writes the limit, here ours, and holds nobody of the group."""
        group = make_group("lowered", limit_bytes=128 * MIB)
        actor = make_actor(group)
        path = str(scratch / "held.data")
        actor.do(f"f = open({path!r}, 'wb', buffering=0)\nfor _ in range(64): f.write(bytes(1 << 20))\nos.fsync(f.fileno())")
        with Sampler(group.spec) as sampler:
            until(lambda: last(sampler.usage, "usage_bytes") > 60 * MIB)
            since = int(sampler.usage.window(rows=1)["t_ns"][0])
            write(group, "memory.max", 24 * MIB)
            until(lambda: last_limit(sampler) == 24 * MIB)
            until(lambda: last(sampler.usage, "usage_bytes") <= 24 * MIB)
            grows(sampler.stat)
            assert [stall for stall in stalls(sampler) if stall.start_ns > since and not stall.harmless] == []
        os.unlink(path)

    def test_a_parents_limit_that_comes_to_be_the_nearer_one(self, make_group, cacher):
        outer = make_group("outer", limit_bytes=1 << 30)
        inner = outer.child("inner", limit_bytes=64 * MIB)
        actor = cacher(inner)
        with Sampler(inner.spec) as sampler:
            assert last(sampler.usage, "limit_hits") == 0
            write(outer, "memory.max", 24 * MIB)
            until(lambda: 24 * MIB in sampler.limits.window()["limit_bytes"])
            row = sampler.limits.window(rows=1)
            assert (row["level"][0], row["limit_bytes"][0]) == (1, 24 * MIB)
            since = int(sampler.usage.window(rows=1)["t_ns"][0])
            actor.do("cache(60)")

            def by_ancestor() -> bool:
                # Without tracepoints it began with the last look at the limits above, which may be before.
                return "ancestor" in {stall.cause for stall in stalls(sampler) if (stall.end_ns or since + 1) > since}

            until(by_ancestor)
            assert last(sampler.usage, "limit_hits") == 0

    def test_a_high_limit_comes_and_goes(self, make_group, cacher):
        group = make_group("high", limit_bytes=256 * MIB)
        actor = cacher(group)
        with Sampler(group.spec) as sampler:
            write(group, "memory.high", 24 * MIB)
            until(lambda: last(sampler.limits, "high_bytes") == 24 * MIB)
            actor.do("cache(40)")
            until(lambda: last(sampler.usage, "high_hits") > 0)
            until(lambda: "high" in {stall.cause for stall in stalls(sampler)})
            write(group, "memory.high", "max")
            until(lambda: last(sampler.limits, "high_bytes") == NONE)
            hits = last(sampler.usage, "high_hits")
            actor.do("cache(40)")
            grows(sampler.stat)
            assert last(sampler.usage, "high_hits") == hits


class TestPressure:
    @pytest.fixture
    def switched(self, make_group, make_actor):
        """A group at work, and the file that switches its PSI."""
        group = make_group("psi", limit_bytes=64 * MIB)
        switch = Path(group.cgroup2_directory or "/nonexistent", "cgroup.pressure")
        if not switch.exists():
            pytest.skip("no cgroup.pressure here")
        actor = make_actor(group)
        actor.send("end = time.monotonic() + 60\nwhile time.monotonic() < end: pass")  # PSI is read where something happens
        yield group, switch
        actor.kill()

    def test_off_and_on_between_two_reads(self, switched):
        """The file is back when it is read next, but what was opened before is of the old one."""
        group, switch = switched
        with Sampler(group.spec) as sampler:
            until(lambda: sampler.pressure.head >= 2)
            outside.write(group, switch.name, "0")
            outside.write(group, switch.name, "1")
            until(lambda: sampler.pressure.closed)
            assert sampler.pressure.closed == os.strerror(errno.ENODEV)
            assert sampler.evidence["psi"] == f"closed: {os.strerror(errno.ENODEV)}"
            assert sampler.evidence["counters"] is None
            assert grows(sampler.usage)
            sampler.stop()
            sampler.start()
            assert sampler.evidence["psi"] is None
            until(lambda: sampler.pressure.head >= 2)
            assert sampler.pressure.closed is None

    def test_off_before_the_start(self, switched):
        group, switch = switched
        outside.write(group, switch.name, "0")
        with Sampler(group.spec) as sampler:
            assert f"write 1 to {switch}" in sampler.absent["pressure"]
            assert f"write 1 to {switch}" in str(sampler.evidence["psi"])
            outside.write(group, switch.name, "1")
            assert grows(sampler.usage)
            assert "pressure" in sampler.absent

    def test_a_process_that_attached_is_told_too(self, switched, make_actor):
        group, switch = switched
        with Sampler(group.spec) as sampler:
            other = make_actor()
            other.do(f"from pymemcg import Sampler; s = Sampler({group.spec!r}).start()")
            assert other.do("s.role") == "attached"
            outside.write(group, switch.name, "0")
            until(lambda: sampler.pressure.closed)
            until(lambda: other.do("s.pressure.closed"))
            assert other.do("s.evidence['psi']") == sampler.evidence["psi"] == f"closed: {os.strerror(errno.ENODEV)}"

    def test_stalls_go_on_without_it(self, make_group, cacher):
        group = make_group("blind", limit_bytes=24 * MIB)
        switch = Path(group.cgroup2_directory or "/nonexistent", "cgroup.pressure")
        if not switch.exists():
            pytest.skip("no cgroup.pressure here")
        actor = cacher(group)
        with Sampler(group.spec) as sampler:
            outside.write(group, switch.name, "0")

            def closed() -> str | None:
                actor.do("cache(8)")
                return sampler.pressure.closed

            until(closed, 60)
            since = int(sampler.usage.window(rows=1)["t_ns"][0])
            actor.do("cache(40)")

            def later() -> list:
                return [stall for stall in stalls(sampler) if stall.start_ns > since]

            told = until(later)
            assert {stall.cause for stall in told} <= {"limit", "thrash"}
            assert not any("psi" in stall.evidence for stall in told)


class TestName:
    """Another group under the name of one that was removed."""

    @pytest.mark.kernel
    def test_nothing_of_the_new_one_is_sampled(self, make_group, cacher):
        old = make_group("name", limit_bytes=64 * MIB)
        with Sampler(old.spec) as sampler:
            usage, rows = sampler.usage.head, sampler.limits.head
            old.close()
            new = make_group("name", limit_bytes=40 * MIB)
            assert new.directory == old.directory
            actor = cacher(new)
            actor.do("cache(60)")
            until(lambda: all(getattr(sampler, name).closed for name in ("usage", "stat", "limits", "processes")))
            assert grows(sampler.node)
            assert actor.pid not in sampler.processes.window()["pid"].tolist()
            assert 40 * MIB not in sampler.limits.read(rows)[0]["limit_bytes"].tolist()
            assert (sampler.usage.read(usage)[0]["usage_bytes"] < MIB).all()
            assert (sampler.usage.window()["limit_hits"] == 0).all()
            sampler.stop()
            sampler.start()
            assert until(lambda: last(sampler.usage, "limit_hits")) > 0, "a new start finds the new one"
            assert actor.pid in sampler.processes.window()["pid"].tolist()

    def test_nobody_takes_over_the_new_one_for_the_old(self, make_group, make_actor, cacher):
        old = make_group("name", limit_bytes=64 * MIB)
        writer = make_actor()
        writer.do(f"from pymemcg import Sampler; s = Sampler({old.spec!r}).start()")
        with ExitStack() as stack:
            sampler = stack.enter_context(Sampler(old.spec))
            assert sampler.role == "attached"
            old.close()
            new = make_group("name", limit_bytes=40 * MIB)
            cacher(new).do("cache(60)")
            until(lambda: sampler.usage.closed)
            heads = sampler.usage.head, sampler.limits.head
            with Sampler(new.spec) as fresh:
                assert fresh.role == "sampling"
                writer.kill()
                head = fresh.node.head
                until(lambda: fresh.node.head > head + 6)  # some attempts to take over
            assert sampler.role == "attached"
            assert (sampler.usage.head, sampler.limits.head) == heads

    def test_a_limit_of_the_new_one_is_not_taken_for_a_change(self, make_group):
        """Again and again, as a service that is restarted in a hurry."""
        group = make_group("hurry", limit_bytes=64 * MIB)
        for i in range(8):
            with Sampler(group.spec, history_s=1) as sampler:
                group.close()
                group = make_group("hurry", limit_bytes=(65 + i) * MIB)
                until(lambda s=sampler: s.limits.closed and s.usage.closed)
                rows = sampler.limits.window()
                assert np.unique(rows["limit_bytes"][rows["level"] == 0]).tolist() == [(64 + i) * MIB]


def last_limit(sampler) -> int:
    rows = sampler.limits.window()
    return int(rows["limit_bytes"][rows["level"] == 0][-1])
