# SPDX-License-Identifier: Apache-2.0
"""The scores of bench/fidelity, on truths made by hand."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from bench.fidelity import truth
from bench.fidelity.judging import Judged
from bench.fidelity.requests import Found, Hit, Request, score_requests
from bench.fidelity.running import Environment
from bench.fidelity.scores import FOREVER_NS, IntervalScore, Said, Score, score, score_intervals
from bench.fidelity.table import BEGIN, END, Report
from bench.fidelity.truth import Episode, Held, Interval
from bench.fidelity.workloads import WORKLOADS
from pymemcg.bench.tracepages import Record, parse_page, read_layout

MS = 1_000_000

FORMAT = """\
name: sched_switch
ID: 372
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:char prev_comm[16];\toffset:8;\tsize:16;\tsigned:0;
\tfield:pid_t prev_pid;\toffset:24;\tsize:4;\tsigned:1;
\tfield:long prev_state;\toffset:32;\tsize:8;\tsigned:1;

print fmt: "prev_comm=%s prev_pid=%d"
"""


def event(number: int, tid: int, prev: int, state: int) -> bytes:
    return struct.pack("=HBBi16sii", number, 0, 0, tid, b"python3", prev, 0) + struct.pack("=q", state)


class TestPages:
    def test_layout(self):
        layout = read_layout(FORMAT, ("prev_pid", "prev_state"))
        assert (layout.event, layout.number) == ("sched_switch", 372)
        assert layout.form.unpack_from(event(372, 7, 8, -1)) == (7, 8, -1)

    @pytest.mark.parametrize("fields", [("prev_state", "prev_pid"), ("nothing",)])
    def test_fields_that_are_not_there_in_this_order(self, fields):
        with pytest.raises(ValueError, match="sched_switch"):
            read_layout(FORMAT, fields)

    def test_times(self):
        layout = read_layout(FORMAT, ("prev_pid", "prev_state"))
        body = event(372, 7, 8, 1)
        plain = struct.pack("=I", len(body) // 4 | 100 << 5) + body
        long = struct.pack("=II", 0 | 5 << 5, len(body) + 4) + body
        other = struct.pack("=I", len(body) // 4 | 1 << 5) + event(9, 7, 8, 1)
        extend = struct.pack("=II", 30 | 3 << 5, 2)
        stamp = struct.pack("=II", 31 | 17 << 5, 1 << 20)
        padding = struct.pack("=II", 29 | 2 << 5, 8) + b"\xff" * 4
        end = struct.pack("=I", 29)
        data = plain + other + long + extend + padding + plain + stamp + plain + end + plain
        page = struct.pack("=QQ", 1000, len(data) | 1 << 31) + data
        found = list(parse_page(page.ljust(4096, b"\0"), {372: layout}))
        first, second = 1100, 1106
        third = second + (2 << 27) + 3 + 2 + 100
        assert [each.t_ns for each in found] == [first, second, third, (1 << 47) + 17 + 100]
        assert set(found) == {Record(each.t_ns, "sched_switch", 7, (8, 1)) for each in found}

    def test_an_empty_page(self):
        assert list(parse_page(struct.pack("=QQ", 5, 0).ljust(4096, b"\0"), {})) == []


def switch(t_ns: int, off: int, state: int, on: int) -> Record:
    return Record(t_ns, "sched_switch", off, (off, state, on))


def begin(t_ns: int, tid: int, kind: str = "mm_vmscan_memcg_reclaim") -> Record:
    return Record(t_ns, f"{kind}_begin", tid, ())


def end(t_ns: int, tid: int, pages: int = 32, kind: str = "mm_vmscan_memcg_reclaim") -> Record:
    return Record(t_ns, f"{kind}_end", tid, (pages,))


class TestTruth:
    def test_intervals_and_waits(self):
        found = truth.read(
            [
                end(5, 1),  # its begin was before
                begin(10, 1),
                begin(11, 2),
                switch(12, 1, 0, 3),  # preempted
                end(15, 2, 7),
                begin(16, 2, "mm_compaction"),
                switch(20, 3, 1, 1),
                end(30, 1),
                end(31, 2, -1, "mm_compaction"),
                begin(40, 1),  # its end is after
            ]
        )
        assert found.intervals == [
            Interval(2, "memcg", 11, 15, 7),
            Interval(1, "memcg", 10, 30, 32),
            Interval(2, "compaction", 16, 31, -1),
        ]
        assert found.waits == {1: [(12, 20)]}
        assert truth.of_intervals(found)[1] == Held(1, 10, 30, ((10, 12), (20, 30)))

    def test_asleep_is_held_and_the_wait_after_waking_is_not(self):
        found = truth.read(
            [begin(10, 1), switch(12, 1, 2, 0), Record(20, "sched_wakeup", 0, (1,)), switch(26, 0, 0, 1), end(30, 1)]
        )
        assert truth.of_intervals(found) == [Held(1, 10, 30, ((10, 20), (26, 30)))]

    def test_woken_before_it_slept(self):
        records = [Record(1, "sched_wakeup", 0, (1,)), switch(12, 1, 1, 0), switch(26, 0, 0, 1)]
        assert truth.read(records).waits == {}

    @pytest.mark.parametrize(
        ("waits", "pieces"),
        [
            ([], ((100, 200),)),
            ([(0, 100), (200, 300)], ((100, 200),)),
            ([(0, 50), (90, 110), (150, 160), (190, 250)], ((110, 150), (160, 190))),
            ([(0, 500)], ()),
            ([(100, 200)], ()),
            ([(100, 150)], ((150, 200),)),
        ],
    )
    def test_held(self, waits, pieces):
        assert truth.held([(1, 100, 200)], {1: waits})[0].pieces == pieces

    def test_most_within(self):
        assert truth.most_within([], 10) == 0
        assert truth.most_within([(5, 8)], 10) == 3
        assert truth.most_within([(0, 30)], 10) == 10
        assert truth.most_within([(0, 2), (8, 12)], 10) == 4  # [2, 12) as well as any with both
        assert truth.most_within([(0, 2), (8, 10), (11, 13)], 10) == 4
        assert truth.most_within([(0, 4), (5, 9), (14, 20)], 10) == 8
        assert truth.most_within([(0, 1), (20, 21)], 10) == 1

    def test_union_and_overlap(self):
        spans = truth.union([(5, 8), (0, 3), (7, 9), (3, 4), (20, 21)])
        assert spans == [(0, 4), (5, 9), (20, 21)]
        assert truth.overlap(spans, 2, 7) == 4
        assert truth.overlap(spans, 6, 7) == 1
        assert truth.overlap(spans, 10, 20) == 0
        assert truth.overlap(spans, -5, 50) == 9
        assert truth.overlap([], 0, 1) == 0


def moment(tid: int, start: float, length: float) -> Held:
    span = (round(start * MS), round((start + length) * MS))
    return Held(tid, *span, (span,))


class TestEpisodes:
    def test_moments_closer_than_5_ms_are_one(self):
        assert [each.moments for each in truth.episodes([moment(1, 0, 1), moment(1, 5.9, 1), moment(1, 11.9, 1)])] == [2, 1]
        assert [each.moments for each in truth.episodes([moment(1, 0, 1), moment(2, 6, 1)])] == [1, 1]
        assert truth.episodes([]) == []

    def test_a_moment_within_another_does_not_end_it(self):
        found = truth.episodes([moment(1, 0, 20), moment(2, 2, 1), moment(1, 22, 1)])
        assert len(found) == 1
        assert (found[0].end_ns, found[0].tids) == (23 * MS, {1, 2})

    def test_many_short_ones_count_where_one_thread_has_a_millisecond_of_ten(self):
        often = truth.episodes([moment(1, at, 0.1) for at in range(30)])
        assert [(each.longest_ns, each.counts, each.stall_ns) for each in often] == [(MS, True, 3 * MS)]
        seldom = truth.episodes([moment(1, at, 0.09) for at in range(30)])
        assert [each.counts for each in seldom] == [False]
        two = truth.episodes([moment(at % 2, at, 0.1) for at in range(30)])
        assert [(each.longest_ns, each.counts) for each in two] == [(MS // 2, False)]

    def test_a_stall_among_harmless_reclaim_is_told_apart_from_it(self):
        stream = [moment(2, at, 0.005) for at in range(1000)]
        harmful, harmless = sorted(truth.episodes([*stream, moment(1, 500.1, 2)]), key=lambda each: not each.counts)
        assert (harmful.start_ns, harmful.moments) == (496 * MS, 13)  # 496 to 507, and the long one
        assert harmful.end_ns == round(507.005 * MS)
        assert (harmless.counts, harmless.moments) == (False, 988)

    def test_its_own_small_reclaims_before_a_long_one_are_not_needed(self):
        found = truth.episodes([*(moment(1, at, 0.02) for at in range(490, 500)), moment(1, 500, 2)])
        assert [each.start_ns // MS for each in found if each.counts] == [495]

    def test_harmless_episodes_do_not_end_with_a_short_pause(self):
        assert [each.moments for each in truth.episodes([moment(1, at, 0.1) for at in (0, 900, 1901)])] == [2, 1]

    def test_windows_reach_over_no_gap_of_5_ms(self):
        assert [each.counts for each in truth.episodes([moment(1, 0, 0.6), moment(1, 5.5, 0.6)])] == [True]
        assert [each.counts for each in truth.episodes([moment(1, 0, 0.6), moment(1, 5.6, 0.6)])] == [False]

    def test_duration_is_the_time_in_which_anybody_was_held(self):
        assert truth.episodes([moment(1, 0, 4), moment(2, 2, 4), moment(3, 8, 1)])[0].stall_ns == 7 * MS


def true(start: float, length: float, longest: float | None = None) -> Episode:
    held = round((length if longest is None else longest) * MS)
    return Episode(round(start * MS), round((start + length) * MS), round(length * MS), held, frozenset({1}), 1)


def told(start: float, length: float, *, harmless: bool | None = False, lo: float = 0.5, hi: float = 2.0) -> Said:
    stall = round(length * MS)
    begin = round(start * MS)
    return Said(begin, begin + stall, stall, round(lo * stall), round(hi * stall), stall, harmless)


class TestScore:
    def test_all_is_well(self):
        found = score([true(0, 4), true(50, 2)], [told(0.5, 4), told(49, 2.5)], [1 * MS, 50 * MS])
        assert (found.true, found.found, found.told, found.right, found.unhit) == (2, 2, 2, 2, 0)
        assert (found.recall, found.precision, found.covered) == (1, 1, 1)
        assert found.onset_ns == [MS // 2, -MS]
        assert list(zip(found.true_ns, found.said_ns, strict=True)) == [(4 * MS, 4 * MS), (2 * MS, round(2.5 * MS))]

    def test_missed_and_invented(self):
        found = score([true(0, 4), true(50, 3)], [told(0, 4), told(70, 2), told(90, 1)], [0])
        assert (found.true, found.found, found.missed_ns) == (2, 1, [3 * MS])
        assert (found.told, found.right, found.invented_ns, found.unhit) == (3, 1, [2 * MS, MS], 2)

    def test_harmless_ones_are_neither_missed_nor_invented(self):
        found = score([true(0, 4, longest=0.9)], [told(0, 4, harmless=True)])
        assert (found.true, found.told, found.true_ns) == (0, 0, [])
        assert (found.recall, found.precision, found.covered) == (None, None, None)

    def test_a_harmless_one_called_a_stall_and_the_other_way_round(self):
        assert score([true(0, 4, longest=0.9)], [told(0, 4)]).invented_ns == [4 * MS]
        assert score([true(0, 4)], [told(0, 4, harmless=True)]).missed_ns == [4 * MS]

    def test_onset_in_ticks_as_they_were(self):
        ticks = [0, 1 * MS, 2 * MS, 40 * MS, 60 * MS]
        found = score([true(0.5, 1), true(30, 4), true(59, 4)], [told(1, 1), told(20.5, 12), told(63, 4)], ticks=ticks)
        assert found.onset_ticks == [0.5, -0.25, 0.2]

    def test_two_ticks_beside_is_found_but_three_is_not(self):
        assert score([true(10, 2)], [told(13.9, 2)]).found == 1
        assert score([true(10, 2)], [told(15, 2)]).found == 0

    def test_told_of_as_one(self):
        found = score([true(0, 2), true(8, 2)], [told(0, 10, lo=0.1, hi=1)])
        assert (found.found, found.onset_ns, found.true_ns, found.lo_ns) == (2, [0, -8 * MS], [4 * MS], [MS])

    def test_durations_unknown(self):
        unknown = replace(told(0, 4, harmless=None), stall_ns=None, lo_ns=None, hi_ns=None, longest_ns=None)
        found = score([true(0, 4)], [unknown], timed=False)
        assert (found.found, found.right, found.vague, found.true_ns) == (1, 1, 1, [])
        assert score([], [unknown], timed=False).invented_ns == [-1]

    def test_evidence_that_could_have_told_a_duration_and_did_not(self):
        unknown = replace(told(0, 4, harmless=None), stall_ns=None, lo_ns=None, hi_ns=None, longest_ns=None)
        found = score([true(0, 4)], [unknown])
        assert (found.found, found.told, found.vague) == (0, 0, 1)

    def test_outside_of_lo_and_hi(self):
        assert score([true(0, 4)], [told(0, 1)]).covered == 0

    def test_an_open_one_goes_on(self):
        still = replace(told(0, 1), end_ns=FOREVER_NS)
        assert score([true(0, 1), true(500, 3)], [still]).found == 2

    def test_sum(self):
        one = score([true(0, 4)], [told(0, 4)])
        both = one + score([true(0, 4)], []) + Score()
        assert (both.true, both.found, both.missed_ns, both.onset_ns) == (2, 1, [4 * MS], [0])


def interval(start_us: float, length_us: float, tid: int = 1) -> Interval:
    return Interval(tid, "memcg", round(start_us * 1000), round((start_us + length_us) * 1000), 32)


class TestIntervals:
    def test_by_thread_and_order(self):
        ours = [interval(0, 10), interval(20, 10), interval(5, 10, tid=2)]
        theirs = [interval(0.3, 9.9), interval(20.1, 10.4), interval(5, 10, tid=2)]
        found = score_intervals(ours, theirs, 0, MS)
        assert (found.true, found.found, found.invented) == (3, 3, 0)
        assert sorted(found.begin_ns) == [0, 100, 300]
        assert sorted(found.end_ns) == [0, 200, 500]

    def test_missing_in_the_middle(self):
        ours = [interval(at, 5) for at in range(0, 1000, 100)]
        found = score_intervals(ours, ours[:3] + ours[4:], 0, MS)
        assert (found.true, found.found, found.invented, set(found.begin_ns)) == (10, 9, 0, {0})

    def test_invented_and_anothers(self):
        found = score_intervals([interval(0, 5)], [interval(0, 5), interval(500, 5), interval(0, 5, tid=2)], 0, MS)
        assert (found.found, found.invented) == (1, 2)

    def test_a_partner_just_outside_is_a_partner(self):
        ours, theirs = [interval(100, 5), interval(500, 5)], [interval(99.7, 5), interval(499.9, 5)]
        assert score_intervals(ours, theirs, 100_000, 500_000) == IntervalScore(1, 1, 0, [-300], [-300])

    def test_kinds_are_not_mixed(self):
        found = score_intervals([interval(0, 5)], [replace(interval(0, 5), kind="direct")], 0, MS)
        assert (found.true, found.found, found.invented) == (1, 0, 1)


class TestRequests:
    def found(self, hits):
        held = truth.Truth([interval(1000, 3000), interval(9000, 500), interval(20_000, 1200, tid=2)], {1: [(2 * MS, 3 * MS)]})
        served = [Request(1, 1, 0, 10 * MS), Request(1, 2, 12 * MS, 30 * MS), Request(2, 3, 12 * MS, 30 * MS)]
        return score_requests(served, hits, held)

    def test_by_thread(self):
        result = self.found([Hit(1, 3_500_000, 2_500_000), Hit(3, 1_195_000, 1_195_000)])
        assert (result.requests, result.true, result.named, result.right) == (3, 2, 2, 2)
        assert (result.true_ns, result.said_ns, result.close, result.f1) == (4_700_000, 4_695_000, 2, 1)

    def test_without_waiting_for_a_cpu(self):
        result = self.found([Hit(1, None, 2_500_000), Hit(3, None, 1_200_000)])
        assert (result.true_ns, result.said_ns, result.close, result.f1) == (3_700_000, 3_700_000, 2, 1)

    def test_a_name_too_many_and_one_too_few(self):
        result = self.found([Hit(1, None, 1_200_000), Hit(2, None, 5_000_000), Hit(3, None, 900_000)])
        assert (result.true, result.named, result.right, result.f1) == (2, 2, 1, 0.5)

    def test_hit_for_nobody_knows_how_long(self):
        assert self.found([Hit(1, None, None), Hit(3, None, None)]).f1 == 1

    def test_row(self):
        row = self.found([Hit(1, 3_500_000, 2_500_000), Hit(3, 1_000_000, 1_000_000)]).row("x", "trace")
        assert row == ["x", "`trace`", "2 of 3", "2", "1.000", "**0.957**", "**1 of 2**"]
        assert Found().row("x", "psi")[4:] == ["–", "–", "–"]


class TestReport:
    def test_what_is_broken_is_bold_and_pages_keep_what_is_around(self, tmp_path):
        about = {"kernel": "6.18.44-here", "hz": 250, "cpus": 2, "processor": "some", "load": 0.5}
        scores = {
            "trace": score([true(0, 4), true(50, 4)], [told(0, 4)]),
            "counters": score([true(0, 4)], [replace(told(30, 4), stall_ns=None, lo_ns=None, hi_ns=None)], [0]),
        }
        intervals = score_intervals([interval(0, 5)], [interval(3, 5), interval(900, 5)], 0, MS)
        judged = Judged(WORKLOADS[0], Environment(1, inside=False), 2, 8 * MS, scores, {"psi": "none"}, intervals, {})
        report = Report("python -m bench.fidelity", about, 9, [judged], [("memory.high", "no")])
        page = tmp_path / "page.md"
        page.write_text(f"# before\n\n{BEGIN}\nstale\n{END}\n\nafter\n")
        report.write(str(page))
        report.write(str(page))
        text = page.read_text()
        assert text.startswith(f"# before\n\n{BEGIN}")
        assert text.endswith(f"{END}\n\nafter\n")
        assert "stale" not in text
        assert "| 2 | **0.500** | 1 | 0 | 1.000 | 0.0 / 0.0 | 1.00 | 1.000 | **4.00** |" in text
        assert "**(1 without a hit)**" in text
        assert "| 100.000% | **1** | **3.00** / **3.00** µs |" in text
        assert "- 6.18, memory.high: no" in text
        assert "- **6.18**: Linux 6.18.44-here, HZ=250, 2 CPUs (some), load 0.5; runs of 9 s, steal 0.0%" in text
        page.write_text("nothing")
        with pytest.raises(ValueError, match="fidelity: begin"):
            report.write(str(page))

    def test_other_kernels_have_columns_of_their_own(self):
        here, guest = (
            {"kernel": kernel, "hz": 250, "cpus": 1, "processor": "some", "load": 0, "guest": name}
            for kernel, name in (("6.18.44-here", None), ("6.12.9-cloud", "6.12"))
        )
        both, there = ({each.name: each for each in WORKLOADS}[name] for name in ("cache", "high"))
        found = {"trace": score([true(0, 4)], [told(0, 2)]), "psi": score([true(0, 4)], [])}

        def judged(workload, scores):
            return Judged(workload, Environment(1, inside=False), 1, MS, scores, {}, None, {})

        report = Report("python -m bench.fidelity", here, 9, [judged(both, {"trace": found["trace"]})])
        report.guests = [Report("", guest, 4, [judged(there, found), judged(both, found)], [("light", "failed")])]
        lines = report.to_markdown().splitlines()
        assert next(line for line in lines if line.startswith("| workload | evidence | 6.18: ")).count(" 6.12: ") == 4
        nothing = "– | – | – | –"
        assert f"| high (1, outside) | `trace` | {nothing} | 1 | 1.000 | 1.000 | 0.50 |" in lines
        assert "| cache (1, outside) | `trace` | 1 | 1.000 | 1.000 | 0.50 | 1 | 1.000 | 1.000 | 0.50 |" in lines
        assert f"| cache (1, outside) | `psi` | {nothing} | 1 | **0.000** | – | – |" in lines
        assert lines.index(f"- **cache**: {both.title}") < lines.index(f"- **high**: {there.title}")
        assert "- 6.12, light: failed" in lines
        assert any(line.startswith("- **6.12**: Linux 6.12.9-cloud, HZ=250, 1 CPU, emulated") for line in lines)
