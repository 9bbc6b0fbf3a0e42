# SPDX-License-Identifier: Apache-2.0
"""The task of a worker: what the detector finds in one run, slice by slice, in bounded memory however long it is."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pymemcg._stall import POLICY
from pymemcg.detecting import stalls
from pymemcg.export._chunks import chunks
from pymemcg.export._pyarrow import pa
from pymemcg.fleet._dataset import Note
from pymemcg.fleet._reader import Reader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pymemcg._stall import Stall
    from pymemcg.fleet._dataset import Run
    from pymemcg.recording import Recording

_S: Final = 10**9
_NUMBERS: Final = (
    *("start_ns", "end_ns", "stall_ns", "stall_lo_ns", "stall_hi_ns", "longest_ns", "cpu_wait_ns", "intervals", "limit_hits"),
    *("reclaimed_pages", "usage_bytes", "limit_bytes", "anon", "file"),
)
_FIELDS: Final = {
    **dict.fromkeys(_NUMBERS, pa.int64()),
    "cause": pa.string(),
    "harmless": pa.bool_(),
    "evidence": pa.list_(pa.string()),
    "tids": pa.list_(pa.int64()),
    "incomplete": pa.string(),
}
FOUND: Final = pa.schema([("time", pa.timestamp("ns", "UTC")), *_FIELDS.items()])
"""A row a stall or harmless episode: when it began by the host's wall clock, and the fields of `Stall`."""
HOUR_NS: Final = 3600 * _S
HARM_NS: Final = 1_000_000
"""What a span must have lost to be counted as hit, as in `Recording.summary`."""
_PAUSE_NS: Final = 10 * _S
"""Who ticked no more often than this was not sampled meanwhile, unless it was asked for so few ticks."""
_CLOCK_SET_NS: Final = _S
"""By less than this a wall clock that is kept in step moves between two looks."""
_AHEAD_NS: Final = 60 * _S


@dataclass(frozen=True, slots=True)
class Slicing:
    """How a long run is cut up.

    Attributes:
        length_ns: So long is a slice, …
        around_ns: … with so much before and after it, of which nothing is told: PSI may tell of a hit so much later, and what
            a hit costs is learned from as much before. That is `Policy.patience_ns` and a little.
        calm_ns: Slices end where nobody was held for so long: nothing is joined over that (`Policy.episode_ns`).
        most_ns: Where there is no such moment, a slice becomes longer, up to this; then it ends all the same, and what was
            going on is told in two parts.
    """

    length_ns: int = 2 * HOUR_NS
    around_ns: int = POLICY.patience_ns + 10 * _S
    calm_ns: int = POLICY.episode_ns
    most_ns: int = 8 * HOUR_NS


@dataclass(slots=True)
class Found:
    """What one run tells.

    Attributes:
        run: Which.
        stalls: Stalls and episodes, in order of their beginning, by `FOUND`.
        sampled_ns: How long it was sampled, by the hour (CLOCK_REALTIME of its beginning, ns).
        span_hits: Spans that reclaim took a millisecond from, by the hour in which they ended; None = no spans were recorded.
        notes: What the figures lack.
    """

    run: Run
    stalls: pa.Table = field(default_factory=FOUND.empty_table)
    sampled_ns: dict[int, int] = field(default_factory=dict)
    span_hits: dict[int, int] | None = None
    notes: list[Note] = field(default_factory=list)


def find(run: Run, slicing: Slicing = Slicing()) -> Found:
    """What the detector finds in a run. Files that cannot be read are left out, and noted."""
    with tempfile.TemporaryDirectory(prefix="pymemcg-fleet-") as folder:
        try:
            return _found(run, slicing, folder)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one run, the others are told of
            damaged = _damaged(run, folder)
            if not damaged:
                return Found(run, notes=[*run.notes, run.lacks(f"left out: {type(error).__name__}: {error}")])
        return find(run.without(damaged), slicing)


