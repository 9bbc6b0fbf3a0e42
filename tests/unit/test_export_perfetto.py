# SPDX-License-Identifier: Apache-2.0
"""Traces for Perfetto, parsed by its own schema: events are on tracks that are told before, slices nest, counters are right."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb
from rowwriter import MS, T0, S, held, limits, ticks, write

from pymemcg._ffi import NONE
from pymemcg.export import export, rows_to_read

READ = {"usage": "memory.current", "limit": "memory.max"}
LEVELS = [{"name": "/a/group", "files": READ}, {"name": "/a/without", "files": {}}, {"name": "/a", "files": READ}]
"""The one without a usage is not sampled, and has no number."""
INFO = {
    "target": {"directory": "/a/group", "levels": LEVELS},
    "evidence": {"trace": None, "psi": None, "counters": None},
    "spans": {"pid": 7, "names": ["checkout", "import"], "refs": ["<a>", 5], "refs_left_out": 0},
}


def spans(*rows: tuple[float, float, int, int, int]) -> dict[str, list[int]]:
    """Rows of `spans` in the order of their ends: (ms from T0, for how many ms, tid, name, ref)."""
    start = [T0 + round(row[0] * MS) for row in rows]
    end = [begin + round(row[1] * MS) for begin, row in zip(start, rows, strict=True)]
    ids = {name: [row[at] for row in rows] for at, name in ((2, "tid"), (3, "name_id"), (4, "ref_id"))}
    return {"start_ns": start, "end_ns": end, **ids, "attribution": [1] * len(rows), "ran_start_ns": start, "ran_end_ns": end}


@pytest.fixture
def recording(tmp_path):
    usage = ticks(3, hits=[100, 101])
    usage["usage_bytes"] = np.repeat([1 << 20, 2 << 20, 1 << 20], 1000)
    pressed = [T0 + second * S for second in range(4)]
    channels = {
        "usage": usage,
        "limits": joined(
            limits((0, 0, 64, 1), (0, 1, 999, 0), (0, -1, 5, 0)), {"t_ns": [T0 + S], "level": [0], "limit_bytes": [NONE]}
        ),
        "stat": {"t_ns": [T0 + S, T0 + 2 * S], "anon": [5, 6], "file": [7, 7], "inactive_file": [1 << 19, 3 << 20]},
        "pressure": dict.fromkeys(("t_ns", "since_ns"), pressed) | {"some_us": [0, 0, 250_000, 250_000]},
        "reclaim": held((100, 5, 7), (101, 30, 8), (102, 1, 8), (2000, 0.1, 7)),
        "spans": spans((120, 10, 8, 0, 1), (90, 50, 8, 1, 0), (130, 20, 8, 0, -1), (160, 5, 8, 0, -1), (170, 5, 9, 0, -1)),
        "clock": {"t_ns": [T0, T0 + 2 * S], "realtime_ns": [10**18, 10**18 + 3 * S]},
    }
    return write(tmp_path / "run.memcg", channels, INFO)


def joined(whole, more):
    """Rows of `limits` and one more, whose other columns are absent."""
    return {name: [*values, *more.get(name, [NONE])] for name, values in whole.items()}


class Read:
    """A trace as its reader has it."""

    def __init__(self, path):
        trace = pb.Trace()
        trace.ParseFromString(Path(path).read_bytes())
        self.tracks, self.events, self.clocks = {}, defaultdict(list), []
        for packet in trace.packet:
            assert packet.trusted_packet_sequence_id == 1
            if packet.HasField("track_descriptor"):
                track = packet.track_descriptor
                assert track.uuid not in self.tracks
                assert not track.parent_uuid or track.parent_uuid in self.tracks
                self.tracks[track.uuid] = track
            elif packet.HasField("clock_snapshot"):
                assert packet.clock_snapshot.primary_trace_clock == pb.BUILTIN_CLOCK_MONOTONIC
                self.clocks.append({clock.clock_id: clock.timestamp for clock in packet.clock_snapshot.clocks})
            else:
                assert packet.timestamp_clock_id == pb.BUILTIN_CLOCK_MONOTONIC
                assert packet.track_event.track_uuid in self.tracks
                self.events[packet.track_event.track_uuid].append((packet.timestamp, packet.track_event))

    def named(self, name):
        return [uuid for uuid, track in self.tracks.items() if track.name == name]

    def samples(self, name):
        (uuid,) = self.named(name)
        events = self.events[uuid]
        return [(t, getattr(event, event.WhichOneof("counter_value_field"))) for t, event in events]

    def slices(self, uuid):
        """(begin, end, name, arguments), as they nest: two that overlap without one holding the other are no slices."""
        found, opened = [], []
        for t, event in sorted(self.events[uuid], key=lambda one: one[0]):  # stable, as Perfetto sorts
            if event.type == event.TYPE_SLICE_BEGIN:
                says = {a.name: a.int_value if a.HasField("int_value") else a.string_value for a in event.debug_annotations}
                opened.append((t, event.name, says))
            elif event.type == event.TYPE_SLICE_END:
                begin, name, says = opened.pop()
                found.append((begin, t, name, says))
        assert not opened
        return sorted(found, key=lambda one: one[:3])


@pytest.fixture
def trace(recording, tmp_path):
    told: list[int] = []
    (one,) = export(recording, "perfetto", tmp_path / "run.pftrace", tell=told.append)
    assert sum(told) == rows_to_read(recording, "perfetto", None)
    assert one.size_bytes == os.path.getsize(one.path)
    return Read(one.path)


def test_counters_have_each_change_and_nothing_else(trace):
    assert trace.samples("usage") == [(T0, 1 << 20), (T0 + S, 2 << 20), (T0 + 2 * S, 1 << 20)]
    assert trace.samples("limit_hits") == [(T0, 0), (T0 + 100 * MS, 1), (T0 + 101 * MS, 2)]
    assert trace.samples("limit") == [(T0, 64 << 20)]
    assert trace.samples("limit of /a") == [(T0, 999 << 20)]
    assert trace.samples("limit of level -1") == [(T0, 5 << 20)], "nothing names a level that is damaged"
    assert trace.samples("anon") == [(T0 + S, 5), (T0 + 2 * S, 6)]
    assert trace.samples("file") == [(T0 + S, 7)]
    assert trace.samples("working set") == [(T0 + S, (2 << 20) - (1 << 19)), (T0 + 2 * S, 0)]
    assert trace.samples("pressure, some") == [(T0, 0.0), (T0 + S, 25.0), (T0 + 2 * S, 0.0)]
    assert not trace.named("pressure, full")
    assert not trace.named("high")
    units = {track.name: track.counter.unit for track in trace.tracks.values() if track.HasField("counter")}
    assert units["usage"] == pb.CounterDescriptor.UNIT_SIZE_BYTES
    assert units["limit_hits"] == pb.CounterDescriptor.UNIT_COUNT


def test_a_limit_that_is_lifted_is_told(trace):
    (root,) = trace.named("memory of /a/group")
    assert [(t, event.name) for t, event in trace.events[root]] == [(T0 + S, "no limit any more")]


def test_reclaim_is_on_its_thread(trace):
    threads = {(track.thread.pid, track.thread.tid): uuid for uuid, track in trace.tracks.items() if track.HasField("thread")}
    assert set(threads) == {(7, 7), (7, 8), (7, 9)}
    assert [(begin, end, name) for begin, end, name, _ in trace.slices(threads[7, 8])] == [
        (T0 + 101 * MS, T0 + 131 * MS, "memcg"),
        (T0 + 102 * MS, T0 + 103 * MS, "memcg"),
    ]
    assert trace.slices(threads[7, 7])[0][3] == {"reclaimed_pages": 32, "cpu_wait_ns": 0}


def test_spans_are_below_their_thread_and_those_that_overlap_beside_each_other(trace):
    found = defaultdict(list)
    for uuid in trace.named("spans"):
        lane = trace.slices(uuid)
        for (_, end, *_), (begin, *_) in pairwise(lane):
            assert end <= begin
        found[trace.tracks[trace.tracks[uuid].parent_uuid].thread.tid] += lane
    assert {tid: len(of) for tid, of in found.items()} == {8: 4, 9: 1}
    says = {(begin, name): says for begin, _, name, says in found[8]}
    assert says[T0 + 90 * MS, "import"] == {"ref": "<a>", "attribution": "thread"}
    assert says[T0 + 120 * MS, "checkout"] == {"ref": 5, "attribution": "thread"}


def test_stalls_are_those_of_the_detector(trace, recording):
    told = [one for name in ("stalls", "harmless reclaim") for uuid in trace.named(name) for one in trace.slices(uuid)]
    stalls = recording.stalls()
    assert sorted((begin, end, name) for begin, end, name, _ in told) == sorted(
        (stall.start_ns, stall.end_ns, stall.cause) for stall in stalls
    )
    (worst,) = [stall for stall in stalls if stall.harmless is False]
    (says,) = [says for uuid in trace.named("stalls") for *_, says in trace.slices(uuid)]
    for name in ("stall_ns", "stall_lo_ns", "stall_hi_ns", "limit_hits", "usage_bytes"):
        assert says[name] == getattr(worst, name)
    assert says["evidence"] == "trace"
    assert says["held threads"] == "7, 8"
    assert "incomplete" not in says, "what is not known is not there"


def test_clocks_are_those_of_the_recording_in_the_order_of_their_times(trace, recording):
    pairs = [(clock[pb.BUILTIN_CLOCK_MONOTONIC], clock[pb.BUILTIN_CLOCK_REALTIME]) for clock in trace.clocks]
    header = recording.header
    assert pairs == sorted([(T0, 10**18), (T0 + 2 * S, 10**18 + 3 * S), (header.created_ns, header.created_realtime_ns)])


def test_of_a_quiet_recording_there_are_no_stalls(tmp_path):
    export(write(tmp_path / "run.memcg", {"usage": ticks(1)}), "perfetto", tmp_path / "out.pftrace")
    trace = Read(tmp_path / "out.pftrace")
    assert not trace.named("stalls")
    assert [t for t, _ in trace.samples("usage")] == [T0]


def test_memory_does_not_grow_with_the_recording(tmp_path):
    code = (
        "import sys, pymemcg\n"
        "from pymemcg.export import export\n"
        "most = 0\n"
        "def tell(rows):\n"
        "    global most\n"
        "    status = open('/proc/self/status').read()\n"
        "    most = max(most, int(status.partition('RssAnon:')[2].split()[0]) << 10)\n"
        "print(export(pymemcg.open(sys.argv[1]), 'perfetto', sys.argv[1] + '.out', tell=tell)[0].rows, most)"
    )
    held_bytes = []
    for rows in (270_000, 540_000):
        usage = {"t_ns": T0 + np.arange(rows) * MS, "usage_bytes": np.arange(rows) % 1000 << 12}
        path = write(tmp_path / f"{rows}.memcg", {"usage": usage}).path
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=300, check=True)
        events, most = map(int, done.stdout.split())
        assert events == rows
        held_bytes.append(most)
    assert held_bytes[1] - held_bytes[0] < 16 << 20, held_bytes


def test_without_the_library_an_error_says_what_to_install(recording):
    code = (
        "import sys; sys.modules['perfetto'] = None\n"
        "import pymemcg\n"
        "from pymemcg.export import export\n"
        f"try: export(pymemcg.open({recording.path!r}), 'perfetto', {recording.path + '.out'!r})\n"
        "except pymemcg.NotSupported as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'pymemcg[perfetto]'" in done.stdout
    assert os.listdir(Path(recording.path).parent) == ["run.memcg"]


def test_one_thread_has_one_track(trace):
    threads = sorted((t.thread.pid, t.thread.tid) for t in trace.tracks.values() if t.HasField("thread"))
    assert [len(list(of)) for _, of in groupby(threads)] == [1] * len(threads)
