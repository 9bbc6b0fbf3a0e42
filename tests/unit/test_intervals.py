# SPDX-License-Identifier: Apache-2.0
"""The rule of what harms somebody, against a slow and plain version of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rowwriter import MS, T0, held

from pymemcg import Policy
from pymemcg._ffi import NONE
from pymemcg._intervals import Judged, added_ns, from_rows, usable
from pymemcg._moments import COUNTERS, PSI, TRACE, WCHAN, Moments

POLICY = Policy()
US = 1000


def judged(*rows: tuple[float, float, int]) -> Judged:
    moments = from_rows({name: np.asarray(v, np.int64) for name, v in held(*sorted(rows, key=lambda row: row[0])).items()})
    return Judged(moments, moments.end_ns, POLICY)


@pytest.mark.parametrize(
    ("rows", "harmed", "part"),
    [
        ([(0, 1, 1)], [True], [True]),
        ([(0, 0.999, 1)], [False], [False]),
        ([(0, 0.6, 1), (3, 0.6, 1)], [True, True], [True, True]),  # in all, within 10 ms
        ([(0, 0.6, 1), (3, 0.6, 2)], [False, False], [False, False]),  # not by one thread
        ([(0, 0.6, 1), (7, 0.6, 1)], [False, False], [False, False]),  # 5 ms apart: not of one stall
        ([(0, 0.01, 1), (4, 3, 1), (8, 0.1, 2), (30, 0.1, 1)], [False, True, False, False], [True, True, True, False]),
        ([(i * 4.9, 0.39, 1) for i in range(3)], [False] * 3, [False] * 3),  # 1.17 ms, but in 10.19 ms
        ([(i * 0.5, 0.005, 1) for i in range(100)], [False] * 100, [False] * 100),
    ],
)
def test_a_millisecond_of_one_thread_within_ten(rows, harmed, part):
    found = judged(*rows)
    assert found.harmed.tolist() == harmed
    assert found.part.tolist() == part


def test_what_is_nested_counts_once():
    found = judged((0, 0.6, 1), (0.1, 0.5, 1), (0.2, 0.1, 1))
    assert found.held_ns.tolist() == [600 * US, 0, 0]
    assert not found.harmed.any()


def test_a_long_stall_is_as_long_as_the_window():
    assert judged((0, 300, 1)).longest_ns.tolist() == [10 * MS]


def test_time_waiting_for_a_cpu_does_not_count():
    moments = from_rows({name: np.asarray(v, np.int64) for name, v in held((0, 4, 1), wait_ms=3.5).items()})
    found = Judged(moments, moments.end_ns, POLICY)
    assert moments.held_ns.tolist() == [500 * US]
    assert not found.harmed.any()


def test_a_wait_longer_than_its_interval_is_cut_and_an_unknown_one_is_not_taken_off():
    rows = {name: np.asarray(v, np.int64) for name, v in held((0, 4, 1), wait_ms=9).items()}
    assert from_rows(rows).held_ns.tolist() == [0]
    rows["cpu_wait_ns"][:] = NONE
    assert from_rows(rows).held_ns.tolist() == [4 * MS]
    assert from_rows(rows).cpu_wait_ns.tolist() == [NONE]


def test_a_thread_seen_asleep_is_no_interval_and_a_row_without_end_holds_for_nobody_knows_how_long():
    rows = {name: np.asarray(v, np.int64) for name, v in held((0, 0, 1), (1, 1, 2)).items()}
    rows["kind"][0], rows["end_ns"][1] = 5, NONE
    moments = from_rows(rows)
    assert moments.evidence.tolist() == [WCHAN, TRACE]
    assert moments.held_ns.tolist() == [NONE, NONE]


def test_rows_that_cannot_be():
    start_ns, end_ns = np.array([0, -5, NONE, 10, 10, 10, 10]), np.array([5, 5, NONE, 9, NONE, 11, 11])
    rows = {"start_ns": start_ns, "end_ns": end_ns, "tid": np.array([5, 5, 5, 5, 5, 0, 1 << 40])}
    assert usable(rows).tolist() == [False, False, False, False, True, False, False]


def test_a_psi_window_that_no_hit_dates_counts_by_its_share_of_time():
    """20 ms in 2 s are taken to be ten times as dense as if evenly spread: 1 ms in 10."""
    moments = Moments.of(
        [T0, T0 + 3000 * MS], [T0 + 2000 * MS, T0 + 5000 * MS], evidence=PSI, held_ns=[20 * MS, 19 * MS], hits=0
    )
    found = Judged(moments, moments.end_ns, POLICY)
    assert found.harmed.tolist() == [True, False]
    assert found.longest_ns[0] == MS


def test_a_long_tick_that_was_hit_may_have_held_for_all_it_knows_of():
    moments = Moments.of(T0, T0 + 200 * MS, evidence=PSI, held_ns=3 * MS, hits=4)
    assert Judged(moments, moments.end_ns, POLICY).longest_ns.tolist() == [3 * MS]


def test_without_durations_nothing_is_judged():
    moments = Moments.of([T0, T0 + MS], [T0 + MS, T0 + 2 * MS], evidence=COUNTERS, hits=3)
    found = Judged(moments, moments.end_ns, POLICY)
    assert not found.part.any()
    assert not Judged(Moments.none(), Moments.none().end_ns, POLICY).part.size


rows_of_threads = st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 3_000), st.integers(1, 3)), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(rows_of_threads)
def test_the_longest_of_all_windows_is_found(rows):
    """All windows that begin or end where an interval does, among moments that are of one chain."""
    rows = sorted(rows)
    start = np.array([T0 + at * US for at, _, _ in rows])
    end = start + np.array([us * US for _, us, _ in rows])
    tid = np.array([tid for *_, tid in rows])
    moments = Moments.of(start, end, evidence=TRACE, tid=tid, held_ns=end - start)
    found = Judged(moments, end, POLICY)
    expected = 0
    chain = np.cumsum([i > 0 and start[i] - end[:i].max() >= POLICY.join_ns for i in range(len(rows))])
    for c, t in {*zip(chain.tolist(), tid.tolist(), strict=True)}:
        mine = [(s, e) for s, e, k, m in zip(start, end, chain, tid, strict=True) if (k, m) == (c, t)]
        covered = np.zeros(65_000, bool)
        for s, e in mine:
            covered[(s - T0) // US : (e - T0) // US] = True
        sums = np.append(0, np.cumsum(covered))
        begins = {(s - T0) // US for s, _ in mine} | {max(0, (e - T0) // US - 10_000) for _, e in mine}
        expected = max(expected, *(int(sums[min(b + 10_000, 65_000)] - sums[b]) * US for b in begins))
    assert found.harmed.any() == (expected >= POLICY.least_ns)
    if found.harmed.any():
        assert found.longest_ns.max() == expected
        bad = list(zip(start[found.harmed], end[found.harmed], strict=True))
        near = [any(s - e < 5 * MS and b - f < 5 * MS for b, e in bad) for s, f in zip(start, end, strict=True)]
        assert found.part.tolist() == near


@settings(max_examples=100, deadline=None)
@given(rows_of_threads)
def test_wall_time_is_counted_once(rows):
    rows = sorted(rows)
    start = np.array([at for at, _, _ in rows])
    end = start + np.array([us for _, us, _ in rows])
    covered = np.zeros(70_000, bool)
    for s, e in zip(start, end, strict=True):
        covered[s:e] = True
    assert added_ns(start, end, 0).sum() == covered.sum()
