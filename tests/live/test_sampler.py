# SPDX-License-Identifier: Apache-2.0
"""One sampler of one group: what it samples, when it ticks, how it starts and stops, and that it leaves nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from actor import MIB, Failed, files, leaves_nothing, lock_is_free, maps, ring_file, threads, until

from pymemcg import Sampler, TargetError, resolve, schema
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
        now = np.array([time.clock_gettime_ns(time.CLOCK_MONOTONIC)])
        assert abs(sampler.usage.realtime_ns(now)[0] - time.clock_gettime_ns(time.CLOCK_REALTIME)) < 50_000_000

    def test_pressure(self, quiet):
        sampler, _ = quiet
        if "pressure" in sampler.absent:
            pytest.skip(sampler.absent["pressure"])
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
            if "pressure" in sampler.absent:
                pytest.skip(sampler.absent["pressure"])
            after(sampler.usage, 250)
            assert sampler.stats()["psi_reads"] == 1
            assert sampler.pressure.head == 1


class TestLimits:
    def test_a_changed_limit_is_a_row_of_its_level(self, make_group):
        outer = make_group("outer", limit_bytes=256 * MIB)
        inner = outer.child("inner", limit_bytes=128 * MIB)
        with Sampler(inner.spec) as sampler:
            levels = sampler.target.levels
            head = sampler.limits.head
            for place, level, limit in ((inner, 0, 100 * MIB), (outer, 1, 200 * MIB), (inner, 0, 120 * MIB)):
                moment = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
                Path(place.directory, levels[level].files["limit"]).write_text(str(limit))
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
            Path(group.directory, sampler.target.levels[0].files["limit"]).write_text(unlimited)
            until(lambda: last(sampler.limits)["level"] == 0)
            assert last(sampler.limits)["limit_bytes"] == NONE

    def test_hits_are_counted_and_told(self, make_group, make_actor):
        group = make_group("test", limit_bytes=24 * MIB)
        actor = make_actor(group)
        with Sampler(group.spec) as sampler:
            level = sampler.target.levels[0]
            scratch = f"/tmp/pymemcg-test-{os.getpid()}"
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
            file = Path(group.directory, sampler.target.levels[0].files["limit"])
            until(lambda: sampler.stats()["period_ns"] == 10_000_000)
            file.write_text(str(16 * MIB))
            until(lambda: sampler.stats()["period_ns"] == 1_000_000)
            file.write_text(str(1 << 30))
            until(lambda: sampler.stats()["period_ns"] == 10_000_000)

    def test_after_a_hit_the_full_rate_stays_for_a_while(self, make_group, make_actor):
        group = make_group("hit", limit_bytes=200 * MIB)
        actor = make_actor(group)
        with Sampler(group.spec) as sampler:
            until(lambda: sampler.stats()["period_ns"] == 10_000_000)
            scratch = f"/tmp/pymemcg-test-{os.getpid()}"
            actor.do(
                f"f = open({scratch!r}, 'wb'); [f.write(bytes(1 << 20)) for _ in range(220)]; f.close(); os.unlink({scratch!r})"
            )
            until(lambda: last(sampler.usage)["usage_bytes"] < 100 * MIB)  # the file is gone, and far is the limit again
            assert last(sampler.usage)["limit_hits"] > 0
            assert sampler.stats()["period_ns"] == 1_000_000
            until(lambda: sampler.stats()["period_ns"] == 10_000_000)

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


class TestStartAndStop:
    def test_the_first_sample_is_there_when_start_returns(self, group, make_actor):
        make_actor(group)
        sampler = Sampler(group.spec, rate_hz=0.1, stat_rate_hz=0.1)
        sampler.start()
        heads = {name: getattr(sampler, name).head for name in ("usage", "stat", "limits", "node", "processes", "clock")}
        sampler.stop()
        assert all(heads.values()), heads

    def test_stop_leaves_nothing_and_comes_at_once_however_slow_the_ticks(self, group):
        running = len(threads())
        with leaves_nothing(group.directory):
            with Sampler(group.spec, rate_hz=0.01, stat_rate_hz=0.01, adaptive=False) as sampler:
                assert len(threads()) > running
                assert ring_file(group.directory, os.geteuid()).exists()
                assert not lock_is_free(group.directory)
            del sampler
            gc.collect()

    def test_what_was_sampled_stays_readable(self, group):
        with Sampler(group.spec) as sampler:
            after(sampler.usage, 3)
            array = sampler.usage.window()["usage_bytes"]
            values = array.tolist()
        assert sampler.role == "stopped"
        until(lambda: "pymemcg-tick" not in threads())
        window, _, lost = sampler.usage.read(0)
        assert len(window) >= len(values)
        assert lost == 0
        assert array.tolist() == values
        del sampler, window
        gc.collect()
        assert array.tolist() == values
        del array
        gc.collect()
        assert maps() == 0

    def test_200_times_leave_nothing(self, group):
        with Sampler(group.spec):
            pass
        with leaves_nothing(group.directory):
            for _ in range(200):
                with Sampler(group.spec, history_s=1):
                    pass
            gc.collect()

    def test_one_sampler_many_times(self, group):
        sampler = Sampler(group.spec, history_s=1)
        with leaves_nothing(group.directory):
            for _ in range(20):
                assert sampler.start() is sampler
                assert sampler.start() is sampler, "the second start is none"
                assert sampler.role == "sampling"
                assert sampler.usage.head >= 1
                sampler.stop()
                sampler.stop()
            sampler._channels.clear()
            gc.collect()

    def test_an_exception_in_the_block_stops_it(self, group):
        with leaves_nothing(group.directory):
            with pytest.raises(ZeroDivisionError), Sampler(group.spec, history_s=1):
                raise ZeroDivisionError
            gc.collect()

    def test_a_sampler_that_is_dropped_ends(self, group):
        with leaves_nothing(group.directory):
            sampler = Sampler(group.spec, history_s=1).start()
            array = sampler.usage.window()["usage_bytes"]
            del sampler
            gc.collect()
            until(lambda: "pymemcg-tick" not in threads())
            assert array[0] >= 0
            del array
            gc.collect()

    def test_the_defaults_cost_the_service_at_most_8_mib(self, group):
        with Sampler(group.spec) as sampler:
            stats = sampler.stats()
            assert stats["ring_bytes"] < stats["held_bytes"] <= 8 * MIB

    def test_what_stats_tells(self, group, make_actor):
        make_actor(group)
        with Sampler(group.spec) as sampler:
            until(lambda: sampler.stats()["tick_cpu_ns"] and sampler.stats()["keeper_cpu_ns"])
            stats = sampler.stats()
            assert stats["writer_pid"] == os.getpid()
            assert stats["role"] == "sampling"
            assert stats["ticks"] >= sampler.usage.head - 1
            assert 0 <= stats["late_ns"]["p50"] <= stats["late_ns"]["p99"] <= stats["late_ns"]["max"]
            assert {"usage", "stat", "node", "processes"} <= {name for name, cost in stats["cost_ns"].items() if cost > 0}
        assert sampler.stats()["role"] == "stopped"


class TestFailures:
    """A failure surfaces in start(), names what is wrong, and leaves nothing."""

    @pytest.mark.parametrize("spec", ["cgroup:/pymemcg-there-is-none", "pid:4194999", "container:0123456789abcdef", "nonsense"])
    def test_no_such_target(self, spec, group):
        with leaves_nothing(group.directory):
            sampler = Sampler(spec)
            with pytest.raises(TargetError):
                sampler.start()
            assert sampler.role == "stopped"

    def test_a_group_that_is_gone_between_resolving_and_reading(self, make_group):
        group = make_group("short")
        before = threads(), files()
        sampler = Sampler(group.spec)
        sampler._target = resolve(group.spec)
        group.close()
        with pytest.raises(TargetError, match="pymemcg-"):
            sampler.start()
        assert (threads(), files()) == before

    @pytest.fixture
    def nobody(self, group, make_actor):
        """Another user, who may not read what root forbids."""
        actor = make_actor(group)
        actor.do("import gc, numpy, resource; from pymemcg import Sampler; os.setuid(65534)")  # files may be root's alone
        return actor

    def test_a_file_without_which_there_is_no_usage(self, group, nobody):
        name = resolve(group.spec).levels[0].files["usage"]
        os.chmod(f"{group.directory}/{name}", 0o600)
        before = threads(nobody.pid), files(nobody.pid), maps(nobody.pid)
        with pytest.raises(Failed) as caught:
            nobody.do(f"Sampler({group.spec!r}).start()")
        assert caught.value.name == "SourceError"
        assert f"{group.directory}/{name}" in caught.value.text
        assert "Permission denied" in caught.value.text
        nobody.do("gc.collect()")
        assert (threads(nobody.pid), files(nobody.pid), maps(nobody.pid)) == before
        assert lock_is_free(group.directory)
        assert not ring_file(group.directory, 65534).exists()

    @pytest.mark.parametrize("name", ["memory.stat", "memory.pressure", "cpu.stat"])
    def test_what_a_sampler_can_do_without_is_absent(self, name, group, nobody):
        directory = group.directory if name == "memory.stat" else group.cgroup2_directory
        if directory is None:
            pytest.skip("there is no cgroup2 here")
        os.chmod(f"{directory}/{name}", 0o600)
        channel = "stat" if name == "memory.stat" else "pressure"
        nobody.do(f"s = Sampler({group.spec!r}).start()")
        absent = nobody.do("s.absent")
        assert name in absent[channel]
        assert nobody.do(f"s.{channel}.names") == []
        assert nobody.do("s.usage.head") >= 1
        nobody.do("s.stop()")

    def test_out_of_descriptors_at_any_point(self, group, make_actor):
        """Start with one descriptor more each time: whatever fails must say so and leave nothing."""
        actor = make_actor()
        actor.do(
            "import gc, resource; from pymemcg import MemcgError, Sampler\n"
            f"with Sampler({group.spec!r}): pass\n"
            "def attempt(more):\n"
            "    limits = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
            "    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) - 1 + more, limits[1]))\n"
            "    try:\n"
            f"        with Sampler({group.spec!r}, history_s=1) as s: return s.role\n"
            "    except MemcgError as error: return type(error).__name__\n"
            "    finally: resource.setrlimit(resource.RLIMIT_NOFILE, limits); gc.collect()"
        )
        before = threads(actor.pid), files(actor.pid), maps(actor.pid)
        ends = []
        while "sampling" not in ends and len(ends) < 80:
            ends.append(actor.do(f"attempt({len(ends)})"))
            assert (threads(actor.pid), files(actor.pid), maps(actor.pid)) == before, f"{len(ends) - 1} descriptors"
            assert lock_is_free(group.directory)
            assert not ring_file(group.directory).exists()
        assert len(ends) > 5
        assert ends[-1] == "sampling"

    def test_no_thread_to_be_had(self, group, nobody):
        before = files(nobody.pid), maps(nobody.pid)
        nobody.do("resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))")
        with pytest.raises(Failed, match="thread") as caught:
            nobody.do(f"Sampler({group.spec!r}, history_s=1).start()")
        assert caught.value.name == "SourceError"
        nobody.do("gc.collect()")
        assert (files(nobody.pid), maps(nobody.pid)) == before
        assert lock_is_free(group.directory)

    def test_nothing_may_be_locked(self, group, nobody):
        nobody.do("resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))")
        nobody.do(f"s = Sampler({group.spec!r}).start()")
        assert nobody.do("s.stats()['locked_bytes']") == 0
        head = nobody.do("s.usage.head")
        until(lambda: nobody.do("s.usage.head") > head)
        nobody.do("s.stop()")


class TestEnd:
    """A program may end however it likes."""

    @pytest.fixture
    def running(self, group, make_actor):
        actor = make_actor(group)
        actor.do("from pymemcg import Sampler; s = Sampler(adaptive=False).start()")
        actor.do("w = s.usage.window(); a = w['usage_bytes']; import builtins; builtins.kept = a, w, s")
        return actor

    def test_without_stop(self, running, group):
        assert running.end() == 0
        assert running.errors() == ""
        assert not ring_file(group.directory).exists()
        assert lock_is_free(group.directory)

    def test_while_other_threads_read(self, running):
        running.do(
            "import threading\n"
            "def read():\n"
            "    cursor = None\n"
            "    while True: w, cursor, _ = s.usage.read(cursor); s.stats(); s.role\n"
            "for _ in range(3): threading.Thread(target=read, daemon=True).start()"
        )
        assert running.end() == 0
        assert running.errors() == ""

    def test_by_os_exit(self, running, group):
        running.send("os._exit(7)")
        assert running.process.wait(10) == 7
        assert lock_is_free(group.directory)

    def test_by_ctrl_c(self, running, group):
        running.send("with s: time.sleep(60)")
        time.sleep(0.2)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(10) == -signal.SIGINT
        assert "KeyboardInterrupt" in running.errors()
        assert not ring_file(group.directory).exists()

    def test_signals_go_to_the_programs_own_threads(self, running):
        running.do("import signal, threading; seen = []; signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))")
        for _ in range(20):
            os.kill(running.pid, signal.SIGUSR1)
            time.sleep(0.005)
        assert running.do("bool(seen)")
        for task in Path(f"/proc/{running.pid}/task").iterdir():
            if (task / "comm").read_text().startswith("pymemcg"):
                blocked = next(line for line in (task / "status").read_text().splitlines() if line.startswith("SigBlk"))
                assert int(blocked.split()[1], 16) & (1 << (signal.SIGUSR1 - 1))


def test_several_threads_use_start_and_stop_one_sampler(group, make_actor):
    actor = make_actor()
    actor.do(
        "import threading; from pymemcg import MemcgError, Sampler\n"
        f"s = Sampler({group.spec!r}, history_s=1); done = []; failures = []\n"
        "def use(act):\n"
        "    try:\n"
        "        while not done:\n"
        "            try: act()\n"
        "            except MemcgError: pass\n"
        "    except BaseException as error: failures.append(repr(error))\n"
        "acts = [s.start, s.stop, lambda: s.role, lambda: s.stats(), lambda: s.absent, lambda: s.usage.read(),\n"
        "        lambda: s.describe(), lambda: s.stat.window(seconds=1).to_numpy(), lambda: repr(s)]\n"
        "threads = [threading.Thread(target=use, args=[act]) for act in acts]\n"
        "for t in threads: t.start()\n"
        "time.sleep(2); done.append(1)\n"
        "for t in threads: t.join()\n"
        "s.stop()"
    )
    assert actor.do("failures") == []
    assert actor.do("s.role") == "stopped"
    assert actor.end() == 0
