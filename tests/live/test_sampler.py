# SPDX-License-Identifier: Apache-2.0
"""One sampler of one group: what it samples, and when it ticks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import facts
import numpy as np
import outside
import pytest
from actor import MIB, until

from pymemcg import Sampler, schema
from pymemcg._ffi import NONE

pytestmark = pytest.mark.live

HOLD = "held = bytearray(os.urandom(1 << 20) * 8)"


def keyed(path) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in Path(path).read_text().splitlines())}


def number(path) -> int:
    """A limit that is none counts as the sampler counts it."""
    text = Path(path).read_text().strip()
    return NONE if text == "max" or int(text) >= NONE - 65536 else int(text)


def last(channel) -> dict[str, int]:
    window = channel.window(rows=1)
    return {name: int(window[name][0]) for name in window}


def after(channel, rows: int = 1):
    """The newest rows, once so many have come from now on."""
    head = channel.head
    until(lambda: channel.head >= head + rows)
    return channel.read(head)[0]


@pytest.mark.kernel
class TestValues:
    """What the kernel's files say, while nothing happens in the group."""

    @pytest.fixture
    def quiet(self, make_group, make_actor):
        group = make_group("outer", limit_bytes=256 * MIB).child("inner", limit_bytes=128 * MIB)
        actor = make_actor(group)
        actor.do(HOLD)
        with Sampler(group.spec, stat_rate_hz=50) as sampler:
            yield sampler, actor

    def test_usage_and_hits(self, quiet):
        sampler, _ = quiet
        level = sampler.target.levels[0]
        roles = {"usage": "usage_bytes", "hits": "limit_hits", "memsw_hits": "memsw_hits"}
        if sampler.target.version == 2:
            roles = {"usage": "usage_bytes"}
        elif "memsw_hits" in sampler.absent:  # some kernels never count them
            del roles["memsw_hits"]
        for role, column in roles.items():
            path = f"{level.directory}/{level.files[role]}"

            def same(path=path, column=column) -> bool:
                before = number(path)
                rows = after(sampler.usage, 2)[column]
                return number(path) == before and set(rows.tolist()) == {before}

            until(same)
        assert last(sampler.usage)["usage_bytes"] > 8 * MIB

    def test_stat_under_the_common_names(self, quiet):
        sampler, _ = quiet
        path = f"{sampler.target.directory}/memory.stat"
        raw = {name: schema.raw_name(name, sampler.target.version) for name in sampler.stat.names if name != "t_ns"}
        assert {"anon", "file", "shmem", "pgfault", "inactive_anon"} <= set(raw)

        def same() -> bool:
            before = keyed(path)
            row = {name: int(values[0]) for name, values in ((n, after(sampler.stat)[n]) for n in raw)}
            return keyed(path) == before and row == {name: before[key] for name, key in raw.items()}

        until(same)
        assert last(sampler.stat)["anon"] > 8 * MIB

    def test_limits_of_the_group_and_of_every_ancestor(self, quiet):
        sampler, _ = quiet
        rows = sampler.limits.window()
        levels = [level for level in sampler.target.levels if "usage" in level.files]
        assert len(levels) >= 2
        told = dict(zip(rows["level"].tolist(), rows["limit_bytes"].tolist(), strict=True))
        assert told == {i: number(f"{at.directory}/{at.files['limit']}") for i, at in enumerate(levels)}
        assert (told[0], told[1]) == (128 * MIB, 256 * MIB)

    def test_the_nodes_counters(self, quiet):
        sampler, _ = quiet
        before = keyed("/proc/vmstat")
        window = after(sampler.node, 2)
        now = keyed("/proc/vmstat")
        names = [name for name in window if name != "t_ns"]
        assert {"pswpin", "pswpout"} <= set(names)
        assert any(name.startswith("allocstall") for name in names)
        for name in names:
            assert before[name] <= window[name][-1] <= now[name]

    def test_processes_and_their_memory(self, quiet):
        sampler, actor = quiet
        statm = [int(pages) * os.sysconf("SC_PAGESIZE") for pages in Path(f"/proc/{actor.pid}/statm").read_text().split()]
        row = last(sampler.processes)
        assert row["pid"] == actor.pid
        assert (row["virtual_bytes"], row["rss_bytes"], row["shared_bytes"]) == tuple(statm[:3])

    def test_the_clock_converts(self, quiet):
        sampler, _ = quiet
        row = last(sampler.clock)
        offset = time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        assert abs(row["realtime_ns"] - row["t_ns"] - offset) < 50_000_000
        now, wall = time.clock_gettime_ns(time.CLOCK_MONOTONIC), time.clock_gettime_ns(time.CLOCK_REALTIME)
        assert abs(sampler.usage.realtime_ns(np.array([now]))[0] - wall) < 50_000_000

    def test_pressure(self, group, quiet):
        sampler, _ = quiet
        if why := facts.no_psi(group.directory, group.cgroup2_directory):
            pytest.skip(why)
        lines = Path(sampler.target.pressure_file).read_text().splitlines()
        some, full = (int(line.rpartition("=")[2]) for line in lines)
        row = last(sampler.pressure)
        assert row["some_us"] <= some
        assert row["full_us"] <= full <= some
        assert row["since_ns"] <= row["t_ns"]

    def test_times(self, quiet):
        sampler, _ = quiet
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        window = after(sampler.usage, 5)
        times = window["t_ns"]
        assert (np.diff(times) > 0).all()
        assert (window["late_ns"] >= 0).all()
        assert before - 100_000_000 < times[0] <= times[-1] <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def test_an_allocation_is_seen(self, quiet):
        sampler, actor = quiet
        before = last(sampler.usage)["usage_bytes"]
        actor.do("more = bytearray(os.urandom(1 << 20) * 16)")
        until(lambda: last(sampler.usage)["usage_bytes"] >= before + 15 * MIB)
        actor.do("del more")
        until(lambda: last(sampler.usage)["usage_bytes"] <= before + 4 * MIB)


