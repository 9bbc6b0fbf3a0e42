# SPDX-License-Identifier: Apache-2.0
"""What is sampled goes away: groups, PSI, processes. Each closes its channels, with a reason, and the rest goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import facts
import numpy as np
import outside
import pytest
from actor import MIB, leaves_nothing, threads, until

from pymemcg import Sampler, schema
from pymemcg._ffi import NONE, lib
from pymemcg.recorder import Recorder
from pymemcg.recording import open as open_recording

pytestmark = pytest.mark.live

OF_THE_GROUP = ("usage", "stat", "limits", "processes")
OF_THE_MACHINE = ("node", "clock", "events")


def grows(channel) -> bool:
    head = channel.head
    return bool(until(lambda: channel.head > head))


def closed_by_events(sampler) -> dict[str, str]:
    """Channel to reason, as the events tell."""
    window = sampler.events.read(0)[0]
    names = {getattr(sampler, name).position: name for name in schema.CHANNELS}
    rows = zip(window["kind"].tolist(), window["value"].tolist(), strict=True)
    return {names[value >> 32]: os.strerror(value & 0xFFFFFFFF) for kind, value in rows if kind == lib.MEMCG_EVENT_CLOSED}


class TestGroup:
    @pytest.mark.kernel
    def test_everything_of_the_group_closes_and_the_rest_goes_on(self, make_group, make_actor):
        group = make_group("short", limit_bytes=64 * MIB)
        actor = make_actor(group)
        with Sampler(group.spec) as sampler:
            until(lambda: sampler.stat.head > 2)
            limits = sampler.limits.head
            actor.kill()
            group.close()
            for name in OF_THE_GROUP:
                until(lambda name=name: getattr(sampler, name).closed)
                assert getattr(sampler, name).closed in (os.strerror(19), os.strerror(2)), name
                assert sampler.absent[name].startswith("closed: ")
            assert grows(sampler.node)
            assert not any(getattr(sampler, name).closed for name in OF_THE_MACHINE)
            until(lambda: set(OF_THE_GROUP) <= set(closed_by_events(sampler)))
            rows = sampler.limits.read(limits)[0]
            assert NONE not in rows["limit_bytes"][rows["level"] == 0], "a group that is gone has not lost its limit"
            heads = {name: getattr(sampler, name).head for name in OF_THE_GROUP}
            assert grows(sampler.node)
            assert heads == {name: getattr(sampler, name).head for name in OF_THE_GROUP}
            assert sampler.usage.window()["usage_bytes"][0] > 0
        assert sampler.role == "stopped"

    @pytest.mark.kernel
    def test_its_psi_closes_too(self, make_group, make_actor):
        group = make_group("short")
        actor = make_actor(group)
        with Sampler(group.spec) as sampler:
            if why := facts.no_psi(group.directory, group.cgroup2_directory):
                pytest.skip(why)
            actor.kill()
            group.close()
            until(lambda: sampler.pressure.closed)
            assert sampler.pressure.closed == os.strerror(19)
            assert grows(sampler.node)

    def test_nothing_is_left_of_it(self, make_group):
        other = make_group("other")
        with leaves_nothing(other.directory):
            group = make_group("short")
            with Sampler(group.spec, history_s=1) as sampler:
                group.close()
                until(lambda: sampler.usage.closed)
                assert sampler.stats()["ticks"] > 0
            sampler._channels.clear()

    def test_a_recording_of_it_says_so(self, make_group, tmp_path):
        group = make_group("short")
        with Sampler(group.spec, history_s=1) as sampler, Recorder(sampler, tmp_path / "short.pmc") as recorder:
            grows(sampler.usage)
            recorder.write()
            group.close()
            until(lambda: sampler.usage.closed and "usage" in closed_by_events(sampler))
        recording = open_recording(tmp_path / "short.pmc")
        assert recording.usage.closed == os.strerror(19)
        assert recording.usage.head > 0
        assert "usage" in closed_by_events(recording)

    def test_attached_processes_live_on_without_it(self, make_group, make_actor):
        """Nobody can take over what is gone; nobody crashes over it."""
        group = make_group("short")
        writer = make_actor()
        writer.do(f"from pymemcg import Sampler; s = Sampler({group.spec!r}).start()")
        with Sampler(group.spec) as sampler:
            assert sampler.role == "attached"
            group.close()
            until(lambda: sampler.usage.closed)
            head = sampler.usage.head
            writer.kill()
            time.sleep(0.7)  # some attempts to take over
            assert sampler.usage.closed == os.strerror(19)
            assert sampler.usage.head == head
            assert sampler.role == "attached"

    @pytest.mark.kernel
    def test_a_new_group_of_the_same_name_is_another(self, make_group):
        old = make_group("name")
        with Sampler(old.spec, history_s=1) as first:
            old.close()
            until(lambda: first.usage.closed)
            new = make_group("name")
            with Sampler(new.spec, history_s=1) as second:
                assert second.role == "sampling"
                assert second.usage.closed is None
                assert grows(second.usage)
            assert first.usage.closed


@pytest.mark.kernel
class TestPressure:
    def test_switched_off_closes_pressure_alone(self, group, make_actor):
        """cgroup.pressure came with 6.1. What was opened before is dead for good, also when it is switched on again."""
        switch = Path(group.cgroup2_directory or "/nonexistent", "cgroup.pressure")
        if not switch.exists():
            pytest.skip("no cgroup.pressure here")
        actor, _ = make_actor(group), make_actor(group)
        with Sampler(group.spec) as sampler:
            assert "pressure" not in sampler.absent
            actor.send("end = time.monotonic() + 30\nwhile time.monotonic() < end: pass")  # PSI is read where something happens
            until(lambda: sampler.pressure.head >= 2)
            outside.write(group, switch.name, "0")
            until(lambda: sampler.pressure.closed)
            assert sampler.pressure.closed == os.strerror(19)
            assert sampler.absent["pressure"] == f"closed: {os.strerror(19)}"
            outside.write(group, switch.name, "1")
            head = sampler.pressure.head
            for name in ("usage", "stat", "node", "processes"):
                assert getattr(sampler, name).closed is None
                assert grows(getattr(sampler, name))
            assert sampler.pressure.head == head
            until(lambda: closed_by_events(sampler) == {"pressure": os.strerror(19)})
            assert (np.diff(sampler.pressure.window()["some_us"]) >= 0).all()
        actor.kill()
        with Sampler(group.spec) as sampler:
            assert sampler.pressure.head == 1, "a new start reads it again"


class TestProcesses:
    def test_hundreds_that_come_and_go(self, group, make_actor):
        actor = make_actor(group)
        actor.do(
            "import signal\n"
            "def spawn(n):\n"
            "    children = []\n"
            "    for _ in range(n):\n"
            "        child = os.fork()\n"
            "        if child == 0: signal.pause(); os._exit(0)\n"
            "        children.append(child)\n"
            "    return children\n"
            "def end(children):\n"
            "    for child in children: os.kill(child, signal.SIGKILL)\n"
            "    for child in children: os.waitpid(child, 0)"
        )
        with Sampler(group.spec) as sampler:
            for _ in range(2):
                children = actor.do("children = spawn(200)") or actor.do("children")
                cursor = sampler.processes.head
                seen: set[int] = set()

                def look(cursor=cursor, seen=seen, children=children) -> bool:
                    seen.update(sampler.processes.read(cursor)[0]["pid"].tolist())
                    return set(children) <= seen

                until(look)
                actor.do("end(children)")

                def alone() -> bool:
                    window = sampler.processes.window()
                    return window["pid"][window["t_ns"] == window["t_ns"][-1]].tolist() == [actor.pid]

                until(alone)
            assert sampler.processes.closed is None
            assert (sampler.processes.window()["rss_bytes"] > 0).all()
            for _ in range(10):
                actor.do("end(spawn(50))")
            assert grows(sampler.processes)
            assert grows(sampler.usage)

    @pytest.mark.kernel
    def test_those_in_groups_below_are_seen(self, make_group, make_actor):
        outer = make_group("outer")
        near, deep = outer.child("near"), outer.child("middle").child("deep")  # on v2 none with processes has groups below
        actors = [make_actor(group) for group in (near, deep)]
        with Sampler(outer.spec) as sampler:
            window = sampler.processes.window()
            assert {actor.pid for actor in actors} <= set(window["pid"].tolist())
            later = outer.child("later")
            newcomer = make_actor(later)
            until(lambda: newcomer.pid in sampler.processes.window()["pid"])
            newcomer.kill()
            later.close()
            assert grows(sampler.processes)

    @pytest.mark.kernel
    def test_a_zombie_has_no_row(self, group, make_actor):
        """Its statm reads zeros, successfully: that is not data."""
        actor = make_actor(group)
        actor.do("zombie = os.fork()\nif zombie == 0: os._exit(0)")
        zombie = actor.do("zombie")
        until(lambda: Path(f"/proc/{zombie}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        with Sampler(group.spec) as sampler:
            until(lambda: sampler.processes.head >= 3)
            assert set(sampler.processes.window()["pid"].tolist()) == {actor.pid}

    def test_an_empty_group(self, group):
        with Sampler(group.spec) as sampler:
            assert grows(sampler.stat)
            assert sampler.processes.head == 0
            assert sampler.processes.closed is None

    def test_a_target_process_that_ends(self, group, make_actor):
        """A group outlives its processes: `pid:N` names the group that N was in."""
        actor = make_actor(group)
        with Sampler(f"pid:{actor.pid}") as sampler:
            actor.kill()
            assert grows(sampler.usage)
            assert sampler.usage.closed is None


def test_no_exception_comes_out_of_threads(make_group):
    """In a process of its own: whatever a thread of ours writes to stderr would be seen."""
    group = make_group("short")
    code = (
        "import sys, time; from pymemcg import Sampler\n"
        f"with Sampler({group.spec!r}) as s:\n"
        "    print('ready', flush=True); sys.stdin.readline()\n"
        "    end = time.monotonic() + 10\n"
        "    while not s.usage.closed and time.monotonic() < end: time.sleep(0.01)\n"
        "    assert s.usage.closed"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        group.close()
        _, errors = process.communicate("\n", timeout=facts.PATIENCE_S)
    assert (process.returncode, errors) == (0, "")
    assert "pymemcg-tick" not in threads()
