# SPDX-License-Identifier: Apache-2.0
"""A report's numbers in words: the figures at its top and the tables at its end, as plain text for the page's template."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pymemcg import metrics, schema
from pymemcg._hit import Hit, Hits, SpanSummary, Summary, duration
from pymemcg._said import level_names
from pymemcg._tally import Tally
from pymemcg._version import __version__
from pymemcg._words import UNKNOWN, between, number, share, size, span
from pymemcg.report.tracks import MIB, ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pymemcg._stall import Stall
    from pymemcg.recording import Recording
    from pymemcg.report.downsample import Thinned

STALLS_TOLD: Final = 500
HITS_TOLD: Final = 200
NAMES_TOLD: Final = 100
"""Rows of tables: more nobody reads, and `pymemcg stalls --json` has them all."""
_NAMED: Final = 6
"""Threads of a stall; there may be hundreds."""
_EVENTS: Final = {
    1: "another process went on with the sampling",
    2: "a channel was closed",
    3: "memory.stat is read at another period",
    4: "processes are read at another period",
    5: "the sampler dilutes PSI",
    6: "tracepoints were lost",
    7: "threads in reclaim were gone before their group could be asked for",
}
"""docs/file-format.md tells more."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page.

    Attributes:
        title: Above it.
        head: Titles of the columns; those that end with a space are of texts, the others of numbers.
        rows: Their cells.
        note: Below the title.
        when: Of each row, from when to when it speaks, for the plots; empty where rows are of no time.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    when: Sequence[tuple[float, float]] = field(default=())


