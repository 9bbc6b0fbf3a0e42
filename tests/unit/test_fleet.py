# SPDX-License-Identifier: Apache-2.0
"""Fleet reports: every stall of every host once, as the detector tells it of each recording, whatever runs it."""

from __future__ import annotations

import io
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from distributed import LocalCluster
from distributed.comm import CommClosedError
from fleetset import ROUND_S, WALL_NS, captured, put, stalls_of
from pyarrow import parquet as pq
from rowwriter import MS, T0, S, held, limits, ticks, write

import pymemcg
from pymemcg.errors import MemcgError, RecordingError
from pymemcg.fleet import ENGINES, Report, report, service_of
from pymemcg.fleet._dataset import listed, looked_into
from pymemcg.fleet._engines import engine
from pymemcg.fleet._find import Found, _clock, clipped, find

HOUR = 3600 * S
NAMES = ("bursts", "cache-contended", "threads", "one-of-four")


CANNOT_BE_CLOSED = """
import asyncio, multiprocessing
from distributed import Nanny
from pymemcg.fleet import _engines

async def never(*_, **__):
    await asyncio.Event().wait()

Nanny.kill = never
_engines._CLOSE_S = 1
with _engines.engine("dask", 1) as mapping:
    results = list(mapping(abs, [-7]))
print(results, multiprocessing.active_children())
"""


def run_id(number: int) -> str:
    return f"{number:012x}"


