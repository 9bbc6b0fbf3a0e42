# SPDX-License-Identifier: Apache-2.0
"""What moved in a few seconds: trends, and differences of counters. The watch itself is shown live."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fakecgroup import DATA, KERNELS, FakeMachine
from hypothesis import given
from hypothesis import strategies as st
from madestalls import MS, stall

from pymemcg import metrics
from pymemcg._stall import Stall
from pymemcg.cgroup import resolve
from pymemcg.errors import TargetError
from pymemcg.explain._watch import Ends, anonymous, counters, grows, happened, moved, tally, trend, trend_of_stat, watch
from pymemcg.schema import stat_fields

MIB = 1 << 20


def keyed(path: Path) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in path.read_text().splitlines())}


# ---- Trends --------------------------------------------------------------------------------------------------------


def test_the_trend_of_a_line_is_its_slope():
    assert trend([(i / 10, 1000 + 7 * i) for i in range(30)]) == pytest.approx(70)


def test_spikes_do_not_move_it():
    points = [(i / 10, 50 * i + (64 * MIB if i % 5 == 0 else 0)) for i in range(30)]
    assert trend(points) == pytest.approx(500)


@pytest.mark.parametrize("points", [[], [(0.0, 5)], [(1.0, 5), (1.0, 9)]])
def test_without_two_times_there_is_no_trend(points):
    assert trend(points) is None


@given(st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 1 << 40)), max_size=40))
def test_it_is_that_of_metrics(rows):
    """By the formula with which the sampler's figures are made; ms become ns there and seconds here."""
    rows.sort(key=lambda row: row[0])
    expected = metrics.growth([ms * 10**6 for ms, _ in rows], [usage for _, usage in rows])
    found = trend([(ms / 1e3, usage) for ms, usage in rows])
    assert (found is None) == math.isnan(expected)
    if found is not None:
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-3)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], True),
        ([5, 5, 5, 5, 5, 5, 5, 6, 6, 6], True),
        ([5] * 10, False),
        ([1, 9, 1, 9, 1, 9, 1, 9, 1, 9], False),  # a heap that breathes
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 2], False),  # and was collected just now
        ([10, 9, 8, 7, 6, 5], False),
        ([1, 1, 3, 3, 3, 3, 3, 3, 5, 5], True),  # added up every 2 s only
        ([1, 5, 5, 5, 5, 5, 5, 5, 5, 5], False),
        ([1, 3, 5, 5, 5, 5, 5, 5, 5, 5], False),  # a start, and it is over
        ([1, 2, 3], True),
        ([1, 2], None),
        ([], None),
    ],
)
def test_growing_is_no_breathing(counts, expected):
    assert grows(counts) is expected


