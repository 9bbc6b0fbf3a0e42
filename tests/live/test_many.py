# SPDX-License-Identifier: Apache-2.0
"""Processes by the thousand: living beside each other, gone before they are looked at, and under the number of another."""

from __future__ import annotations

import os
from pathlib import Path

import facts
import numpy as np
import pytest
from actor import MIB, files, until
from pressure import counted

from pymemcg import Sampler, stalls

pytestmark = pytest.mark.live

MANY = 1_200
# A shell forks faster than Python. `many` live until their line comes, or nobody is left who could send it.
CROWD = """
import subprocess
def shell(script, *words):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(["sh", "-c", script, "sh", *map(str, words)], text=True, **pipes)
crowd = None
def many(n):
    global crowd
    crowd = shell('exec 3<&0; i=0; while [ $i -lt $1 ]; do read line <&3 & i=$((i+1)); done; echo $i; wait', n)
    return int(crowd.stdout.readline())
def all_end():
    crowd.stdin.close()
    return crowd.wait()
def churn(n):
    return int(shell('i=0; while [ $i -lt $1 ]; do (:); i=$((i+1)); done; echo $i', n).communicate()[0])
"""


def newest(processes) -> dict[int, int]:
    """pid to resident memory, of the newest round that is whole: the one before the newest."""
    rows = processes.window()
    times = np.unique(rows["t_ns"])
    if len(times) < 2:
        return {}
    at = rows["t_ns"] == times[-2]
    pids = rows["pid"][at].tolist()
    assert len(set(pids)) == len(pids), "nobody twice"
    return dict(zip(pids, rows["rss_bytes"][at].tolist(), strict=True))


@pytest.fixture
def actor(group, make_actor):
    found = make_actor(group)
    found.do(CROWD)
    return found


class TestCrowd:
    def test_more_than_a_thousand_at_once(self, group, actor):
        with Sampler(group.spec) as sampler:
            open_files = len(files())
            assert actor.do(f"many({MANY})") == MANY
            members = {int(pid) for pid in Path(group.directory, "cgroup.procs").read_text().split()}
            assert len(members) == MANY + 2
            until(lambda: set(newest(sampler.processes)) == members, 60)
            assert min(newest(sampler.processes).values()) > 0
            until(lambda: len(files()) <= open_files)  # but for those that are being read
            actor.do("all_end()")
            until(lambda: set(newest(sampler.processes)) == {actor.pid}, 60)
            assert sampler.processes.closed is None

    def test_thousands_one_after_the_other(self, group, actor):
        with Sampler(group.spec) as sampler:
            open_files, ticks = len(files()), sampler.stats()["ticks"]
            cursor = sampler.processes.head
            assert actor.do("churn(3000)") == 3000
            rows = sampler.processes.read(cursor)[0]
            assert len(rows["t_ns"]) > 0
            assert (rows["rss_bytes"] > 0).all(), "who is ending has no memory any more, and no row"
            for t_ns in np.unique(rows["t_ns"]):
                pids = rows["pid"][rows["t_ns"] == t_ns].tolist()
                assert len(set(pids)) == len(pids)
                assert actor.pid in pids
            until(lambda: set(newest(sampler.processes)) == {actor.pid})
            assert sampler.stats()["ticks"] > ticks
            until(lambda: len(files()) <= open_files)
            assert [name for name in sampler.absent if sampler.absent[name].startswith("closed")] == []