def spans_over(recording_s: float, length_ms: float = 20) -> dict[str, list[int]]:
    """Rows of `spans`, one after the other, all of thread 1."""
    start = [T0 + round(at * length_ms * MS) for at in range(int(recording_s * 1000 / length_ms))]
    end = [begin + round(length_ms * MS) - 1 for begin in start]
    same = {"tid": 1, "name_id": 0, "ref_id": -1, "attribution": 1}
    columns = {"start_ns": start, "end_ns": end, "ran_start_ns": start, "ran_end_ns": end}
    return columns | {column: [value] * len(start) for column, value in same.items()}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> dict[str, pymemcg.Recording]:
    folder = tmp_path_factory.mktemp("recordings")
    return {name: captured(folder / name, name, trace=number < 3) for number, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def dataset(recordings, tmp_path_factory) -> Path:
    """Four hosts whose clocks differ, of two services."""
    folder = tmp_path_factory.mktemp("set")
    for number, recording in enumerate(recordings.values()):
        levels = [{"name": f"/system.slice/{('shop', 'search')[number % 2]}.service"}]
        info = {"target": recording.info["target"] | {"levels": levels}}
        shift, wall = number * 1000 * S, number * HOUR
        put(folder, recording, host=f"node-{number}", run=run_id(number), shift_ns=shift, wall_ns=wall, info=info)
    return folder


@pytest.fixture(scope="module")
def reports(dataset) -> dict[str, Report]:
    made = {name: report(dataset, engine=name, workers=2) for name in ENGINES}
    assert not multiprocessing.active_children()
    return made


@pytest.fixture(params=ENGINES)
def told(reports, request) -> Report:
    return reports[request.param]


def looked(folder: Path, number: int = 0):
    return looked_into(listed(folder)[0][number])


def found_in(folder: Path, number: int = 0) -> Found:
    return find(looked(folder, number))


class TestTheSame:
    def test_as_plain_stalls(self, told, recordings):
        rows = told.stalls.to_pylist()
        for number, recording in enumerate(recordings.values()):
            plain = recording.stalls().to_dicts()
            mine = [row for row in rows if row["host"] == f"node-{number}"]
            assert len(plain) > 10
            for row, stall in zip(mine, plain, strict=True):
                stall["start_ns"] += number * 1000 * S
                stall["end_ns"] += number * 1000 * S
                del stall["state"]
                assert {name: row[name] for name in stall} == stall
                at_ns = stall["start_ns"] - number * 1000 * S + WALL_NS + number * HOUR
                assert pa.scalar(row["time"]).cast(pa.timestamp("ns", "UTC")).value == at_ns

    def test_on_both_engines(self, reports):
        one, other = reports.values()
        assert one.to_dict() == other.to_dict()
        assert one.stalls.equals(other.stalls)

    def test_sums_by_service(self, told, recordings):
        of = {
            name: [stall for stall in recording.stalls() if stall.harmless is not True]
            for name, recording in recordings.items()
        }
        for name, members in (("shop", NAMES[::2]), ("search", NAMES[1::2])):
            (row,) = [row for row in told.services if row["service"] == f"/system.slice/{name}.service"]
            mine = [stall for member in members for stall in of[member]]
            hits = sum(stall.limit_hits or 0 for member in members for stall in recordings[member].stalls())
            assert row["targets"] == 2
            assert row["stalls"] == len(mine)
            assert row["stall_ns"] == sum(stall.stall_ns for stall in mine)
            assert row["worst_ns"] == max((stall.stall_ns for stall in mine), default=None)
            assert row["limit_hits"] == hits
            assert row["sampled_ns"] == 2 * (ROUND_S * S - MS)
            assert row["stall_ns_per_hour"] == pytest.approx(row["stall_ns"] / row["sampled_ns"] * HOUR)
            assert row["limit_hits_per_hour"] == pytest.approx(hits / row["sampled_ns"] * HOUR)
            assert row["span_hits"] is None, "no spans were recorded"
        rates = [row["stall_ns_per_hour"] for row in told.services]
        assert rates == sorted(rates, reverse=True)

    def test_sums_by_cause_hour_and_target(self, told, recordings):
        everything = [stall for recording in recordings.values() for stall in recording.stalls()]
        for row in told.causes:
            mine = [stall for stall in everything if stall.cause == row["cause"]]
            assert row["stall_ns"] == sum(stall.stall_ns for stall in mine if not stall.harmless)
            assert row["harmless_ns"] == sum(stall.stall_ns for stall in mine if stall.harmless)
        for table in (told.hours, told.targets, told.services):
            assert sum(row["stalls"] for row in table) == sum(not stall.harmless for stall in everything)
            assert sum(row["sampled_ns"] for row in table) == 4 * (ROUND_S * S - MS)
        begin = (WALL_NS + T0) // HOUR * HOUR
        assert [row["hour"] for row in told.hours] == [begin + number * HOUR for number in range(4)]
        assert [row["host"] for row in told.targets if row["service"].endswith("shop.service")] == ["node-0", "node-2"]

    def test_as_parquet(self, told):
        sink = io.BytesIO()
        told.write(sink)
        assert pq.read_table(io.BytesIO(sink.getvalue())).to_pylist() == told.stalls.to_pylist()

    def test_no_such_engine(self, dataset):
        with pytest.raises(ValueError, match="engine='spark': expected one of duckdb, dask"):
            report(dataset, engine="spark")


def test_a_cluster_that_runs_is_used(dataset, reports):
    """By dask's own setting, as `Client()` does."""
    import dask

    port = {"dashboard_address": "127.0.0.1:0"}  # of another cluster's, dask would warn
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, scheduler_kwargs=port) as cluster:
        with dask.config.set({"scheduler-address": cluster.scheduler_address}):
            there = report(dataset, engine="dask")
        assert cluster.scheduler.tasks == {}
    assert there.to_dict() == reports["duckdb"].to_dict()


@pytest.mark.parametrize("name", ENGINES)
def test_a_worker_that_dies(name):
    """As where the OOM killer took it."""
    with pytest.raises(MemcgError, match=r"a worker.* died"), engine(name, 1) as mapping:
        list(mapping(os._exit, [7]))
    assert not multiprocessing.active_children()


def test_a_cluster_that_cannot_be_closed():
    """As dask's before 2025.7 now and then, for ever, after a worker died. In a process of its own: what is left runs on."""
    told = subprocess.run([sys.executable, "-c", CANNOT_BE_CLOSED], check=False, capture_output=True, text=True, timeout=120)
    assert (told.returncode, told.stdout, told.stderr) == (0, "[7] []\n", "")


