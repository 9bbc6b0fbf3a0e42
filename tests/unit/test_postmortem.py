# SPDX-License-Identifier: Apache-2.0
"""What is said of an end, on rings whose every row is known."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import rowwriter
from oomlogs import GROUP
from rowwriter import MS, T0, S

import pymemcg
from pymemcg import oom
from pymemcg._ffi import NONE, ffi, text
from pymemcg.postmortem import postmortem, running_boot_id

MIB = 1 << 20
WRITER = 4711
LEVELS = [
    {"name": "/pod/app", "directory": "/sys/fs/cgroup/pod/app", "files": {"usage": "memory.current"}},
    {"name": "/pod", "directory": "/sys/fs/cgroup/pod", "files": {"usage": "memory.current"}},
]
INFO = {"target": {"directory": "/sys/fs/cgroup/pod/app", "levels": LEVELS}, "host": "there", "evidence": {"trace": None}}


@pytest.fixture
def ring(tmp_path):
    """Makes the ring that a sampler left: `ring(channels, writer_pid=…)`, with words of its state."""

    def make(channels, info=INFO, **state):
        path = tmp_path / "ring"
        rowwriter.write(path, channels, info)
        words = {"writer_pid": WRITER, "writer_started_ns": T0, "period_ns": MS} | state
        at = ffi.offsetof("struct memcg_ring_header", "state")
        with open(path, "r+b") as file:
            for word, value in words.items():
                os.pwrite(file.fileno(), np.uint64(value).tobytes(), at + ffi.offsetof("struct memcg_state", word))
        return pymemcg.open(path)

    return make


def usage(mib, **options):
    """`usage` of ten seconds at so many MiB: a number, or one for each ms."""
    rows = rowwriter.ticks(10, **options)
    return rows | {"usage_bytes": np.broadcast_to(np.asarray(np.asarray(mib) * MIB, np.int64), (10_000,)).copy()}


FAR, FULL = usage(20), usage(63.9)
LIMIT = rowwriter.limits((0, 0, 64, 0))
SQUEEZED = usage(63.9, hits=range(0, 10_000, 10))


def stat(file_mib):
    """`stat` at 10 Hz, with so many MiB of file pages that can be freed: a number, or one for each row."""
    t = T0 + np.arange(100) * 100 * MS
    each = np.broadcast_to(np.asarray(np.asarray(file_mib) * MIB / 2, np.int64), t.shape)
    return {"t_ns": t, "anon": 60 * MIB - 2 * each, "file": 2 * each, "inactive_file": each, "active_file": each}


def freeing(pages):
    """Ten intervals a second of 5 ms each in reclaim that freed so many pages."""
    return rowwriter.held(*((at, 5, 6) for at in range(50, 10_000, 100)), pages=pages)


class TestEnding:
    def test_what_the_kernel_counts_now_decides(self, ring):
        """It may have counted another process of the group, killed between the last row and now."""
        told = postmortem(ring({"usage": FULL, "limits": LIMIT}), oom_kills_now=1)
        assert (told.ending.how, told.ending.certainty) == ("oom", "almost certain")
        assert "counts 1 OOM kill in the group since the last row" in told.verdict
        assert "at the limit of /pod/app" in told.verdict
        assert told.writer_pid == 4711

    def test_an_oom_kill_far_from_all_limits_that_are_seen(self, ring):
        """An ancestor outside of the namespace, or the whole machine, may have been short."""
        ending = postmortem(ring({"usage": FAR, "limits": LIMIT}), oom_kills_now=2).ending
        assert (ending.how, ending.certainty) == ("oom", "likely")

    def test_no_kill_counted_rules_it_out_even_at_the_limit(self, ring):
        ending = postmortem(ring({"usage": FULL, "limits": LIMIT}), oom_kills_now=0).ending
        assert (ending.how, ending.certainty) == ("killed", "almost certain")

    def test_a_counter_that_fell_is_another_groups(self, ring):
        counted = usage(20, kills=[100])
        assert postmortem(ring({"usage": counted, "limits": LIMIT}), oom_kills_now=0).ending.certainty == "likely"

    def test_a_kill_in_the_last_second_of_the_ring(self, ring):
        told = postmortem(ring({"usage": usage(63.9, kills=[9_500]), "limits": LIMIT}))
        assert (told.ending.how, told.ending.certainty) == ("oom", "almost certain")
        assert told.oom_kills == 1

    def test_a_kill_long_before_is_not_this_one(self, ring):
        assert postmortem(ring({"usage": usage(20, kills=[500]), "limits": LIMIT})).ending.how == "killed"

    def test_the_limit_and_hits(self, ring):
        told = postmortem(ring({"usage": usage(63.9, hits=range(9_900, 10_000)), "limits": LIMIT}))
        assert (told.ending.how, told.ending.certainty) == ("oom", "likely")
        assert told.limit_hits == 100
        assert "hit 100 times" in told.verdict

    def test_the_limit_alone(self, ring):
        """Page cache alone fills a group up to its limit, and nobody minds."""
        ending = postmortem(ring({"usage": FULL, "limits": LIMIT})).ending
        assert (ending.how, ending.certainty) == ("oom", "possible")

    def test_about_to_reach_it(self, ring):
        """A sampler that yields to its group ticks a few times a second, and is killed before it sees the limit."""
        grown = usage(np.append(np.full(9_000, 20.0), np.linspace(20, 58, 1000)))
        slow = {name: values[::200] for name, values in grown.items()}
        told = postmortem(ring({"usage": slow, "limits": LIMIT}, period_ns=200 * MS))
        assert (told.ending.how, told.ending.certainty) == ("oom", "likely")
        assert "about to reach the limit" in told.verdict
        ending = postmortem(ring({"usage": grown, "limits": LIMIT})).ending
        assert ending.how == "killed", "a tick of 1 ms later it would not have been there"

    def test_a_copy_on_a_disk_lacks_the_last_moments(self, ring):
        grown = usage(np.append(np.full(9_000, 20.0), np.linspace(20, 58, 1000)))
        made = ring({"usage": grown, "limits": LIMIT})
        assert postmortem(made).ending.how == "killed"
        entry = ffi.typeof("struct memcg_channel_header")
        at = made.header.channels_offset + made.usage.position * ffi.sizeof(entry) + ffi.offsetof(entry, "begun")
        with open(made.path, "r+b") as file:
            os.pwrite(file.fileno(), np.uint64(made.usage.head).tobytes(), at)
        ending = postmortem(pymemcg.open(made.path)).ending
        assert (ending.how, ending.certainty) == ("oom", "likely")

    def test_the_limit_of_a_group_above(self, ring):
        levels = rowwriter.limits((0, 0, 1024, 0), (0, 1, 100, 0), (9_500, 1, 100, 3), (9_900, 1, 100, 70))
        levels["usage_bytes"] = [20 * MIB, 50 * MIB, 90 * MIB, 100 * MIB]
        told = postmortem(ring({"usage": FAR, "limits": levels}))
        assert told.nearest.name == "/pod"
        assert told.nearest.left_bytes == 0
        assert (told.ending.how, told.ending.certainty) == ("oom", "likely")
        assert "hit 67 times" in told.verdict
        assert [(limit.level, limit.near) for limit in told.limits] == [(0, False), (1, True)]

    def test_far_from_every_limit(self, ring):
        told = postmortem(ring({"usage": FAR, "limits": LIMIT}))
        assert (told.ending.how, told.ending.certainty) == ("killed", "likely")
        assert "SIGKILL or a crash" in told.verdict

    def test_there_is_no_limit(self, ring):
        none = rowwriter.limits((0, 0, 1, 0)) | {"limit_bytes": [NONE]}
        told = postmortem(ring({"usage": FAR, "limits": none}))
        assert told.limits == ()
        assert told.ending.how == "killed"

    def test_an_oom_kill_of_the_whole_machine(self, ring):
        node = rowwriter.node(10, oom_kill=[9_800])
        told = postmortem(ring({"usage": FAR, "limits": LIMIT, "node": node}))
        assert (told.ending.how, told.ending.certainty) == ("oom", "possible")
        assert "there was 1 OOM kill on the whole machine" in told.verdict

    def test_nothing_tells(self, ring):
        assert postmortem(ring({"usage": FAR})).ending.how == "unknown"
        assert postmortem(ring({"clock": {"t_ns": [T0], "realtime_ns": [10**18]}})).ending.how == "unknown"

    def test_the_machine_was_started_anew(self, ring):
        made = ring({"usage": FAR, "limits": LIMIT})
        assert postmortem(made, boot_id=running_boot_id()).ending.how == "killed"
        told = postmortem(made, boot_id="another")
        assert (told.ending.how, told.ending.certainty) == ("restarted", "possible"), "or the file was brought here"
        assert told.verdict.startswith("Perhaps it ended with the machine: another kernel runs now")

    @pytest.mark.parametrize("kills", [0, 1])
    def test_another_kernel_has_counted_nothing_of_it(self, ring, kills):
        far = postmortem(ring({"usage": FAR, "limits": LIMIT}), boot_id="another", oom_kills_now=kills)
        assert far.ending.how == "restarted"
        full = postmortem(ring({"usage": usage(63.9, hits=[9_990]), "limits": LIMIT}), boot_id="another", oom_kills_now=kills)
        assert (full.ending.how, full.ending.certainty) == ("oom", "likely")

    def test_a_group_that_was_made_anew_tells_nothing_of_the_one_before(self, ring):
        """Whose count is not known: then hits and stalls to the end are what there is."""
        rows = usage(63.9, hits=range(9_000, 10_000))
        told = postmortem(ring({"usage": rows, "limits": LIMIT}, trace_open_ns=T0 + 9_900 * MS), oom_kills_now=None)
        assert (told.ending.how, told.ending.certainty) == ("oom", "likely")
        assert "hit 1,000 times in the last second; threads were held for memory up to the end" in told.verdict

    @pytest.mark.parametrize("traced", [True, False])
    def test_a_squeezed_service_of_which_memory_could_still_be_freed(self, ring, traced):
        """A liveness probe kills it as well: hits and stalls at the limit are those of every such service."""
        channels = {"usage": SQUEEZED, "limits": LIMIT, "stat": stat(30)} | ({"reclaim": freeing(2304)} if traced else {})
        told = postmortem(ring(channels))
        assert (told.ending.how, told.ending.certainty) == ("killed", "possible")
        freed = "reclaim still freed 9.0 MiB each time and " if traced else ""
        assert "hit 100 times in the last second; threads were held" in told.verdict
        assert f"; but {freed}30.0 MiB were file pages, which can be freed." in told.verdict
        anew = postmortem(ring(channels), boot_id="another")
        assert (anew.ending.how, anew.ending.certainty) == ("restarted", "possible")
        assert postmortem(ring(channels), oom_kills_now=1).ending.how == "oom", "the kernel's count decides"

    @pytest.mark.parametrize(
        ("pages", "mib", "why"),
        [
            (0, 30, "the last reclaim freed nothing"),
            (3, 30, "the last reclaim freed 96.0 KiB"),
            (2304, 0, "no file pages were left"),
            (2304, 2, "next to no file pages were left (2.0 MiB)"),
            (
                2304,
                np.append(np.full(90, 30), np.linspace(30, 12, 10)),
                "12.0 MiB of file pages were left, and went so fast that they were soon gone",
            ),
        ],
    )
    def test_a_squeezed_service_of_which_nothing_could_be_freed(self, ring, pages, mib, why):
        told = postmortem(ring({"usage": SQUEEZED, "limits": LIMIT, "stat": stat(mib), "reclaim": freeing(pages)}))
        assert (told.ending.how, told.ending.certainty) == ("oom", "likely")
        assert why in told.verdict

    def test_file_pages_do_not_tell_against_usage_that_grew_into_the_limit(self, ring):
        """They may be gone: memory.stat is up to 2 s old."""
        grown = usage(np.append(np.full(9_300, 20.0), np.linspace(20, 64, 700)), hits=[9_990])
        told = postmortem(ring({"usage": grown, "limits": LIMIT, "stat": stat(15)}))
        assert (told.ending.how, told.ending.certainty) == ("oom", "likely")
        assert "usage grew into the limit in the last second" in told.verdict

    def test_a_thread_that_sigkill_met_in_reclaim_was_not_there_for_longer_than_others(self, ring):
        channels = {"usage": SQUEEZED, "limits": LIMIT, "stat": stat(30), "reclaim": freeing(2304)}
        assert postmortem(ring(channels, trace_open_ns=T0 + 9_997 * MS)).ending.how == "killed"
        told = postmortem(ring(channels, trace_open_ns=T0 + 9_900 * MS))
        assert (told.ending.how, told.ending.certainty) == ("oom", "likely")
        assert "a thread had been in reclaim for 99.0 ms without end" in told.verdict

    def test_page_cache_at_the_limit_without_a_hit(self, ring):
        ending = postmortem(ring({"usage": FULL, "limits": LIMIT, "stat": stat(50)})).ending
        assert (ending.how, ending.certainty) == ("killed", "possible")

    @pytest.mark.parametrize(
        ("pid", "memcg", "late_s", "certainty"),
        [
            (WRITER, "/other", 0.5, "certain"),
            (99, "/pod/app", 0.5, "almost certain"),
            (99, "/other", 0.5, "likely"),
            (WRITER, "/pod/app", 60, "likely"),
        ],
        ids=["of the writer", "of its group", "of another group", "at another time"],
    )
    def test_what_the_kernels_log_says(self, ring, pid, memcg, late_s, certainty):
        log = re.sub(r"\[1\.\d\]", f"[{(T0 + 10 * S) / 1e9 + late_s:.6f}]", GROUP).replace("/a,", f"{memcg},")
        killed = list(oom.kills(log.replace("51", str(pid)).splitlines()[:4]))
        assert [(kill.pid, kill.task_memcg) for kill in killed] == [(pid, memcg)]
        recording = ring({"usage": usage(63.9, hits=[9_990]), "limits": LIMIT})
        ending = postmortem(recording, boot_id=text(recording.header.boot_id), logged=killed).ending
        assert (ending.how, ending.certainty) == ("oom", certainty)
        assert any("the kernel's log has it" in why for why in ending.why) == (certainty != "likely")
        other = postmortem(recording, boot_id="another", logged=killed).ending
        assert not any("the kernel's log has it" in why for why in other.why)

    def test_a_clean_stop(self, ring):
        told = postmortem(ring({"usage": FULL, "limits": LIMIT}, writer_pid=0))
        assert (told.ending.how, told.ending.certainty, told.writer_pid) == ("stopped", "certain", None)

    def test_a_recording_tells_of_no_end(self, ring):
        told = postmortem(ring({"usage": FULL, "limits": LIMIT}, writer_started_ns=0))
        assert told.ending.how == "recorded"
        assert told.usage_bytes == round(63.9 * MIB)

    def test_a_thread_in_reclaim_at_the_end(self, ring):
        told = postmortem(ring({"usage": FULL, "limits": LIMIT}, trace_open_ns=T0 + 9_900 * MS))
        assert told.held_ns == 99 * MS
        assert (told.ending.how, told.ending.certainty) == ("oom", "likely")


class TestFigures:
    @pytest.mark.parametrize("slope", [-3.0, 0.0, 0.5, 4.0])
    def test_growth_is_the_slope_and_to_the_limit_at_that(self, ring, slope):
        grown = usage(40 + slope * np.arange(10_000) / 1000)
        told = postmortem(ring({"usage": grown, "limits": rowwriter.limits((0, 0, 100, 0))}))
        second, ten, minute = told.growth
        for growth in (second, ten):
            assert growth.bytes_per_s == pytest.approx(slope * MIB, abs=MIB / 100)
        assert minute.bytes_per_s is None, "there are only 10 s"
        if slope > 0:
            assert ten.to_limit_s == pytest.approx((60 - 10 * slope) / slope, rel=0.02)
        else:
            assert ten.to_limit_s is None

    @pytest.mark.parametrize(("slope", "said"), [(0.016, ""), (1.5, "In the last 10 s usage grew by 1.5 MiB/s.")])
    def test_at_the_limit_there_is_none_to_be_reached(self, ring, slope, said):
        grown = usage(np.minimum(63.8, 63.8 - slope * (9_000 - np.arange(10_000)) / 1000))
        verdict = postmortem(ring({"usage": grown, "limits": LIMIT})).verdict
        assert "would have reached" not in verdict
        assert verdict.endswith(f"the limit of /pod/app. {said}".rstrip())

    def test_spikes_do_not_move_it(self, ring):
        grown = usage(40 + np.arange(10_000) / 1000)
        grown["usage_bytes"][-400:-200] += 500 * MIB
        assert postmortem(ring({"usage": grown})).growth[0].bytes_per_s == pytest.approx(MIB, rel=0.05)

    def test_usage_memory_and_peak(self, ring):
        peaked = usage(np.append(np.full(5_000, 20), np.append(48, np.full(4_999, 30))))
        peaked["usage_bytes"][7_000] = NONE
        stat = {"t_ns": [T0, T0 + 9 * S], "anon": [1, 12 * MIB], "file": [1, 9 * MIB], "inactive_file": [1, 4 * MIB]}
        told = postmortem(ring({"usage": peaked, "stat": stat}))
        assert (told.usage_bytes, told.peak_bytes) == (30 * MIB, 48 * MIB)
        assert (told.anon, told.file, told.working_set) == (12 * MIB, 9 * MIB, 26 * MIB)
        assert told.ended_ns == T0 + 9_999 * MS
        assert told.lasted_ns == 9_999 * MS

    def test_the_last_second_in_steps(self, ring):
        rows = usage(np.append(np.full(9_000, 20), 30 + np.arange(1000) // 100), hits=[9_150, 9_151, 9_950])
        steps = postmortem(ring({"usage": rows})).steps
        assert [step.before_ns for step in steps] == [(10 - i) * 100 * MS for i in range(10)]
        assert [step.usage_bytes // MIB for step in steps] == list(range(30, 40))
        assert [step.limit_hits for step in steps] == [0, 2, 0, 0, 0, 0, 0, 0, 0, 1]

    def test_a_step_without_rows_is_not_known(self, ring):
        rows = {name: values[np.r_[0:9_199, 9_399:10_000]] for name, values in FAR.items()}
        steps = postmortem(ring({"usage": rows})).steps
        assert [step.usage_bytes is None for step in steps] == [False, False, True, True, *[False] * 6]
        assert steps[3].limit_hits is None

    def test_stalls_and_those_of_the_last_second(self, ring):
        held = rowwriter.held((1_000, 20, 5), (9_500, 30, 6))
        rows = usage(63.9, hits=[1_000, 9_500])
        told = postmortem(ring({"usage": rows, "limits": LIMIT, "reclaim": held, "node": rowwriter.node(10)}))
        assert told.stalls.count == 2
        assert told.stalls.worst_ns == 30 * MS
        assert told.stalls.stall_ns == 50 * MS
        assert told.stalls.causes == {"limit": 2}
        (last,) = told.last_stalls
        assert last.tids == (6,)
        assert sum(step.in_stall_ns for step in told.steps) == 30 * MS
        assert told.ending.certainty == "likely"

    def test_hits_of_spans(self, ring):
        spans = {
            "start_ns": [T0 + 100 * MS, T0 + 200 * MS],
            "end_ns": [T0 + 150 * MS, T0 + 250 * MS],
            "tid": [5, 5],
            "name_id": [0, 1],
            "ref_id": [0, 0],
            "attribution": [1, 1],
            "ran_start_ns": [T0 + 100 * MS, T0 + 200 * MS],
            "ran_end_ns": [T0 + 150 * MS, T0 + 250 * MS],
        }
        said = INFO | {"spans": {"pid": 7, "names": ["slow", "quick"], "refs": ["x"]}}
        told = postmortem(ring({"usage": FAR, "reclaim": rowwriter.held((110, 20, 5)), "spans": spans}, said))
        assert (told.hits.count, told.hits.spans, told.hits.lost_ns, told.hits.worst) == (1, 2, 20 * MS, ("slow",))
        assert postmortem(ring({"usage": FAR})).hits is None

    def test_what_is_absent_is_none(self, ring):
        told = postmortem(ring({"usage": {"t_ns": FAR["t_ns"], "late_ns": FAR["t_ns"]}}, {"absent": {"high": "v1"}}))
        for name in (
            "usage_bytes",
            "peak_bytes",
            "anon",
            "file",
            "working_set",
            "limit_hits",
            "oom_kills",
            "nearest",
            "target",
        ):
            assert getattr(told, name) is None, name
        assert [growth.bytes_per_s for growth in told.growth] == [None, None, None]
        assert told.absent == {"high": "v1"}

    def test_the_gap_between_the_last_row_and_the_file(self, ring):
        made = ring({"usage": FAR, "clock": {"t_ns": [T0], "realtime_ns": [10**18]}})
        told = postmortem(made)
        if told.gap_ns is None:
            pytest.skip("pytest's folder is on a tmpfs, where a file's time says nothing")
        os.utime(made.path, ns=(0, 10**18 + 9_999 * MS + 5 * S))
        assert postmortem(pymemcg.open(made.path)).gap_ns == 5 * S

    def test_all_of_it_is_json(self, ring):
        held = rowwriter.held((9_500, 30, 6))
        told = postmortem(ring({"usage": FULL, "limits": LIMIT, "reclaim": held}))
        back = json.loads(json.dumps(told.to_dict(), allow_nan=False))
        assert back["ending"]["how"] == "oom"
        assert back["nearest"]["limit_bytes"] == 64 * MIB
        assert back["last_stalls"][0]["tids"] == [6]
        assert back["verdict"] == told.verdict


class TestLine:
    def test_it_says_how_it_ended_usage_growth_and_stalls(self, ring):
        rows = usage(np.append(np.full(9_000, 20.0), np.linspace(20, 63.9, 1000)), hits=[9_960])
        held = rowwriter.held((9_960, 20, 6))
        line = postmortem(ring({"usage": rows, "limits": LIMIT, "reclaim": held}), oom_kills_now=1).line()
        assert line.startswith("pid 4711 was killed, almost certainly by the OOM killer: last usage 63.9 MiB of 64.0 MiB; ")
        assert "growth +43.9 MiB/s in 1 s, " in line
        assert "1 stall (limit 1), 20.0 ms in all, the worst 20.0 ms; 1 in the last second" in line
        assert "\n" not in line

    def test_of_a_clean_stop(self, ring):
        line = postmortem(ring({"usage": FAR, "limits": LIMIT}, writer_pid=0)).line()
        assert line == "stopped in order: last usage 20.0 MiB of 64.0 MiB; growth 0 B/s in 1 s, 0 B/s in 10 s; no stalls"

    def test_it_names_what_is_damaged(self, ring):
        path = Path(ring({"usage": FAR, "limits": LIMIT}).path)
        os.truncate(path, path.stat().st_size - 65_536)  # the last column of limits
        assert postmortem(pymemcg.open(path)).line().endswith("; no stalls; damaged: file, limits")
