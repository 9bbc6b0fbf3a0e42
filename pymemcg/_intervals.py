# SPDX-License-Identifier: Apache-2.0
"""Intervals of threads: from rows of `reclaim` to moments, and the rule that says which moments harmed somebody.

The rule (docs/stalls.md): somebody was harmed where one thread was held for `least_ns` in all within `window_ns`. All of it is
integer arithmetic on distances, so that a moment is judged alike wherever in a recording it stands and however that is cut up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pymemcg._breath import breathe
from pymemcg._ffi import NONE
from pymemcg._moments import HIGH_SLEEP, PSI, TRACE, WCHAN, Moments

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from pymemcg._stall import Policy

    Ints: TypeAlias = npt.NDArray[np.int64]
    Bools: TypeAlias = npt.NDArray[np.bool_]


LONG_AGO = -(1 << 61)
"""Before every time, and yet no difference to it leaves 64 bits."""


def usable(rows: Mapping[str, Ints]) -> Bools:
    """Which rows of `reclaim` can be: of a thread, begun after the boot, and not ended before."""
    thread = (rows["tid"] > 0) & (rows["tid"] < 1 << 31)
    return thread & (rows["start_ns"] > 0) & (rows["start_ns"] < NONE) & (rows["end_ns"] >= rows["start_ns"])


def from_rows(rows: Mapping[str, Ints]) -> Moments:
    """Make moments of rows of `reclaim`, which come as they end: sort them by their beginning.

    A row that never ended holds nobody that we know of; it stays NONE in `end_ns` and `held_ns`. The wait for a CPU is the most
    that it can have been: a thread was held for the whole interval at most. Where it is not known, it may have been all of it.
    """
    start, end, kind = rows["start_ns"], rows["end_ns"], rows["kind"]
    closed = end != NONE
    length = np.where(closed, end - start, NONE)
    wait = np.where(rows["cpu_wait_ns"] == NONE, NONE, np.clip(rows["cpu_wait_ns"], 0, length))
    held = np.where(closed, length - np.where(wait == NONE, 0, wait), NONE)
    seen = kind == HIGH_SLEEP  # a thread was seen asleep: for how long, it does not say
    held[seen] = NONE
    return Moments.of(
        start,
        end,
        evidence=np.where(seen, WCHAN, TRACE),
        pid=rows["pid"],
        tid=rows["tid"],
        held_ns=held,
        lo_ns=np.where((wait == NONE) & (held != NONE), 0, held),
        hi_ns=np.where(held == NONE, NONE, length),
        cpu_wait_ns=np.where(seen, NONE, wait),
        reclaimed_pages=rows["reclaimed_pages"],
        kind=kind,
    )


def running_end(end: Ints, before: int) -> Ints:
    """The latest end of all moments before each, in order of their beginning; `before` is what came before the first."""
    breathe()
    latest = np.empty(end.size + 1, np.int64)
    latest[0] = before
    np.maximum.accumulate(end, out=latest[1:])
    np.maximum(latest, before, out=latest)
    return latest


def added_ns(start: Ints, end: Ints, before: int) -> Ints:
    """What each moment adds to the wall time that the moments before it cover; sorted by `start`."""
    return np.maximum(end - np.maximum(start, running_end(end, before)[:-1]), 0)


class Judged:
    """Moments in order of their beginning, judged.

    Attributes:
        held_ns: What each adds to its thread's held time: inside another interval of that thread nothing. 0 = unknown, too.
        longest_ns: The most that its thread was held in a window that begins or ends with it.
        harmed: It is part of what reached `least_ns`.
        part: It is `harmed`, or closer than `join_ns` to what is.
    """

    def __init__(self, moments: Moments, end: Ints, policy: Policy) -> None:
        count = len(moments)
        self.held_ns = np.zeros(count, np.int64)
        self.longest_ns = np.zeros(count, np.int64)
        self.harmed = np.zeros(count, bool)
        self.part = self.harmed
        if count:
            self._judge(moments, end, policy)

    def _judge(self, moments: Moments, end: Ints, policy: Policy) -> None:
        start = moments.start_ns
        chain = np.cumsum(start - running_end(end, LONG_AGO)[:-1] >= policy.join_ns, dtype=np.int64)
        known = np.flatnonzero(moments.held_ns != NONE)
        order = known[np.lexsort((-end[known], start[known], moments.tid[known], chain[known]))]
        new = _changes(chain[order], moments.tid[order])
        outer = ~_inside(start[order], end[order], new)
        order, new = order[outer], _changes(chain[order[outer]], moments.tid[order[outer]])
        if order.size == 0:
            return
        begin, held = _clipped(start[order], end[order], moments.held_ns[order], new)
        length = end[order] - begin
        length = np.where(moments.evidence[order] == PSI, _dense(moments.take(order), length, held, policy), length)
        gap = np.zeros(order.size, np.int64)
        gap[1:] = np.where(new[1:], 2 * policy.window_ns, begin[1:] - end[order][:-1])
        gap = np.minimum(gap, 2 * policy.window_ns)
        longest, harmed = _windows(gap, length, held, policy)
        self.held_ns[order], self.harmed[order] = held, harmed
        self.part = self.harmed | _near(start, end, self.harmed, policy.join_ns)
        part = self.part[order]
        if part.any() and not part.all():  # what harmed nobody has its own longest, without what harmed somebody near it
            longest = np.where(part, longest, _windows(gap, length, np.where(part, 0, held), policy)[0])
        self.longest_ns[order] = longest


def _changes(chain: Ints, tid: Ints) -> Bools:
    """Where another thread's intervals begin, or another chain's."""
    new = np.ones(chain.size, bool)
    new[1:] = (np.diff(tid) != 0) | (np.diff(chain) != 0)
    return new


def _inside(start: Ints, end: Ints, new: Bools) -> Bools:
    """Which intervals lie inside those of the same thread before them; sorted by thread, start, and the longer first."""
    by = np.argsort(end, kind="stable")
    rank = np.empty(end.size, np.int64)
    rank[by] = np.arange(end.size)
    group = np.cumsum(new) * end.size  # ranks instead of times, so that no product leaves 64 bits
    latest = end[by[np.maximum.accumulate(group + rank) - group]]
    inside = np.zeros(end.size, bool)
    inside[1:] = ~new[1:] & (end[1:] <= latest[:-1]) & (start[1:] < latest[:-1])
    return inside


def _clipped(start: Ints, end: Ints, held: Ints, new: Bools) -> tuple[Ints, Ints]:
    """Where each interval begins that the one of the same thread before it leaves free, and what of `held` that is."""
    begin = start.copy()
    begin[1:] = np.where(new[1:], start[1:], np.maximum(start[1:], end[:-1]))
    left = (end - begin) / np.maximum(end - start, 1)
    return begin, np.where(begin > start, np.rint(left * held).astype(np.int64), held)


def _near(start: Ints, end: Ints, harmed: Bools, join_ns: int) -> Bools:
    """Which moments are closer than `join_ns` to one of those that harmed."""
    if not harmed.any():
        return harmed
    before = running_end(np.where(harmed, end, LONG_AGO), LONG_AGO)[:-1]
    starts = start[harmed]
    after = np.append(starts, NONE)[np.searchsorted(starts, start)]
    near: Bools = ((before > LONG_AGO) & (start - np.maximum(before, 0) < join_ns)) | (after - end < join_ns)
    return near


def _dense(moments: Moments, length: Ints, held: Ints, policy: Policy) -> Ints:
    """In how long stall time was spent that PSI cannot date better than by a tick or by a window."""
    hit = (moments.hits != NONE) & (moments.hits > 0)
    dense = np.maximum(held, np.minimum(length, policy.window_ns))
    return np.where(hit, dense, np.maximum(dense, length // policy.burst))


def _windows(gap: Ints, length: Ints, held: Ints, policy: Policy) -> tuple[Ints, Bools]:
    """The most held in a window that begins or ends with each interval; and which are part of a shortest one with `least_ns`.

    `gap` before each interval is that to the one before it, cut where no window could span it.
    """
    breathe()
    first = np.cumsum(gap + np.append(0, length[:-1]))
    last = first + length
    after = np.cumsum(held)
    before = after - held

    def until(at: Ints) -> Ints:
        """What was held until then."""
        i = np.maximum(np.searchsorted(first, at, side="right") - 1, 0)
        share = np.clip(at - first[i], 0, length[i]) / np.maximum(length[i], 1)
        whole: Ints = before[i] + np.where(at >= last[i], held[i], np.rint(share * held[i]).astype(np.int64))
        return whole

    begun = until(first + policy.window_ns) - before
    ended = after - until(last - policy.window_ns)
    harmed = np.zeros(gap.size + 1, np.int64)
    for at, reached in ((begun, before + policy.least_ns), (ended, None)):
        found = np.flatnonzero(at >= policy.least_ns)
        if reached is not None:  # from here on: the first end with enough, then the last beginning that still has enough
            right = np.searchsorted(after, reached[found])
            left = np.searchsorted(before, after[right] - policy.least_ns, side="right") - 1
        else:
            left = np.searchsorted(before, after[found] - policy.least_ns, side="right") - 1
            right = np.searchsorted(after, before[left] + policy.least_ns)
        np.add.at(harmed, left, 1)
        np.add.at(harmed, right + 1, -1)
    return np.maximum(begun, ended), np.cumsum(harmed[:-1]) > 0