class TestOwnProcess:
    def test_statm_of_the_own_process(self, group, make_actor):
        actor = make_actor(group)
        actor.do("from pymemcg import Sampler; s = Sampler().start(); import numpy")
        assert actor.do("s.target.own")
        actor.do(
            "def same():\n"
            "    page = os.sysconf('SC_PAGESIZE')\n"
            "    def statm(): return [int(n) * page for n in open('/proc/self/statm').read().split()[1:3]]\n"
            "    before, head = statm(), s.usage.head\n"
            "    while s.usage.head < head + 2: time.sleep(0.001)\n"
            "    w = s.usage.window(rows=1)\n"
            "    return before == statm() == [int(w['rss_bytes'][0]), int(w['shared_bytes'][0])]"
        )
        until(lambda: actor.do("same()"))

    def test_another_process_is_not_taken_for_self(self, group, make_actor):
        actor = make_actor(group)
        with Sampler(f"pid:{actor.pid}") as sampler:
            assert "rss_bytes" not in sampler.usage.names
            assert not sampler.target.own

    def test_numpy_comes_with_the_first_array(self, group, make_actor):
        actor = make_actor(group)
        actor.do(
            "from pymemcg import Sampler\nwith Sampler() as s: s.usage.head, s.role, s.absent, s.limits.closed, s.describe()"
        )
        assert actor.do("'numpy' in sys.modules") is False

    def test_an_idle_group_is_yielded_to(self, group, make_actor):
        """PSI weighs CPUs by non-idle time, and ticks are that: in an idle group they become rare."""
        actor = make_actor(group)
        actor.do("from pymemcg import Sampler; s = Sampler().start()")
        if actor.do("s.target.cgroup2_directory") is None:
            pytest.skip("there is no cgroup2, and so no cpu.stat to know idleness from")
        until(lambda: actor.do("s.stats()['period_ns']") > 10_000_000)

    def test_without_adaptive_an_idle_group_is_told_that_its_psi_is_diluted(self, group, make_actor):
        actor = make_actor(group)
        actor.do("from pymemcg import Sampler; s = Sampler(adaptive=False).start()")
        if actor.do("s.target.cgroup2_directory") is None:
            pytest.skip("there is no cgroup2, and so no cpu.stat to know idleness from")
        until(lambda: actor.do("5 in s.events.window()['kind'].tolist()"))
        kinds = actor.do("s.events.window()['kind'].tolist()")
        ppm = actor.do("s.events.window()['value'].tolist()")[kinds.index(5)]
        assert 50_000 < ppm <= 1_000_000
        assert actor.do("s.stats()['period_ns']") == 1_000_000

    def test_psi_of_an_idle_group_is_not_read(self, group, make_actor):
        make_actor(group)
        with Sampler(group.spec) as sampler:
            if why := facts.no_psi(group.directory, group.cgroup2_directory):
                pytest.skip(why)
            after(sampler.usage, 250)
            assert sampler.stats()["psi_reads"] == 1
            assert sampler.pressure.head == 1


