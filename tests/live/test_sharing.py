# SPDX-License-Identifier: Apache-2.0
"""One sampler per group: who samples, who attaches, and what happens when the sampling process ends."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import time
from pathlib import Path

import facts
import pytest
from actor import MIB, START, files, lock_is_free, maps, ring_file, start, threads, until

from pymemcg import Sampler, resolve
from pymemcg._ffi import lib

pytestmark = pytest.mark.live


def takeovers(actor) -> list[dict[str, int]]:
    rows = actor.do("s.events.window().to_numpy()[['kind', 'value', 'since_ns', 't_ns']].tolist()")
    return [{"pid": v, "since_ns": s, "t_ns": t} for k, v, s, t in rows if k == lib.MEMCG_EVENT_TAKEOVER]


class TestEight:
    @pytest.fixture
    def workers(self, group, make_actor):
        """As gunicorn's: eight processes of one group, each with a sampler of its own."""
        workers = [make_actor(group) for _ in range(8)]
        for worker in workers:
            worker.send(START.format(""))
        for worker in workers:
            worker.answer()
        return workers

    def test_one_samples_and_seven_look_on(self, workers, group):
        roles = [worker.do("s.role") for worker in workers]
        assert sorted(roles) == ["attached"] * 7 + ["sampling"]
        writer = workers[roles.index("sampling")].pid
        assert {worker.do("s.stats()['writer_pid']") for worker in workers} == {writer}
        # One ticks, and one holds the group's files open.
        assert [worker.pid for worker in workers if "pymemcg-tick" in threads(worker.pid)] == [writer]
        assert [worker.pid for worker in workers if any("/memory." in path for path in files(worker.pid))] == [writer]
        # All read the same rows.
        end = workers[0].do("s.usage.head") + 20
        until(lambda: workers[0].do("s.usage.head") >= end)
        seen = [worker.do(f"s.usage.read(0)[0]['t_ns'][:{end}].tolist()") for worker in workers]
        assert all(times == seen[0] for times in seen)
        assert len(seen[0]) == end
        # The ring is there once: shared memory is charged once, and who looks on touches no rows of its own.
        stat = dict(line.split() for line in Path(group.directory, "memory.stat").read_text().splitlines())
        ring = workers[0].do("s.stats()['ring_bytes']")
        assert ring_file(group.directory).stat().st_blocks * 512 == ring
        assert int(stat.get("total_shmem", stat["shmem"])) <= ring + 1 * MIB
        held = {worker.do("s.role"): worker.do("s.stats()['held_bytes']") for worker in workers}
        assert ring < held["sampling"] <= 8 * MIB
        assert held["attached"] < 1 * MIB

    def test_all_may_stop_in_any_order_and_the_last_removes_the_ring(self, workers, group):
        for worker in workers[1::2] + workers[::2]:
            assert ring_file(group.directory).exists()
            worker.do("s.stop()")
        assert not ring_file(group.directory).exists()
        assert lock_is_free(group.directory)

    def test_each_may_be_killed_in_turn(self, workers):
        """The last of eight still samples, with the rows of all."""
        first = workers[0].do("s.usage.window()['t_ns'][0]")
        alive = list(workers)
        while len(alive) > 1:
            pid = alive[0].do("s.stats()['writer_pid']")
            dead = next(worker for worker in alive if worker.pid == pid)
            dead.kill()
            alive.remove(dead)
            until(lambda: len(takeovers(alive[0])) == 8 - len(alive))
            assert alive[0].do("s.stats()['writer_pid']") in [worker.pid for worker in alive]
        until(lambda: alive[0].do("s.role") == "sampling")
        assert alive[0].do("s.usage.read(0)[0]['t_ns'][0]") == first
        assert len(takeovers(alive[0])) == alive[0].do("s.stats()['takeovers']") == 7
        head = alive[0].do("s.usage.head")
        until(lambda: alive[0].do("s.usage.head") > head)


