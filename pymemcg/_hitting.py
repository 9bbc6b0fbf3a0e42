# SPDX-License-Identifier: Apache-2.0
"""From spans and evidence to hits: of a sampler as it goes on, and of a recording."""

from __future__ import annotations

import bisect
import os
import weakref
from collections import deque
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from pymemcg import _attribution, schema
from pymemcg._arrays import distinct
from pymemcg._breath import breathe
from pymemcg._ffi import NONE, or_none
from pymemcg._hit import Hit, Hits, SpanSummary, Summary
from pymemcg._moments import EVIDENCES, Moments
from pymemcg._spanlog import SpanChannel
from pymemcg._watch import Source
from pymemcg.detecting import Detector, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

    from pymemcg.attaching import Attached
    from pymemcg.channel import Channels
    from pymemcg.detecting import Stall
    from pymemcg.recording import Recording
    from pymemcg.sampler import Sampler

    Ints: TypeAlias = npt.NDArray[np.int64]
    Ref: TypeAlias = str | int | None

HARM_NS: Final = 1_000_000
"""What a span must have lost to be counted as hit in a summary."""
LEARNT: Final = 4096
"""From so many spans before those that are asked for it is learned how long they take; more take memory from the service."""
STALLS: Final = 4096
"""Stalls that are remembered so that hits can name them."""


class _Found:
    """Spans, and what they lost."""

    def __init__(
        self,
        rows: dict[str, Ints],
        losses: _attribution.Losses,
        *,
        names: Sequence[str],
        refs: Callable[[Sequence[int]], Sequence[Ref]],
        stalls: Iterable[Stall],
        final_until_ns: int,
    ) -> None:
        self._rows = rows
        self._names = names
        self._refs = refs
        self._losses = losses
        self._stalls = tuple(stalls)
        self._final_until_ns = final_until_ns

    def select(self, min_ns: int) -> Sequence[int]:
        """Rows of hits that lost that much."""
        lost = self._losses.lost_ns
        found = self._losses.hit if min_ns <= 0 else self._losses.hit & (lost >= min_ns) & (lost != NONE)
        rows: list[int] = np.flatnonzero(found).tolist()
        return rows

    def hit(self, row: int) -> Hit:
        """One record."""
        breathe()
        span = {name: int(column[row]) for name, column in self._rows.items()} | {"attribution": int(self._looped[row])}
        loss = {name: or_none(int(getattr(self._losses, name)[row])) for name in _attribution.Losses.__slots__}
        lost, length = loss["lost_ns"], span["end_ns"] - span["start_ns"]
        stalls, cause = self._overlapped(span["start_ns"], span["end_ns"])
        return Hit(
            name=self._names[span["name_id"]],
            ref=self._refs([span["ref_id"]])[0],
            **{name: span[name] for name in ("start_ns", "end_ns", "tid")},
            attribution=schema.SPAN_ATTRIBUTIONS.get(span["attribution"], "unknown"),
            own_ns=loss["own_ns"],
            others_ns=loss["others_ns"],
            lost_ns=lost,
            lo_ns=loss["lo_ns"] or 0,
            hi_ns=loss["hi_ns"] or 0,
            share=None if lost is None else lost / max(length, 1),
            evidence=tuple(name for code, name in EVIDENCES.items() if (loss["evidence"] or 0) & 1 << code),
            stalls=stalls,
            cause=cause,
            final=span["end_ns"] <= self._final_until_ns,
        )

    @cached_property
    def _looped(self) -> Ints:
        return _attribution.looped(self._rows)

    @cached_property
    def _in_order(self) -> tuple[list[Stall], list[int], list[int]]:
        """Stalls, their beginnings, and the latest end up to each."""
        ordered = sorted(self._stalls, key=lambda stall: stall.start_ns)
        ends = accumulate((NONE if stall.end_ns is None else stall.end_ns for stall in ordered), max)
        return ordered, [stall.start_ns for stall in ordered], list(ends)

    def _overlapped(self, start: int, end: int) -> tuple[tuple[int, ...], str | None]:
        stalls, starts, latest = self._in_order
        over = {
            stall: min(end, NONE if stall.end_ns is None else stall.end_ns) - max(start, stall.start_ns)
            for stall in stalls[bisect.bisect_left(latest, start) : bisect.bisect_left(starts, end)]
            if stall.end_ns is None or stall.end_ns >= start
        }
        harmful = [stall for stall in over if stall.harmless is not True] or list(over)
        cause = max(harmful, key=lambda stall: over[stall]).cause if harmful else None
        return tuple(stall.start_ns for stall in over), cause

    def summary(self) -> Summary:
        """By name."""
        duration = self._rows["end_ns"] - self._rows["start_ns"]
        lost = self._losses.lost_ns
        made = [
            _summarised(self._names[i], duration[of], lost[of])
            for i in distinct(self._rows["name_id"]).tolist()
            if (of := self._rows["name_id"] == i).any()
        ]
        return Summary(made, final_until_ns=self._final_until_ns)

    def table(self, incomplete: str | None) -> Hits:
        """All hits."""
        return Hits(
            self.select(0),
            self.hit,
            final_until_ns=self._final_until_ns,
            incomplete=incomplete,
            select=self.select,
            summarise=self.summary,
        )