@pytest.mark.kernel
class TestLimits:
    def test_a_changed_limit_is_a_row_of_its_level(self, make_group):
        outer = make_group("outer", limit_bytes=256 * MIB)
        inner = outer.child("inner", limit_bytes=128 * MIB)
        with Sampler(inner.spec) as sampler:
            levels = sampler.target.levels
            head = sampler.limits.head
            for place, level, limit in ((inner, 0, 100 * MIB), (outer, 1, 200 * MIB), (inner, 0, 120 * MIB)):
                moment = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
                outside.write(place, levels[level].files["limit"], str(limit))
                until(lambda head=head: sampler.limits.head > head)
                head += 1
                row = last(sampler.limits)
                assert (row["level"], row["limit_bytes"]) == (level, limit)
                assert row["t_ns"] >= moment
            after(sampler.node, 3)
            assert sampler.limits.head == head, "no row where nothing changed"

    def test_a_limit_that_is_taken_away(self, make_group):
        group = make_group("test", limit_bytes=64 * MIB)
        with Sampler(group.spec) as sampler:
            unlimited = "max" if sampler.target.version == 2 else "-1"
            outside.write(group, sampler.target.levels[0].files["limit"], unlimited)
            until(lambda: (last(sampler.limits)["level"], last(sampler.limits)["limit_bytes"]) == (0, NONE))

    def test_hits_are_counted_and_told(self, make_group, make_actor, tmp_path):
        group = make_group("test", limit_bytes=24 * MIB)
        actor = make_actor(group)
        with Sampler(group.spec) as sampler:
            level = sampler.target.levels[0]
            scratch = str(tmp_path / "data")
            # Page cache over the limit: reclaimed without swap and without an OOM kill.
            actor.do(
                f"f = open({scratch!r}, 'wb'); [f.write(bytes(1 << 20)) for _ in range(40)]; f.close(); os.unlink({scratch!r})"
            )
            if sampler.target.version == 1:
                path = f"{level.directory}/{level.files['hits']}"
                assert until(lambda: number(path)) > 0
                until(lambda: last(sampler.usage)["limit_hits"] == number(path))
            until(lambda: last(sampler.usage)["limit_hits"] > 0)
            until(lambda: 0 in sampler.limits.window(rows=3)["level"] and sampler.limits.window()["hits"].max() > 0)


