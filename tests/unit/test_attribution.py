# SPDX-License-Identifier: Apache-2.0
"""What spans lost, from spans and moments made up here; and against a slow version that adds up nanosecond by nanosecond."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymemcg import _attribution
from pymemcg._ffi import NONE
from pymemcg._moments import COUNTERS, PSI, TRACE, Moments

PID = 100
MS = 1_000_000


def spans(*rows, **columns):
    """Rows of (start, end, tid), each with what `columns` say."""
    made = {
        "start_ns": [row[0] for row in rows],
        "end_ns": [row[1] for row in rows],
        "tid": [row[2] for row in rows],
        "ran_start_ns": [row[0] for row in rows],
        "ran_end_ns": [row[1] for row in rows],
        "name_id": [0] * len(rows),
        "ref_id": [-1] * len(rows),
        "attribution": [1] * len(rows),
    } | columns
    return {name: np.array(values, np.int64) for name, values in made.items()}


def traced(*rows, **columns):
    """Moments of (start, end, tid)."""
    start, end, tid = (np.array(values, np.int64) for values in zip(*rows, strict=True)) if rows else ([], [], [])
    held = np.asarray(end) - np.asarray(start)
    known = {"held_ns": held, "lo_ns": held, "hi_ns": held, "pid": PID, "tid": tid} | columns
    return Moments.of(start, end, evidence=TRACE, **known)


def guessed(*rows):
    """Moments of nobody in particular: (start, end, held, lo, hi)."""
    start, end, held, lo, hi = (np.array(values, np.int64) for values in zip(*rows, strict=True))
    return Moments.of(start, end, evidence=PSI, held_ns=held, lo_ns=lo, hi_ns=hi)


def losses(rows, moments, *, known=True):
    return _attribution.losses(rows, moments, pid=PID, traced=known)


class TestTrace:
    def test_own_time_is_cut_to_the_span(self):
        found = losses(spans((100, 200, 1)), traced((50, 110, 1), (150, 160, 1), (190, 300, 1)))
        assert found.own_ns.tolist() == [30]
        assert found.others_ns.tolist() == [0]
        assert found.lost_ns.tolist() == found.lo_ns.tolist() == found.hi_ns.tolist() == [30]
        assert found.evidence.tolist() == [1 << TRACE]

    def test_a_span_without_any_is_not_hit(self):
        found = losses(spans((100, 200, 1), (300, 400, 1)), traced((200, 300, 1)))
        assert not found.hit.any()
        assert found.own_ns.tolist() == [0, 0]

    def test_an_interval_that_never_ended_was_over_when_its_thread_went_on(self):
        """A worker that sampled was recycled meanwhile; the ring has what its successor saw, too."""
        rows = spans((0, 100, 1), (60, 100, 1), (120, 200, 1), (300, 400, 1))
        moments = traced((50, NONE, 1), (310, 320, 1), held_ns=[NONE, 10], lo_ns=[NONE, 10], hi_ns=[NONE, 10])
        assert losses(rows, moments).own_ns.tolist() == [10, 0, 0, 10]

    def test_what_lies_inside_another_interval_counts_once(self):
        assert losses(spans((0, 100, 1)), traced((10, 50, 1), (20, 30, 1), (40, 60, 1))).own_ns.tolist() == [50]

    def test_time_of_others_is_a_union_and_only_of_this_process(self):
        moments = traced((10, 30, 2), (20, 40, 3), (35, 50, 1), (60, 70, 4), pid=[PID, PID, PID, PID + 1])
        found = losses(spans((0, 100, 1)), moments)
        assert found.own_ns.tolist() == [15]
        assert found.others_ns.tolist() == [30]
        assert found.hi_ns.tolist() == [40], "the two overlap"
        assert found.lost_ns.tolist() == [15]

    def test_a_wait_for_a_cpu_is_not_lost_to_reclaim(self):
        rows = spans((0, 10 * MS, 1), (0, 4 * MS, 1))
        found = losses(rows, traced((2 * MS, 6 * MS, 1), held_ns=[MS], lo_ns=[MS], hi_ns=[MS]))
        assert found.own_ns.tolist() == [4 * MS, 2 * MS]
        assert found.lost_ns.tolist() == found.lo_ns.tolist() == [MS, MS // 2]

    def test_of_short_intervals_the_bound_of_such_waits_is_too_wide(self):
        found = losses(spans((0, 100, 1)), traced((20, 60, 1), held_ns=[0], lo_ns=[0], hi_ns=[0]))
        assert (found.lo_ns.tolist(), found.lost_ns.tolist(), found.own_ns.tolist()) == ([0], [40], [40])

    def test_a_pool_thread_s_time_counts_while_it_works_for_the_span(self):
        rows = spans((0, 100, 7), attribution=[2], ran_start_ns=[40], ran_end_ns=[60])
        found = losses(rows, traced((30, 50, 7), (55, 70, 8)))
        assert found.own_ns.tolist() == [10]
        assert found.others_ns.tolist() == [25], "before it began with it, and the other thread's"

    def test_every_span_in_flight_is_hit_while_their_loop_is_held(self):
        found = losses(spans((0, 100, 1), (20, 120, 1), (90, 95, 1)), traced((50, 92, 1)))
        assert found.own_ns.tolist() == [42, 42, 2]

    def test_an_interval_that_never_ended_tells_nothing_of_its_own(self):
        found = losses(spans((0, 100, 1)), traced((50, NONE, 1), held_ns=[NONE], lo_ns=[NONE], hi_ns=[NONE]))
        assert found.lost_ns.tolist() == [0]
        assert found.hi_ns.tolist() == [50]

    def test_without_tracepoints_own_time_is_not_known(self):
        found = losses(spans((0, 100, 1)), Moments.none(), known=False)
        assert found.own_ns.tolist() == found.others_ns.tolist() == [NONE]
        assert found.lost_ns.tolist() == [0]

    def test_no_spans(self):
        assert losses(spans(), traced((50, 92, 1))).hit.size == 0


class TestGuesses:
    def test_the_only_span_in_flight_lost_it(self):
        found = losses(spans((0, 10 * MS, 1)), guessed((3 * MS, 6 * MS, 2 * MS, 1 * MS, 3 * MS)), known=False)
        assert found.lo_ns.tolist() == [1 * MS]
        assert found.lost_ns[0] == pytest.approx(2 * MS, rel=0.02)
        assert found.hi_ns.tolist() == [3 * MS]
        assert found.evidence.tolist() == [1 << PSI]

    def test_of_a_moment_that_reaches_out_only_what_cannot_lie_outside_is_sure(self):
        found = losses(spans((0, 4 * MS, 1)), guessed((3 * MS, 6 * MS, 2 * MS, 2 * MS, 3 * MS)), known=False)
        assert found.lo_ns.tolist() == [0]
        assert found.hi_ns.tolist() == [1 * MS]

    def test_of_spans_of_several_threads_none_is_sure(self):
        found = losses(spans((0, 9 * MS, 1), (1, 9 * MS, 2)), guessed((3 * MS, 6 * MS, 2 * MS, 1 * MS, 3 * MS)), known=False)
        assert found.lo_ns.tolist() == [0, 0]
        assert found.hi_ns.tolist() == [3 * MS] * 2

    def test_short_spans_one_after_the_other_are_one_thread(self):
        rows = spans(*((i * MS, (i + 1) * MS - 1, 1) for i in range(10)))
        found = losses(rows, guessed((0, 10 * MS, 5 * MS, 5 * MS, 10 * MS)), known=False)
        assert int(found.lost_ns.sum()) == pytest.approx(5 * MS, rel=0.02)

    def test_a_span_that_took_no_longer_than_usual_lost_nothing(self):
        clean = [(i * 100 * MS, i * 100 * MS + 2 * MS, 1) for i in range(20)]
        rows = spans(*clean, (5000 * MS, 5002 * MS, 2), (5000 * MS, 5010 * MS, 3))
        found = losses(rows, guessed((5000 * MS, 5002 * MS, 2 * MS, 1 * MS, 2 * MS)), known=False)
        assert found.lost_ns[-2] == 0
        assert found.lost_ns[-1] == pytest.approx(2 * MS, rel=0.05)
        assert found.hi_ns[-2:].tolist() == [2 * MS, 2 * MS]

    def test_a_long_tick_bounds_a_span_only_by_its_own_length(self):
        hit, unhit = (
            Moments.of([0], [60 * MS], evidence=PSI, held_ns=MS, lo_ns=MS // 2, hi_ns=2 * MS, hits=hits) for hits in (5, 0)
        )
        assert losses(spans((10 * MS, 20 * MS, 1)), hit).hi_ns.tolist() == [10 * MS]
        assert losses(spans((10 * MS, 20 * MS, 1)), unhit).hi_ns.tolist() == [2 * MS]

    def test_counters_alone_say_when_and_what_spans_take_when_hit_how_much(self):
        clean = [(i * 100 * MS, i * 100 * MS + 2 * MS, 1) for i in range(20)]
        hits = Moments.of([5001 * MS, 6001 * MS], [5002 * MS, 6002 * MS], evidence=COUNTERS, hits=[8, 16])
        found = losses(spans(*clean, (5000 * MS, 5010 * MS, 1), (6000 * MS, 6018 * MS, 1)), hits, known=False)
        assert found.lost_ns[:-2].tolist() == [0] * 20
        assert found.lost_ns[-2:] == pytest.approx([4 * MS, 8 * MS], rel=0.05), "half of what goes along with hits"
        assert found.hi_ns[-2:].tolist() == [9 * MS, 17 * MS]

    def test_over_many_ticks_it_shows_which_kind_of_work_reclaims(self):
        """Ticks of 100 ms hold one span of each kind; only in some of them the one kind was there, and only those were hit."""
        rows, names, moments = [], [], []
        for i in range(40):
            at = 100 * MS * i
            rows.append((at + 10 * MS, at + 20 * MS, 1))
            names.append(0)
            if i % 2:
                rows.append((at + 50 * MS, at + 60 * MS, 1))
                names.append(1)
                moments.append((at, at + 100 * MS, 4 * MS, 2 * MS, 8 * MS))
        found = losses(spans(*rows, name_id=names), guessed(*moments), known=False)
        lost = found.lost_ns
        assert (lost[np.array(names) == 0] < MS // 10).all()
        assert lost[np.array(names) == 1] == pytest.approx(4 * MS, rel=0.05)

    def test_counters_alone_say_nothing_of_a_span_that_is_not_known_otherwise(self):
        found = losses(spans((0, 10 * MS, 1)), Moments.of([MS], [2 * MS], evidence=COUNTERS), known=False)
        assert found.lost_ns.tolist() == [NONE]
        assert found.hi_ns.tolist() == [9 * MS]
        assert found.evidence.tolist() == [1 << COUNTERS]


TIMES = st.integers(0, 60)
PIECE = st.tuples(TIMES, st.integers(0, 25), st.integers(1, 4)).map(lambda row: (row[0], row[0] + row[1], row[2]))


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECE, min_size=1, max_size=8), st.lists(PIECE, max_size=12), st.sets(st.integers(1, 4)))
def test_it_is_what_one_adds_up_by_hand(of_spans, of_moments, foreign):
    moments = sorted(of_moments)
    pids = [PID + (tid in foreign) for _, _, tid in moments]
    found = losses(spans(*of_spans), traced(*moments, pid=np.array(pids, np.int64)))
    mine = {tid for _, _, tid in of_spans}
    for i, (start, end, tid) in enumerate(of_spans):
        own, others = set(), set()
        for (since, until, who), pid in zip(moments, pids, strict=True):
            inside = set(range(max(start, since), min(end, until)))
            if who == tid:
                own |= inside
            elif pid == PID or who in mine:
                others |= inside
        assert found.own_ns[i] == len(own)
        assert found.others_ns[i] == len(others)
        assert found.hi_ns[i] == len(own | others)
        assert found.lo_ns[i] <= found.lost_ns[i] <= found.hi_ns[i]


VAGUE = st.tuples(TIMES, st.integers(1, 25), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECE, min_size=1, max_size=8), st.lists(VAGUE, min_size=1, max_size=8))
def test_guesses_keep_their_order_and_stay_inside_the_span(of_spans, of_moments):
    rows = []
    for start, length, *shares in sorted(of_moments):
        lo, held, hi = (round(share * length) for share in sorted(shares))
        rows.append((start, start + length, held, lo, hi))
    found = losses(spans(*of_spans), guessed(*rows), known=False)
    for i, (start, end, _) in enumerate(of_spans):
        assert 0 <= found.lo_ns[i] <= found.lost_ns[i] <= found.hi_ns[i] <= end - start


class TestLooped:
    def test_spans_that_cross_on_one_thread_took_turns(self):
        rows = spans((0, 10, 1), (5, 15, 1), (7, 9, 1), (20, 30, 1), (5, 15, 2))
        assert _attribution.looped(rows).tolist() == [3, 3, 3, 1, 1]

    def test_spans_inside_of_each_other_did_not(self):
        assert _attribution.looped(spans((0, 10, 1), (2, 8, 1), (3, 4, 1), (10, 12, 1))).tolist() == [1, 1, 1, 1]

    @pytest.mark.parametrize("said", [2, 3])
    def test_what_is_known_stays(self, said):
        assert _attribution.looped(spans((0, 10, 1), (5, 15, 1), attribution=[said, said])).tolist() == [said, said]

    def test_none(self):
        assert _attribution.looped(spans()).size == 0
