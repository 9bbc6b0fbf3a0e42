# SPDX-License-Identifier: Apache-2.0
"""How long PSI and counters say that threads were held, beside what tracepoints said at the same time (tests/data/stalls)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.fidelity import truth
from bench.fidelity.scores import Said, Score, score
from bench.fidelity.truth import Episode, Interval, Truth
from pymemcg._ffi import NONE
from pymemcg._moments import PSI, Moments
from pymemcg._psi import estimate
from pymemcg._psi_costs import Ticks, Windows

DATA = Path(__file__).resolve().parents[1] / "data" / "stalls"
MS = 1_000_000
CPUS = 2


class Captured:
    """A recording reduced to what the estimator needs, and its truth."""

    def __init__(self, name: str) -> None:
        with np.load(DATA / f"{name}.npz") as file:
            self.columns = {column: np.cumsum(file[column].astype(np.int64)) for column in file.files}
        of = self.columns
        self.ticks = Ticks(of["t_ns"], of["since_ns"], of["hits"], of["usage_pages"] * 4096, of["before_pages"] * 4096)
        self.windows = Windows(
            *(of[f"window_{column}"] for column in ("since_ns", "t_ns", "some_us", "full_us", "cpu_us", "cpu_wait_us"))
        )

    def episodes(self) -> list[Episode]:
        """The stalls that there were within the windows."""
        of = self.columns
        since, until = self.windows.since_ns[0], self.windows.t_ns[-1]
        intervals = [
            Interval(tid, "memcg", start * 1000, end * 1000, 0)
            for tid, start, end in zip(*(of[name].tolist() for name in ("tid", "start_us", "end_us")), strict=True)
            if start * 1000 > since and end * 1000 <= until
        ]
        waits: dict[int, list[tuple[int, int]]] = {}
        for tid, start, end in zip(*(of[f"wait_{name}"].tolist() for name in ("tid", "start_us", "end_us")), strict=True):
            waits.setdefault(tid, []).append((start * 1000, end * 1000))
        return truth.episodes(truth.of_intervals(Truth(intervals, waits)))


def told(moments: Moments) -> list[Said]:
    """The stalls that moments make, by the design's rules: what is closer than 5 ms is one, the most in 10 ms counts."""
    found = []
    breaks = np.flatnonzero(moments.start_ns[1:] - np.maximum.accumulate(moments.end_ns)[:-1] >= truth.JOIN_NS) + 1
    for index in np.split(np.arange(len(moments)), breaks):
        m = moments.take(index)
        if len(m) == 0:
            continue
        within = np.searchsorted(m.start_ns, m.start_ns + truth.WINDOW_NS - MS, side="right")
        sums = np.append(0, np.cumsum(m.held_ns))
        longest = min(int((sums[within] - sums[:-1]).max()), truth.WINDOW_NS)
        stall, low, high = (int(values.sum()) for values in (m.held_ns, m.lo_ns, m.hi_ns))
        end = int(m.end_ns.max())
        found.append(Said(int(m.start_ns[0]), end, stall, low, high, longest, longest < truth.LEAST_NS))
    return found


def judged(name: str) -> Score:
    captured = Captured(name)
    return score(captured.episodes(), told(estimate(captured.ticks, captured.windows, cpus=CPUS)))


CAPTURED = ("bursts", "one-of-four", "threads", "bursts-contended", "cache", "cache-contended", "busy")


