# SPDX-License-Identifier: Apache-2.0
"""The OOM killer at a group's limit, seen from outside and from inside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import facts
import outside
import pytest
from actor import MIB, Actor, kernels_count, until
from pressure import whole_machine

import pymemcg
from pymemcg import Sampler
from pymemcg.child import ChildGroup

pytestmark = pytest.mark.live

LIMIT = 48 * MIB
# Not to be reclaimed: nothing is swapped, and nothing is in a file. For huge pages it would wait for compaction, too.
EAT = """
import mmap
held = mmap.mmap(-1, 1 << 28)
try: held.madvise(mmap.MADV_NOHUGEPAGE)
except OSError: pass  # a kernel without huge pages
for at in range(0, 1 << 28, 4096): held[at] = 1
"""


@pytest.fixture
def small(make_group):
    """A group that has a limit, and nothing to swap to."""
    group = make_group("small", limit_bytes=LIMIT)
    without_swap(group)
    if kernels_count(group.directory) is None:
        pytest.skip("the kernel does not count OOM kills by group here")
    return group


def without_swap(group) -> None:
    """Not by a limit of memsw: where that is memory's, v1 counts no hits on some kernels."""
    for name in ("memory.swap.max", "memory.swappiness"):
        if os.path.exists(f"{group.directory}/{name}"):
            outside.write(group, name, "0")


def last_kills(sampler) -> int:
    return int(sampler.usage.window(rows=1)["oom_kills"][0])


def kernels_report(victim: Actor, group: ChildGroup) -> dict[str, Any]:
    """What `pymemcg oom` tells of the last kill in a group, from the kernel's own log."""
    told = subprocess.run([sys.executable, "-m", "pymemcg", "oom", "--json"], capture_output=True, text=True, check=False)
    if told.returncode == pymemcg.NotSupported.exit_code:
        pytest.skip(told.stderr.strip())
    assert told.returncode == 0
    kills: list[dict[str, Any]] = [json.loads(line) for line in told.stdout.splitlines()]
    kill = [kill for kill in kills if os.path.basename(kill["task_memcg"]) == os.path.basename(group.directory)][-1]
    if facts.pids_are_the_kernels():
        assert kill["pid"] == victim.pid
    return kill


class TestKernelsLog:
    @pytest.mark.kernel
    def test_the_own_limit(self, small, make_actor):
        victim = make_actor(small)
        victim.send(EAT)
        assert victim.process.wait(facts.PATIENCE_S) == -signal.SIGKILL
        told = kernels_report(victim, small)
        assert (told["cause"], told["limit_bytes"], told["order"]) == ("own-limit", LIMIT, 0)
        assert told["oom_memcg"].endswith(os.path.basename(small.directory))
        assert told["asker"]["pid"] == told["pid"] == told["candidates"][0]["pid"]
        # What is charged but not yet counted for the process is a few pages a CPU.
        assert told["anon_rss_bytes"] + told["shmem_rss_bytes"] + told["file_rss_bytes"] > LIMIT // 2
        assert sum(told["memory"][name] for name in ("anon", "file")) == pytest.approx(LIMIT, rel=0.05)
        assert told["entrypoint"] == "yes"

    def test_a_parents_limit(self, small, make_actor):
        child = small.child("child")
        make_actor(child)
        victim = make_actor(child)
        victim.send(EAT)
        assert victim.process.wait(facts.PATIENCE_S) == -signal.SIGKILL
        told = kernels_report(victim, child)
        assert told["cause"] == "parent-limit"
        assert told["task_memcg"].startswith(f"{told['oom_memcg']}/")
        assert told["entrypoint"] == "unknown"