def test_a_worker_whose_connection_is_lost():
    with pytest.raises(MemcgError, match=r"a worker.* died"), engine("dask", 1):
        raise CommClosedError("in <TCP>: Stream is closed")


def test_spans_that_were_hit(tmp_path):
    channels = {
        "usage": ticks(4, hits=[100, 101, 2000]),
        "limits": limits((0, 0, 64, 1)),
        "reclaim": held((105, 5, 1), (2003, 9, 1), (2050, 0.1, 1)),
        "spans": spans_over(4),
    }
    spans = {"pid": 7, "names": ["get"], "refs": [], "refs_left_out": 0}
    recording = write(tmp_path / "spans.memcg", channels, {"spans": spans, "evidence": {"trace": None}})
    put(tmp_path / "set", recording, host="a", run=run_id(1))
    told = report(tmp_path / "set", workers=1)
    assert told.services[0]["span_hits"] == len(recording.hits(min_ns=MS)) == 2
    assert told.services[0]["span_hits_per_hour"] == pytest.approx(2 / 3.999 * 3600)


class TestWhatIsMissing:
    def test_a_file_that_is_cut_short(self, recordings, tmp_path):
        put(tmp_path, recordings["bursts"], host="a", run=run_id(1), rows_a_file=4000)
        put(tmp_path, recordings["threads"], host="b", run=run_id(2))
        broken = sorted(tmp_path.glob("usage/host=a/*/*.parquet"))[1]
        os.truncate(broken, 1000)
        told = report(tmp_path, workers=1)
        notes = [note.what for note in told.notes if note.host == "a"]
        assert any(what.startswith(f"left out: {broken}: cannot be read") for what in notes)
        assert "usage: 1 of its files are not there, or cannot be read" in notes
        sampled = {row["host"]: row["sampled_ns"] for row in told.targets}
        assert sampled == {"a": ROUND_S * S - MS, "b": ROUND_S * S - MS}
        plain = [stall for stall in recordings["bursts"].stalls() if stall.end_ns < T0 + 3 * S]
        mine = [row["stall_ns"] for row in told.stalls.to_pylist() if row["host"] == "a" and row["end_ns"] < T0 + 3 * S]
        assert mine == [stall.stall_ns for stall in plain]

    def test_a_file_whose_rows_are_damaged(self, recordings, tmp_path):
        put(tmp_path, recordings["bursts"], host="a", run=run_id(1))
        (path,) = tmp_path.glob("node/**/*.parquet")
        footer = pq.read_metadata(path)
        column = footer.row_group(0).column(footer.schema.names.index("t_ns"))
        with open(path, "r+b") as file:
            file.seek(column.data_page_offset)
            file.write(b"\xff" * column.total_compressed_size)
        found = found_in(tmp_path)
        assert [note.what[: len(f"left out: {path}")] for note in found.notes] == [f"left out: {path}"]
        assert [stall.start_ns for stall in stalls_of(found)] == [stall.start_ns for stall in recordings["bursts"].stalls()]

    def test_nothing_of_a_run_is_readable(self, recordings, tmp_path):
        put(tmp_path, recordings["bursts"], host="a", run=run_id(1))
        for path in tmp_path.glob("**/*.parquet"):
            path.write_bytes(b"PAR1")
        put(tmp_path, recordings["threads"], host="b", run=run_id(2))
        told = report(tmp_path, workers=1)
        assert [note.host for note in told.notes if note.what == "left out: none of its files can be read"] == ["a"]
        assert {row["host"] for row in told.targets} == {"b"}

    def test_a_host_without_psi_and_one_without_usage(self, recordings, tmp_path):
        bare = captured(tmp_path / "bare.memcg", "bursts", trace=False, psi=False)
        put(tmp_path / "set", bare, host="a", run=run_id(1))
        put(tmp_path / "set", recordings["bursts"], host="b", run=run_id(2))
        for path in (tmp_path / "set").glob("usage/host=b/**/*.parquet"):
            path.unlink()
        told = report(tmp_path / "set", workers=1)
        notes = {(note.host, note.what) for note in told.notes}
        assert ("a", "no PSI: no PSI") in notes
        assert ("b", "no usage, so that hits cannot be dated: it has no rows") in notes
        rows = {row["host"]: row for row in told.targets}
        assert rows["a"]["unknown"] == rows["a"]["stalls"] == len(bare.stalls())
        assert rows["a"]["stall_ns"] == 0
        assert rows["b"]["stall_ns"] > 0, "tracepoints tell of stalls all the same"
        assert rows["b"]["sampled_ns"] == ROUND_S * S - 100 * MS, "by another channel's rows"

    def test_a_run_without_any_row_of_time(self, recordings, tmp_path):
        put(tmp_path, recordings["bursts"], host="a", run=run_id(1))
        for path in tmp_path.glob("*/**/*.parquet"):
            if "/clock/" not in str(path):
                path.unlink()
        told = report(tmp_path, workers=1)
        (row,) = told.targets
        assert (row["host"], row["sampled_ns"], row["stalls"], row["stall_ns_per_hour"]) == ("a", 0, 0, None)

    def test_a_run_that_says_nonsense_of_itself(self, recordings, tmp_path):
        put(tmp_path, recordings["bursts"], host="a", run=run_id(1), info={"target": 7})
        put(tmp_path, recordings["bursts"], host="b", run=run_id(2), info={"evidence": {"trace": None}, "spans": {"pid": 7}})
        told = report(tmp_path, workers=1)
        assert [note.host for note in told.notes if note.what.startswith("left out: ")] == ["a"]
        (row,) = told.targets
        assert row["stalls"] > 0, "that it had no spans is no reason to leave it out"

    def test_what_lies_beside_the_files(self, recordings, tmp_path):
        put(tmp_path, recordings["threads"], host="a", run=run_id(1))
        (tmp_path / "usage/host=gone/date=2026-01-01").mkdir(parents=True)
        (place,) = tmp_path.glob("usage/host=a/*")
        (place / ".090000-0123456789ab-000000.parquet.77.unfinished").write_bytes(b"")
        (place / "mine.parquet").write_bytes(b"")
        what = [note.what for note in report(tmp_path, workers=1).notes]
        here = place.relative_to(tmp_path)
        assert f"{here}/mine.parquet: not read: no file that `record --parquet` writes" in what
        assert any(one.endswith("unfinished: not read: not closed yet, or its writer was killed") for one in what)
        assert "usage/host=gone/date=2026-01-01: empty partition" in what

    def test_no_data_set(self, tmp_path):
        with pytest.raises(RecordingError, match="has no files CHANNEL/host=HOST"):
            report(tmp_path)
        with pytest.raises(RecordingError, match="is no folder"):
            report(tmp_path / "no")