@dataclass(frozen=True, slots=True)
class Clock:
    """Times of a recording in words and as the plots have them; UTC.

    Attributes:
        realtime_ns: From CLOCK_MONOTONIC to CLOCK_REALTIME, both ns.
        offset_ns: What lay between them at the recording's beginning: the plots' axis is that of CLOCK_MONOTONIC.
    """

    realtime_ns: Callable[[int], int]
    offset_ns: int

    def ms(self, t_ns: Any) -> Any:
        """Of the plots' axis: ms since 1970, float64, in the shape of `t_ns`."""
        return (np.asarray(t_ns, np.int64) + self.offset_ns) / 1e6

    def says(self, t_ns: int) -> str:
        """Day and time of day, to the millisecond."""
        at = np.datetime64(self.realtime_ns(t_ns) // 10**6, "ms")
        return str(at).replace("T", " ")


# ---- At the top ----------------------------------------------------------------------------------------------------


def figures(recording: Recording, usage: Thinned, stalls: Sequence[Stall], summary: Summary) -> list[tuple[str, str]]:
    """The main numbers: titles and texts."""
    rows = _usage_says(recording, usage)
    for name, title in (("limit_hits", "limit hits"), ("high_hits", "memory.high hits"), ("oom_kills", "OOM kills")):
        if name in recording.usage.names and len(window := recording.usage.window()):
            rows.append((title, number(int(window[name][-1]) - int(window[name][0]))))
    tally = Tally()
    for stall in stalls:
        tally.add(stall)
    rows += tally.figures()
    rows += _pressure_says(recording)
    if len(summary):
        rows.append(("spans", _spans_say(summary)))
    works = [name for name, why_not in recording.info.get("evidence", {}).items() if why_not is None]
    rows.append(("evidence", ", ".join(works) or "none"))
    return rows


def _spans_say(summary: Summary) -> str:
    harmed, lost = sum(row.hits for row in summary), [row.lost_ns for row in summary]
    known = "" if None in lost else f"; reclaim took {span(sum(ns or 0 for ns in lost))} in all"
    return f"{number(sum(row.count for row in summary))}, of which {number(harmed)} lost 1 ms or more{known}"


def _usage_says(recording: Recording, usage: Thinned) -> list[tuple[str, str]]:
    rows = []
    for name, title in (("usage", "usage"), ("working_set", "working set")):
        values = usage.columns.get(name, np.empty(0))
        if np.isfinite(values).any():
            rows.append((title, f"{size(np.nanmin(values) * MIB)} to {size(np.nanmax(values) * MIB)}"))
    limits = recording.limits.window()
    if rows and len(limits) and "limit_bytes" in limits:
        own = limits["limit_bytes"][limits["level"] == 0]
        limit = f" of {size(int(own[-1]))}" if own.size and own[-1] < metrics.UNLIMITED_BYTES else "; the group has no limit"
        rows[0] = (rows[0][0], rows[0][1] + limit)
    return rows


def _pressure_says(recording: Recording) -> list[tuple[str, str]]:
    window = recording.pressure.window()
    names = [name for name in ("some", "full") if f"{name}_us" in window]
    if len(window) < 2 or not names:
        return []
    t_ns = window["t_ns"][[0, -1]]
    told = [f"{name} {share(float(metrics.pressure_ratio(t_ns, window[f'{name}_us'][[0, -1]])[1]))}" for name in names]
    scope = recording.info.get("target", {}).get("pressure_scope")
    whose = {"host": ", of the whole host", "group": ""}.get(str(scope), "")
    return [("pressure", f"{', '.join(told)} of the time{whose}; read {number(len(window))} times")]


# ---- At the end ----------------------------------------------------------------------------------------------------


def stall_table(stalls: Sequence[Stall], clock: Clock, page_bytes: int) -> Table:
    """The stalls that harmed somebody, or may have; the longest of them where there are many."""
    harmful = [stall for stall in stalls if not stall.harmless]
    told = sorted(sorted(harmful, key=lambda stall: -(stall.stall_ns or 0))[:STALLS_TOLD], key=lambda stall: stall.start_ns)
    more = f"The longest {number(len(told))} of {number(len(harmful))}. " if len(told) < len(harmful) else ""
    rows = [
        (
            clock.says(stall.start_ns),
            span(stall.stall_ns),
            between(stall.stall_lo_ns, stall.stall_hi_ns),
            stall.cause,
            ", ".join(stall.evidence),
            number(stall.limit_hits),
            UNKNOWN if stall.reclaimed_pages is None else size(stall.reclaimed_pages * page_bytes),
            size(stall.usage_bytes),
            _held(stall.tids),
            stall.incomplete or "",
        )
        for stall in told
    ]
    return Table(
        "Stalls",
        ("when (UTC) ", "stalled", "between", "cause ", "evidence ", "hits", "reclaimed", "usage", "threads held ", "remarks "),
        rows,
        note=f"{more}Stalled: for how long at least one thread was held. {UNKNOWN}: not known, which is never 0.",
        when=[(clock.ms(stall.start_ns), clock.ms(ended(stall))) for stall in told],
    )


def _held(tids: Sequence[int]) -> str:
    more = f" and {len(tids) - _NAMED} more" if len(tids) > _NAMED else ""
    return ", ".join(map(str, tids[:_NAMED])) + more


def stall_says(stall: Stall) -> str:
    """One stall, beside the mouse."""
    what = "harmless, " if stall.harmless else ""
    around = between(stall.stall_lo_ns, stall.stall_hi_ns)
    held = f"{span(stall.stall_ns)}{f' ({around})' if around else ''}"
    hits = f", {number(stall.limit_hits)} hits" if stall.limit_hits else ""
    return f"{what}{stall.cause}: {held} within {span(ended(stall) - stall.start_ns)}{hits}; {', '.join(stall.evidence)}"


def worst_hits(hits: Hits, most: int) -> list[Hit]:
    """About the `most` hits that lost most, those first; all of them where they are not more."""
    found, least = hits, 1
    while len(found) > most:
        found, least = hits.hits(min_ns=least), 2 * least
    return sorted(found, key=lambda hit: -_lost(hit))


def _lost(hit: Hit) -> int:
    return hit.hi_ns if hit.lost_ns is None else hit.lost_ns


def hit_table(worst: Sequence[Hit], hits: Hits, clock: Clock) -> Table:
    """The spans that lost most."""
    told = worst[:HITS_TOLD]
    rows = [
        (
            hit.name,
            "" if hit.ref is None else str(hit.ref),
            clock.says(hit.start_ns),
            duration(hit.end_ns - hit.start_ns),
            UNKNOWN if hit.lost_ns is None else duration(hit.lost_ns),
            between(hit.lo_ns, hit.hi_ns),
            share(hit.share),
            hit.cause or "",
            ", ".join(hit.evidence),
            f"{hit.tid} ({hit.attribution})",
        )
        for hit in told
    ]
    more = f"Those of {number(len(hits))} that lost most. " if len(told) < len(hits) else ""
    return Table(
        "Spans that stalls hit",
        ("span ", "ref ", "when (UTC) ", "took", "lost", "between", "share", "cause ", "evidence ", "thread "),
        rows,
        note=f"{more}Lost: what reclaim took from the span, the best single figure. {hits.incomplete or ''}".strip(),
        when=[(clock.ms(hit.start_ns), clock.ms(hit.end_ns)) for hit in told],
    )


def summary_table(summary: Summary) -> Table:
    """How long spans took, by name."""
    told: list[SpanSummary] = list(summary[:NAMES_TOLD])
    rows = [
        (
            row.name,
            number(row.count),
            number(row.hits),
            UNKNOWN if row.lost_ns is None else duration(row.lost_ns),
            *(row.told(which) for which in ("p50", "p99", "p999")),
        )
        for row in told
    ]
    more = f"Those {len(told)} of {len(summary)} that lost most. " if len(told) < len(summary) else ""
    head = ("span ", "count", "lost 1 ms or more", "lost in all", "p50 ", "p99 ", "p99.9 ")
    return Table("Spans by name", head, rows, note=f"{more}What would have been without reclaim is the difference.")


def limit_table(recording: Recording) -> Table:
    """Every level of the hierarchy: its limits at the end and what was used of them."""
    limits, rows = recording.limits.window(), []
    names = level_names(recording.info)
    for level in sorted(set(limits["level"].tolist())) if "level" in limits else []:
        of = np.flatnonzero(limits["level"] == level)
        known = {column: _limited(limits[column][of]) if column in limits else [] for column in schema.LIMITS_UNITS}
        hits = known["hits"]
        rows.append(
            (
                names.get(level, f"level {level}"),
                _limit_says(limits, "limit_bytes", of),
                _limit_says(limits, "high_bytes", of),
                size(max(known["usage_bytes"])) if len(known["usage_bytes"]) else UNKNOWN,
                number(int(hits[-1]) - int(hits[0])) if len(hits) else UNKNOWN,
            )
        )
    note = "The group itself first, then every ancestor that can be seen. Usage of an ancestor is that of all groups below it."
    return Table("Limits", ("group ", "limit", "memory.high", "highest usage seen", "hits"), rows, note=note)


def _limited(values: Any) -> Any:
    return values[values < metrics.UNLIMITED_BYTES]


def _limit_says(limits: Any, column: str, of: Any) -> str:
    if column not in limits:
        return UNKNOWN
    last = int(limits[column][of[-1]])
    return size(last) if last < metrics.UNLIMITED_BYTES else "none"


def absent_table(recording: Recording) -> Table:
    """What was not measured, and why."""
    absent: dict[str, Any] = dict(recording.info.get("absent", {}))
    absent |= {f"evidence {name}": why for name, why in recording.info.get("evidence", {}).items() if why is not None}
    for name in schema.CHANNELS:
        channel = getattr(recording, name)
        if channel.closed:
            absent[f"{name}, to the end"] = channel.closed
        elif not channel.names:
            absent.setdefault(name, "this recording has no such channel")
    absent |= {f"{name}, which is damaged": why for name, why in recording.missing.items()}
    return Table("What was absent", ("what ", "why "), [(str(what), str(why)) for what, why in absent.items()])


def provenance_table(recording: Recording, told: Iterable[tuple[str, str]], clock: Clock) -> Table:
    """Where the numbers come from, and what of them is in the page."""
    info, target = recording.info, recording.info.get("target", {})
    rows = [
        ("recording", recording.path),
        ("host, kernel", f"{info.get('host', UNKNOWN)}, {info.get('kernel', UNKNOWN)}"),
        ("target", f"{target.get('spec', UNKNOWN)}, cgroup v{target.get('version', '?')}, {target.get('layout', UNKNOWN)}"),
        ("pages", f"{info.get('page_bytes', UNKNOWN)} bytes"),
        ("ticks", "adaptive: slower far from the limit" if info.get("adaptive", True) else "at a fixed rate"),
    ]
    for name in schema.CHANNELS:
        channel = getattr(recording, name)
        if channel.names:
            rows.append((f"channel {name}", f"{number(channel.head)} rows, {len(channel.names)} columns"))
    rows += told
    events = recording.events.window()
    kinds = events["kind"].tolist() if len(events) else []
    for kind in sorted(set(kinds)):
        first = int(events["t_ns"][kinds.index(kind)])
        text = f"{number(kinds.count(kind))} times, first at {clock.says(first)}"
        rows.append((_EVENTS.get(kind, f"event {kind}"), text))
    rows.append(("report by", f"pymemcg {__version__}"))
    note = "Times of day in tables follow the recorded clock, also where it was set; those of plots only its first reading."
    return Table("Provenance", ("what ", "value "), rows, note=note)
