# SPDX-License-Identifier: Apache-2.0
"""What held threads up, from the kernel's scheduler and reclaim events, and the stalls that it makes by the design's rules."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pymemcg.bench.tracefs import Trace
from pymemcg.bench.tracepages import Record

EVENTS: Mapping[str, Sequence[str]] = {
    "vmscan/mm_vmscan_memcg_reclaim_begin": (),
    "vmscan/mm_vmscan_memcg_reclaim_end": ("nr_reclaimed",),
    "vmscan/mm_vmscan_direct_reclaim_begin": (),
    "vmscan/mm_vmscan_direct_reclaim_end": ("nr_reclaimed",),
    "compaction/mm_compaction_begin": (),
    "compaction/mm_compaction_end": (),
    "sched/sched_switch": ("prev_pid", "prev_state", "next_pid"),
    "sched/sched_wakeup": ("pid",),
}
KINDS = {"mm_vmscan_memcg_reclaim": "memcg", "mm_vmscan_direct_reclaim": "direct", "mm_compaction": "compaction"}
_ASLEEP = 0xFF
"""These bits of a switched-off thread's state say what it waits for; with none of them it would rather run."""

WINDOW_NS, JOIN_NS, LEAST_NS = 10_000_000, 5_000_000, 1_000_000
"""docs/design.md, "Stalls": held for a millisecond within some 10 ms; what is closer to that than 5 ms is part of the stall."""
EPISODE_NS = 1_000_000_000
"""Pauses of less than this do not end an episode of harmless reclaim."""

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Interval:
    """One reclaim (or compaction) of one thread, from its begin to its end event."""

    tid: int
    kind: str
    start_ns: int
    end_ns: int
    pages: int


