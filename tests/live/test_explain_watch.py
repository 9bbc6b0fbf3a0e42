# SPDX-License-Identifier: Apache-2.0
"""The seconds before an explanation, of groups in which something really moves."""

from __future__ import annotations

import json
import os
import sys
import threading

import facts
import pytest
from actor import MIB, lock_is_free, start, threads, until
from fullness import run_in_full
from pressure import LIMIT, counted

from pymemcg import resolve
from pymemcg.errors import TargetError
from pymemcg.explain._snapshot import StallsSeen
from pymemcg.explain._watch import watch
from pymemcg.once import read_limits

pytestmark = pytest.mark.live

SECONDS = 3.0

# 10 MiB a second; who reads `grown` knows how fast it really was.
GROWS = """
import mmap, threading
grown = []
def grow():
    for _ in range(300):
        grown.append((time.monotonic(), mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)))
        for at in range(0, 1 << 20, 4096): grown[-1][1][at] = 1
        time.sleep(0.1)
threading.Thread(target=grow, daemon=True).start()
"""
READS = """
import threading
def read():
    with open({path!r}, "rb", buffering=0) as file:
        while True:
            file.seek(0)
            while file.read(1 << 20): pass
threading.Thread(target=read, daemon=True).start()
"""
IN_A_FULL_CONTAINER = """
import json, sys
from dataclasses import asdict
from pymemcg.explain._watch import watch
print(json.dumps(asdict(watch("self", 1)) | {"modules": list(sys.modules)}))
"""


def name_of(group) -> str:
    return resolve(group.spec).levels[0].name


def seen_by(told) -> StallsSeen:
    """Who watches has to pay for a sampler, and lives in a group, too."""
    room = read_limits(resolve())["headroom_bytes"]
    if room is not None and room < 128 * MIB:
        pytest.skip(f"the tests' own group has only {room} bytes left")
    assert told.why_no_stalls is None
    return told.stalls


@pytest.mark.kernel
def test_growth_is_as_fast_as_it_is(make_group, make_actor):
    group = make_group("growth")
    actor = make_actor(group)
    actor.do(GROWS)
    until(lambda: actor.do("len(grown)") > 2)
    told = watch(group.spec, SECONDS)
    count, seconds = actor.do("len(grown)"), actor.do("round(1e6 * (grown[-1][0] - grown[0][0]))") / 1e6
    rate = (count - 1) * MIB / seconds
    assert rate / 3 < told.growth_bytes_per_s < rate * 3
    assert rate / 3 < told.anon_growth_bytes_per_s < rate * 3
    assert told.anon_grows is True
    assert told.seconds >= SECONDS
    assert told.stat["pgfault"] > 0
    assert told.vmstat["pgfault"] > 0


@pytest.mark.kernel
def test_who_rests_does_not_grow_and_hits_nothing(make_group, make_actor):
    group = make_group("rests", limit_bytes=64 * MIB)
    actor = make_actor(group)
    actor.do("kept = bytearray(b'x') * (16 << 20)")
    told = watch(group.spec, SECONDS)
    assert abs(told.growth_bytes_per_s) < MIB  # CPUs give back what they had charged in advance,
    assert abs(told.anon_growth_bytes_per_s) < MIB  # and memory.stat still had to add something up
    assert told.events[name_of(group)]["max"] == 0
    seen = seen_by(told)
    assert (seen.count, seen.unknown) == (0, 0)