class TestClocksAndTargets:
    def test_two_targets_of_one_host(self, recordings, tmp_path):
        for number, name in enumerate(("shop", "search")):
            target = {"directory": f"/sys/fs/cgroup/{name}", "levels": [{"name": f"/{name}"}]}
            put(tmp_path, recordings["bursts"], host="a", run=run_id(number), info={"target": target})
        told = report(tmp_path, workers=1)
        assert [(row["service"], row["target"], row["stalls"]) for row in told.targets] == [
            (f"/{name}", f"/{name}", sum(not stall.harmless for stall in recordings["bursts"].stalls()))
            for name in ("search", "shop")
        ]

    def test_what_two_samplers_of_a_target_saw_is_told_once(self, recordings, tmp_path):
        for number in range(2):
            put(tmp_path, recordings["bursts"], host="a", run=run_id(number))
        told = report(tmp_path, workers=1)
        assert told.stalls.num_rows == len(recordings["bursts"].stalls())
        assert told.targets[0]["sampled_ns"] == ROUND_S * S - MS
        assert [note.run for note in told.notes] == [run_id(1)]
        assert "sampled by another run at the same time" in told.notes[0].what

    def test_a_later_run_tells_what_the_first_one_did_not_see(self, tmp_path):
        whole = captured(tmp_path / "whole.memcg", "bursts", rounds=3)
        put(tmp_path / "set", whole, host="a", run=run_id(2))
        first = captured(tmp_path / "first.memcg", "bursts", rounds=2)
        put(tmp_path / "set", first, host="a", run=run_id(1))
        runs, notes = clipped(looked(tmp_path / "set", number) for number in range(2))
        told = sorted((stall for run in runs for stall in stalls_of(find(run))), key=lambda stall: stall.start_ns)
        assert told == list(whole.stalls())
        assert len(notes) == 1

    def test_after_a_boot_it_is_another_clock(self, recordings, tmp_path):
        put(tmp_path, recordings["bursts"], host="a", run=run_id(1))
        put(tmp_path, recordings["bursts"], host="a", run=run_id(2))
        runs = [looked(tmp_path, number) for number in range(2)]
        runs[1].said["boot_id"] = "another"
        assert clipped(runs) == (runs, [])

    def test_a_wall_clock_that_was_set_and_one_that_is_ahead(self, tmp_path):
        rows = {"usage": ticks(4), "clock": {"t_ns": [T0, T0 + 2 * S], "realtime_ns": [T0 + WALL_NS, T0 + WALL_NS + 7 * S]}}
        recording = write(tmp_path / "set.memcg", rows, {"evidence": {"trace": None, "psi": None}})
        put(tmp_path / "set", recording, host="a", run=run_id(1))
        put(tmp_path / "set", recording, host="b", run=run_id(2), wall_ns=time.time_ns() + HOUR - WALL_NS)
        told = report(tmp_path / "set", workers=1)
        assert {(note.host, note.what) for note in told.notes if "clock" in note.what} >= {
            ("a", "its wall clock was set by +5.000 s in its course"),
            ("b", "its wall clock was set by +5.000 s in its course"),
        }
        (ahead,) = [note for note in told.notes if "ahead" in note.what]
        assert ahead.host == "b"

    def test_a_wall_clock_that_was_set_before_the_file_was_made(self, tmp_path):
        """It is told once, not as set back and forth."""
        now_ns = time.monotonic_ns()
        offset = time.time_ns() - now_ns
        at = np.array([now_ns - 60 * S, now_ns - 30 * S])
        rows = {"usage": ticks(1), "clock": {"t_ns": at, "realtime_ns": at + offset + [-5 * S, 0]}}
        recording = write(tmp_path / "set.memcg", rows, {"evidence": {"trace": None, "psi": None}})
        put(tmp_path / "set", recording, host="a", run=run_id(1))
        notes = [note.what for note in _clock(looked(tmp_path / "set"), recording)]
        assert notes == ["its wall clock was set by +5.000 s in its course"]


