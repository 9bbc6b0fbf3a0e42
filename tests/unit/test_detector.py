# SPDX-License-Identifier: Apache-2.0
"""The detector: chunks make no difference, and it follows rings that are being written."""

from __future__ import annotations

import errno
import os
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ringwriter import ROWS, RingWriter
from rowwriter import MS, T0, held, joined, limits, node, ticks, write

import pymemcg
from pymemcg import Detector, Policy, Stalls, _counted, _traced, schema
from pymemcg._detect import Detection
from pymemcg._ffi import NONE, ffi
from pymemcg._hitting import Finder
from pymemcg._spanlog import SpanChannel
from pymemcg.channel import Channel
from pymemcg.ring import ChannelSpec

EVENTS: dict[str, Any] = {"t_ns": [], "since_ns": [], "kind": [], "value": []}


def pressure(seconds: float, every_ms: int, stalls: dict[float, float]) -> dict[str, Any]:
    """Reads of PSI, after stalls of so many ms that ended at these ms."""
    t = np.arange(0, int(seconds * 1000), every_ms)
    some = [round(1000 * sum(ms for end, ms in stalls.items() if end <= at)) for at in t]
    since = np.append(t[0], t[:-1])
    return {
        "t_ns": T0 + t * MS,
        "since_ns": T0 + since * MS,
        "some_us": some,
        "full_us": some,
        "cpu_us": t * 200,
        "cpu_wait_us": t * 0,
    }


# ---- Chunks ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A recording with all that there is: stalls and calm, threads, an ancestor, lost tracepoints, PSI, memory.high."""
    random = np.random.default_rng(7)
    calm = np.cumsum(random.exponential(3, 1500))
    begun = np.sort(random.uniform(0, 11_000, 300))
    rows = joined(
        held(*[(at, 0.004, 5) for at in calm]),
        held(*[(at, float(random.lognormal(-0.5, 1.2)), int(random.integers(6, 9))) for at in begun], wait_ms=0.05),
        held((4000, 900, 9)),
        held(*[(5200 + i * 4.0, 0, 10) for i in range(60)], kind=5),
    )
    rows["end_ns"][-1] = NONE
    high = 5200 + np.arange(0, 300, 5.0)
    reads = {float(at): 3.0 for at in range(5300, 9000, 100)} | {9500.0: 30.0}
    return write(
        tmp_path_factory.mktemp("mixed") / "r.memcg",
        {
            "usage": ticks(12, hits=np.concatenate([calm, begun]), high=high, kills=[8000]),
            "reclaim": rows,
            "limits": limits((0, 0, 64, 0), (0, 1, 128, 0), (700, 1, 128, 9), (3000, 0, 60, 0), (6000, 1, 128, 12)),
            "node": node(12, allocstall_normal=[2000, 2500]),
            "pressure": pressure(12, 130, reads),
            "stat": node(12, anon=[1, 2, 900], file=[5000], workingset_refault_file=[9450, 9460]),
            "events": {"t_ns": [T0 + 7100 * MS], "since_ns": [T0 + 6900 * MS], "kind": [6], "value": [2]},
        },
        {"cpus": 2, "target": {"pressure_scope": "group"}},
    )


def closed(detection: Detection) -> Stalls:
    told = detection.advance() + detection.finish()
    return Stalls(stall for stall in told if stall.state == "closed")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chunk=st.integers(100, 3000),
    rows=st.integers(20, 700),
    windows=st.integers(2, 40),
    evidence=st.sampled_from(["auto", "trace", "psi", "counters"]),
)
def test_chunks_make_no_difference(mixed, monkeypatch, *, chunk, rows, windows, evidence):
    policy = Policy(patience_ns=3_000_000_000, harmless_every_ns=1_000_000_000)
    whole = in_one_piece(mixed, evidence, policy)
    with monkeypatch.context() as patch:
        patch.setattr(_traced, "CHUNK", rows)
        patch.setattr(_counted, "CHUNK", windows)
        cut = closed(Detection(mixed, evidence, policy, chunk=chunk))
    assert cut.to_dicts() == whole.to_dicts()
    assert len(whole)


@cache
def in_one_piece(recording: pymemcg.Recording, evidence: str, policy: Policy) -> Stalls:
    return closed(Detection(recording, evidence, policy))


def test_all_evidences_are_joined(mixed):
    found = pymemcg.stalls(mixed)
    assert {name for stall in found for name in stall.evidence} >= {"trace", "psi", "wchan"}
    assert {"limit", "high"} <= {stall.cause for stall in found}
    assert {True, False} <= {stall.harmless for stall in found}
    for stall in found:
        if stall.stall_ns is not None and stall.stall_hi_ns is not None:
            assert stall.stall_lo_ns <= stall.stall_ns <= stall.stall_hi_ns


# ---- Live --------------------------------------------------------------------------------------------------------------------

SPECS = [
    ChannelSpec(name, 0, ROWS, dict(schema.CHANNELS[name]))
    for name in ("usage", "pressure", "limits", "node", "reclaim", "clock", "events")
]