def _summarised(name: str, duration: Ints, lost: Ints) -> SpanSummary:
    known = bool((lost != NONE).all())
    percentiles = [_percentile(duration, at) for at in (50, 99, 99.9)]
    without = [_percentile(duration - lost, at) if known else None for at in (50, 99, 99.9)]
    return SpanSummary(
        name,
        count=duration.size,
        hits=int(((lost >= HARM_NS) & (lost != NONE)).sum()),
        p50_ns=percentiles[0],
        p50_without_ns=without[0],
        p99_ns=percentiles[1],
        p99_without_ns=without[1],
        p999_ns=percentiles[2],
        p999_without_ns=without[2],
        lost_ns=int(lost.sum()) if known else None,
    )


def _percentile(values: Ints, at: float) -> int:
    return int(np.percentile(values, at, method="higher"))


def nothing() -> Hits:
    """No hits: nothing is sampled."""
    return Hits([], _no_hit, final_until_ns=0, select=lambda _: [], summarise=lambda: Summary([], final_until_ns=0))


def _no_hit(row: int) -> Hit:
    raise IndexError(row)


# ---- Of a sampler --------------------------------------------------------------------------------------------------


class Finder:
    """Finds the hits of a sampler from a start to a stop.

    Not thread-safe: one thread at a time.
    """

    def __init__(self, sampler: Sampler, spans: SpanChannel) -> None:
        self.spans = spans
        self._source = Source(sampler)
        self._detector = Detector(self._source, evidence=self._source.asked)
        self._traced = False
        self._stalls: dict[int, Stall] = {}
        self._news: deque[Stall] = deque(maxlen=STALLS)
        self._finished = False

    @property
    def stalls_until_ns(self) -> int:
        """No more stalls will be told of the time before."""
        return self._detector.final_until_ns

    def stalls(self) -> list[Stall]:
        """What became known of stalls since the last call."""
        self._advance()
        news, self._news = list(self._news), deque(maxlen=STALLS)
        return news

    def _advance(self) -> None:
        trace = self._detector._detection._trace  # noqa: SLF001 - one house
        # Not known once for all: a process that takes over the sampling has yet to open its tracepoints.
        self._traced = self._traced or (trace is not None and trace.traces)
        if not self._finished:
            self._remember(self._detector.advance())

    def finish(self) -> None:
        """No more evidence will come."""
        if not self._finished:
            self._finished = True
            self._remember(self._detector.finish())

    def find(self, since_ns: int = 0) -> Hits:
        """The hits of all spans that are remembered, by all evidence that there is.

        Args:
            since_ns: Where only those matter that ended later: of the others some are looked at, to learn how long spans take.
        """
        self._advance()
        window = self.spans.read(self._first(since_ns))[0]
        rows = {name: window[name] for name in schema.SPANS_UNITS}
        moments, final = Moments.none(), self._known_until()
        if len(window):
            moments = self._detector.moments(int(rows["start_ns"].min()), int(rows["end_ns"].max()) + 1)
        losses = _attribution.losses(rows, moments, pid=os.getpid(), traced=self._traced)
        log = self.spans.log
        found = _Found(rows, losses, names=log.names, refs=log.refs, stalls=self._stalls.values(), final_until_ns=final)
        return found.table(self._incomplete())

    def _first(self, since_ns: int) -> int:
        """The first row to look at."""
        if since_ns <= 0:
            return 0
        rows = self.spans.window()
        new = np.flatnonzero(rows["end_ns"] > since_ns)
        return max(0, rows.first_row + int(new[0]) - LEARNT) if new.size else rows.first_row + len(rows)

    def _known_until(self) -> int:
        """All moments that began before are known.

        PSI is read when it may be, seconds later or, in a group that sleeps, minutes. Where tracepoints have told all
        reclaim it is waited for only if there is a memory.high, whose sleep no tracepoint tells.
        """
        tracks = self._detector._detection._used  # noqa: SLF001 - one house
        return min((track.until_ns for track in (tracks[:1] if self._traced and not self._may_sleep() else tracks)), default=0)

    def _may_sleep(self) -> bool:
        limits = self._source.limits.window()
        return "high_bytes" in limits and bool((limits["high_bytes"] < NONE).any())

    def _remember(self, stalls: Iterable[Stall]) -> None:
        for stall in stalls:
            self._news.append(stall)
            self._stalls[stall.start_ns] = stall
            if stall.state == "closed" and stall.end_ns is not None:  # what was open and became one with it
                within = [start for start in self._stalls if stall.start_ns < start <= stall.end_ns]
                for start in within:
                    if self._stalls[start].state == "open":
                        del self._stalls[start]
        while len(self._stalls) > STALLS:
            del self._stalls[next(iter(self._stalls))]

    def _incomplete(self) -> str | None:
        why = [
            f"more spans ended between {since} ns and {until} ns than were looked at in time; some are lost"
            for since, until in self.spans.log.gaps
        ]
        why += [
            f"{lost} rows of {channel} were overwritten before they were read" for channel, lost in self._detector.lost.items()
        ]
        return "; ".join(why) or None


