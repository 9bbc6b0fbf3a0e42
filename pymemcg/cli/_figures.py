# SPDX-License-Identifier: Apache-2.0
"""The figures of a post-mortem in words, as the command prints them and its page has them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from pymemcg._verdict import at_limit
from pymemcg._words import UNKNOWN, number, share, size, span

if TYPE_CHECKING:
    from pymemcg._findings import LimitUse, Postmortem, SpanHits

STEP_TITLES: Final = ("before the end", "usage", "limit hits", "in stalls")


def steps(told: Postmortem) -> Iterator[tuple[str, ...]]:
    """The last second, a row a piece."""
    for step in told.steps:
        yield span(step.before_ns), size(step.usage_bytes), number(step.limit_hits), span(step.in_stall_ns)


def figures(told: Postmortem) -> Iterator[tuple[str, str]]:
    """Title and text of all that is a line or two."""
    yield "certainty", told.ending.certainty
    yield "group", told.target or UNKNOWN
    host = f" on {told.host}" if told.host else ""
    yield "last row", f"{when(told.ended_realtime_ns)}{host}, after {span(told.lasted_ns)} that are in the file"
    yield "usage", f"{size(told.usage_bytes)}, at most {size(told.peak_bytes)} in the file"
    yield "limits", "\n".join(map(_limit, told.limits)) or "none that can be seen"
    yield "growth", "\n".join(_growths(told)) or UNKNOWN
    yield "memory", f"anon {size(told.anon)}, file {size(told.file)}, working set {size(told.working_set)}"
    yield "limit hits", f"{number(told.limit_hits)} in the last second"
    yield "OOM kills", f"{number(told.oom_kills)} by the last row"
    yield "stalls", _stalls(told)
    if told.held_ns is not None:
        yield "held", f"in the end a thread had been in reclaim for {span(told.held_ns)}"
    if told.hits is not None:
        yield "spans", _hits(told.hits)
    elif told.ending.how != "recorded":
        yield "spans", "there was no room for them: the process that made the ring has no ring file"
    if told.gap_ns is not None:
        yield "file", f"written {span(told.gap_ns)} after the last row"
    for name, why in told.missing.items():
        yield "missing", f"{name}: {why}"
    for name, why in told.absent.items():
        yield "absent", f"{name}: {why}"


def when(realtime_ns: int | None) -> str:
    """A time of day; `–` where it is not known, or is none."""
    try:
        return UNKNOWN if realtime_ns is None else time.strftime("%a %d %b %Y %H:%M:%S", time.localtime(realtime_ns // 10**9))
    except (OverflowError, ValueError, OSError):
        return UNKNOWN


def _limit(limit: LimitUse) -> str:
    ratio = None if limit.usage_bytes is None else limit.usage_bytes / limit.limit_bytes
    kind = "high, " if limit.kind == "high" else ""
    near = ", as good as at it" if limit.near else ""
    left = f"{size(limit.left_bytes)} left{near}"
    name = limit.name or f"level {limit.level}"
    return f"{size(limit.usage_bytes)} of {size(limit.limit_bytes)} ({kind}{share(ratio)}), {left}: {name}"


def _growths(told: Postmortem) -> Iterator[str]:
    for growth in told.growth:
        if growth.bytes_per_s is not None:
            to_limit = growth.to_limit_s
            ahead = ", at the limit" if at_limit(told) else f", {span((to_limit or 0) * 1e9)} to the nearest limit"
            left = "" if to_limit is None else ahead
            yield f"{size(growth.bytes_per_s, sign=True)}/s over {growth.seconds} s{left}"


def _hits(hits: SpanHits) -> str:
    if not hits.count:
        return f"none of {number(hits.spans)} was hit" if hits.spans else "none"
    return f"{number(hits.count)} of {number(hits.spans)} lost {span(hits.lost_ns)}: {', '.join(hits.worst)}"


def _stalls(told: Postmortem) -> str:
    stalls = told.stalls
    if not stalls.count:
        return "none"
    causes = ", ".join(f"{cause} {number(count)}" for cause, count in stalls.causes.items())
    times = f"{span(stalls.stall_ns)} in all, the worst {span(stalls.worst_ns)}"
    return f"{number(stalls.count)} ({causes}), {times}; {number(len(told.last_stalls))} in the last second"
