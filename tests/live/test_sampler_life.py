# SPDX-License-Identifier: Apache-2.0
"""A sampler's life: how it starts, stops and ends, what fails in between, and that nothing is left of it."""

from __future__ import annotations

import gc
import os
import signal
import time
from pathlib import Path

import facts
import pytest
from actor import MIB, Failed, files, leaves_nothing, lock_is_free, maps, ring_file, threads, until

from pymemcg import Sampler, TargetError, resolve

pytestmark = pytest.mark.live


def after(channel, rows: int = 1):
    """The newest rows, once so many have come from now on."""
    head = channel.head
    until(lambda: channel.head >= head + rows)
    return channel.read(head)[0]


class TestStartAndStop:
    def test_the_first_sample_is_there_when_start_returns(self, group, make_actor):
        make_actor(group)
        sampler = Sampler(group.spec, rate_hz=0.1, stat_rate_hz=0.1)
        sampler.start()
        heads = {name: getattr(sampler, name).head for name in ("usage", "stat", "limits", "node", "processes", "clock")}
        sampler.stop()
        assert all(heads.values()), heads

    @pytest.mark.usefixtures("let_go_of_tracepoints")
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
            if facts.counts_cpu_time_finely():
                until(lambda: sampler.stats()["tick_cpu_ns"] and sampler.stats()["keeper_cpu_ns"])
            head, stats = sampler.usage.head, sampler.stats()
            assert stats["writer_pid"] == os.getpid()
            assert stats["role"] == "sampling"
            assert stats["ticks"] >= head - 1
            assert 0 <= stats["late_ns"]["p50"] <= stats["late_ns"]["p99"] <= stats["late_ns"]["max"]
            until(
                lambda: {"usage", "stat", "node", "processes"} <= {n for n, ns in sampler.stats()["cost_ns"].items() if ns > 0}
            )
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
    def nobody(self, only_root, group, make_actor):
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
        if name != "memory.stat" and not os.path.exists(f"{directory}/memory.pressure"):
            pytest.skip("this kernel has no PSI")
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


@pytest.mark.usefixtures("let_go_of_tracepoints")
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
        assert running.process.wait(facts.PATIENCE_S) == 7
        assert lock_is_free(group.directory)

    def test_by_ctrl_c(self, running, group):
        running.do("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)")  # a shell background ignores it
        running.send("with s: time.sleep(60)")
        time.sleep(0.2)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(facts.PATIENCE_S) == -signal.SIGINT
        assert "KeyboardInterrupt" in running.errors()
        assert not ring_file(group.directory).exists()

    def test_ctrl_c_at_any_moment_of_starts_and_stops(self, group, make_actor):
        """Threads that nobody stops would use memory that is gone."""
        actor = make_actor(group)
        actor.do(
            "import signal, random; from pymemcg import Sampler\n"
            "signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
            "def once(seconds):\n"
            "    begun = time.monotonic()\n"
            "    try:\n"
            "        signal.setitimer(signal.ITIMER_REAL, seconds)\n"
            "        with Sampler(evidence='counters', history_s=1): pass\n"
            "        signal.setitimer(signal.ITIMER_REAL, 0)\n"
            "    except KeyboardInterrupt: return 1\n"
            "    finally: signal.setitimer(signal.ITIMER_REAL, 0)\n"
            "    return time.monotonic() - begun\n"
            "whole = once(60)"
        )
        assert actor.do("sum(once(random.uniform(1e-6, 1.2 * whole)) == 1 for _ in range(300))") >= 30
        actor.do("import gc; gc.collect()")
        until(lambda: not any(name.startswith("pymemcg") for name in threads(actor.pid)))
        assert actor.end() == 0  # where it came just as a file had been opened, that stays open until now

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
