# SPDX-License-Identifier: Apache-2.0
"""What spans lost to reclaim: from spans and moments to figures, by sorting and prefix sums; docs/spans.md explains them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from pymemcg import _sharing
from pymemcg._arrays import distinct, numbered
from pymemcg._breath import breathe
from pymemcg._ffi import NONE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from pymemcg._moments import Moments

    Ints: TypeAlias = npt.NDArray[np.int64]
    Floats: TypeAlias = npt.NDArray[np.float64]
    Bools: TypeAlias = npt.NDArray[np.bool_]

LEAST_KNOWN: Final = 10
"""Of so many spans of a name that nothing hit it is learned how long they take."""
FAST: Final = 10
"""The percentile that counts as a name's usual time: what a span took beyond it may be a stall."""
PREEMPTED_NS: Final = 1_000_000
"""How long a thread waits for a CPU is known as an upper bound, for some intervals together: for shorter ones it is too wide,
and who is preempted is so for longer, as a rule."""
SHARP_NS: Final = 2_500_000
"""In a longer tick the bound that PSI gives says little of one span: what hits cost is known over seconds, and where a tick
holds several spans, dear hits stand beside cheap ones."""
THREAD: Final = 1
LOOP: Final = 3


@dataclass(frozen=True, slots=True, eq=False)
class Losses:
    """What each span lost: arrays of shape (spans,), int64; NONE = not known.

    Attributes:
        own_ns: Time that the span's own thread spent in reclaim meanwhile; NONE without tracepoints.
        others_ns: Time in which any other thread of the process was in reclaim; NONE without tracepoints.
        lo_ns: It lost at least that much.
        hi_ns: At most that much.
        lost_ns: The best single figure between the two; NONE where only counters speak and nothing tells the usual time.
        evidence: Bits 1 << evidence of the moments.
    """

    own_ns: Ints
    others_ns: Ints
    lo_ns: Ints
    hi_ns: Ints
    lost_ns: Ints
    evidence: Ints

    @property
    def hit(self) -> Bools:
        """Whether a moment that may have held a span fell into it."""
        return self.hi_ns > 0


def losses(spans: Mapping[str, Ints], moments: Moments, *, pid: int, traced: bool) -> Losses:
    """Say what spans lost.

    Args:
        spans: Columns of the `spans` channel.
        moments: All that overlap them.
        pid: Whose spans they are.
        traced: There were tracepoints: where they say nothing, nothing was.
    """
    duration = spans["end_ns"] - spans["start_ns"]
    end = _ended(spans, moments)
    told = (moments.tid != 0) & (end > moments.start_ns)
    own, sure, held, others, anybody = _of_threads(spans, moments.take(told), end[told], pid)
    vague = (moments.tid == 0) & (end > moments.start_ns)
    timed, counted = _disjoint(moments.take(vague), end[vague])
    breathe()
    lo, hi = _of_anybody(spans, timed)
    after = _since_hit(spans, counted)
    # Of a thread that reclaims with the GIL or a lock, and of who allocated at all: at most all of it.
    most = np.minimum(anybody + hi + after, duration)
    usual = _usual(spans, duration, most)
    breathe()
    timed_ns = _timed(spans, usual, timed)
    counted_ns = _counted(spans, usual, counted)
    unknown = (after > 0) & (counted_ns < 0)
    guess = np.minimum(timed_ns, hi) + np.clip(counted_ns, 0, after)
    lost = np.minimum(held + np.clip(np.minimum(guess, duration - own - usual), 0, None), most)
    breathe()
    evidence = _bits(spans, moments, end)
    return Losses(
        own_ns=own if traced else np.full(own.size, NONE),
        others_ns=others if traced else np.full(own.size, NONE),
        lo_ns=np.minimum(sure + lo, lost),
        hi_ns=most,
        lost_ns=np.where(unknown, NONE, lost),
        evidence=np.where(most > 0, evidence, 0),
    )