@pytest.mark.kernel
def test_reading_at_the_limit_is_seen(make_group, make_actor, scratch):
    group = make_group("reads", limit_bytes=LIMIT)
    path = scratch / "data"
    path.write_bytes(os.urandom(MIB) * (2 * LIMIT // MIB))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # or it stays charged to the tests' group
    actor = make_actor(group)
    before = counted(group, "max")
    actor.do(READS.format(path=str(path)))
    until(lambda: counted(group, "max") > before)
    before_it = threads()
    told = watch(group.spec, SECONDS)
    until(lambda: threads() == before_it)
    assert lock_is_free(group.directory)
    assert 0 < told.events[name_of(group)]["max"] <= counted(group, "max") - before
    assert any(name.startswith("workingset_refault") for name in told.vmstat)
    assert "workingset_nodes" not in told.vmstat
    assert told.anon_grows is False
    seen = seen_by(told)
    assert seen.count or seen.harmless_ns or seen.unknown
    assert set(seen.evidence) <= facts.evidence(group.directory, group.cgroup2_directory)
    if {"trace", "psi"} & set(seen.evidence):
        assert seen.stall_ns is not None
        assert seen.harmless_ns is not None
        assert sum(seen.causes.values()) == seen.count
    else:
        assert (seen.count, seen.stall_ns, seen.harmless_ns) == (0, None, None)


def test_a_sampler_that_runs_is_asked_and_goes_on(make_group, make_actor):
    group = make_group("sampled")
    actor = make_actor(group)
    assert start(actor) == "sampling"
    seen_by(watch(group.spec, 0.5))
    assert actor.do("s.role") == "sampling"
    assert actor.do("s.usage.closed") is None
    assert not lock_is_free(group.directory)


# ---- In a container that is full -----------------------------------------------------------------------------------


def test_in_a_full_container_nothing_is_sampled_and_that_is_said(make_group, tmp_path):
    full, done = run_in_full(make_group, tmp_path, sys.executable, "-c", IN_A_FULL_CONTAINER)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["stalls"] is None
    assert "less than 64 MiB left" in told["why_no_stalls"]
    assert told["growth_bytes_per_s"] is not None
    assert told["events"][name_of(full)]["max"] is not None
    assert not {"numpy", "pymemcg.sampler"} & set(told["modules"])


def test_it_is_whoever_watches_who_needs_room(make_group, make_actor):
    """A group beside it that has no limit is not sampled, either; and one that is full is, from where there is room."""
    pod = make_group("pod", limit_bytes=48 * MIB)
    inner, other = pod.child("inner"), make_group("other")
    actor = make_actor(inner)
    actor.do("from pymemcg.explain._watch import watch")
    for spec in ("self", other.spec):
        actor.do(f"told = watch({spec!r}, 0.1)")
        assert "less than 64 MiB left" in actor.do("told.why_no_stalls")
        assert not actor.do("'numpy' in sys.modules")
    assert seen_by(watch(inner.spec, 0.1)).count == 0


def test_where_sampling_is_disabled_that_is_said(make_group, make_actor):
    told = make_actor(make_group("disabled"), env={"PYMEMCG_DISABLE": "1"})
    told.do("from pymemcg.explain._watch import watch")
    assert "PYMEMCG_DISABLE" in told.do("watch('self', 0.1).why_no_stalls")


# ---- Groups that go away ---------------------------------------------------------------------------------------------


@pytest.fixture
def in_a_while():
    """Does something while a group is watched."""
    timers = []

    def begin(what) -> None:
        timers.append(threading.Timer(1, what))
        timers[-1].start()

    yield begin
    for timer in timers:
        timer.join()


def test_a_group_that_vanishes_is_no_target_any_more(make_group, in_a_while):
    group, before = make_group("short"), threads()
    in_a_while(group.close)
    with pytest.raises(TargetError, match=group.directory):
        watch(group.spec, 2)
    until(lambda: threads() == before)


def test_a_process_that_ends_is_no_target_any_more(make_group, make_actor, in_a_while):
    actor = make_actor(make_group("short"))
    in_a_while(actor.kill)
    with pytest.raises(TargetError, match=str(actor.pid)):
        watch(f"pid:{actor.pid}", 2)


def test_what_moves_is_not_told_of_two_groups(make_group, make_actor, in_a_while):
    group, other = make_group("from"), make_group("to")
    actor = make_actor(group)
    in_a_while(lambda: other.add(actor.pid))
    with pytest.raises(TargetError, match="another group than a moment ago"):
        watch(f"pid:{actor.pid}", 2)


def test_a_group_that_was_made_anew_is_another(make_group, in_a_while):
    group = make_group("again")

    def again() -> None:
        group.close()
        make_group("again")

    in_a_while(again)
    with pytest.raises(TargetError, match="another group than a moment ago"):
        watch(group.spec, 2)