def _damaged(run: Run, folder: str) -> dict[str, str]:
    """Files whose rows cannot be read; none where something else is wrong with the run."""
    try:
        with Reader(run, folder) as reader:
            return reader.damaged()
    except Exception:  # noqa: BLE001 - as before
        return {}


def _found(run: Run, slicing: Slicing, folder: str) -> Found:
    found = Found(run, notes=list(run.notes))
    if any(file.rows for file in run.files.get("spans", ())):
        found.span_hits = {}
    tables = [found.stalls]
    with Reader(run, folder) as reader:
        for part in slices(run, reader, slicing):
            tables.append(_table(part))
            _add_sampled(found.sampled_ns, part)
            if found.span_hits is not None:
                _add_span_hits(found.span_hits, part)
            if part.torn:
                found.notes.append(run.lacks("what went on for hours without a calm moment is told in parts"))
            last = part
        if found.sampled_ns:
            found.notes += _clock(run, last.recording)
    found.stalls = pa.concat_tables(tables)
    return found


def _table(part: Slice) -> pa.Table:
    columns = {name: [getattr(stall, name) for stall in part.stalls] for name in _FIELDS}
    return pa.table({"time": _realtime(part.recording, columns["start_ns"]), **columns}, schema=FOUND)


# ---- Slices --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a run.

    Attributes:
        recording: It, and what is around it.
        since_ns: What begins before is told by the slice before (CLOCK_MONOTONIC).
        until_ns: What begins from here on is told by the next.
        stalls: Those that it tells.
        torn: It ends where something was going on.
    """

    recording: Recording
    since_ns: int
    until_ns: int
    stalls: list[Stall]
    torn: bool


def slices(run: Run, reader: Reader, slicing: Slicing) -> Iterator[Slice]:
    """The run, part by part. What the parts tell is together what the whole would tell, where they end in calm moments.

    Raises:
        duckdb.Error: A file is damaged.
        MemcgError: A slice cannot be made a recording.
    """
    span = run.span()
    if span is None or span[1] < run.since_ns:
        return
    end_ns = span[1] + 1
    since, length = max(span[0], run.since_ns), slicing.length_ns
    context = since if since == span[0] else _context(reader, since, slicing)
    while since < end_ns:
        until = since + length + slicing.around_ns
        recording = reader.recording(context, min(until, end_ns))
        found = [stall for stall in stalls(recording) if stall.start_ns >= since]
        cut: int | None = end_ns
        if until < end_ns:
            cut = _calm(found, since, since + length, slicing.calm_ns)
        if cut is None and length < slicing.most_ns:
            length = min(2 * length, slicing.most_ns)
            continue
        torn = cut is None
        if cut is None:
            cut = context = until
        yield Slice(recording, since, cut, [stall for stall in found if stall.start_ns < cut], torn)
        since, length = _next(run, cut), slicing.length_ns
        context = context if torn else _context(reader, since, slicing)


def _context(reader: Reader, since_ns: int, slicing: Slicing) -> int:
    """Where to begin to read so that the detector knows what it needs from `since_ns` on; windows of PSI stay whole."""
    before = since_ns - slicing.around_ns
    return reader.pressure_before(before, before - slicing.length_ns)


def _next(run: Run, since_ns: int) -> int:
    """Where the next slice begins: not in a time of which no file speaks."""
    later = [
        max(since_ns, file.first_ns)
        for files in run.files.values()
        for file in files
        if file.first_ns is not None and file.last_ns is not None and file.last_ns >= since_ns
    ]
    return min(later, default=since_ns)


def _calm(found: Iterable[Stall], since_ns: int, until_ns: int, calm_ns: int) -> int | None:
    """The last moment in (since, until] before which nobody was held for so long; None = there is none."""
    cut = None
    held_until = since_ns
    for stall in found:
        free = min(stall.start_ns, until_ns)
        if since_ns < free and free - held_until >= calm_ns:
            cut = free
        if stall.start_ns > until_ns:
            return cut
        if stall.end_ns is None:  # it went on to the end
            return cut
        apart = 2 * (stall.end_ns - stall.start_ns) if stall.harmless is None else 0  # then two ticks without a hit are near
        held_until = max(held_until, stall.end_ns + apart)
    return until_ns if until_ns - held_until >= calm_ns else cut


# ---- What a slice tells beside stalls ------------------------------------------------------------------------------


def _realtime(recording: Recording, times: list[int]) -> list[int]:
    realtime: list[int] = recording.usage.realtime_ns(np.array(times, np.int64)).tolist()
    return realtime


def _add_sampled(by_hour: dict[int, int], part: Slice) -> None:
    """Time between ticks, of the first channel that has any. A tick counts where it is, and what was before it with it."""
    recording = part.recording
    channel = next((one for one in (recording.usage, recording.stat, recording.node) if one.head), None)
    if channel is None:
        return
    before: int | None = None
    pause = max(_PAUSE_NS, 3 * channel.period_ns)
    for window in chunks(channel):
        t = window["t_ns"]
        lasted = np.diff(t, prepend=t[0] if before is None else before)
        before = int(t[-1])
        counts = (t >= part.since_ns) & (t < part.until_ns) & (lasted > 0) & (lasted <= pause)
        hours, which = np.unique(channel.realtime_ns(t[counts]) // HOUR_NS * HOUR_NS, return_inverse=True)
        sums = np.zeros(hours.size, np.int64)
        np.add.at(sums, which, lasted[counts])
        for hour, ns in zip(hours.tolist(), sums.tolist(), strict=True):
            by_hour[hour] = by_hour.get(hour, 0) + ns


def _add_span_hits(by_hour: dict[int, int], part: Slice) -> None:
    ends = [hit.end_ns for hit in part.recording.hits(min_ns=HARM_NS) if part.since_ns <= hit.end_ns < part.until_ns]
    for at in _realtime(part.recording, ends):
        hour = at // HOUR_NS * HOUR_NS
        by_hour[hour] = by_hour.get(hour, 0) + 1


def _clock(run: Run, last: Recording) -> Iterator[Note]:
    """How the wall clock behaved: hours are by it, each host's by its own."""
    header: Any = last.header
    rows = last.clock.window()
    pairs = [(header.created_ns, header.created_realtime_ns)]
    if len(rows):
        pairs += zip(rows["t_ns"].tolist(), rows["realtime_ns"].tolist(), strict=True)
    offsets = [realtime_ns - t_ns for t_ns, realtime_ns in sorted(pairs)]  # the file may have been made after its first row
    steps = np.diff(offsets)
    for at in np.flatnonzero(np.abs(steps) >= _CLOCK_SET_NS).tolist():
        yield run.lacks(f"its wall clock was set by {steps[at] / 1e9:+.3f} s in its course")
    ends = run.span()
    ahead = _realtime(last, [ends[1]])[0] - time.time_ns() if ends else 0
    if ahead > _AHEAD_NS:
        yield run.lacks(f"its wall clock is ahead of this machine's by at least {ahead / 1e9:,.0f} s")


def clipped(runs: Iterable[Run]) -> tuple[list[Run], list[Note]]:
    """Runs of which none tells of a time of which another of the same target tells, too.

    Two samplers of one target see the same stalls: what both saw is told by the one that began first.
    """
    told: dict[tuple[str, str, str], int] = {}
    kept: list[Run] = []
    notes: list[Note] = []
    in_order = sorted(runs, key=lambda run: (run.span() or (0, 0), run.host, run.run))
    for run in in_order:
        span = run.span()
        key = run.host, str(run.said["boot_id"]), str((run.said["info"].get("target") or {}).get("directory"))
        if span is not None and (until := told.get(key, 0)) >= span[0]:
            notes.append(run.lacks("it was sampled by another run at the same time: what both saw is told once"))
            kept.append(replace(run, since_ns=until + 1))
        else:
            kept.append(run)
        if span is not None:
            told[key] = max(told.get(key, 0), span[1])
    return sorted(kept, key=lambda run: (run.host, run.run)), notes
