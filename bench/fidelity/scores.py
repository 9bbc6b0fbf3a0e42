# SPDX-License-Identifier: Apache-2.0
"""The detector's stalls beside the true ones, and its intervals beside the true ones."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from bench.fidelity.truth import LEAST_NS, Episode, Interval

TICK_NS = 1_000_000
SLACK_NS = 2 * TICK_NS
"""Counters are read once a tick: what they tell may lie this far beside what it is about."""
NEAR_INTERVAL_NS = 50_000
"""Two sessions note one event some µs apart at the most; the same thread's next reclaim is another one."""
FOREVER_NS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Said:
    """A stall as the detector says it; None = it does not know.

    Attributes:
        start_ns: …
        end_ns: FOREVER_NS where it is open.
        stall_ns: …
        lo_ns: …
        hi_ns: …
        longest_ns: The most within 10 ms, on which the millisecond is judged.
        harmless: …
        tids: …
        cause: …
    """

    start_ns: int
    end_ns: int
    stall_ns: int | None
    lo_ns: int | None
    hi_ns: int | None
    longest_ns: int | None
    harmless: bool | None
    tids: frozenset[int] = frozenset()
    cause: str = "unknown"


def said(stall: Any) -> Said:
    """Take what is scored out of a `pymemcg.Stall`."""
    return Said(
        stall.start_ns,
        FOREVER_NS if stall.end_ns is None else stall.end_ns,
        stall.stall_ns,
        stall.stall_lo_ns,
        stall.stall_hi_ns,
        stall.longest_ns,
        stall.harmless,
        frozenset(stall.tids),
        stall.cause,
    )


