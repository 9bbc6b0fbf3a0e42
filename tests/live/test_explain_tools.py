# SPDX-License-Identifier: Apache-2.0
"""What `explain` says that tools show, against what these tools themselves show of the same processes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import facts
import pytest
from actor import MIB, until

from pymemcg.explain import Snapshot, Tree, take
from pymemcg.explain._tools import tools

pytestmark = pytest.mark.live

SHARED, PRIVATE, FILE, CHILDREN = 16 * MIB, 2 * MIB, 8 * MIB, 3

UNTOLD = max(64 * 16, max(32, 2 * (os.cpu_count() or 1)) * (os.cpu_count() or 1)) * 4096
"""A process's counters may lack so much: until 6.1 what 64 faults brought, each up to 16 pages of a file; to 6.14 what each CPU
keeps for itself."""

# Four processes: anonymous memory and a mapped file that all of them have, and some that each child has written to.
FAMILY = f"""
import mmap, signal
def touched(size, flags):
    memory = mmap.mmap(-1, size, flags=flags | mmap.MAP_ANONYMOUS)
    for at in range(0, size, mmap.PAGESIZE): memory[at] = 1
    return memory
kept = [touched({SHARED}, mmap.MAP_PRIVATE), touched({FILE}, mmap.MAP_SHARED)]
children = []
for _ in range({CHILDREN}):
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        own = touched({PRIVATE}, mmap.MAP_PRIVATE)
        for at in range(0, {FILE}, mmap.PAGESIZE): kept[1][at]
        os.write(told, b"x")
        while True: signal.pause()
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    children.append(pid)
"""


@pytest.fixture
def family(make_group, make_actor) -> Snapshot:
    """Of four processes that rest, and share memory."""
    group = make_group("family")
    actor = make_actor(group)
    actor.do(FAMILY)
    until(lambda: all(sleeps(pid) for pid in (actor.pid, *actor.do("children"))))
    taken = take(Tree(), group.spec, pss=True)
    assert len(taken.processes) == 1 + CHILDREN
    assert taken.hidden_processes == 0
    return taken


def sleeps(pid: int) -> bool:
    """Whether it is where it waits: what is on its way there may yet touch pages."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def shown(snapshot: Snapshot) -> dict[str, int | None]:
    return {one.figure: one.shown_bytes for one in tools(snapshot).shown}


def pids(snapshot: Snapshot) -> list[str]:
    return [str(process.pid) for process in snapshot.processes]


def run(*command: str) -> list[list[str]]:
    """The words of what a tool of procps prints, by lines."""
    if not shutil.which(command[0]):
        pytest.skip(f"there is no {command[0]} (procps)")
    place = os.environ | {"LC_ALL": "C", "HOME": "/nonexistent", "XDG_CONFIG_HOME": "/nonexistent", "TERM": "dumb"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=facts.PATIENCE_S, check=False, env=place)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.kernel
def test_ps(family):
    rows = run("ps", "-o", "rss=,vsz=", "-p", ",".join(pids(family)))
    assert len(rows) == 1 + CHILDREN
    told = shown(family)
    assert told["RES, RSS"] == sum(int(rss) for rss, _ in rows) * 1024
    assert told["VIRT, VSZ"] == sum(int(vsz) for _, vsz in rows) * 1024


@pytest.mark.kernel
def test_top(family):
    words = run("top", "-b", "-n", "1", "-e", "k", "-p", ",".join(pids(family)))
    [head] = [i for i, line in enumerate(words) if line[:1] == ["PID"]]
    rows = [dict(zip(words[head], line, strict=False)) for line in words[head + 1 :] if line]
    assert {row["PID"] for row in rows} == set(pids(family))
    told = shown(family)
    for figure, column in (("RES, RSS", "RES"), ("VIRT, VSZ", "VIRT"), ("SHR", "SHR")):
        assert told[figure] == sum(int(row[column]) for row in rows) * 1024, column


@pytest.mark.kernel
def test_psutil(family):
    psutil = pytest.importorskip("psutil")
    every = [psutil.Process(process.pid).memory_info() for process in family.processes]
    told = shown(family)
    assert told["RES, RSS"] == sum(one.rss for one in every)
    assert told["VIRT, VSZ"] == sum(one.vms for one in every)
    assert told["SHR"] == sum(one.shared for one in every)


@pytest.mark.kernel
def test_resident_is_anonymous_files_and_shared(family):
    for process in family.processes:
        status = process.status
        assert status["VmRSS"] == status["RssAnon"] + status["RssFile"] + status["RssShmem"] == process.rss_bytes
        assert status["RssFile"] + status["RssShmem"] == process.shared_bytes
        assert status["VmSize"] == process.virtual_bytes
        assert status["RssAnon"] >= SHARED - UNTOLD
        assert status["RssShmem"] >= FILE - UNTOLD
    told = shown(family)
    assert told["VmRSS"] == told["RES, RSS"]
    assert told["VmSize"] == told["VIRT, VSZ"]
    assert told["VmHWM"] >= told["VmRSS"]
    assert told["VmPeak"] >= told["VmSize"]


@pytest.mark.kernel
def test_fair_shares(family):
    """Whose sum counts once what RES counts four times. Libraries are shared with the tests' own process, too."""
    told = shown(family)
    if told["PSS"] is None:
        pytest.skip("smaps_rollup of other processes may not be read here, or is not there")
    again = CHILDREN * (SHARED + FILE)
    own = SHARED + FILE + CHILDREN * PRIVATE
    assert own <= told["PSS"] <= told["RES, RSS"] - again + len(family.processes) * UNTOLD
    assert f"{len(family.processes)} processes" in " ".join(tools(family).says)
    psutil = pytest.importorskip("psutil")
    full = [psutil.Process(process.pid).memory_full_info() for process in family.processes]
    assert sum(one.uss for one in full) <= told["PSS"]
    assert told["PSS"] == pytest.approx(sum(one.pss for one in full), abs=8 * MIB)  # others come and go who have libraries


@pytest.mark.kernel
def test_the_group_is_charged_once_for_what_is_shared(make_group, make_actor):
    group = make_group("family")
    make_actor(group).do(FAMILY)

    def told() -> dict[str, int | None]:
        return shown(take(Tree(), group.spec))

    charged = SHARED + CHILDREN * PRIVATE
    until(lambda: told()["container_memory_rss"] >= charged)  # memory.stat may be 2 s old
    figures = told()
    assert figures["container_memory_rss"] < figures["RES, RSS"] - CHILDREN * (SHARED + FILE)
    until(lambda: told()["container_memory_cache"] >= FILE)
    assert charged + FILE <= told()["container_memory_usage_bytes"] < figures["RES, RSS"] - CHILDREN * SHARED
