# SPDX-License-Identifier: Apache-2.0
"""Recordings of a live sampler, also onto a disk that fills up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from actor import NAMESPACES, Failed, until

import pymemcg
from pymemcg import RecordingError, Sampler, schema
from pymemcg.recorder import Recorder, join

pytestmark = pytest.mark.live


def test_a_recording_has_the_rows_of_the_ring(group, make_actor, tmp_path):
    make_actor(group)
    path = tmp_path / "run.pmc"
    with Sampler(group.spec, adaptive=False) as sampler:
        begun = sampler.usage.head
        with Recorder(sampler, path) as recorder:
            for _ in range(3):
                until(lambda head=sampler.usage.head: sampler.usage.head > head + 100)
                recorder.write()
        assert recorder.lost == 0
        recording = pymemcg.open(path)
        sampler.stop()  # what has been sampled stays where it is
        first = recording.usage.window()["t_ns"][0]
        begins = sampler.usage.read(0)[0]["t_ns"].tolist().index(first)
        assert begins >= begun
        for name in schema.CHANNELS:
            recorded, live = getattr(recording, name), getattr(sampler, name)
            assert recorded.names == live.names
            assert dict(recorded.units) == dict(live.units)
            rows = recorded.window()
            for column in rows:
                values = live.read(0)[0][column]
                start = begins if name == "usage" else len(values) - len(rows) if name in ("limits", "clock") else None
                if start is not None:
                    assert rows[column].tolist() == values[start : start + len(rows)].tolist()
        assert recording.usage.head > 300
        assert recording.info["target"]["directory"] == group.directory
        assert recording.info["absent"] == sampler.absent
        assert recording.limits.head >= 1
        assert recording.clock.head >= 1


def test_a_command_that_is_killed(group, make_actor, tmp_path):
    """What it has recorded outlives it and the next command."""
    make_actor(group)
    path = tmp_path / "run.memcg"
    command = [sys.executable, "-m", "pymemcg", "record", group.spec, "-o", str(path), "--duration"]

    def rows() -> int:
        try:
            return pymemcg.open(f"{path}.part").usage.head
        except RecordingError:  # it is being made
            return 0

    with subprocess.Popen([*command, "1h"]) as process:
        try:
            until(lambda: rows() > 100)
            again = subprocess.run([*command, "1s"], stderr=subprocess.PIPE, text=True, check=False)
            assert again.returncode == RecordingError.exit_code
            assert "is being written by another recorder" in again.stderr
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    had = pymemcg.open(f"{path}.part").usage.window()
    done = subprocess.run([*command, "0.3s"], stdout=subprocess.PIPE, text=True, check=True)
    assert f"pymemcg.recorder.join('{path}.left-1')" in done.stdout
    join(f"{path}.left-1")
    assert sorted(os.listdir(tmp_path)) == ["run.memcg", "run.memcg.left-1"]
    left = pymemcg.open(f"{path}.left-1")
    for column in had:
        assert left.usage.window()[column].tolist() == had[column].tolist()
    assert left.info["target"]["directory"] == group.directory
    assert left.missing == {}
    assert had["t_ns"][-1] < pymemcg.open(path).usage.window()["t_ns"][0]


def test_a_disk_that_fills_up(only_root, group, make_actor):
    """An error that names the file, and what was written until then is a recording."""
    actor = make_actor()
    actor.do(NAMESPACES)
    actor.do(
        "os.makedirs('/tmp/pymemcg-disk', exist_ok=True); own_mounts()\n"
        "system('mount', 'none', '/tmp/pymemcg-disk', 'tmpfs', 0, 'size=1m')\n"
        "import pymemcg; from pymemcg.recorder import Recorder\n"
        f"s = pymemcg.Sampler({group.spec!r}, rate_hz=10000, history_s=5, adaptive=False).start()\n"
        "recorder = Recorder(s, '/tmp/pymemcg-disk/run.pmc'); before = len(os.listdir('/proc/self/fd'))\n"
        "def fill():\n"
        "    with recorder:\n"
        "        for _ in range(400): time.sleep(0.05); recorder.write()"
    )
    with pytest.raises(Failed, match=r"run\.pmc.*No space left") as caught:
        actor.do("fill()")
    assert caught.value.name == "RecordingError"
    left = actor.do("os.listdir('/tmp/pymemcg-disk')")
    assert left == ["run.pmc.part"]
    assert left[0] in caught.value.text
    actor.do("r = pymemcg.open('/tmp/pymemcg-disk/run.pmc.part'); w = r.usage.window(); t, late = w['t_ns'], w['late_ns']")
    assert actor.do("len(t)") > 100
    assert actor.do("bool((t[1:] > t[:-1]).all() and not ((t - late - (t[0] - late[0])) % 100000).any())"), "no row of zeros"
    actor.do("del r, w, t, late")  # before Python 3.13 what is mapped keeps a descriptor
    assert actor.do("len(os.listdir('/proc/self/fd'))") == actor.do("before") - 1
    actor.do("s.stop()")
    os.rmdir("/tmp/pymemcg-disk")