class TestCrowdAtTheLimit:
    """While processes come and go by the thousand, others of the group are held for memory."""

    READS = (
        "def read(path, stop):\n"
        "    file = os.open(path, os.O_RDONLY)\n"
        "    while not os.path.exists(stop):\n"
        "        os.lseek(file, 0, os.SEEK_SET)\n"
        "        while os.read(file, 1 << 20): pass"
    )

    def test_hits_and_stalls_are_told_and_nobody_else_is_named(self, make_group, make_actor, scratch):
        group = make_group("crowd", limit_bytes=40 * MIB)
        forker, reader, stranger = make_actor(group), make_actor(group), make_actor()
        forker.do(CROWD)
        reader.do(self.READS)
        data, stop = scratch / "data", scratch / "stop"
        with data.open("wb") as file:
            file.truncate(96 * MIB)
        with Sampler(group.spec, history_s=60) as sampler:
            before = counted(group, "max")
            reader.send(f"read({str(data)!r}, {str(stop)!r})")
            assert forker.do("churn(2000)") == 2000
            stop.touch()
            reader.answer()
            assert counted(group, "max") > before + 20
            until(lambda: sampler.usage.window(rows=1)["limit_hits"][0] == counted(group, "max"))
            until(lambda: set(newest(sampler.processes)) == {forker.pid, reader.pid})
            told = until(lambda: [stall for stall in stalls(sampler) if stall.cause == "limit"])
            assert sum(stall.limit_hits or 0 for stall in told) > 0
            tids = {tid for stall in stalls(sampler) for tid in stall.tids}
            assert not tids & {os.getpid(), stranger.pid}
            assert all(outlived in (forker.pid, reader.pid) for outlived in tids if os.path.exists(f"/proc/{outlived}"))
            if facts.no_tracepoints() is None:
                assert reader.pid in tids
            assert [name for name in sampler.absent if sampler.absent[name].startswith("closed")] == []


class TestNumber:
    """A pid that is given again is another process."""

    BORN = (
        "def born(pid, mib):\n"
        "    with open('/proc/sys/kernel/ns_last_pid', 'w') as file: file.write(str(pid - 1))\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        held = os.urandom(1 << 20) * mib\n"
        "        while True: time.sleep(60)\n"
        "    return child\n"
        "def end(pid): os.kill(pid, 9); return os.waitpid(pid, 0)[1]\n"
        "def again(pid, mib):\n"
        "    for _ in range(500):\n"
        "        child = born(pid, mib)\n"
        "        if child == pid: return True\n"
        "        end(child)\n"
        "    return False"
    )

    @pytest.fixture
    def parent(self, only_root, make_actor):
        """A process that can give its children numbers."""
        if not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK):
            pytest.skip("/proc/sys/kernel/ns_last_pid may not be written here (root, CONFIG_CHECKPOINT_RESTORE)")

        def make(group):
            actor = make_actor(group)
            actor.do(self.BORN)
            return actor

        return make

    def test_in_the_group_it_is_seen_with_its_own_memory(self, group, parent):
        actor = parent(group)
        pid = actor.do("first = born(int(open('/proc/sys/kernel/ns_last_pid').read()) + 1, 8)") or actor.do("first")
        with Sampler(group.spec) as sampler:
            until(lambda: newest(sampler.processes).get(pid, 0) > 8 * MIB)
            small = newest(sampler.processes)[pid]
            actor.do("end(first)")
            until(lambda: pid not in newest(sampler.processes))
            if not actor.do("again(first, 40)"):
                pytest.skip("others take all numbers here")
            until(lambda: newest(sampler.processes).get(pid, 0) > small + 24 * MIB)

    def test_in_another_group_it_is_not_seen(self, make_group, parent):
        mine, others = make_group("mine"), make_group("others")
        actor, stranger = parent(mine), parent(others)
        pid = actor.do("first = born(int(open('/proc/sys/kernel/ns_last_pid').read()) + 1, 8)") or actor.do("first")
        with Sampler(mine.spec) as sampler:
            until(lambda: newest(sampler.processes).get(pid, 0) > 8 * MIB)
            actor.do("end(first)")
            if not stranger.do(f"again({pid}, 40)"):
                pytest.skip("others take all numbers here")
            until(lambda: pid not in newest(sampler.processes))
            head = sampler.processes.head
            until(lambda: sampler.processes.head > head + 3)
            assert (sampler.processes.window()["rss_bytes"] < 40 * MIB).all()