def looped(spans: Mapping[str, Ints]) -> Ints:
    """`attribution`, with "loop" also where spans of one thread overlapped without one inside the other: work took turns."""
    attribution = spans["attribution"].copy()
    breathe()
    order = np.lexsort((-spans["end_ns"], spans["start_ns"], spans["tid"]))
    order = order[attribution[order] == THREAD]
    if order.size < 2:
        return attribution
    tid, start, end = (spans[name][order] for name in ("tid", "start_ns", "end_ns"))
    group = np.cumsum(np.diff(tid, prepend=tid[0]) != 0)
    stride = int(end.max() - start.min()) + 2
    key = group * stride - start.min()
    latest = np.maximum.accumulate(key + end)
    crossed = np.zeros(order.size, bool)
    crossed[1:] = (key[1:] + start[1:] < latest[:-1]) & (key[1:] + end[1:] > latest[:-1])
    # Whoever is in flight while two cross takes turns with them: mark the whole stretch in which spans touch.
    new = np.ones(order.size, bool)
    new[1:] = key[1:] + start[1:] >= latest[:-1]
    stretch = np.cumsum(new) - 1
    marked = np.bincount(stretch, weights=crossed, minlength=int(stretch[-1]) + 1) > 0
    attribution[order[marked[stretch]]] = LOOP
    return attribution


# ---- Moments of known threads --------------------------------------------------------------------------------------


class _Cover:
    """Intervals in groups, disjoint within each, and how much of them lies before a time. Sorts what it is given."""

    def __init__(self, group: Ints, start: Ints, end: Ints, weight: Floats | None = None) -> None:
        breathe()
        order = np.lexsort((start, group))
        group, start, end = group[order], start[order], end[order]
        self._base = int(start.min(initial=0)) if start.size else 0
        self._stride = (int(end.max()) - self._base + 1) if end.size else 1
        self._key = group * self._stride + start - self._base
        self._length = end - start
        self._weight = (end - start).astype(np.float64) if weight is None else weight[order]
        self._before = np.append(0.0, np.cumsum(self._weight))

    def inside(self, group: Ints, start: Ints, end: Ints) -> Ints:
        """What of [start, end) the intervals of each group cover, by weight; 0 for groups below 0."""
        if self._key.size == 0:
            return np.zeros(start.size, np.int64)
        found = np.rint(self._until(group, end) - self._until(group, start)).astype(np.int64)
        return np.where((group >= 0) & (end > start), np.maximum(found, 0), 0)

    def _until(self, group: Ints, t: Ints) -> Floats:
        breathe()
        key = group * self._stride + np.clip(t - self._base, 0, self._stride - 1)
        at = np.maximum(np.searchsorted(self._key, key, side="right") - 1, 0)
        part = np.clip(key - self._key[at], 0, self._length[at])
        until: Floats = self._before[at] + self._weight[at] * (part / np.maximum(self._length[at], 1))
        return until


def _ended(spans: Mapping[str, Ints], moments: Moments) -> Ints:
    """Until when each can have lasted. One without an end was open when a sampler stopped, and another may sample by now.

    It was over when the span that it began in was, and when its thread began another span, or reclaimed again.
    """
    end = moments.end_ns.copy()
    for i in np.flatnonzero(end == NONE).tolist():
        start, mine = int(moments.start_ns[i]), spans["tid"] == moments.tid[i]
        within = mine & (spans["start_ns"] <= start) & (spans["end_ns"] > start)
        last = int(spans["end_ns"][within].max(initial=start))
        begun = spans["start_ns"][mine & (spans["start_ns"] > start)].min(initial=last)
        again = moments.start_ns[(moments.tid == moments.tid[i]) & (moments.start_ns > start)].min(initial=last)
        end[i] = min(int(begun), int(again))
    return end