class TestTakeover:
    @pytest.fixture
    def pair(self, group, make_actor):
        first, second = make_actor(group), make_actor(group)
        assert start(first, "adaptive=False") == "sampling"
        assert start(second, "adaptive=False") == "attached"
        return first, second

    def test_within_a_second_after_sigkill_and_the_gap_is_a_row(self, pair):
        first, second = pair
        until(lambda: second.do("s.usage.head") > 50)
        first.kill()
        killed = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        until(lambda: second.do("s.role") == "sampling")
        (row,) = takeovers(second)
        assert row["pid"] == second.pid == second.do("s.stats()['writer_pid']")
        assert killed - 1_000_000_000 < row["since_ns"] <= killed < row["t_ns"]
        times = second.do("s.usage.window()['t_ns'].tolist()")
        assert row["since_ns"] in times, "it is the last row before the gap"
        next_row = times[times.index(row["since_ns"]) + 1]
        assert next_row - row["since_ns"] == max(b - a for a, b in itertools.pairwise(times))
        if "PYMEMCG_VM" not in os.environ:  # where everything takes some 20 times as long
            assert next_row - killed < 1_000_000_000

    def test_cursors_of_readers_stay_good(self, pair):
        first, second = pair
        until(lambda: second.do("s.usage.head") > 50)
        second.do("w, cursor, lost = s.usage.read(); seen = w['t_ns'].tolist(); total = lost")
        first.kill()
        until(lambda: second.do("s.role") == "sampling")
        head = second.do("s.usage.head")
        until(lambda: second.do("s.usage.head") > head + 50)
        second.do("w, end, lost = s.usage.read(cursor); seen += w['t_ns'].tolist(); total += lost")
        assert second.do("(total, len(seen) == end, sorted(set(seen)) == seen)") == [0, True, True]

    def test_when_the_sampling_one_stops_by_itself(self, pair):
        first, second = pair
        first.do("s.stop()")
        until(lambda: second.do("s.role") == "sampling")
        assert len(takeovers(second)) == 1
        assert start(first) == "attached", "it may come back"

    def test_a_newcomer_may_be_faster_and_then_it_tells_the_gap(self, pair, group, make_actor):
        """It takes the lock before the attached one has looked; the ring, its rows and its name go on all the same."""
        first, second = pair
        third = make_actor(group)
        third.do("from pymemcg import Sampler; s = Sampler(adaptive=False)")
        first.kill()
        third.do("s.start()")
        sampling = third if third.do("s.role") == "sampling" else second
        until(lambda: len(takeovers(sampling)) == 1)
        assert takeovers(sampling)[0]["pid"] == sampling.pid
        for actor in (second, third):
            if actor is not sampling:
                actor.do("s.stop()")
        assert ring_file(group.directory).exists(), "who left was not the last"
        assert start(make_actor(group)) == "attached"

    def test_a_stopped_process_keeps_its_right(self, pair):
        """SIGSTOP is not death: the lock stays, and nobody else may write the ring."""
        first, second = pair
        os.kill(first.pid, signal.SIGSTOP)
        time.sleep(0.6)
        assert second.do("s.role") == "attached"
        os.kill(first.pid, signal.SIGCONT)
        head = second.do("s.usage.head")
        until(lambda: second.do("s.usage.head") > head)
        assert first.do("s.role") == "sampling"

    def test_by_one_who_asked_for_less(self, group, make_actor):
        """The ring was laid out by `self`; who goes on with it knows the group by its path and has no statm to give."""
        inside, outside = make_actor(group), make_actor()
        assert start(inside) == "sampling"
        assert start(outside, repr(group.spec)) == "attached"
        assert inside.do("'rss_bytes' in s.usage.names")
        inside.kill()
        until(lambda: outside.do("s.role") == "sampling")
        head = outside.do("s.usage.head")
        until(lambda: outside.do("s.usage.head") > head)
        assert outside.do("int(s.usage.window(rows=1)['usage_bytes'][0])") > 0

    def test_by_one_who_asked_for_more(self, group, make_actor):
        outside, inside = make_actor(), make_actor(group)
        assert start(outside, repr(group.spec)) == "sampling"
        assert start(inside) == "attached"
        outside.kill()
        until(lambda: inside.do("s.role") == "sampling")
        head = inside.do("s.usage.head")
        until(lambda: inside.do("s.usage.head") > head)


class TestAttached:
    def test_twice_in_one_process(self, group):
        with Sampler(group.spec) as first:
            with Sampler(group.spec) as second:
                assert (first.role, second.role) == ("sampling", "attached")
                head = second.usage.head
                until(lambda: second.usage.head > head)
                assert second.usage.names == first.usage.names
            assert ring_file(group.directory, os.geteuid()).exists()
            head = first.usage.head
            until(lambda: first.usage.head > head)
        assert not ring_file(group.directory, os.geteuid()).exists()

    def test_anothers_statm_does_not_pass_for_ones_own(self, group, make_actor):
        first, second = make_actor(group), make_actor(group)
        start(first)
        start(second)
        assert second.do("'rss_bytes' in s.usage.names") is False
        with pytest.raises(Exception, match=rf"process that samples.*{first.pid}"):
            second.do("s.usage.window()['rss_bytes']")
        assert first.do("s.usage.window(rows=1)['rss_bytes'].tolist()")[0] > 0

    def test_the_rates_are_those_of_the_ring(self, group):
        with Sampler(group.spec, rate_hz=100) as first, Sampler(group.spec, rate_hz=2000) as second:
            assert second.usage.period_ns == first.usage.period_ns == 10_000_000

    def test_groups_do_not_mix(self, make_group):
        one, other = make_group("one"), make_group("other")
        with Sampler(one.spec) as first, Sampler(other.spec) as second:
            assert (first.role, second.role) == ("sampling", "sampling")

    def test_the_same_group_by_all_its_names_is_one(self, group, make_actor):
        member = make_actor(group)
        with Sampler(group.spec) as first, Sampler(group.directory) as second, Sampler(f"pid:{member.pid}") as third:
            assert (first.role, second.role, third.role) == ("sampling", "attached", "attached")

    def test_readers_cannot_write_the_ring(self, group):
        with Sampler(group.spec), Sampler(group.spec) as second:
            array = second.usage.window()["t_ns"]
            assert not array.flags.writeable
            address = array.__array_interface__["data"][0]
            for line in Path("/proc/self/maps").read_text().splitlines():
                begin, end = (int(text, 16) for text in line.split()[0].split("-"))
                if begin <= address < end:
                    assert line.split()[1] == "r--s"


