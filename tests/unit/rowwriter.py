# SPDX-License-Identifier: Apache-2.0
"""Recordings made of rows that a test states, so that what is found in them can be compared with what was put there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import pymemcg
from pymemcg import schema
from pymemcg._ffi import NONE, ffi
from pymemcg.ring import RECORDING_ALIGN, ChannelSpec, Ring, create

MS = 1_000_000
S = 1000 * MS
T0 = 100 * S
"""When recordings begin."""

Columns = Mapping[str, npt.ArrayLike]


def write(path: Path, channels: Mapping[str, Columns], info: Mapping[str, Any] | None = None) -> pymemcg.Recording:
    """A recording of these columns; a closed channel's `closed` is (when, errno)."""
    arrays = {
        name: {column: np.atleast_1d(np.asarray(v, np.int64)) for column, v in of.items()} for name, of in channels.items()
    }
    specs = [
        ChannelSpec(name, 0, max(1, next(iter(of.values())).size), {c: schema.unit_of(c) for c in of})
        for name, of in arrays.items()
    ]
    with open(path, "w+b") as file:
        create(file.fileno(), specs, dict(info or {}), align=RECORDING_ALIGN, reserve=False)
        ring = Ring(file.fileno(), str(path))
        entry = ffi.typeof("struct memcg_channel_header")
        for name, of in arrays.items():
            table = ring.tables[name]
            for column, values in of.items():
                os.pwrite(file.fileno(), values.tobytes(), table.offsets[column])
            at = ring.header.channels_offset + table.index * ffi.sizeof(entry) + ffi.offsetof(entry, "head")
            os.pwrite(file.fileno(), np.uint64(next(iter(of.values())).size).tobytes(), at)
    return pymemcg.open(path)


def ticks(
    seconds: float, *, hits: Iterable[float] = (), high: Iterable[float] = (), kills: Iterable[float] = ()
) -> dict[str, Any]:
    """`usage` at 1 kHz from T0 on, with hits at these ms."""
    t = T0 + np.arange(int(seconds * 1000)) * MS

    def counted(at: Iterable[float]) -> npt.NDArray[np.int64]:
        return np.searchsorted(np.sort(T0 + np.asarray(list(at), float) * MS), t, side="right").astype(np.int64)

    usage = np.full(t.size, 64 << 20)
    return {
        "t_ns": t,
        "usage_bytes": usage,
        "limit_hits": counted(hits),
        "high_hits": counted(high),
        "oom_kills": counted(kills),
    }


def held(*rows: tuple[float, float, int], kind: int = 1, wait_ms: float | None = 0, pages: int = 32) -> dict[str, Any]:
    """Rows of `reclaim`: (ms from T0, for how many ms, tid), in the order of their ends."""
    rows = tuple(sorted(rows, key=lambda row: row[0] + row[1]))
    start = [T0 + round(at * MS) for at, _, _ in rows]
    end = [s + round(ms * MS) for s, (_, ms, _) in zip(start, rows, strict=True)]
    wait = NONE if wait_ms is None else round(wait_ms * MS)
    return {
        "start_ns": start,
        "end_ns": end,
        "pid": [7] * len(rows),
        "tid": [tid for *_, tid in rows],
        "kind": [kind] * len(rows),
        "reclaimed_pages": [pages] * len(rows),
        "cpu_wait_ns": [wait] * len(rows),
    }


def limits(*rows: tuple[float, int, int, int]) -> dict[str, Any]:
    """Rows of `limits`: (ms from T0, level, limit in MiB, hits)."""
    t, level, limit, hits = (list(column) for column in zip(*rows, strict=True))
    return {
        "t_ns": [T0 + round(ms * MS) for ms in t],
        "level": level,
        "limit_bytes": [mib << 20 for mib in limit],
        "high_bytes": [NONE] * len(rows),
        "usage_bytes": [64 << 20] * len(rows),
        "hits": hits,
    }


def node(seconds: float, **columns: Iterable[float]) -> dict[str, Any]:
    """`node` at 10 Hz from T0 on, with events at these ms."""
    t = T0 + np.arange(int(seconds * 10)) * 100 * MS
    return {"t_ns": t} | {
        name: np.searchsorted(np.sort(T0 + np.asarray(list(at), float) * MS), t, side="right") for name, at in columns.items()
    }


def joined(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of several `held`, in the order of their ends."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(whole["end_ns"], kind="stable")
    return {name: values[order] for name, values in whole.items()}