@dataclass(slots=True)
class Truth:
    """What the events tell.

    Attributes:
        intervals: In the order of their ends.
        waits: By thread, when it was ready to run and another ran: what is no fault of memory.
        lost: Events that did not fit into the buffer; with any, the truth is not whole.
        since_ns: When tracing began.
        until_ns: When it ended.
    """

    intervals: list[Interval]
    waits: dict[int, list[Span]]
    lost: int = 0
    since_ns: int = 0
    until_ns: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A moment in which a thread was held: `pieces` of it are left when waiting for a CPU is taken out."""

    tid: int
    start_ns: int
    end_ns: int
    pieces: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Episode:
    """A stall, as it truly was.

    Attributes:
        start_ns: Of its first moment.
        end_ns: Of its last one.
        stall_ns: For how long at least one thread was held.
        longest_ns: The most that one thread was held within any 10 ms.
        tids: Who.
        moments: How many.
    """

    start_ns: int
    end_ns: int
    stall_ns: int
    longest_ns: int
    tids: frozenset[int]
    moments: int

    @property
    def counts(self) -> bool:
        """Whether it is one of a millisecond or more, not a harmless one."""
        return self.longest_ns >= LEAST_NS


def tracing(seconds: float) -> Trace:
    """An instance that traces all that the truth is made of.

    Raises:
        NotSupported: It cannot be made here.
    """
    return Trace(seconds, EVENTS)


@dataclass(slots=True)
class _Pairing:
    begun: dict[tuple[int, str], int] = field(default_factory=dict)
    ready: dict[int, int] = field(default_factory=dict)
    found: Truth = field(default_factory=lambda: Truth([], {}))

    def take(self, record: Record) -> None:
        if record.event == "sched_switch":
            off, state, on = record.values
            if state & _ASLEEP:
                self.ready.pop(off, None)
            else:
                self.ready[off] = record.t_ns
            if (since := self.ready.pop(on, None)) is not None:
                self.found.waits.setdefault(on, []).append((since, record.t_ns))
        elif record.event == "sched_wakeup":
            self.ready.setdefault(record.values[0], record.t_ns)
        else:
            name, _, end = record.event.rpartition("_")
            key = (record.tid, KINDS[name])
            if end == "begin":
                self.begun[key] = record.t_ns
            elif (since := self.begun.pop(key, None)) is not None:
                pages = record.values[0] if record.values else -1
                self.found.intervals.append(Interval(*key, since, record.t_ns, pages))


def read(records: Iterable[Record]) -> Truth:
    """Pair the events of each thread, in the order of time. Halves of pairs count for nothing."""
    pairing = _Pairing()
    for record in records:
        pairing.take(record)
    pairing.found.waits.pop(0, None)  # the idle thread
    return pairing.found


def held(moments: Iterable[tuple[int, int, int]], waits: Mapping[int, Sequence[Span]]) -> list[Held]:
    """Take waiting for a CPU out of (tid, start_ns, end_ns)."""
    found = []
    for tid, start, end in moments:
        at, pieces = start, []
        queue = waits.get(tid, ())
        first = max(0, bisect_right(queue, (start, start)) - 1)
        for since, until in queue[first:]:
            if since >= end:
                break
            if until <= at:
                continue
            if since > at:
                pieces.append((at, since))
            at = max(at, until)
        if at < end:
            pieces.append((at, end))
        found.append(Held(tid, start, end, tuple(pieces)))
    return found


def of_intervals(truth: Truth) -> list[Held]:
    """What the reclaim events say. A compaction within a reclaim is part of it."""
    return held(((each.tid, each.start_ns, each.end_ns) for each in truth.intervals), truth.waits)


def episodes(moments: Iterable[Held]) -> list[Episode]:
    """The stalls that moments make, and the harmless episodes that the others make, in order."""
    stalled: list[Held] = []
    harmless: list[Held] = []
    for chain in _apart(moments, JOIN_NS):  # no window reaches over such a gap
        cores = _cores(chain)
        for moment in chain:
            near = overlap(cores, moment.start_ns - JOIN_NS, moment.end_ns + JOIN_NS)
            (stalled if near else harmless).append(moment)
    found = [_episode(together) for together in (*_apart(stalled, JOIN_NS), *_apart(harmless, EPISODE_NS))]
    return sorted(found, key=lambda each: each.start_ns)


def _apart(moments: Iterable[Held], gap_ns: int) -> list[list[Held]]:
    """Sorted moments, parted where there is such a gap between them."""
    found: list[list[Held]] = []
    end = 0
    for moment in sorted(moments, key=lambda each: each.start_ns):
        if found and moment.start_ns - end < gap_ns:
            found[-1].append(moment)
            end = max(end, moment.end_ns)
        else:
            found.append([moment])
            end = moment.end_ns
    return found


def _cores(moments: Sequence[Held]) -> list[Span]:
    """When the moments were of which each is part of what one thread was held for long enough, joined where they overlap."""
    found: list[Span] = []
    for tid in {moment.tid for moment in moments}:
        mine = [moment for moment in moments if moment.tid == tid]
        dense = enough_within(union(piece for moment in mine for piece in moment.pieces))
        found += [(each.start_ns, each.end_ns) for each in mine if overlap(dense, each.start_ns, each.end_ns)]
    return union(found)


def enough_within(spans: Sequence[Span]) -> list[Span]:
    """Where sorted, disjoint spans of one thread add up to a millisecond within 10 ms, and none of them could be left out."""
    found: list[Span] = []
    first = total = 0
    for start, end in spans:
        total += end - start
        while total - (spans[first][1] - spans[first][0]) >= LEAST_NS:
            total -= spans[first][1] - spans[first][0]
            first += 1
        if total >= LEAST_NS > total - (end - start):
            last = bisect_right(spans, (start, end))
            if end - spans[first][0] <= WINDOW_NS or most_within(spans[first:last], WINDOW_NS) >= LEAST_NS:
                found.append((spans[first][0], end))
    return union(found)


def _episode(moments: Sequence[Held]) -> Episode:
    by_thread: dict[int, list[Span]] = {}
    for moment in moments:
        by_thread.setdefault(moment.tid, []).extend(moment.pieces)
    united = union(piece for pieces in by_thread.values() for piece in pieces)
    return Episode(
        moments[0].start_ns,
        max(moment.end_ns for moment in moments),
        sum(end - start for start, end in united),
        max(map(_longest, _apart(moments, JOIN_NS))),
        frozenset(by_thread),
        len(moments),
    )


def _longest(chain: Sequence[Held]) -> int:
    tids = {moment.tid for moment in chain}
    return max(
        most_within(union(piece for each in chain if each.tid == tid for piece in each.pieces), WINDOW_NS) for tid in tids
    )


def union(spans: Iterable[Span]) -> list[Span]:
    """Sorted spans that cover the same time and do not overlap."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            if end > found[-1][1]:
                found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def overlap(spans: Sequence[Span], start_ns: int, end_ns: int) -> int:
    """How much of sorted, disjoint spans is within [start_ns, end_ns)."""
    first = max(0, bisect_right(spans, (start_ns, start_ns)) - 1)
    total = 0
    for at in range(first, len(spans)):
        start, end = spans[at]
        if start >= end_ns:
            break
        total += max(0, min(end, end_ns) - max(start, start_ns))
    return total


def most_within(spans: Sequence[Span], window_ns: int) -> int:
    """The most that any window of this length holds of sorted, disjoint spans.

    How much was covered up to a time is a function that is made of straight lines; a window holds most of it where one of its
    ends is at a corner.
    """
    if not spans:
        return 0
    corners = np.array(spans, dtype=np.int64)
    covered = np.zeros(corners.size, dtype=np.int64)
    covered[1::2] = np.cumsum(corners[:, 1] - corners[:, 0])
    covered[2::2] = covered[1:-1:2]
    times, base = corners.ravel() - corners[0, 0], covered.astype(float)
    begun = np.interp(times + window_ns, times, base) - base
    ended = base - np.interp(times - window_ns, times, base)
    return round(max(float(begun.max()), float(ended.max())))