class TestAlone:
    """Who may not attach samples for itself, leaves PSI to the holder while there is one, and says so."""

    @pytest.fixture
    def nobody(self, only_root, group, make_actor):
        actor = make_actor(group)
        actor.do("import numpy; from pymemcg import Sampler; os.setuid(65534)")
        return actor

    def test_another_user(self, group, nobody, make_actor):
        root = make_actor(group)
        assert start(root) == "sampling"
        nobody.do("s = Sampler().start()")
        assert nobody.do("s.role") == "alone"
        absent = nobody.do("s.absent")
        assert "another process samples" in absent["sharing"]
        if root.do("s.evidence['psi']") is None:
            assert "left to the process that reads" in absent["pressure"]
            assert nobody.do("s.pressure.head") == 0
            assert nobody.do("s.pressure.closed") == os.strerror(errno.EBUSY)
        head = nobody.do("s.usage.head")
        until(lambda: nobody.do("s.usage.head") > head)
        assert nobody.do("int(s.usage.window(rows=1)['usage_bytes'][0])") > 0
        assert nobody.do("s.stat.head") > 0
        assert nobody.do("s.stats()['role']") == "alone"
        nobody.do("s.stop()")
        assert root.do("s.role") == "sampling"

    def test_psi_goes_to_who_is_left(self, group, nobody, make_actor):
        """Alone is for life, but PSI is the holder's only as long as it lives."""
        root = make_actor(group)
        if why := facts.no_psi(group.directory, group.cgroup2_directory):
            pytest.skip(why)
        start(root)
        nobody.do("s = Sampler().start()")
        assert "left to the process that reads" in nobody.do("s.absent['pressure']")
        head = nobody.do("s.usage.head")
        until(lambda: nobody.do("s.usage.head") > head + 20)
        assert nobody.do("s.pressure.head") == 0
        root.kill()
        until(lambda: nobody.do("s.pressure.head") > 0)
        assert nobody.do("s.role") == "alone"
        assert nobody.do("(s.pressure.closed, 'pressure' in s.absent)") == [None, False]

    def test_root_beside_another_users_sampler(self, group, nobody, make_actor):
        nobody.do("s = Sampler().start()")
        assert nobody.do("s.role") == "sampling"
        assert start(make_actor(group)) == "alone"

    def test_other_memory_groups_with_the_same_psi(self, make_group, make_actor):
        """The machine's PSI has one window for everybody: of two samplers at most one reads it."""
        members = [make_actor(make_group(name)) for name in ("one", "other")]
        for member in members:
            directory = resolve(f"pid:{member.pid}").cgroup2_directory
            if directory is None or resolve(f"pid:{member.pid}").version == 2:
                pytest.skip("needs memory on v1 beside a cgroup2 mount")
            Path(directory).parent.joinpath("cgroup.procs").write_text(str(member.pid))
        with Sampler(f"pid:{members[0].pid}") as first, Sampler(f"pid:{members[1].pid}") as second:
            if "host" not in (first.target.pressure_scope, second.target.pressure_scope):
                pytest.skip("the cgroup2 group above is not the root")
            assert (first.role, second.role) == ("sampling", "sampling")
            assert "left to the process that reads" in second.absent["pressure"]
            if "pressure" not in first.absent:
                first.stop()
                until(lambda: "pressure" not in second.absent)


def test_many_start_and_stop_at_the_same_time(group, make_actor):
    """At any moment at most one samples; all others attach, and nobody is left out or left over."""
    actors = [make_actor() for _ in range(4)]
    for actor in actors:
        actor.do(f"from pymemcg import Sampler; roles = set(); s = Sampler({group.spec!r}, history_s=1)")
    for actor in actors:
        actor.send(
            "for i in range(60):\n"
            "    s.start(); roles.add(s.role); roles |= {s.absent['sharing']} if 'sharing' in s.absent else set()\n"
            "    assert s.usage.head >= 1; s.stop()"
        )
    for actor in actors:
        actor.answer()
    roles = set().union(*(actor.do("sorted(roles)") for actor in actors))
    assert roles <= {"sampling", "attached"}
    assert not ring_file(group.directory).exists()
    assert lock_is_free(group.directory)
    for actor in actors:
        actor.do("s._channels.clear(); import gc; gc.collect()")
        assert maps(actor.pid) == 0