class TestTicks:
    def test_far_from_every_limit_and_without_one(self, make_group):
        for limit in (1 << 30, None):
            group = make_group(f"far-{limit}", limit_bytes=limit)
            with Sampler(group.spec) as sampler:
                after(sampler.usage, 3)
                stats = sampler.stats()
                assert (stats["period_ns"], stats["full_period_ns"]) == (10_000_000, 1_000_000)

    def test_near_the_limit(self, make_group):
        group = make_group("near", limit_bytes=16 * MIB)
        with Sampler(group.spec) as sampler:
            after(sampler.usage, 3)
            assert sampler.stats()["period_ns"] == 1_000_000

    def test_near_the_limit_of_an_ancestor(self, make_group):
        inner = make_group("outer", limit_bytes=16 * MIB).child("inner")
        with Sampler(inner.spec) as sampler:
            after(sampler.usage, 3)
            assert sampler.stats()["period_ns"] == 1_000_000

    def test_when_a_limit_comes_near_and_goes_away(self, make_group):
        group = make_group("moving", limit_bytes=1 << 30)
        with Sampler(group.spec) as sampler:
            file = sampler.target.levels[0].files["limit"]
            until(lambda: sampler.stats()["period_ns"] == 10_000_000)
            outside.write(group, file, str(16 * MIB))
            until(lambda: sampler.stats()["period_ns"] == 1_000_000)
            outside.write(group, file, str(1 << 30))
            until(lambda: sampler.stats()["period_ns"] == 10_000_000)

    def test_after_a_hit_the_full_rate_stays_for_a_while(self, make_group, make_actor, tmp_path):
        group = make_group("hit", limit_bytes=96 * MIB)
        actor = make_actor(group)
        with Sampler(group.spec) as sampler:
            until(lambda: sampler.stats()["period_ns"] == 10_000_000)
            scratch = str(tmp_path / "data")
            actor.do(
                f"f = open({scratch!r}, 'wb'); [f.write(bytes(1 << 20)) for _ in range(104)]; f.close(); os.unlink({scratch!r})"
            )
            until(lambda: last(sampler.usage)["usage_bytes"] < 40 * MIB)  # the file is gone, and far is the limit again
            until(lambda: sampler.stats()["period_ns"] == 10_000_000)
            rows = sampler.usage.window()
        hit = np.flatnonzero(np.diff(rows["limit_hits"]))[-1] + 1
        far = (rows["usage_bytes"][hit:] < 40 * MIB) & (rows["t_ns"][hit:] < rows["t_ns"][hit] + 900_000_000)
        deadlines = (rows["t_ns"] - rows["late_ns"])[hit:][far]
        assert np.diff(deadlines).min() == 1_000_000

    def test_without_adaptive_the_rate_is_full(self, group):
        with Sampler(group.spec, adaptive=False) as sampler:
            after(sampler.usage, 20)
            assert sampler.stats()["period_ns"] == 1_000_000

    @pytest.mark.parametrize("rate_hz", [10_000, 100, 5])
    def test_other_rates(self, group, rate_hz):
        with Sampler(group.spec, rate_hz=rate_hz, adaptive=False) as sampler:
            window = after(sampler.usage, 4)
            period = 10**9 // rate_hz
            assert sampler.stats()["full_period_ns"] == sampler.usage.period_ns == period
            deadlines = window["t_ns"] - window["late_ns"]
            assert (np.diff(deadlines) % period == 0).all()
            assert (np.diff(deadlines) >= period).all()

    def test_missed_ticks_are_counted_and_not_made_up_for(self, group, make_actor):
        """A process that is stopped misses its ticks. What comes after must not be a burst of rows for what has passed."""
        actor = make_actor()
        actor.do(f"from pymemcg import Sampler; s = Sampler({group.spec!r}, adaptive=False).start()")
        until(lambda: actor.do("s.usage.head") > 50)
        missed = actor.do("s.stats()['missed']")
        os.kill(actor.pid, signal.SIGSTOP)
        until(lambda: Path(f"/proc/{actor.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        stopped = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        time.sleep(0.3)
        resumed = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        os.kill(actor.pid, signal.SIGCONT)
        head = actor.do("s.usage.head")
        until(lambda: actor.do("s.usage.head") > head + 50)
        rows = np.array(actor.do("s.usage.window().to_numpy()[['t_ns', 'late_ns']].tolist()"))
        deadlines = rows[:, 0] - rows[:, 1]
        assert (rows[:, 0] > resumed).sum() > 50
        assert ((rows[:, 0] > stopped) & (rows[:, 0] < resumed)).sum() == 0
        of_the_past = (rows[:, 0] >= resumed) & (deadlines < resumed)
        assert of_the_past.sum() <= 1
        assert actor.do("s.stats()['missed']") - missed >= (resumed - stopped) // 1_000_000 - 1