class TestFromOutside:
    @pytest.mark.kernel
    def test_each_kill_is_counted_once_and_told_with_its_limit(self, small, make_actor):
        told: list[pymemcg.OomKill] = []
        with Sampler(small.spec, on_oom=told.append) as sampler:
            for number in (1, 2):
                victim = make_actor(small)
                victim.send(EAT)
                assert victim.process.wait(facts.PATIENCE_S) == -signal.SIGKILL
                until(lambda number=number: last_kills(sampler) == number)
                until(lambda number=number: sum(kill.kills for kill in told) == number)
            assert kernels_count(small.directory) == 2
            assert [kill.oom_kills for kill in told] == [1, 2]
            assert {kill.limit_bytes for kill in told} == {LIMIT}
            assert all(kill.since_ns < kill.t_ns for kill in told)
            assert all(kill.usage_bytes <= LIMIT + MIB for kill in told if kill.usage_bytes), (
                "what does not fit is charged, then taken off"
            )
            soon = [kill for kill in told if kill.t_ns - kill.since_ns < 5_000_000]  # between slow ticks all of it may happen
            assert all(kill.usage_bytes > LIMIT // 2 for kill in soon if kill.usage_bytes is not None)
            assert sampler.role == "sampling"
            assert [name for name in sampler.absent if sampler.absent[name].startswith("closed")] == []

    def test_the_reclaim_before_it_is_a_stall(self, small, make_actor):
        make_actor(small)  # by whom the group is known in cgroup2, also where memory is on v1
        with Sampler(small.spec) as sampler:
            victim = make_actor(small)
            victim.send(EAT)
            assert victim.process.wait(facts.PATIENCE_S) == -signal.SIGKILL
            until(lambda: last_kills(sampler) == 1)
            found = until(lambda: list(pymemcg.stalls(sampler)))
            # Its own program is the page cache that goes first; where the disk is slow, it is waited for when it is read again.
            assert {stall.cause for stall in found} <= {"limit", "oom_wait"} | ({"thrash"} if whole_machine() else set())
            assert max(stall.usage_bytes for stall in found) > LIMIT // 2
            assert {stall.limit_bytes for stall in found} == {LIMIT}

    def test_a_group_that_dies_as_a_whole(self, small, make_actor):
        """memory.oom.group of v2: one kill too many is everybody's."""
        switch = Path(small.directory, "memory.oom.group")
        if not switch.exists():
            pytest.skip("no memory.oom.group here")
        outside.write(small, switch.name, "1")
        told: list[pymemcg.OomKill] = []
        with Sampler(small.spec, on_oom=told.append) as sampler:
            actors = [make_actor(small) for _ in range(3)]
            actors[0].send(EAT)
            assert {actor.process.wait(facts.PATIENCE_S) for actor in actors} == {-signal.SIGKILL}
            counted = kernels_count(small.directory)
            assert counted in (3, 4), "the kernel finds the first victim again among the group's, and may count it twice"
            until(lambda: last_kills(sampler) == counted)
            until(lambda: sum(kill.kills for kill in told) == counted)
            rows, node = sampler.usage.head, sampler.node.head
            until(lambda: sampler.usage.head > rows and sampler.node.head > node + 2)
            newest = sampler.node.window(rows=1)["t_ns"][0]
            processes = sampler.processes.window()
            assert not (processes["t_ns"] > newest - 50_000_000).any(), "nobody is left"

    def test_a_parents_limit_kills_in_the_child(self, make_group, make_actor):
        outer = make_group("outer", limit_bytes=LIMIT)
        without_swap(outer)
        inner = outer.child("inner")
        if kernels_count(inner.directory) is None:
            pytest.skip("the kernel does not count OOM kills by group here")
        make_actor(inner)
        with Sampler(inner.spec) as sampler, Sampler(outer.spec) as above:
            victim = make_actor(inner)
            victim.send(EAT)
            assert victim.process.wait(facts.PATIENCE_S) == -signal.SIGKILL
            until(lambda: last_kills(sampler) == 1)
            assert (sampler.usage.window()["limit_hits"] == 0).all()
            told = kernels_count(outer.directory)
            assert told == (1 if above.target.version == 2 else 0), "v2 counts it in every group above, v1 in none"
            until(lambda: last_kills(above) == told)

            def causes() -> set[str]:
                return {stall.cause for stall in pymemcg.stalls(sampler)}

            until(lambda: causes() and "unknown" not in causes())  # limits above are looked at ten times a second
            assert causes() <= {"ancestor", "oom_wait"}


class TestFromInside:
    def test_when_the_sampling_process_is_the_victim_another_goes_on(self, small, make_actor):
        writer = make_actor(small)
        writer.do(f"from pymemcg import Sampler; s = Sampler({small.spec!r}).start()")
        assert writer.do("s.role") == "sampling"
        told: list[pymemcg.OomKill] = []
        with Sampler(small.spec, on_oom=told.append) as sampler:
            assert sampler.role == "attached"
            writer.send(EAT)
            assert writer.process.wait(facts.PATIENCE_S) == -signal.SIGKILL
            until(lambda: sampler.role == "sampling")
            until(lambda: sum(kill.kills for kill in told) == 1)
            assert last_kills(sampler) == kernels_count(small.directory) == 1
            head = sampler.usage.head
            until(lambda: sampler.usage.head > head)