class Live:
    """What a detector needs of a sampler: channels over a ring that the test writes, and the words of its state."""

    def __init__(self) -> None:
        self.writer = RingWriter(SPECS)
        self._hits = self._high = 0
        for name in schema.CHANNELS:
            setattr(self, name, Channel(name, self.writer.ring, self.writer.ring.tables.get(name)))
        self.put("limits", limits((0, 0, 64, 0)))
        self.put("node", node(0.1))
        self.at_ms = 0

    def describe(self) -> dict[str, Any]:
        return {"cpus": 2, "target": {"pressure_scope": "group"}}

    def put(self, name: str, columns: dict[str, Any]) -> None:
        for values in zip(*columns.values(), strict=True):
            self.writer.put(name, {column: int(value) for column, value in zip(columns, values, strict=True)})

    def tick(self, until_ms: int, hits: int = 0) -> None:
        """Rows of `usage` up to then, and the hits in the first of them."""
        for at in range(self.at_ms, until_ms):
            row = {"t_ns": T0 + at * MS, "late_ns": 0, "usage_bytes": 64 << 20, "limit_hits": self._hits}
            unknown = {"memsw_hits": 0, "high_hits": 0, "oom_kills": 0, "rss_bytes": 0, "shared_bytes": 0}
            self.writer.put("usage", row | unknown)
            self._hits += hits if at == self.at_ms else 0
        self.at_ms = until_ms

    def traced(self, until_ms: float, open_ms: float | None = None) -> None:
        """Up to then all intervals that ended have their row; the oldest that has not began at `open_ms`."""
        header = ffi.typeof("struct memcg_ring_header")
        state = ffi.typeof("struct memcg_state")
        for word, ms in (("trace_open_ns", open_ms), ("trace_ns", until_ms)):
            at = ffi.offsetof(header, "state") + ffi.offsetof(state, word)
            value = 0 if ms is None else T0 + round(ms * MS)
            os.pwrite(self.writer.fd, np.uint64(value).tobytes(), at)


@pytest.fixture
def live():
    return Live()


def told(stalls: list[pymemcg.Stall]) -> list[tuple[str, float, float | None]]:
    return [(s.state, (s.start_ns - T0) / MS, None if s.end_ns is None else (s.end_ns - T0) / MS) for s in stalls]


def test_a_stall_is_told_when_known_and_when_over(live):
    detector = Detector(live, evidence="trace")
    live.tick(8)
    live.traced(7)
    assert detector.advance() == []
    live.put("reclaim", held((8, 2, 5)))
    live.tick(12, hits=1)
    live.traced(11)
    assert told(detector.advance()) == [("open", 8, 10)]
    assert detector.advance() == []
    assert detector.final_until_ns <= T0 + 8 * MS
    live.tick(14)
    live.traced(13)
    assert detector.advance() == []
    live.tick(20)
    live.traced(19)
    assert told(detector.advance()) == [("closed", 8, 10)]
    assert detector.advance() == detector.finish() == []
    assert detector.final_until_ns >= T0 + 19 * MS


def test_a_ring_without_tracepoints_waits_for_none(live):
    detector = Detector(live)
    live.tick(10)
    live.tick(60, hits=3)
    found = detector.advance() + detector.finish()
    assert ("limit", ("counters",)) in {(stall.cause, stall.evidence) for stall in found}


def test_nothing_is_final_while_an_older_interval_has_no_row(live):
    detector = Detector(live, evidence="trace")
    live.put("reclaim", held((10, 2, 5)))
    live.tick(10)
    live.tick(50, hits=2)
    live.traced(49, open_ms=9)
    assert detector.advance() == []
    live.put("reclaim", held((9, 30, 6)))
    live.tick(60)
    live.traced(59)
    assert told(detector.advance()) == [("closed", 9, 39)]


def test_what_only_the_next_look_at_limits_can_explain_waits_for_it(live):
    detector = Detector(live, evidence="trace")
    live.put("reclaim", held((10, 30, 5)))
    live.tick(100)
    live.traced(99)
    assert detector.advance() == []
    live.put("limits", limits((100, 0, 32, 0)))
    live.put("node", {name: values[1:] for name, values in node(0.2).items()})
    live.tick(120)
    live.traced(119)
    assert detector.advance() == detector.finish() == []  # an administrator's


def test_a_harmless_episode_that_goes_on_is_told_now_and_then(live):
    detector = Detector(live, evidence="trace", policy=Policy(harmless_every_ns=100 * MS))
    found = []
    for at in range(0, 500, 10):
        live.put("reclaim", held((at + 1, 0.01, 5)))
        live.tick(at + 10, hits=1)
        live.traced(at + 9)
        found += detector.advance()
    assert [stall.state for stall in found] == ["open"] * 4
    assert {stall.start_ns for stall in found} == {T0 + MS}
    assert all(stall.harmless for stall in found)
    (last,) = detector.finish()
    assert (last.state, last.intervals, last.limit_hits) == ("closed", 50, 49)