@pytest.mark.parametrize("phase", range(20))
def test_figures_that_the_kernel_adds_up_every_2_s_still_grow(phase):
    """As on machines with many CPUs: 1 MiB/s, looked at every 0.3 s, at whatever time before the next sum."""
    since = [(look * 0.3 - phase / 10) // 2 * 2 for look in range(10)]
    points = [(look * 0.3, int((100 + seconds) * MIB)) for look, seconds in enumerate(since)]
    assert grows([count for _, count in points])
    assert 0.7 * MIB < trend_of_stat(points) < 1.5 * MIB


def test_the_trend_of_figures_that_change_is_the_median():
    points = [(i / 10, 50 * i + (64 * MIB if i % 5 == 0 else 0)) for i in range(10)]
    assert trend_of_stat(points) == trend(points)
    assert trend_of_stat([]) is None


def test_memory_without_a_file_is_not_known_in_part():
    assert anonymous({"anon": 3, "shmem": 4, "file": 9}) == 7
    assert anonymous({"anon": 3}) is None
    assert anonymous({}) is None


# ---- Counters ------------------------------------------------------------------------------------------------------


def test_what_rose_is_told_and_what_went_backwards_is_not():
    before = {"rose": 1, "stayed": 5, "fell": 9, "gone": 3}
    after = {"rose": 4, "stayed": 5, "fell": 2, "new": 7}
    assert moved(before, after) == {"rose": 3}
    assert happened(before, after) == {"rose": 3, "stayed": 0}


@pytest.mark.parametrize("kernel", KERNELS)
def test_amounts_are_no_counters(kernel):
    """Those of memory.stat are in bytes; of vmstat their names begin with nr_, but for one."""
    group = DATA / kernel / "sys/fs/cgroup" / ("memory" if kernel in ("6.1-v1", "6.18-hybrid") else "") / "pmc-parent/pmc-child"
    raw = keyed(group / "memory.stat")
    fields = stat_fields(raw, 1 if "cache" in raw else 2)
    found = counters({field.name: raw[field.key] for field in fields})
    assert not {field.name for field in fields if field.unit == "bytes"} & found.keys()
    assert {"pgfault", "pgmajfault", "workingset_refault_file"} <= found.keys()
    node = counters(keyed(DATA / kernel / "proc/vmstat"))
    assert not [name for name in node if name.startswith("nr_") or name == "workingset_nodes"]
    assert {"pgfault", "pswpin", "pswpout", "allocstall_normal", "workingset_refault_anon", "oom_kill"} <= node.keys()


@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_a_limit_that_was_not_hit_is_known_not_to_have_been(tmp_path, layout):
    machine = web_in_pod(tmp_path, layout)
    first = ends(machine)
    machine.group("/pod/web", limit=32 * MIB, hits=9)
    assert between(first, ends(machine)) == {"/pod/web": 4, "/pod": 0}


def test_an_ancestors_hits_are_those_of_its_own_limit(tmp_path):
    machine = web_in_pod(tmp_path, "v2")
    first = ends(machine)
    machine.group("/pod", memory__events="max 1000", memory__events__local="max 8")  # most of them below it
    assert between(first, ends(machine))["/pod"] == 1
    (machine.memory / "pod/memory.events.local").unlink()  # 4.19 has none
    assert between(first, ends(machine))["/pod"] == 993


@pytest.mark.parametrize(("counted", "told"), [(0, None), (3, 40)])
def test_where_memorys_counter_is_silent_that_of_memory_and_swap_is_read(tmp_path, counted, told):
    """Where both limits are the same, and 0 may be that of a kernel that counts in neither."""
    machine = web_in_pod(tmp_path, "v1")
    same = {"memory__memsw__limit_in_bytes": 32 * MIB}
    machine.group("/pod/web", limit=32 * MIB, hits=5, **same, memory__memsw__failcnt=counted)
    first = ends(machine)
    machine.group("/pod/web", limit=32 * MIB, hits=6, **same, memory__memsw__failcnt=counted + 40)
    assert between(first, ends(machine)).get("/pod/web") == told


def web_in_pod(tmp_path: Path, layout: str) -> FakeMachine:
    machine = FakeMachine(tmp_path, layout)
    machine.group("/pod", limit=64 * MIB, hits=7)
    machine.group("/pod/web", limit=32 * MIB, hits=5)
    machine.process(100, "/pod/web")
    machine.become(100)
    return machine


def ends(machine: FakeMachine) -> Ends:
    return Ends(resolve("cgroup:/pod/web", root=machine.root))


def between(first: Ends, last: Ends) -> dict[str, int]:
    """Level to hits of its limit, where they are known."""
    told = {name: happened(events, last.events[name]) for name, events in first.events.items()}
    return {name: events["max"] for name, events in told.items() if "max" in events and name != "/"}


# ---- Stalls --------------------------------------------------------------------------------------------------------


def long(ms: int, **known: object) -> Stall:
    return stall(0, harmless=False, stall_ns=ms * MS, **known)


def test_stalls_add_up_by_cause():
    harmless, unknown = stall(0, harmless=True, stall_ns=MS // 2), stall(0, evidence=("counters",))
    told = tally([long(3), long(12, cause="thrash"), long(2), harmless, unknown], ("trace", "psi", "counters"))
    assert (told.count, told.stall_ns, told.worst_ns) == (3, 17 * MS, 12 * MS)
    assert told.causes == {"limit": 2, "thrash": 1}
    assert (told.unknown, told.harmless_ns) == (1, MS // 2)


def test_none_is_no_time_where_something_tells_of_time():
    told = tally([], ("psi", "counters"))
    assert (told.count, told.stall_ns, told.worst_ns, told.harmless_ns) == (0, 0, None, 0)


@pytest.mark.parametrize("evidence", [("counters",), ("wchan", "counters"), ()])
def test_none_is_not_known_where_nothing_tells_of_time(evidence):
    told = tally([stall(0, evidence=evidence)] if evidence else [], evidence)
    assert (told.count, told.unknown) == (0, len(evidence) > 0)
    assert (told.stall_ns, told.worst_ns, told.harmless_ns) == (None, None, None)


def test_one_without_a_time_leaves_the_sum_unknown():
    told = tally([long(3), replace(long(2), stall_ns=None)], ("psi",))
    assert (told.count, told.stall_ns, told.worst_ns) == (2, None, 3 * MS)


def test_without_numpy_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    told = watch("self", 0.01)
    assert (told.stalls, told.why_no_stalls) == (None, "numpy is not installed, which a sampler needs")
    assert told.seconds >= 0.01


@pytest.mark.parametrize("spec", ["pid:0", "cgroup:/pymemcg-no-such-group", "nonsense"])
def test_what_is_no_target_is_said_before_anything_is_watched(spec):
    with pytest.raises(TargetError):
        watch(spec, 3600)