@dataclass(slots=True)
class Score:
    """Sums and lists, so that the scores of several runs can be put together by adding them.

    Attributes:
        true: Stalls of a millisecond or more that there were.
        found: … of them that were told of.
        told: Stalls of a millisecond or more that were told of.
        vague: Stalls told of without a duration; they count as told only where no duration is to be had.
        right: … of them that were true.
        missed_ns: What those that were not found were worth, by their longest 10 ms.
        invented_ns: What those that were not true were said to be worth; -1 = that was not said.
        onset_ns: Said − true beginning of each that was found.
        onset_ticks: … in ticks as they were then: a sampler inside of a group that does little ticks seldom.
        true_ns: Duration of each true stall, or where several were told of as one, or one as several, of all of them.
        said_ns: … and what was said of it; only where something was.
        lo_ns: …
        hi_ns: …
        unhit: Stalls told of though no counter had risen.
    """

    true: int = 0
    found: int = 0
    told: int = 0
    right: int = 0
    unhit: int = 0
    vague: int = 0
    missed_ns: list[int] = field(default_factory=list)
    invented_ns: list[int] = field(default_factory=list)
    onset_ns: list[int] = field(default_factory=list)
    onset_ticks: list[float] = field(default_factory=list)
    true_ns: list[int] = field(default_factory=list)
    said_ns: list[int] = field(default_factory=list)
    lo_ns: list[int] = field(default_factory=list)
    hi_ns: list[int] = field(default_factory=list)

    def __add__(self, other: Score) -> Score:
        return Score(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @property
    def recall(self) -> float | None:
        """None where there was nothing to find."""
        return self.found / self.true if self.true else None

    @property
    def precision(self) -> float | None:
        """None where nothing was told of."""
        return self.right / self.told if self.told else None

    @property
    def covered(self) -> float | None:
        """The share of durations that were inside of lo…hi, give or take a hundredth: evidence `trace` says no range."""
        inside = [lo * 0.99 <= true <= hi * 1.01 for lo, true, hi in zip(self.lo_ns, self.true_ns, self.hi_ns, strict=True)]
        return sum(inside) / len(inside) if inside else None


def score(
    true: Sequence[Episode],
    told: Sequence[Said],
    hits: Sequence[int] | None = None,
    ticks: Sequence[int] = (),
    *,
    timed: bool = True,
) -> Score:
    """Compare.

    A true stall was found where one that is told of as counting overlaps it, give or take two ticks, and the other way round.

    Args:
        true: All that there were, the harmless ones too.
        told: All that were told of.
        hits: When counters rose, sorted; None = not asked.
        ticks: When there was a tick; none = each millisecond.
        timed: Whether the evidence can tell durations: then a stall without one tells of no millisecond.
    """
    counting = [each for each in told if each.harmless is False or (each.harmless is None and not timed)]
    big = [each for each in true if each.counts]
    found = Score(true=len(big), told=len(counting), vague=sum(each.harmless is None for each in told))
    for episode in big:
        beside = [each for each in counting if _touch(each, episode)]
        if beside:
            found.found += 1
            onset_ns = max(beside, key=lambda each: _shared(each, episode)).start_ns - episode.start_ns
            found.onset_ns.append(onset_ns)
            found.onset_ticks.append(onset_ns / _tick_ns(ticks, episode.start_ns))
        else:
            found.missed_ns.append(episode.longest_ns)
    for each in counting:
        if any(_touch(each, episode) for episode in big):
            found.right += 1
        else:
            found.invented_ns.append(-1 if each.longest_ns is None else each.longest_ns)
        if hits is not None and not any(each.start_ns - SLACK_NS <= at <= each.end_ns + SLACK_NS for at in hits):
            found.unhit += 1
    for episodes, stalls in _groups(big, counting):  # harmless episodes go on for long, beside and between them
        _durations(found, episodes, stalls)
    return found


def _durations(found: Score, episodes: Sequence[Episode], stalls: Sequence[Said]) -> None:
    if not episodes or not stalls or any(each.stall_ns is None for each in stalls):
        return
    found.true_ns.append(sum(each.stall_ns for each in episodes))
    found.said_ns.append(sum(each.stall_ns or 0 for each in stalls))
    found.lo_ns.append(sum((each.lo_ns if each.lo_ns is not None else each.stall_ns) or 0 for each in stalls))
    found.hi_ns.append(sum((each.hi_ns if each.hi_ns is not None else each.stall_ns) or 0 for each in stalls))


def _tick_ns(ticks: Sequence[int], at_ns: int) -> int:
    """The distance of the ticks around a time."""
    after = bisect_right(ticks, at_ns)
    return max(TICK_NS, ticks[after] - ticks[after - 1]) if 0 < after < len(ticks) else TICK_NS


def _touch(said: Said, true: Episode) -> bool:
    return said.start_ns - SLACK_NS <= true.end_ns and true.start_ns <= said.end_ns + SLACK_NS


def _shared(said: Said, true: Episode) -> int:
    return min(said.end_ns, true.end_ns) - max(said.start_ns, true.start_ns)


def _groups(true: Sequence[Episode], told: Sequence[Said]) -> Iterable[tuple[list[Episode], list[Said]]]:
    """What belongs together since it overlaps (not: is near), in the order of time."""
    episodes: list[Episode] = []
    stalls: list[Said] = []
    end = -FOREVER_NS
    both: list[Episode | Said] = [*true, *told]
    for each in sorted(both, key=lambda each: each.start_ns):
        if each.start_ns > end and (episodes or stalls):
            yield episodes, stalls
            episodes, stalls = [], []
        end = each.end_ns if not (episodes or stalls) else max(end, each.end_ns)
        if isinstance(each, Episode):
            episodes.append(each)
        else:
            stalls.append(each)
    if episodes or stalls:
        yield episodes, stalls


@dataclass(slots=True)
class IntervalScore:
    """Intervals of evidence `trace` beside the true ones, matched by thread and order.

    Attributes:
        true: How many there were.
        found: … of them that were told of.
        invented: Told of, and not true.
        begin_ns: Told − true begin of each that was found.
        end_ns: … and end.
    """

    true: int = 0
    found: int = 0
    invented: int = 0
    begin_ns: list[int] = field(default_factory=list)
    end_ns: list[int] = field(default_factory=list)

    def __add__(self, other: IntervalScore) -> IntervalScore:
        return IntervalScore(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


def score_intervals(true: Iterable[Interval], told: Iterable[Interval], since_ns: int, until_ns: int) -> IntervalScore:
    """Compare those that begin in [since_ns, until_ns); a partner may begin a little beyond."""
    found = IntervalScore()
    threads: dict[tuple[int, str], tuple[list[Interval], list[Interval]]] = {}
    for side, intervals in enumerate((true, told)):
        for each in intervals:
            if since_ns - NEAR_INTERVAL_NS <= each.start_ns < until_ns + NEAR_INTERVAL_NS:
                threads.setdefault((each.tid, each.kind), ([], []))[side].append(each)
    for ours, theirs in threads.values():
        ours.sort(key=lambda each: each.start_ns)
        theirs.sort(key=lambda each: each.start_ns)
        _match(found, ours, theirs, since_ns, until_ns)
    return found


def _match(found: IntervalScore, ours: list[Interval], theirs: list[Interval], since_ns: int, until_ns: int) -> None:
    i = j = 0
    while i < len(ours) or j < len(theirs):
        our = ours[i] if i < len(ours) else None
        their = theirs[j] if j < len(theirs) else None
        if our and their and (_overlaps(our, their) or abs(our.start_ns - their.start_ns) <= NEAR_INTERVAL_NS):
            i, j = i + 1, j + 1
            if since_ns <= our.start_ns < until_ns:
                found.true += 1
                found.found += 1
                found.begin_ns.append(their.start_ns - our.start_ns)
                found.end_ns.append(their.end_ns - our.end_ns)
        elif their is None or (our is not None and our.start_ns < their.start_ns):
            assert our is not None
            i += 1
            found.true += since_ns <= our.start_ns < until_ns
        else:
            j += 1
            found.invented += since_ns <= their.start_ns < until_ns


def _overlaps(one: Interval, other: Interval) -> bool:
    return one.start_ns < other.end_ns and other.start_ns < one.end_ns


def near(values_ns: Iterable[int], factor: float = 1.5) -> int:
    """How many are within this factor of a millisecond: to be on its wrong side is a small mistake."""
    return sum(LEAST_NS / factor <= value <= LEAST_NS * factor for value in values_ns)