@pytest.mark.parametrize(
    ("path", "host", "service"),
    [
        ("/system.slice/shop.service", "node-1", "/system.slice/shop.service"),
        ("/system.slice/system-shop.slice/shop@3.service", "node-1", "/system.slice/system-shop.slice/shop@*.service"),
        ("/", "shop-7d9f8b6c5-x2x4z", "shop"),
        ("/", "db-2", "db"),
        ("/", "web17.example.org", "web"),
        ("/docker/" + 64 * "a", "node-1", "node"),
        ("/docker/" + 64 * "a", 12 * "b", "/docker/*"),
        ("/system.slice/docker-" + 64 * "0" + ".scope", "node-1", "node"),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1b4e28ba_2fa1_11d2_883f_0016d3cca427.slice/"
            "cri-containerd-" + 64 * "c" + ".scope",
            "node-1",
            "node",
        ),
        ("/kubepods/burstable/pod1b4e28ba-2fa1-11d2-883f-0016d3cca427/" + 64 * "c", "node-1", "node"),
        ("/ecs/" + 32 * "d" + "/shop", "node-1", "/ecs/*/shop"),
        ("/user.slice/user-1000.slice/session-3.scope", "laptop", "laptop"),
        ("/", "", "/"),
    ],
)
def test_what_names_a_service(path, host, service):
    assert service_of({"host": host, "target": {"directory": "/sys/fs/cgroup" + path, "levels": [{"name": path}]}}) == service
