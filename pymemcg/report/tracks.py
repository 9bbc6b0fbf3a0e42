# SPDX-License-Identifier: Apache-2.0
"""What a report draws: from a recording's channels, stalls and spans to arrays of bounded size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from pymemcg import metrics, schema
from pymemcg._said import level_names
from pymemcg.report.downsample import CHUNK, Thinned, floats, thin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from pymemcg.channel import Channel, Window
    from pymemcg.detecting import Stall
    from pymemcg.recording import Recording

    Ints: TypeAlias = npt.NDArray[np.int64]
    Floats: TypeAlias = npt.NDArray[np.float64]

USAGE_ROWS: Final = 120_000
"""Of usage and working set, 24 bytes each; 4 MB as base64. Of an hour at 1 kHz: every 240 ms, and 60 s with every row."""
OTHER_ROWS: Final = 40_000
"""Of what comes ten times a second: all of an hour."""
LIMIT_CHANGES: Final = 2_000
"""Of each level: people change limits now and then, and controllers every few seconds."""

MIB: Final = float(1 << 20)


@dataclass(frozen=True, slots=True)
class Steps:
    """A limit as it changed; arrays of shape (n,), NaN where there was none.

    Attributes:
        level: 0 = the group itself, 1 = its parent, …
        kind: "limit" or "high".
        name: Of the level's group.
        t_ns: When it was seen to change.
        mib: From then on.
    """

    level: int
    kind: str
    name: str
    t_ns: Ints
    mib: Floats


def usage(recording: Recording, near_ns: Ints) -> Thinned:
    """`usage`, and `working_set` where memory.stat is there; MiB."""
    names = ["usage"] if "usage_bytes" in recording.usage.names else []
    if names and "inactive_file" in recording.stat.names and recording.stat.head:
        names.append("working_set")

    def derive(t_ns: Ints, rows: Window) -> dict[str, Floats]:
        used = floats(rows["usage_bytes"])
        columns = {"usage": used / MIB}
        if "working_set" in names:
            inactive = _aligned(t_ns, recording.stat, "inactive_file")
            columns["working_set"] = metrics.working_set(used, inactive) / MIB
        return columns

    return thin(recording.usage, derive, names, most=USAGE_ROWS, near_ns=near_ns)


def _aligned(t_ns: Ints, channel: Channel, column: str) -> Floats:
    """`metrics.align` of ascending times, reading no more of the other channel than is needed."""
    rows = channel.window()
    first, end = np.searchsorted(rows["t_ns"], t_ns[[0, -1]], side="right").tolist()
    part = slice(max(0, first - 1), end)
    values = metrics.align(t_ns, rows["t_ns"][part], floats(rows[column][part])).values
    channel.forget(end)
    return values


def memory(recording: Recording, near_ns: Ints) -> Thinned:
    """`swap_backed`, and `total` with the file-backed on top of it; MiB."""
    there = {"anon", "file", "shmem"} <= set(recording.stat.names)

    def derive(_t_ns: Ints, rows: Window) -> dict[str, Floats]:
        split = metrics.anon_file_split(floats(rows["anon"]), floats(rows["file"]), floats(rows["shmem"]))
        return {
            "swap_backed": split.swap_backed_bytes / MIB,
            "file_backed": split.file_backed_bytes / MIB,
            "total": (split.swap_backed_bytes + split.file_backed_bytes) / MIB,
        }

    names = ["swap_backed", "file_backed", "total"] if there else []
    return thin(recording.stat, derive, names, most=OTHER_ROWS, near_ns=near_ns)


def rates(recording: Recording, near_ns: Ints) -> Thinned:
    """What of `refault`, `scan`, `steal` (pages/s), `reclaim` (MiB/s), `uncharge` and `hits` (events/s) can be known."""
    stat, page_bytes = recording.stat, int(recording.info.get("page_bytes", 4096))
    refaults = [name for name in stat.names if name in _REFAULTS]
    names = ["refault"] if refaults else []
    names += ["scan"] if "pgscan" in stat.names else []
    names += ["steal", "reclaim"] if "pgsteal" in stat.names else []
    names += ["uncharge"] if "pgpgout" in stat.names and "pgsteal" not in stat.names else []
    names += ["hits"] if "limit_hits" in recording.usage.names and recording.usage.head else []

    def derive(t_ns: Ints, rows: Window) -> dict[str, Floats]:
        columns: dict[str, Floats] = {}
        if "refault" in names:
            columns["refault"] = metrics.refault_rate(t_ns, *(floats(rows[name]) for name in refaults))
        if "scan" in names:
            columns["scan"] = metrics.scan_rate(t_ns, floats(rows["pgscan"]))
        if "steal" in names:
            columns["steal"] = metrics.steal_rate(t_ns, floats(rows["pgsteal"]))
            columns["reclaim"] = metrics.reclaim_rate(t_ns, floats(rows["pgsteal"]), page_bytes) / MIB
        if "uncharge" in names:
            columns["uncharge"] = metrics.uncharge_rate_v1(t_ns, floats(rows["pgpgout"]))
        if "hits" in names:
            columns["hits"] = metrics.rate(t_ns, _aligned(t_ns, recording.usage, "limit_hits"))
        return columns

    return thin(stat, derive, names, most=OTHER_ROWS, near_ns=near_ns)


_REFAULTS: Final = frozenset({"workingset_refault", "workingset_refault_anon", "workingset_refault_file"})


def pressure(recording: Recording, near_ns: Ints) -> Thinned:
    """`some` and `full`, percent of the time since the row before."""
    names = [name for name in ("some", "full") if f"{name}_us" in recording.pressure.names]

    def derive(t_ns: Ints, rows: Window) -> dict[str, Floats]:
        return {name: 100 * metrics.pressure_ratio(t_ns, floats(rows[f"{name}_us"])) for name in names}

    return thin(recording.pressure, derive, names, most=OTHER_ROWS, near_ns=near_ns)


def limits(recording: Recording) -> list[Steps]:
    """The limits of every level that has some, those of the group itself first."""
    channel, names = recording.limits, level_names(recording.info)
    found: dict[tuple[int, str], list[tuple[int, float]]] = {}
    for t_ns, rows in _parts(channel):
        for kind in ("limit", "high"):
            if f"{kind}_bytes" not in channel.names:
                continue
            for level in set(rows["level"].tolist()):
                of = rows["level"] == level
                values = rows[f"{kind}_bytes"][of]
                steps = found.setdefault((level, kind), [])
                for i in np.flatnonzero(np.append(True, values[1:] != values[:-1])).tolist():
                    limit = values[i] / MIB if values[i] < metrics.UNLIMITED_BYTES else float("nan")
                    if not steps or not np.array_equal(steps[-1][1], limit, equal_nan=True):
                        steps.append((int(t_ns[of][i]), limit))
    made = []
    for (level, kind), steps in sorted(found.items()):
        kept = steps[-LIMIT_CHANGES:]
        mib = np.array([value for _, value in kept])
        if np.isfinite(mib).any():
            name = names.get(level, f"level {level}")
            made.append(Steps(level, kind, name, np.array([at for at, _ in kept], np.int64), mib))
    return made


def _parts(channel: Channel) -> Iterator[tuple[Ints, dict[str, Ints]]]:
    """All rows, some at a time."""
    rows = channel.window()
    for first in range(0, len(rows), CHUNK):
        part = {name: rows[name][first : first + CHUNK] for name in channel.names}
        yield part[channel.time], part
        channel.forget(first + CHUNK)


def near(stalls: Sequence[Stall]) -> Ints:
    """When somebody was harmed, (n, 2)."""
    spans = [(stall.start_ns, ended(stall)) for stall in stalls if not stall.harmless]
    return np.array(spans, np.int64).reshape(-1, 2)


def ended(stall: Stall) -> int:
    """When it was over, or when it was last known to go on."""
    return stall.start_ns + (stall.stall_ns or 0) if stall.end_ns is None else stall.end_ns


def longest_spans(recording: Recording, most: int) -> dict[str, Ints]:
    """The `most` longest spans: `start_ns`, `end_ns`, `tid`, `name_id`, in order of their beginning."""
    names = ("start_ns", "end_ns", "tid", "name_id")
    best: dict[str, Ints] = {name: np.empty(0, np.int64) for name in names}
    if set(names) <= set(recording.spans.names) and set(names) <= set(schema.SPANS_UNITS):
        for _, rows in _parts(recording.spans):
            best = {name: np.concatenate([best[name], rows[name]]) for name in names}
            order = np.argsort(best["end_ns"] - best["start_ns"], kind="stable")[::-1][:most]
            best = {name: values[order] for name, values in best.items()}
    order = np.argsort(best["start_ns"], kind="stable")
    return {name: values[order] for name, values in best.items()}


def lanes(key: Sequence[int], start_ns: Sequence[int], end_ns: Sequence[int], most: int) -> list[int]:
    """Put intervals of one key that overlap into lanes of their own; what finds none free goes to that which is free first.

    Args:
        key: Of each interval.
        start_ns: Ascending.
        end_ns: Of each.
        most: Lanes a key.
    """
    ends: dict[int, list[int]] = {}
    chosen = []
    for name, start, end in zip(key, start_ns, end_ns, strict=True):
        busy = ends.setdefault(name, [])
        lane = next((i for i, until in enumerate(busy) if until <= start), len(busy))
        if lane == most:
            lane = busy.index(min(busy))
        busy[lane : lane + 1] = [end]
        chosen.append(lane)
    return chosen