def finder(sampler: Sampler, before: Finder | None) -> Finder | None:
    """The one that fits the sampler as it now is; None where nothing was ever sampled."""
    spans: Any = sampler.spans  # attaches anew in a forked child
    if not isinstance(spans, SpanChannel):
        return None
    found = before if before is not None and before.spans is spans else Finder(sampler, spans)
    if sampler.role == "stopped":
        found.finish()
    return found


class Heard:
    """The stalls that a sampler's finder comes across, as a detector gives them: found once, not once more for hits.

    Args:
        sampler: Of which the present start counts; no reference to it is kept.

    Raises:
        ReferenceError: By all methods: the sampler is gone, or was started anew.

    One thread at a time; others may ask for hits meanwhile.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = weakref.ref(sampler)
        self._spans: Any = sampler.spans
        self.final_until_ns = 0

    def advance(self) -> list[Stall]:
        """What became known since the last call."""
        return self._told(finish=False)

    def finish(self) -> list[Stall]:
        """The rest: no more rows will come."""
        return self._told(finish=True)

    def _told(self, *, finish: bool) -> list[Stall]:
        sampler = self._sampler()
        if sampler is None or sampler.spans is not self._spans:
            raise ReferenceError("the sampler was dropped, or started anew")
        with sampler._finding:  # noqa: SLF001 - one room
            found = sampler._finder = finder(sampler, sampler._finder)  # noqa: SLF001 - one room
            assert found is not None  # it has spans
            try:
                if finish:
                    found.finish()
                stalls = found.stalls()
            except Exception:
                sampler._finder = None  # noqa: SLF001 - one room: what it knows is no longer whole
                raise
            self.final_until_ns = found.stalls_until_ns
            return stalls


# ---- Of a recording ------------------------------------------------------------------------------------------------


def recorded(recording: Recording | Attached) -> Hits:
    """The hits of a recording, or of those that a ring has now."""
    marked = recording._marked()  # noqa: SLF001 - one room
    if marked is None or marked[0]["start_ns"].size == 0:
        return nothing()
    rows, said = marked
    moments, stalls = _all(recording, int(rows["start_ns"].min()), int(rows["end_ns"].max()) + 1)
    traced = bool(recording.reclaim.names) and recording.info.get("evidence", {}).get("trace") is None
    losses = _of_processes(rows, moments, said["pid"], traced=traced)
    texts: list[Ref] = said["refs"]

    def refs(ids: Sequence[int]) -> Sequence[Ref]:
        return [texts[i] if 0 <= i < len(texts) else None for i in ids]

    left_out, lost = int(said.get("refs_left_out", 0)), int(said.get("lost", 0))
    why = [f"there was no room for the references of {left_out} spans"] if left_out else []
    why += [f"{lost} spans are missing: another process held the lock of the ring for too long"] if lost else []
    found = _Found(rows, losses, names=said["names"], refs=refs, stalls=stalls, final_until_ns=NONE)
    return found.table("; ".join(why) or None)


def _of_processes(rows: dict[str, Ints], moments: Moments, pid: int, *, traced: bool) -> _attribution.Losses:
    """What spans lost, each beside the other threads of its own process: of `pid`, where they do not say which."""
    pids = rows["pid"] if "pid" in rows else np.full(rows["tid"].size, pid)
    found = {name: np.empty(pids.size, np.int64) for name in _attribution.Losses.__slots__}
    for one in distinct(pids).tolist():
        of = np.flatnonzero(pids == one)
        losses = _attribution.losses({name: column[of] for name, column in rows.items()}, moments, pid=one, traced=traced)
        for name, column in found.items():
            column[of] = getattr(losses, name)
    return _attribution.Losses(**found)


def _all(source: Channels, since_ns: int, until_ns: int) -> tuple[Moments, list[Stall]]:
    detector = Detector(source, policy=Policy(reach_ns=NONE // 2))
    stalls = [stall for stall in detector.finish() if stall.state == "closed"]
    return detector.moments(since_ns, until_ns), stalls