class TestBesideTheTruth:
    """What is asked is less than what docs/evidence.md promises of long runs: an episode of these is 2 % of all."""

    @pytest.mark.parametrize(
        ("name", "recall", "precision", "covered"),
        [
            ("bursts", 0.93, 0.95, 0.85),
            ("one-of-four", 0.90, 0.90, 0.85),
            ("bursts-contended", 0.90, 0.95, 0.85),
            ("threads", 0.75, 0.95, 0.4),  # PSI shows half of it, see docs/evidence.md
        ],
    )
    def test_stalls(self, name, recall, precision, covered):
        found = judged(name)
        assert found.true >= 30
        assert found.recall >= recall
        assert found.precision >= precision
        assert found.covered >= covered

    @pytest.mark.parametrize("name", ["bursts", "threads"])
    def test_onset(self, name):
        assert np.percentile(np.abs(judged(name).onset_ns), 95) <= 2 * MS

    def test_width(self):
        found = judged("bursts")
        assert np.median(np.asarray(found.hi_ns) / found.lo_ns) <= 2.1

    @pytest.mark.parametrize("name", ["cache", "cache-contended", "busy"])
    def test_what_harms_nobody(self, name):
        """Short reclaims, the same while their thread has to wait for a CPU again and again, and a busy CPU without any."""
        captured = Captured(name)
        assert not any(episode.counts for episode in captured.episodes())
        assert captured.windows.cpu_wait_us.sum() > 0
        assert judged(name).told == 0

    def test_without_cpu_pressure(self):
        """Where the kernel does not tell of waiting, all of it is taken for reclaim: too many are told of, and none missed."""
        captured = Captured("bursts-contended")
        windows = replace(captured.windows, cpu_wait_us=None)
        found = score(captured.episodes(), told(estimate(captured.ticks, windows, cpus=CPUS)))
        assert found.recall >= 0.95

    @pytest.mark.parametrize("where", [slice(4), slice(3, None)])
    def test_outside_of_windows(self, where):
        """It is told by what units cost next to there."""
        captured = Captured("bursts")
        windows = Windows(*(getattr(captured.windows, name)[where] for name in Windows.__slots__))
        since, until = int(windows.since_ns[0]), int(windows.t_ns[-1])
        found = estimate(captured.ticks, windows, cpus=CPUS, outside=True)
        found = found.take((found.start_ns >= until) | (found.end_ns <= since))
        whole = estimate(captured.ticks, captured.windows, cpus=CPUS)
        whole = whole.take((whole.start_ns >= until) | (whole.end_ns <= since))
        assert found.held_ns.sum() == pytest.approx(whole.held_ns.sum(), rel=0.25)

    @pytest.mark.parametrize(("asleep", "held"), [(False, 2), (True, 702)])
    def test_a_sleep_that_goes_on_from_the_window_before(self, asleep, held):
        """700 ms of the second window are before its only hits, so that those cannot have held anybody for so long."""
        times = np.array([99, 100, 999, 1000]) * MS
        none = np.full(4, NONE)
        ticks = Ticks(times, times - MS, np.array([1, 1, 1, 1]), none)
        windows = Windows(*(np.array(column) for column in ([0, 100 * MS], [100 * MS, 1000 * MS], *[[2000, 702_000]] * 3)))
        found = estimate(ticks, windows, cpus=1, asleep=np.array([False, asleep]))
        late = found.take(found.start_ns >= 100 * MS)
        assert late.held_ns.sum() / MS == pytest.approx(held, abs=1)
        if asleep:
            assert late.start_ns[0] == 100 * MS
            assert 799 * MS <= late.end_ns[0] <= 802 * MS

    def test_outside_without_a_window_that_tells(self):
        captured = Captured("bursts")
        windows = Windows(*(getattr(captured.windows, name)[:1] for name in Windows.__slots__))
        late = captured.ticks.t_ns > windows.t_ns[0]
        ticks = Ticks(*(getattr(captured.ticks, name)[late] for name in Ticks.__slots__))
        found = estimate(ticks, windows, cpus=CPUS, outside=True)
        assert found.end_ns.max() <= windows.t_ns[0]


