# SPDX-License-Identifier: Apache-2.0
"""Data sets as `record --parquet` writes them, of recordings that are there: the same rows, of another host and time."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from rowwriter import T0, S, limits, node, ticks, write

import pymemcg
from pymemcg import schema
from pymemcg.detecting import Stall
from pymemcg.export import parquet
from pymemcg.export.arrow import KEY, Table, Texts, provenance, without_texts
from pymemcg.fleet._find import Found

WALL_NS = 1_790_000_000 * S
"""CLOCK_REALTIME beside CLOCK_MONOTONIC in `captured`."""
CLOCKS = ("t_ns", "since_ns", "start_ns", "end_ns", "ran_start_ns", "ran_end_ns")


def put(
    dataset: Path,
    recording: pymemcg.Recording,
    *,
    host: str,
    run: str,
    shift_ns: int = 0,
    wall_ns: int = 0,
    info: Mapping[str, Any] | None = None,
    rows_a_file: int = 1 << 30,
    rows_a_group: int = 1 << 18,
) -> None:
    """Add a recording to a data set as what one run wrote.

    Args:
        dataset: The folder.
        recording: Whose rows.
        host: Of the run.
        run: Its id, hexadecimal.
        shift_ns: Its CLOCK_MONOTONIC, beside the recording's.
        wall_ns: Its CLOCK_REALTIME, beside the recording's.
        info: What it says of itself, where that is not what the recording says.
        rows_a_file: So many at most.
        rows_a_group: So many at most in a row group.
    """
    channels = {name: getattr(recording, name) for name in schema.CHANNELS if getattr(recording, name).names}
    said = provenance(channels.values(), {**without_texts(recording.info), "host": host, **(info or {})})
    pair = {"created_ns": said["created_ns"], "created_realtime_ns": said["created_realtime_ns"]}
    if recording.clock.head:  # of a recording that a test made, the header knows only when
        first = recording.clock.window().part(0, 1)
        pair = {"created_ns": int(first["t_ns"][0]), "created_realtime_ns": int(first["realtime_ns"][0])}
    said |= {"run": run, "created_ns": pair["created_ns"] + shift_ns}
    said["created_realtime_ns"] = pair["created_realtime_ns"] + wall_ns
    for of in said["channels"].values():
        of["closed_at"] = of["closed_at"] and (of["closed_at"][0] + shift_ns, of["closed_at"][1])
    for name, channel in channels.items():
        texts = Texts.of(channel, recording.info) if name == "spans" else None
        table = Table(channel, said, texts)
        batches = list(table.batches())
        if not sum(batch.num_rows for batch in batches):
            continue
        rows = shifted(pa.Table.from_batches(batches), shift_ns, wall_ns)
        if texts is not None:
            said_of = {**said, "channel": name, "info": {**said["info"]}}
            said_of["info"]["spans"] = {**said["info"]["spans"], "int_refs": bool(texts.int_refs)}
            rows = rows.replace_schema_metadata({KEY: json.dumps(said_of)})
        for number, first in enumerate(range(0, rows.num_rows, rows_a_file)):
            some = rows.slice(first, rows_a_file)
            begin = datetime.fromtimestamp(some["time"][0].value // 10**9, timezone.utc)
            folder = dataset / name / f"host={quote(host, safe='')}" / f"date={begin:%Y-%m-%d}"
            os.makedirs(folder, exist_ok=True)
            with parquet.writer(folder / f"{begin:%H%M%S}-{run}-{number:06d}.parquet", rows.schema) as writer:
                writer.write_table(some, row_group_size=rows_a_group)


def stalls_of(found: Found) -> list[Stall]:
    """What was found in a run, as the detector told it."""
    rows = found.stalls.drop_columns(["time"]).to_pylist()
    return [Stall(**{**row, "evidence": tuple(row["evidence"]), "tids": tuple(row["tids"]), "state": "closed"}) for row in rows]


def shifted(rows: pa.Table, shift_ns: int, wall_ns: int) -> pa.Table:
    """The same rows at another time. What is absent stays so."""
    for at, field in enumerate(rows.schema):
        by = wall_ns if field.name in ("time", "realtime_ns") else shift_ns if field.name in CLOCKS else 0
        if by:
            column = rows.column(at).combine_chunks().cast(pa.int64())
            values = np.asarray(column.fill_null(0)) + by
            moved = pa.array(values, mask=np.asarray(column.is_null()))
            rows = rows.set_column(at, field, moved.cast(field.type))
    return rows


# ---- Recordings of what tests/data/stalls has ----------------------------------------------------------------------

DATA = Path(__file__).resolve().parents[1] / "data" / "stalls"
ROUND_S = 14
"""So long is a round of `captured`: what was captured, up to 10 s of it, and then nothing."""


def captured(path: Path, name: str, *, rounds: int = 1, trace: bool = True, psi: bool = True) -> pymemcg.Recording:
    """A recording of what a real group did and the kernel told, again and again with shifted clocks and counters that go on.

    Args:
        path: Where to.
        name: Of a file in tests/data/stalls.
        rounds: How often.
        trace: With tracepoints.
        psi: With PSI.
    """
    with np.load(DATA / f"{name}.npz") as data:
        of = {column: np.cumsum(data[column].astype(np.int64)) for column in data.files}
    begins = T0 + np.arange(rounds) * ROUND_S * S
    usage = ticks(rounds * ROUND_S)
    hits = np.append(0, np.cumsum(of["hits"]))
    pages = np.append(of["before_pages"][:1], of["usage_pages"]) if of["t_ns"].size else np.zeros(1, np.int64)
    which, since = np.divmod(usage["t_ns"] - T0, ROUND_S * S)
    at = np.searchsorted(of["t_ns"], since, side="right")
    usage |= {"limit_hits": which * hits[-1] + hits[at], "usage_bytes": pages[at] * 4096, "late_ns": which}

    def again(values, step):
        return (values[None, :] + np.arange(rounds)[:, None] * step).ravel()

    channels = {"usage": usage, "limits": limits((0, 0, 64, 0)), "node": node(rounds * ROUND_S)}
    if psi:
        rising = {column: np.cumsum(of[f"window_{column}"]) for column in ("some_us", "full_us", "cpu_us", "cpu_wait_us")}
        channels["pressure"] = {
            "t_ns": T0 + again(of["window_t_ns"], ROUND_S * S),
            "since_ns": T0 + again(of["window_since_ns"], ROUND_S * S),
            **{column: again(values, int(values[-1])) for column, values in rising.items()},
        }
    if trace:
        order = np.argsort(of["end_us"], kind="stable")
        start, end = (again(T0 + 1000 * of[column][order], ROUND_S * S) for column in ("start_us", "end_us"))
        tids = np.tile(of["tid"][order], rounds)
        same = {"pid": 7, "kind": 1, "reclaimed_pages": 32, "cpu_wait_ns": 0}
        columns = {column: np.full(tids.size, value) for column, value in same.items()}
        channels["reclaim"] = {"start_ns": start, "end_ns": end, "tid": tids, **columns}
    why = {"trace": None if trace else "no tracefs", "psi": None if psi else "no PSI", "counters": None}
    info = {"target": {"directory": "/sys/fs/cgroup/shop", "pressure_scope": "group"}, "evidence": why, "cpus": 2}
    channels["clock"] = {"t_ns": begins, "realtime_ns": begins + WALL_NS}
    return write(path, channels, info)
