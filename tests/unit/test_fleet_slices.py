# SPDX-License-Identifier: Apache-2.0
"""Wherever a long run is cut into slices, no stall is told twice, and none is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fleetset import ROUND_S, captured, put, stalls_of
from hypothesis import given, settings
from hypothesis import strategies as st
from rowwriter import MS, S, held, limits, ticks, write

import pymemcg
from pymemcg._ffi import NONE
from pymemcg.fleet._dataset import Run, listed, looked_into
from pymemcg.fleet._find import Slice, Slicing, find, slices
from pymemcg.fleet._reader import Reader

ROUNDS = 4
FEW = settings(deadline=None, max_examples=5)


def run_of(recording: pymemcg.Recording, folder: Path, **how) -> Run:
    put(folder, recording, host="a", run="0" * 12, **how)
    found = looked_into(listed(folder)[0][0])
    assert isinstance(found, Run)
    return found


def sliced(run: Run, folder: Path, slicing: Slicing) -> list[Slice]:
    with Reader(run, str(folder)) as reader:
        return list(slices(run, reader, slicing))


def cut(length_s: float, around_s: float, most_s: float = 1e6) -> Slicing:
    return Slicing(length_ns=int(length_s * S), around_ns=int(around_s * S), most_ns=int(most_s * S))


class Case:
    """A recording, and the run of a data set that it became, in many small files."""

    def __init__(self, recording: pymemcg.Recording, folder: Path) -> None:
        self.recording = recording
        self.run = run_of(recording, folder / "set", rows_a_file=7000, rows_a_group=1500)
        self.stalls = list(recording.stalls())


@pytest.fixture(scope="module", params=["bursts", "threads", "cache-contended"])
def traced(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    return Case(captured(folder / "traced.memcg", request.param, rounds=ROUNDS), folder)


@pytest.fixture(scope="module")
def counted(tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp("counted")
    return Case(captured(folder / "counted.memcg", "bursts", rounds=ROUNDS, trace=False, psi=False), folder)


@pytest.fixture(scope="module")
def pressed(tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp("pressed")
    return Case(captured(folder / "pressed.memcg", "bursts", rounds=12, trace=False), folder)


@FEW
@given(length_s=st.floats(0.2, 40), around_s=st.floats(4, 20))
def test_by_tracepoints_exactly_the_same(traced, length_s, around_s):
    found = find(traced.run, cut(length_s, around_s))
    assert stalls_of(found) == traced.stalls
    assert sum(found.sampled_ns.values()) == ROUNDS * ROUND_S * S - MS


@FEW
@given(length_s=st.floats(0.2, 40), around_s=st.floats(4, 20))
def test_by_counters_exactly_the_same(counted, length_s, around_s):
    assert stalls_of(find(counted.run, cut(length_s, around_s))) == counted.stalls


@pytest.mark.parametrize("length_s", [21, 40])
def test_by_psi_the_same_stalls(pressed, length_s):
    """What a hit costs is learned from the windows before it: fewer of them, and durations differ a little."""
    found = stalls_of(find(pressed.run, cut(length_s, 60)))
    assert [(one.cause, one.harmless, one.limit_hits) for one in found] == [
        (one.cause, one.harmless, one.limit_hits) for one in pressed.stalls
    ]
    assert [one.start_ns for one in found] == pytest.approx([one.start_ns for one in pressed.stalls], abs=5 * MS)
    mine, whole = ([one.stall_ns or 0 for one in of] for of in (found, pressed.stalls))
    assert mine == pytest.approx(whole, rel=0.1, abs=MS)
    assert sum(mine) == pytest.approx(sum(whole), rel=0.01)


def test_it_is_cut_where_nobody_was_held(traced, tmp_path):
    parts = sliced(traced.run, tmp_path, cut(ROUND_S / 2, 5))
    assert len(parts) >= ROUNDS
    assert not any(part.torn for part in parts)
    for part in parts[:-1]:
        for stall in traced.stalls:
            assert stall.end_ns + S <= part.until_ns or stall.start_ns >= part.until_ns
    assert [one.until_ns for one in parts[:-1]] == [other.since_ns for other in parts[1:]]


def test_a_slice_holds_no_more_than_its_time(traced, tmp_path):
    """However long the run is."""
    for part in sliced(traced.run, tmp_path, cut(2, 5)):
        lasts_s = (part.until_ns - part.since_ns) / S
        assert part.recording.usage.head <= 1000 * (2 * max(lasts_s, 2) + 2 * 5 + ROUND_S)
        assert set(part.recording.usage.names) == {"t_ns", "usage_bytes", "limit_hits", "high_hits", "oom_kills"}
        assert "late_ns" in traced.recording.usage.names, "which the detector does not read"
        part.recording.usage.window()["t_ns"][-1]  # its file is gone, its rows are not


@pytest.fixture
def endless(tmp_path) -> Case:
    """Somebody is held every 0.2 s, for a minute: one episode."""
    rows = [(100 + 200 * number, 0.5, 7) for number in range(300)]
    channels = {"usage": ticks(62, hits=[at for at, _, _ in rows]), "limits": limits((0, 0, 64, 0)), "reclaim": held(*rows)}
    return Case(write(tmp_path / "endless.memcg", channels, {"evidence": {"trace": None}}), tmp_path)


def test_a_slice_grows_where_there_is_no_calm_moment(endless, tmp_path):
    assert [stall.harmless for stall in endless.stalls] == [True]
    assert stalls_of(find(endless.run, cut(5, 4))) == endless.stalls
    assert len(sliced(endless.run, tmp_path, cut(5, 4))) <= 2


def test_what_never_ends_is_told_in_parts(endless):
    found = find(endless.run, cut(5, 4, most_s=10))
    parts, whole = stalls_of(found), endless.stalls[0]
    assert len(parts) == 5
    assert sum(part.stall_ns for part in parts) == whole.stall_ns
    assert sum(part.intervals for part in parts) == whole.intervals
    assert (parts[0].start_ns, parts[-1].end_ns) == (whole.start_ns, whole.end_ns)
    assert [note.what for note in found.notes if "parts" in note.what] != []


def test_who_was_held_to_the_end(tmp_path):
    """Its interval has no end, and comes last."""
    reclaim = held((100, 5, 7), (5000, 3, 7), (30_000, 1, 8))
    reclaim["end_ns"][-1] = NONE
    channels = {"usage": ticks(31), "limits": limits((0, 0, 64, 0)), "reclaim": reclaim}
    case = Case(write(tmp_path / "open.memcg", channels, {"evidence": {"trace": None}}), tmp_path)
    assert [stall.end_ns is None for stall in case.stalls] == [False, False, True]
    assert len(sliced(case.run, tmp_path, cut(6, 4))) > 2
    assert stalls_of(find(case.run, cut(6, 4))) == case.stalls


def test_limits_that_were_told_long_before_hold(tmp_path):
    """The limit of the group and the hits of the level above are rows of the beginning."""
    rows = limits((0, 0, 64, 0), (0, 1, 128, 5), (20_000, 1, 128, 6), (50_300, 1, 128, 9))
    reclaim = held((20_100, 3, 7), (50_100, 3, 7), (50_200, 3, 7))
    recording = write(tmp_path / "levels.memcg", {"usage": ticks(60), "limits": rows, "reclaim": reclaim}, {})
    run = run_of(recording, tmp_path / "set")
    parts = sliced(run, tmp_path, cut(10, 4))
    assert len(parts) == 6
    assert [stall for part in parts for stall in part.stalls] == list(recording.stalls())
    assert {stall.limit_bytes for part in parts for stall in part.stalls} == {64 << 20}
    last = parts[-1].recording.limits.window()
    assert last["level"].tolist() == [0, 1, 1], "those that hold, and one that is new"


def test_a_long_time_without_files_is_skipped(tmp_path):
    quiet = ticks(4)
    quiet["t_ns"] = np.append(quiet["t_ns"][:2000], quiet["t_ns"][2000:] + 10**4 * S)
    recording = write(tmp_path / "gap.memcg", {"usage": quiet, "limits": limits((0, 0, 64, 0))}, {})
    run = run_of(recording, tmp_path / "set", rows_a_file=2000)
    assert len(sliced(run, tmp_path, cut(10, 4))) == 2
    assert sum(find(run, cut(10, 4)).sampled_ns.values()) == 3998 * MS