class TestProperties:
    @pytest.mark.parametrize("name", CAPTURED)
    def test_bounds_and_sums(self, name):
        captured = Captured(name)
        found = estimate(captured.ticks, captured.windows, cpus=CPUS)
        sound(found)
        for since, until, some in zip(
            captured.windows.since_ns, captured.windows.t_ns, captured.windows.some_us * 1000, strict=True
        ):
            held = found.take((found.start_ns >= since) & (found.end_ns <= until)).held_ns.sum()
            assert held <= min(max(some * CPUS, 1.5 * some) * 20, until - since)

    @pytest.mark.parametrize("name", CAPTURED)
    def test_windows_to_come_change_nothing(self, name):
        captured = Captured(name)
        whole = estimate(captured.ticks, captured.windows, cpus=CPUS)
        half = Windows(*(getattr(captured.windows, column)[:2] for column in Windows.__slots__))
        first = estimate(captured.ticks, half, cpus=CPUS)
        assert np.array_equal(first.held_ns, whole.take(whole.start_ns < half.t_ns[-1]).held_ns)

    @given(
        gaps=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 400), st.integers(-500, 500)), max_size=60),
        windows=st.lists(
            st.tuples(st.integers(1, 2000), st.integers(0, 3_000_000), st.integers(0, 3_000_000), st.integers(0, 3_000_000)),
            max_size=8,
        ),
        known=st.booleans(),
        cpus=st.integers(1, 64),
        outside=st.booleans(),
    )
    @settings(max_examples=200, deadline=None)
    def test_any_figures(self, gaps, windows, known, cpus, outside):
        """Whatever the kernel prints: bounds hold, and nothing is longer than wall time."""
        t = np.cumsum([gap + 1 for gap, *_ in gaps], dtype=np.int64) * MS
        usage = np.cumsum([pages for *_, pages in gaps], dtype=np.int64) * 4096 + (1 << 30)
        usage = usage if known else np.full(t.size, NONE)
        ticks = Ticks(t, t - MS, np.array([hits for _, hits, _ in gaps], np.int64), usage)
        ends = np.cumsum([ms for ms, *_ in windows], dtype=np.int64) * MS
        some, cpu, wait = (np.array([row[i] for row in windows], np.int64) for i in (1, 2, 3))
        starts = ends - np.array([ms for ms, *_ in windows], np.int64) * MS
        sound(estimate(ticks, Windows(starts, ends, some, some, cpu, wait), cpus=cpus, outside=outside))

    def test_nothing(self):
        none = np.zeros(0, np.int64)
        assert len(estimate(Ticks(none, none, none, none), Windows(none, none, none, none, none), cpus=2)) == 0


class TestShapes:
    def test_a_window_that_no_hit_explains(self):
        """Refaults, memory.high of an ancestor: one moment for all of it."""
        none = np.zeros(0, np.int64)
        windows = Windows(*(np.array([value]) for value in (1000 * MS, 3000 * MS, 70_000, 0, 500_000)))
        found = estimate(Ticks(none, none, none, none), windows, cpus=2)
        assert found.start_ns.tolist() == [1000 * MS]
        assert found.end_ns.tolist() == [3000 * MS]
        assert (found.lo_ns.tolist(), found.held_ns.tolist(), found.hi_ns.tolist()) == ([70 * MS], [70 * MS], [140 * MS])
        assert found.evidence.tolist() == [PSI]

    def test_one_reclaim_outlasts_its_tick(self):
        """A hit, 30 ms of stall, and no other hit for 31 ms: it was the pause that held it."""
        t = np.array([10, 500, 531, 900]) * MS
        ticks = Ticks(t, t - MS, np.array([1, 1, 1, 1]), np.full(4, 1 << 30))
        windows = Windows(*(np.array([value]) for value in (0, 1000 * MS, 33_000, 33_000, 40_000)))
        found = estimate(ticks, windows, cpus=1)
        longest = int(np.argmax(found.held_ns))
        assert found.start_ns[longest] == 499 * MS
        assert found.end_ns[longest] == 530 * MS
        assert found.held_ns[longest] >= 20 * MS

    def test_sleep_after_hits(self):
        """memory.high: each hit is followed by sleep that fits into no tick, and into no single pause."""
        t = np.array([100, 700]) * MS
        ticks = Ticks(t, t - MS, np.array([1, 1]), np.full(2, NONE))
        windows = Windows(*(np.array([value]) for value in (0, 1300 * MS, 1_000_000, 1_000_000, 5_000)))
        found = estimate(ticks, windows, cpus=2)
        assert found.held_ns.sum() == pytest.approx(1000 * MS, rel=0.01)
        assert (found.end_ns - found.start_ns).min() >= 400 * MS


def sound(found: Moments) -> None:
    wall = found.end_ns - found.start_ns
    assert (found.start_ns[1:] >= found.start_ns[:-1]).all()
    assert (found.lo_ns >= 0).all()
    assert (found.lo_ns <= found.held_ns).all()
    assert (found.held_ns <= found.hi_ns).all()
    assert (found.hi_ns <= np.maximum(wall, found.held_ns)).all()
    assert (found.held_ns <= wall).all()
