# SPDX-License-Identifier: Apache-2.0
"""The pure parts of the fidelity benchmark."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import pytest

from pymemcg.bench.fidelity_table import Result, Row, Run
from pymemcg.bench.loads import LOADS, Load, Part, phase_ns
from pymemcg.bench.swap import swap_header
from pymemcg.bench.tracefs import parse

TRACE = """\
# tracer: nop
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
         python3-4711    [001] .....  2950.100004: mm_vmscan_memcg_reclaim_begin: order=0 gfp_flags=GFP_KERNEL
      a -b: [0] -12      [000] ...1.  2950.100010: mm_vmscan_direct_reclaim_begin: order=0 gfp_flags=GFP_KERNEL
         python3-4711    [001] .....  2950.100024: mm_vmscan_throttled: nid=0 usec_timeout=100000 reason=VMSCAN_THROTTLE
         python3-4711    [000] .....  2950.100130: mm_vmscan_memcg_reclaim_end: nr_reclaimed=34
      a -b: [0] -12      [001] ...1.  2951.000000: mm_vmscan_direct_reclaim_end: nr_reclaimed=1
         python3-4711    [000] .....  2952.000000: mm_vmscan_memcg_reclaim_begin: order=0 gfp_flags=GFP_KERNEL
         python3-4711    [000] .....  2952.000003: mm_vmscan_memcg_reclaim_end: nr_reclaimed=0
"""


class TestParse:
    def test_pairs_by_thread(self):
        found = parse(TRACE.splitlines(keepends=True))
        assert found.threads_us == {4711: 126 + 3, 12: 899990}
        assert (found.total_us, found.intervals, found.longest_us) == (900119, 3, 899990)

    def test_half_pairs_count_for_nothing(self):
        lines = TRACE.splitlines()
        assert parse(lines[7:]).threads_us == {4711: 3}
        assert parse(lines[:6]).intervals == 0

    def test_a_begin_after_a_begin_starts_anew(self):
        lines = TRACE.splitlines()
        assert parse([lines[4], lines[9], lines[10]]).threads_us == {4711: 3}

    def test_nothing(self):
        assert parse([]).total_us == 0
        assert parse(["", "CPU:1 [LOST 12 EVENTS]\n"]).intervals == 0


@pytest.mark.parametrize("page_bytes", [4096, 65536])
def test_swap_header(page_bytes):
    page = swap_header(64 << 20, page_bytes)
    assert len(page) == page_bytes
    assert struct.unpack_from("=III", page, 1024) == (1, (64 << 20) // page_bytes - 1, 0)
    assert page.endswith(b"SWAPSPACE2")
    assert page[:1024].strip(b"\0") == b""  # of a boot loader


class TestLoad:
    def test_turns_of_a_period_are_evenly_apart(self):
        load = Load("some", "some", "anon", 20, 200, threads=4)
        assert [phase_ns(load, 0, 1, thread) for thread in range(4)] == [0, 50e6, 100e6, 150e6]
        shared = load.shared_by(2)
        turns = [phase_ns(shared, process, 2, thread) for process in range(2) for thread in range(4)]
        assert turns == [i * 50e6 for i in range(8)]

    def test_sharing_leaves_the_work_of_all_as_it_was(self):
        for load in LOADS:
            if load.period_ms:
                shared = load.shared_by(8)
                assert 8 * shared.busy_ms / shared.period_ms == pytest.approx(load.busy_ms / load.period_ms)

    def test_there_are_loads_of_every_named_sort(self):
        assert {load.kind for load in LOADS} == {"cache", "anon"}
        assert any(load.period_ms == 0 for load in LOADS)
        assert any(load.threads > 1 for load in LOADS)
        assert any(0 < load.busy_ms <= load.period_ms / 100 for load in LOADS)
        assert any(not load.promised for load in LOADS)

    def test_a_part_survives_its_way_to_the_process(self):
        part = Part(LOADS[0].shared_by(8), 3, 8, 1 << 26, 2.5, "fixed", "/tmp/a b")
        assert Part.from_json(part.to_json()) == part


RUN = Run(
    seconds=30, psi_us=980_000, parent_us=1_000_000, truth_us=1_000_000, intervals=9, reads=60, stats={}, group_cpu_us=300_000
)
LIGHT = next(load for load in LOADS if load.name == "light")


def row(*runs: Run, unsampled: Run = RUN) -> Row:
    return Row(LIGHT, 1, runs, (unsampled,) * len(runs))


class TestRow:
    def test_ratios(self):
        found = row(RUN, RUN)
        assert found.over_parent.value == pytest.approx(0.98)
        assert found.over_truth.value == pytest.approx(1.0)
        assert found.lost_ms_per_minute == pytest.approx(40)
        assert found.undisturbed_by_reading
        assert found.undisturbed_by_running

    @pytest.mark.parametrize(
        ("psi_us", "parent_us", "kept"),
        [(979_000, 1_000_000, False), (979_600, 980_000, True), (0, 400, True), (0, 600, False), (0, 0, True)],
    )
    def test_a_share_or_a_millisecond_a_minute(self, psi_us, parent_us, kept):
        assert row(replace(RUN, psi_us=psi_us, parent_us=parent_us)).undisturbed_by_reading is kept

    @pytest.mark.parametrize(("psi_us", "kept"), [(890_000, True), (870_000, False)])
    def test_truth_is_relative_to_runs_without_a_sampler(self, psi_us, kept):
        assert row(replace(RUN, psi_us=psi_us)).undisturbed_by_running is kept

    def test_where_psi_shows_nothing_nothing_is_taken_away(self):
        blind = replace(RUN, psi_us=0, parent_us=0)
        assert row(blind, unsampled=blind).over_truth.value == 1.0


class TestResult:
    def test_known_losses_break_no_promise(self):
        bad = row(replace(RUN, psi_us=0))
        assert not Result((bad,), 30, 1, 0.0).kept
        assert Result((replace(bad, load=replace(LIGHT, promised=False)),), 30, 1, 0.0).kept

    def test_as_json_and_as_a_table(self):
        naive = replace(RUN, psi_us=10_000, reads=30_000)
        result = Result((replace(row(RUN, RUN), naive=(naive,)), replace(row(RUN, RUN), processes=8)), 30, 2, 0.0)
        found = json.loads(json.dumps(result.describe()))
        assert found["psi_over_parent_ratio"] == {"light": {"1": 0.98, "8": 0.98}}
        assert found["rows"][0]["psi_reads_per_minute"] == 120
        assert found["rows"][0]["naive_1khz"]["psi_over_parent_ratio"] == 0.01
        assert found["rows"][1]["naive_1khz"] is None
        table = [line for line in result.to_markdown().splitlines() if line.startswith("|")]
        assert len(table) == 4
        assert len({line.count("|") for line in table}) == 1
        assert "0.980 [0.980, 0.980]" in table[2]
        assert "0.010" in table[2]