def _outermost(group: Ints, start: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Make the intervals of each group disjoint: which to keep, in order, and where each then begins."""
    breathe()
    order = np.lexsort((-end, start, group))
    if order.size == 0:
        return order, start
    low = int(start.min())
    key = group[order] * (int(end.max()) - low + 1) - low
    latest = np.maximum.accumulate(key + end[order])
    begin = np.maximum(key + start[order], np.append(-1, latest[:-1]))
    kept = key + end[order] > begin
    return order[kept], (begin - key)[kept]


def _of_threads(spans: Mapping[str, Ints], moments: Moments, end: Ints, pid: int) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """Time in reclaim: of the span's own thread; without its waits for a CPU at least, and probably; of others; of any."""
    tids, group = numbered(moments.tid)
    at = np.searchsorted(tids, spans["tid"])
    known = (at < tids.size) & (np.append(tids, -1)[np.minimum(at, tids.size)] == spans["tid"])
    mine = np.where(known, at, -1)
    window = (spans["ran_start_ns"], spans["ran_end_ns"])
    which, begin = _outermost(group, moments.start_ns, end)
    group, until = group[which], end[which]
    own = _Cover(group, begin, until).inside(mine, *window)
    length = until - begin
    known = moments.held_ns[which] != NONE
    held = np.where(known, moments.held_ns[which], 0)
    weight = np.minimum(held * (length / np.maximum(end[which] - moments.start_ns[which], 1)), length)
    sure = np.minimum(_Cover(group, begin, until, weight).inside(mine, *window), own)
    weight = np.where(known & (length < PREEMPTED_NS), length, weight)
    net = np.clip(_Cover(group, begin, until, weight).inside(mine, *window), sure, own)
    here = np.isin(moments.pid[which], (0, pid)) | np.isin(moments.tid[which], spans["tid"])
    start, stop, owner = _alone(group[here], begin[here], until[here])
    whole = np.zeros(spans["tid"].size, np.int64)
    union = _Cover(np.zeros(start.size, np.int64), start, stop).inside(whole, spans["start_ns"], spans["end_ns"])
    single = owner >= 0
    sole = _Cover(owner[single], start[single], stop[single]).inside(mine, *window)
    return own, sure, net, union - sole, union


def _alone(group: Ints, start: Ints, end: Ints) -> tuple[Ints, Ints, Ints]:
    """Cut up the time that any interval covers, and say of each piece which group covers it alone, or -1."""
    breathe()
    times = np.append(start, end)
    order = np.argsort(times, kind="stable")
    step = np.append(np.ones(start.size, np.int64), np.full(end.size, -1))[order]
    count = np.cumsum(step)
    owner = np.cumsum(np.append(group, group)[order] * step)
    times = times[order]
    piece = np.flatnonzero((count[:-1] > 0) & (np.diff(times) > 0)) if times.size else np.empty(0, np.int64)
    return times[piece], times[piece + 1], np.where(count[piece] == 1, owner[piece], -1)


# ---- Moments of nobody in particular -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Vague:
    """Disjoint moments of threads that are not known; `held_ns` and its bounds where they are known, and else `hits`.

    `most_ns` is what one span may have lost to it, `hi_ns` what all of them did as far as the evidence tells.
    """

    start_ns: Ints
    end_ns: Ints
    held_ns: Ints
    lo_ns: Ints
    hi_ns: Ints
    most_ns: Ints
    hits: Ints


def _disjoint(moments: Moments, end: Ints) -> tuple[_Vague, _Vague]:
    """Those whose duration is known, and the others."""
    made = []
    known = moments.held_ns != NONE
    for which in (known, ~known):
        some, until = moments.take(which), end[which]
        kept, begin = _outermost(np.zeros(until.size, np.int64), some.start_ns, until)
        until, cut = until[kept], begin - some.start_ns[kept]
        hi = np.minimum(some.hi_ns[kept], until - begin)
        held = np.minimum(some.held_ns[kept], hi)
        hits = np.where(some.hits[kept] == NONE, 1, some.hits[kept])
        spread = (until - begin > SHARP_NS) & (hits > 0)
        most = np.where(spread, until - begin, hi)
        made.append(_Vague(begin, until, held, np.clip(some.lo_ns[kept] - cut, 0, held), hi, most, hits))
    return made[0], made[1]


def _of_anybody(spans: Mapping[str, Ints], moments: _Vague) -> tuple[Ints, Ints]:
    """What each span lost to them at least and at most."""
    start, end = spans["start_ns"], spans["end_ns"]
    zero = np.zeros(start.size, np.int64)
    if moments.start_ns.size == 0 or start.size == 0:
        return zero, zero
    alone = _threads(spans, moments) <= 1
    length = moments.end_ns - moments.start_ns
    first = np.searchsorted(moments.end_ns, start, side="right")
    last = np.searchsorted(moments.start_ns, end, side="left") - 1
    some = last >= first
    edges = [(np.minimum(first, length.size - 1), some), (np.maximum(last, 0), some & (last > first))]

    def total(full: Ints, part: tuple[Ints, Ints]) -> Ints:
        """Sum over whole moments, less what lies outside at both ends; `part` = the figure of the piece inside, at each."""
        before = np.append(0, np.cumsum(full))
        found = np.where(some, before[np.maximum(last + 1, 0)] - before[np.minimum(first, length.size)], 0)
        for (at, cut), inside in zip(edges, part, strict=True):
            found = found - np.where(cut, full[at] - inside, 0)
        summed: Ints = found
        return summed

    over = [np.minimum(end, moments.end_ns[at]) - np.maximum(start, moments.start_ns[at]) for at, _ in edges]
    ats = [at for at, _ in edges]
    lo = np.where(alone, moments.lo_ns, 0)
    least = [np.clip(lo[at] - (length[at] - inside), 0, None) for at, inside in zip(ats, over, strict=True)]
    most = [np.minimum(moments.most_ns[at], inside) for at, inside in zip(ats, over, strict=True)]
    return total(lo, (least[0], least[1])), total(moments.most_ns, (most[0], most[1]))


def _timed(spans: Mapping[str, Ints], usual: Ints, moments: _Vague) -> Ints:
    """What each span probably lost to them. Where spans were longer by more than was shared out, several threads were held."""
    if moments.start_ns.size == 0 or usual.size == 0 or not (whole := int(moments.held_ns.sum())):
        return np.zeros(usual.size, np.int64)
    given = _sharing.share(spans, usual, (moments.start_ns, moments.end_ns), moments.held_ns.astype(np.float64))
    scale = np.clip(_sharing.slope(spans, given) or 1.0, 1.0, int(moments.hi_ns.sum()) / whole)
    probable: Ints = np.rint(given * scale).astype(np.int64)
    return probable


def _counted(spans: Mapping[str, Ints], usual: Ints, moments: _Vague) -> Ints:
    """What each span probably lost where hits are all that is known; below 0 where nothing tells what a hit takes."""
    if moments.start_ns.size == 0 or usual.size == 0:
        return np.zeros(usual.size, np.int64)
    given = _sharing.share(spans, usual, (moments.start_ns, moments.end_ns), moments.hits.astype(np.float64))
    each = _sharing.slope(spans, given)
    return np.full(usual.size, -1) if each is None else np.rint(given * each).astype(np.int64)


def _threads(spans: Mapping[str, Ints], moments: _Vague) -> Ints:
    """How many threads had spans in flight in each moment."""
    group = numbered(spans["tid"])[1]
    which, begin = _outermost(group, spans["ran_start_ns"], spans["ran_end_ns"])
    group, until = group[which], spans["ran_end_ns"][which]
    first = np.searchsorted(moments.end_ns, begin, side="right")
    last = np.searchsorted(moments.start_ns, until, side="left")
    same = np.diff(group, prepend=-1) == 0
    first = np.where(same, np.maximum(first, np.append(0, last[:-1])), first)  # once a thread, however many spans it had
    some = last > first
    change = np.zeros(moments.start_ns.size + 1, np.int64)
    np.add.at(change, first[some], 1)
    np.add.at(change, last[some], -1)
    threads: Ints = np.cumsum(change)[:-1]
    return threads


def _since_hit(spans: Mapping[str, Ints], moments: _Vague) -> Ints:
    """Time from the first hit in each span to its end: how long that one took nobody knows."""
    start, end = spans["start_ns"], spans["end_ns"]
    if moments.start_ns.size == 0:
        return np.zeros(start.size, np.int64)
    first = np.searchsorted(moments.end_ns, start, side="right")
    begin = np.append(moments.start_ns, NONE)[first]
    since: Ints = np.maximum(end - np.maximum(start, begin), 0)
    return since


def _usual(spans: Mapping[str, Ints], duration: Ints, most: Ints) -> Ints:
    """How long a span of this name takes when it is fast and nothing hits it; minus a lot where that is not known."""
    names, group = numbered(spans["name_id"])
    usual = np.full(names.size, -(1 << 61))
    for i in range(names.size):
        breathe()
        of = group == i
        clean = duration[of & (most == 0)]
        if clean.size < LEAST_KNOWN and int(of.sum()) >= LEAST_KNOWN:
            clean = (duration - most)[of]
        if clean.size >= LEAST_KNOWN:
            usual[i] = int(np.percentile(clean, FAST))
    return usual[group]


def _bits(spans: Mapping[str, Ints], moments: Moments, end: Ints) -> Ints:
    """Which kinds of evidence have a moment in each span."""
    bits = np.zeros(spans["start_ns"].size, np.int64)
    for code in distinct(moments.evidence).tolist():
        breathe()
        of = moments.evidence == code
        latest = np.maximum.accumulate(end[of])
        at = np.searchsorted(moments.start_ns[of], spans["end_ns"], side="left")
        inside = (at > 0) & (np.append(0, latest)[at] >= spans["start_ns"])
        bits |= np.where(inside, 1 << code, 0)
    return bits