def test_rows_that_were_overwritten_are_counted_and_make_records_incomplete(live):
    detector = Detector(live, evidence="trace")
    live.put("reclaim", held(*[(at, 0.01, 5) for at in range(10, 20)]))
    live.tick(21)
    live.traced(20)
    detector.advance()
    live.put("reclaim", held(*[(30 + i * 0.1, 2, 5) for i in range(ROWS + 50)]))
    live.tick(130, hits=5)
    live.traced(129)
    detector.advance()
    (stall,) = [s for s in detector.finish() if s.state == "closed" and not s.harmless]
    assert detector.lost["reclaim"] >= 50
    assert f"{detector.lost['reclaim']} rows of reclaim were overwritten" in stall.incomplete


def test_rows_of_usage_that_were_overwritten_lose_no_hits(live):
    detector = Detector(live, evidence="counters")
    live.tick(10)
    detector.advance()
    live.tick(20, hits=3)
    live.tick(ROWS * 2)
    detector.advance()
    (stall,) = detector.finish()
    assert stall.cause == "limit"
    assert stall.start_ns == T0 + 9 * MS  # when, nobody knows better
    assert "overwritten" in stall.incomplete
    assert detector.lost["usage"] > ROWS // 2


def test_a_target_that_vanished(live):
    detector = Detector(live)
    live.put("reclaim", held((480, 15, 5)))
    live.tick(500, hits=0)
    live.tick(501, hits=1)
    live.traced(500, open_ms=499)
    detector.advance()
    for name in ("usage", "pressure", "limits"):
        live.writer.close(name, T0 + 501 * MS, errno.ENODEV)
    detector.advance()
    (stall,) = detector.finish()
    assert stall.incomplete == f"the target could not be sampled any more: {os.strerror(errno.ENODEV)}"


def test_psi_tells_after_it_was_read(live):
    detector = Detector(live, evidence="psi")
    live.put("pressure", {name: values[:1] for name, values in pressure(1, 100, {}).items()})
    live.tick(40)
    live.tick(50, hits=30)
    live.tick(90)
    assert detector.advance() == []
    assert detector.final_until_ns <= T0 + 39 * MS
    live.put("pressure", {name: values[1:2] for name, values in pressure(1, 100, {45: 8.0}).items()})
    live.tick(130)
    live.put("node", {name: values[1:] for name, values in node(0.2).items()})
    found = [stall for stall in detector.advance() + detector.finish() if stall.state == "closed"]
    (stall,) = found
    assert (stall.cause, stall.harmless, stall.evidence) == ("limit", False, ("psi", "counters"))
    assert T0 + 38 * MS <= stall.start_ns <= T0 + 41 * MS
    assert stall.stall_lo_ns <= stall.stall_ns <= stall.stall_hi_ns


def test_hits_that_no_read_of_psi_follows_are_told_without_a_duration(live):
    detector = Detector(live, evidence="psi", policy=Policy(patience_ns=100 * MS))
    live.put("pressure", {name: values[:1] for name, values in pressure(1, 100, {}).items()})
    live.tick(10, hits=2)
    live.tick(300)
    live.put("node", {name: values[1:] for name, values in node(0.3).items()})
    told = detector.advance()
    (stall,) = [*told, *detector.finish()]
    assert (stall.evidence, stall.stall_ns, stall.harmless) == (("counters",), None, None)


def test_moments_are_remembered(live):
    detector = Detector(live)
    live.put("reclaim", held((10, 3, 5), (12, 1, 6)))
    live.tick(100, hits=1)
    live.traced(99)
    detector.advance()
    assert detector.moments(T0, T0 + 100 * MS).tid.tolist() == [5, 6]
    assert len(detector.moments(T0 + 13 * MS + 1, T0 + 100 * MS)) == 0


def test_a_source_without_rows(live):
    detector = Detector(live)
    assert detector.advance() == []
    assert detector.finish() == []
    assert Path(f"/proc/self/fd/{live.writer.fd}").exists()


def test_spans_are_judged_by_tracepoints_that_come_to_be(live):
    """A worker may begin to look for hits while another takes over the sampling, and has yet to open its tracepoints."""
    sampler = pymemcg.Sampler()
    spans = SpanChannel(sampler._spans, live.writer.ring)
    live._channels = {name: getattr(live, name) for name in schema.CHANNELS} | {"spans": spans}
    live._options, live.evidence = {"evidence": "auto"}, {"trace": "the process that samples has none"}
    finder = Finder(live, spans)
    with sampler.span("checkout") as span:
        time.sleep(0.01)
    start_ms, end_ms = ((at - T0) / MS for at in (span.start_ns, span.end_ns))
    assert len(finder.find()) == 0
    live.traced(end_ms + 1)
    live.put("reclaim", held((start_ms + 2, 5, threading.get_native_id())))
    (hit,) = finder.find()
    assert hit.evidence == ("trace",)
    assert hit.own_ns == pytest.approx(5 * MS, abs=1000)
