# SPDX-License-Identifier: Apache-2.0
"""What becomes a stall, by recordings whose rows are stated."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from rowwriter import MS, T0, S, held, joined, limits, node, ticks, write

import pymemcg
from pymemcg import Detector, Policy, Stall, Stalls
from pymemcg._ffi import NONE
from pymemcg.detecting import POLICY, moments

LIMITS = limits((0, 0, 64, 0))
EVENTS = {"t_ns": [], "since_ns": [], "kind": [], "value": []}


@pytest.fixture
def find(tmp_path):
    """Stalls of a recording of these channels, by ms from its beginning."""

    def found(evidence: str = "auto", min_ns: int = 0, policy: Policy = POLICY, **channels):
        whole = {"usage": ticks(3), "limits": LIMITS, "node": node(3), "events": EVENTS} | channels
        recording = write(tmp_path / "r.memcg", whole)
        return pymemcg.stalls(recording, evidence=evidence, min_ns=min_ns, policy=policy)

    return found


def ms(stall: Stall) -> tuple[float, float | None]:
    return (stall.start_ns - T0) / MS, None if stall.end_ns is None else (stall.end_ns - T0) / MS


# ---- Tracepoints -------------------------------------------------------------------------------------------------------------


def test_moments_closer_than_5_ms_are_one_stall(find):
    (stall,) = find(usage=ticks(3, hits=[10.5, 11.5, 14]), reclaim=held((10.2, 3, 5), (17.9, 0.5, 6)))
    assert ms(stall) == (10.2, 18.4)
    assert (stall.stall_ns, stall.stall_lo_ns, stall.stall_hi_ns) == (3_500_000,) * 3
    assert stall.longest_ns == 3 * MS  # by one thread
    assert (stall.cause, stall.harmless, stall.evidence, stall.tids) == ("limit", False, ("trace",), (5, 6))
    assert (stall.intervals, stall.limit_hits, stall.reclaimed_pages) == (2, 3, 64)
    assert (stall.usage_bytes, stall.limit_bytes, stall.cpu_wait_ns) == (64 << 20, 64 << 20, 0)
    assert (stall.state, stall.incomplete) == ("closed", None)


def test_moments_5_ms_apart_are_two(find):
    found = find(usage=ticks(3, hits=[10.5, 18.5]), reclaim=held((10, 2, 5), (17, 2, 5)))
    assert [ms(stall) for stall in found] == [(10, 12), (17, 19)]


def test_threads_that_are_held_at_once_count_once(find):
    (stall,) = find(usage=ticks(3, hits=[11]), reclaim=held((10, 2, 5), (11, 2, 6)))
    assert stall.stall_ns == 3 * MS
    assert stall.longest_ns == 2 * MS


def test_thousands_of_short_reclaims_are_one_harmless_record(find):
    at = np.arange(0, 2900, 0.5)
    (stall,) = find(usage=ticks(3, hits=at), reclaim=held(*[(x, 0.005, 5) for x in at]))
    assert (stall.harmless, stall.cause, stall.intervals) == (True, "limit", at.size)
    assert stall.stall_ns == at.size * 5000
    assert ms(stall) == (0, 2899.505)


def test_a_stall_among_harmless_reclaim_is_told_apart_from_it(find):
    at = np.arange(0, 2900, 0.5)
    calm, stall = find(usage=ticks(3, hits=at), reclaim=joined(held(*[(x, 0.005, 5) for x in at]), held((1000.1, 2, 6))))
    assert (calm.harmless, stall.harmless) == (True, False)
    begin, end = ms(stall)
    assert 995 <= begin <= 1000.1
    assert 1002.1 <= end <= 1007.2
    assert stall.longest_ns == 2 * MS
    assert calm.longest_ns < MS


def test_time_on_a_waiting_list_of_the_cpu_is_told_and_not_counted(find):
    (stall,) = find(usage=ticks(3, hits=[11]), reclaim=held((10, 8, 5), wait_ms=7.9))
    assert stall.harmless
    assert (stall.stall_ns, stall.cpu_wait_ns) == (100_000, 7_900_000)
    assert (stall.stall_lo_ns, stall.stall_hi_ns) == (100_000, 8 * MS)  # it may have waited outside of the interval
    (stall,) = find(usage=ticks(3, hits=[11]), reclaim=held((10, 8, 5), wait_ms=None))
    assert not stall.harmless
    assert (stall.stall_ns, stall.cpu_wait_ns) == (8 * MS, None)
    assert (stall.stall_lo_ns, stall.stall_hi_ns) == (0, 8 * MS)


def test_overlapping_threads_of_which_one_waited_for_a_cpu_give_bounds(find):
    rows = joined(held((10, 6, 5), wait_ms=3), held((13, 5, 6)))
    (stall,) = find(usage=ticks(3, hits=[11]), reclaim=rows)
    assert (stall.stall_lo_ns, stall.stall_hi_ns) == (5 * MS, 8 * MS)
    assert stall.stall_lo_ns <= stall.stall_ns <= stall.stall_hi_ns


@pytest.mark.parametrize(("kind", "cause"), [(1, "limit"), (2, "global"), (3, "global")])
def test_kinds_of_reclaim(find, kind, cause):
    (stall,) = find(usage=ticks(3, hits=[11]), reclaim=held((10, 3, 5), kind=kind))
    assert stall.cause == cause


def test_a_throttled_wait_inside_reclaim_counts_once(find):
    (stall,) = find(reclaim=joined(held((10, 3, 5), kind=2), held((11, 1, 5), kind=4)))
    assert (stall.stall_ns, stall.cause) == (3 * MS, "global")


def test_throttling_is_of_the_reclaim_that_it_is_in(find):
    """Recordings of before have throttling, which is told in jiffies, that begins before that reclaim."""
    (stall,) = find(usage=ticks(3, hits=[11]), reclaim=joined(held((10, 5, 5)), held((8, 6, 5), kind=4)))
    assert stall.cause == "limit"


def test_reclaim_at_memory_high(find):
    (stall,) = find(usage=ticks(3, high=[11, 11.5]), reclaim=held((10, 3, 5)), evidence="trace")
    assert (stall.cause, stall.limit_hits) == ("high", 2)


@pytest.mark.parametrize(("hit", "cause"), [({"hits": [148]}, "limit"), ({"high": [148]}, "high"), ({"hits": [2]}, "unknown")])
def test_a_tick_between_the_hit_and_the_reclaim(find, hit, cause):
    """The kernel counts the hit first, and the thread may be preempted before it begins to reclaim."""
    (stall,) = find(usage=ticks(3, **hit), reclaim=held((150, 3, 5)), evidence="trace")
    assert stall.cause == cause


def test_reclaim_for_an_ancestor(find):
    rows = limits((0, 0, 64, 0), (0, 1, 100, 5), (100, 1, 100, 9))
    (stall,) = find(limits=rows, reclaim=held((60, 30, 5)), evidence="trace")
    assert (stall.cause, stall.limit_hits) == ("ancestor", 4)


@pytest.mark.parametrize("level", [0, 1])
def test_a_lowered_limit_is_no_stall_of_the_service(find, level):
    """The one who writes it reclaims, inside of the group too; it hits nothing, and the limit is lower afterwards."""
    rows = limits((0, 0, 64, 0), (0, 1, 100, 0), (100, level, 32, 0))
    assert len(find(limits=rows, reclaim=held((60, 30, 5)))) == 0
    assert len(find(limits=limits((0, 0, 64, 0), (0, 1, 100, 0)), reclaim=held((60, 30, 5)))) == 1


def test_a_limit_that_is_lowered_while_the_service_hits_it(find):
    rows = limits((0, 0, 64, 0), (100, 0, 32, 3))
    (stall,) = find(limits=rows, usage=ticks(3, hits=[70, 71]), reclaim=held((60, 30, 5)))
    assert stall.cause == "limit"


def test_a_raised_limit_explains_nothing(find):
    (stall,) = find(limits=limits((0, 0, 64, 0), (100, 0, 128, 0)), reclaim=held((60, 30, 5)))
    assert (stall.cause, stall.limit_bytes) == ("unknown", 64 << 20)


def test_somebody_was_killed_for_memory(find):
    (stall,) = find(usage=ticks(3, hits=[70, 71], kills=[85]), reclaim=held((60, 30, 5)))
    assert stall.cause == "oom_wait"


def test_an_interval_without_end_goes_on_until_sampling_ended(find):
    rows = held((2950, 1, 5))
    rows["end_ns"] = [NONE]
    (stall,) = find(reclaim=rows)
    assert ms(stall) == (2950, None)
    assert (stall.stall_lo_ns, stall.stall_hi_ns) == (49 * MS, None)
    assert stall.incomplete == "it was going on when sampling ended"


def test_a_long_interval_comes_after_shorter_ones_that_began_later(find):
    (stall,) = find(usage=ticks(3, hits=[11]), reclaim=held((10, 500, 5), *[(20 + i * 7, 1.5, 6) for i in range(50)]))
    assert ms(stall) == (10, 510)
    assert (stall.stall_ns, stall.intervals) == (500 * MS, 51)


def test_rows_of_nonsense_are_left_out_and_said(find):
    rows = held((10, 2, 5), (20, 2, 5))
    rows["end_ns"][0] = rows["start_ns"][0] - 5
    (stall,) = find(usage=ticks(3, hits=[11]), reclaim=rows)
    assert ms(stall) == (20, 22)
    assert stall.incomplete is None  # nothing of its own


def test_lost_tracepoints_leave_the_time_to_counters(find):
    events = {"t_ns": [T0 + 200 * MS], "since_ns": [T0 + 100 * MS], "kind": [6], "value": [3]}
    found = find(events=events, usage=ticks(3, hits=[10, 150]), reclaim=held((9.5, 3, 5), (120, 2, 5)))
    assert [(stall.evidence, stall.incomplete) for stall in found] == [
        (("trace",), None),
        (("trace",), "tracepoints were lost (3 so far)"),
        (("counters",), "tracepoints were lost (3 so far)"),
    ]


# ---- Counters ----------------------------------------------------------------------------------------------------------------


def test_counters_say_when_and_not_how_long(find):
    first, second = find(usage=ticks(3, hits=[10, 11, 12, 2500], high=[12]))
    assert ms(first) == (9, 12)  # from the tick before
    assert (first.cause, first.evidence, first.limit_hits, first.harmless) == ("limit", ("counters",), 3, None)
    unknown = ("stall_ns", "stall_lo_ns", "stall_hi_ns", "longest_ns", "cpu_wait_ns", "intervals", "reclaimed_pages", "anon")
    assert [getattr(first, name) for name in unknown] == [None] * len(unknown)
    assert ms(second) == (2499, 2500)


def test_without_hits_nothing_is_found(find):
    assert len(find()) == 0
    assert len(find(usage=ticks(3, kills=[100]))) == 0


def test_a_tick_that_came_late_is_no_stall(find):
    usage = ticks(3)
    usage["t_ns"][1000:] += 500 * MS
    assert len(find(usage=usage)) == 0


def test_counters_that_fall_or_are_missing_for_a_row_hit_nothing(find):
    usage = ticks(3, hits=[10])
    usage["limit_hits"][500:] = 0  # somebody wrote to memory.failcnt
    usage["limit_hits"][700] = NONE
    (stall,) = find(usage=usage)
    assert ms(stall) == (9, 10)


def test_a_group_below_a_full_parent_is_hit_there(find):
    (stall,) = find(limits=limits((0, 0, 64, 0), (0, 1, 100, 5), (700, 1, 100, 9)))
    assert (stall.cause, stall.limit_hits, ms(stall)) == ("ancestor", 4, (600, 700))


def test_v2_counts_own_hits_at_the_ancestors_too(find):
    (stall,) = find(usage=ticks(3, hits=[650]), limits=limits((0, 0, 64, 0), (0, 1, 100, 5), (700, 1, 100, 6)))
    assert (stall.cause, ms(stall)) == ("limit", (649, 650))


def test_threads_seen_asleep_at_memory_high_are_named(find):
    rows = held((501.5, 0, 8), (503.5, 0, 9), kind=5)
    (stall,) = find(usage=ticks(3, high=[500, 501]), reclaim=rows)
    assert (stall.cause, stall.tids, stall.evidence) == ("high", (8, 9), ("wchan", "counters"))
    assert len(find(usage=ticks(3, high=[500, 501]), reclaim=rows, evidence="trace")) == 0


# ---- What is told of it ------------------------------------------------------------------------------------------------------


def test_memory_stat_and_limits_are_those_of_the_beginning(find):
    stat = {"t_ns": [T0, T0 + 100 * MS, T0 + 200 * MS], "anon": [1, 2, 3], "file": [4, 5, 6]}
    rows = limits((0, 0, 64, 0), (105, 0, 128, 1))
    (stall,) = find(stat=stat, limits=rows, usage=ticks(3, hits=[151]), reclaim=held((150, 3, 5)))
    assert (stall.anon, stall.file, stall.limit_bytes) == (2, 5, 128 << 20)


def test_no_limit_is_null(find):
    rows = limits((0, 0, 64, 0))
    rows["limit_bytes"] = [NONE]
    (stall,) = find(limits=rows, usage=ticks(3, hits=[11]), reclaim=held((10, 3, 5)))
    assert stall.limit_bytes is None


def test_at_least(find, tmp_path):
    channels = {"usage": ticks(3, hits=[11, 50]), "reclaim": held((10, 3, 5), (50, 1.5, 5))}
    assert [stall.longest_ns for stall in find(**channels)] == [3 * MS, 1_500_000]
    assert [stall.longest_ns for stall in find(**channels, min_ns=2 * MS)] == [3 * MS]
    recording = pymemcg.open(tmp_path / "r.memcg")
    assert recording.stalls(min_ns=2 * MS, evidence="trace") == find(**channels)[:1]


def test_at_least_more_than_a_window(find):
    channels = {"usage": ticks(3, hits=[11, 100]), "reclaim": held((10, 30, 5), (100, 12, 5))}
    assert [len(find(**channels, min_ns=least * MS)) for least in (5, 10, 11, 20, 31)] == [2, 2, 2, 1, 0]


@pytest.mark.parametrize("evidence", ["CAP_PERFMON", None])
def test_a_channel_of_sightings_alone_tells_nothing_of_limits(tmp_path, evidence):
    """Where perf is denied and memory.high is there, `reclaim` has no tracepoints, and counters are all that tells."""
    channels = {"usage": ticks(3, hits=[11]), "limits": LIMITS, "node": node(3), "events": EVENTS, "reclaim": held()}
    recording = write(tmp_path / "r.memcg", channels, {"evidence": {"trace": evidence}})
    found = [(stall.cause, stall.evidence) for stall in pymemcg.stalls(recording)]
    assert found == ([("limit", ("counters",))] if evidence else [])


def test_another_policy(find):
    (stall,) = find(reclaim=held((10, 0.2, 5)), policy=Policy(least_ns=100_000))
    assert not stall.harmless


def test_tables(find):
    found = find(usage=ticks(3, hits=[11, 2500]), reclaim=held((10, 3, 5), (2500, 0.1, 6)))
    assert isinstance(found, Stalls)
    rows = json.loads(json.dumps(found.to_dicts()))
    assert rows[0]["tids"] == [5]
    assert rows[0]["evidence"] == ["trace"]
    assert found[:1][0] == found[0]
    assert found[-1] == found[1]
    assert "<table>" in found._repr_html_()
    assert "2, 1 of them harmless" in repr(found)
    pandas = pytest.importorskip("pandas")
    frame = found.to_pandas()
    assert frame["stall_ns"].tolist() == [3 * MS, 100_000]
    assert frame["anon"].isna().all()
    assert frame["harmless"].tolist() == [False, True]
    assert isinstance(Stalls().to_pandas(), pandas.DataFrame)


def test_moments_of_a_time(find, tmp_path):
    find(usage=ticks(3, hits=[11]), reclaim=held((10, 3, 5), (11, 1, 6), (40, 1, 7)))
    recording = pymemcg.open(tmp_path / "r.memcg")
    assert moments(recording, T0 + 12 * MS, T0 + 30 * MS).tid.tolist() == [5, 6]
    assert moments(recording, T0 + 40 * MS, T0 + 2 * S).tid.tolist() == [7]
    assert len(moments(recording, T0 - 50 * S, T0)) == 0
    assert len(moments(recording, T0 + 50 * S, T0 + 60 * S)) == 0
    assert moments(recording, T0, T0 + S, evidence="counters").hits.tolist() == [1]


def test_an_evidence_that_there_is_not(find):
    with pytest.raises(ValueError, match="evidence='perf'"):
        find(evidence="perf")


def test_asking_for_a_detector_needs_no_numpy():
    code = "import sys, pymemcg; pymemcg.Detector, pymemcg.Policy(), pymemcg.Stalls(); print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ---- Recordings that are short of something ----------------------------------------------------------------------------------


@pytest.mark.parametrize("evidence", ["auto", "trace", "psi", "counters"])
@pytest.mark.parametrize(
    "kept", [["usage"], ["reclaim"], ["events"], ["usage", "reclaim"], ["limits", "reclaim"], ["node", "usage"]]
)
def test_channels_that_were_not_recorded(tmp_path, evidence, kept):
    whole = {"usage": ticks(3, hits=[11]), "limits": LIMITS, "node": node(3), "events": EVENTS, "reclaim": held((10, 3, 5))}
    recording = write(tmp_path / "r.memcg", {name: whole[name] for name in kept})
    found = pymemcg.stalls(recording, evidence=evidence)
    traced = "reclaim" in kept and evidence in ("auto", "trace")
    counted = "usage" in kept and evidence != "trace" and not traced
    assert len(found) == traced + counted


def test_a_clock_that_goes_nowhere_and_back(find):
    usage = ticks(3, hits=[100, 1200])
    usage["t_ns"][1000:1100] = usage["t_ns"][1000]
    usage["t_ns"][1500] = NONE
    usage["t_ns"][1600:1650] -= S
    usage["t_ns"][1700] = 0
    found = find(usage=usage)
    assert [ms(stall) for stall in found] == [(99, 100), (1199, 1200)]
    assert "had no time" in found[0].incomplete


def test_a_recording_without_rows(tmp_path):
    empty = {name: [] for name in ("t_ns", "usage_bytes", "limit_hits")}
    recording = write(tmp_path / "r.memcg", {"usage": empty, "limits": {k: [] for k in LIMITS}, "events": EVENTS})
    detector = Detector(recording)
    assert (detector.advance(), detector.finish(), detector.lost) == ([], [], {})
