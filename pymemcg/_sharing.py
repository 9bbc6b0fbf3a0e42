# SPDX-License-Identifier: Apache-2.0
"""Whose was it? Stall time, or hits, of which only the tick is known, shared out among the spans that were in flight.

A tick may be longer than several spans. But kinds of work differ in how much they reclaim, and over many ticks that shows:
each kind of span is taken to reclaim at a rate of its own, and the rates are found by expectation maximisation for Poisson
sums (Shepp and Vardi 1982; Richardson and Lucy before them), with everything that is no span as one more kind. Within a kind,
a span counts by the time that it took beyond what its kind takes anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from pymemcg._arrays import distinct, numbered
from pymemcg._breath import breathe

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Ints: TypeAlias = npt.NDArray[np.int64]
    Floats: TypeAlias = npt.NDArray[np.float64]

ROUNDS: Final = 40
"""Rates change by less than a percent a round then."""
CELLS: Final = 4_000_000
"""Numbers to work on: as many kinds of work as fit, of those that took most time; the others count as one."""
KINDS: Final = 32
BESIDE: Final = 0.01
"""What is no span is believed to reclaim only as far as spans do not explain it."""
LEAST_WEIGHT: Final = 0.02
"""Of its time a span that was as fast as usual may still have lost so much."""
ENOUGH: Final = 10
"""Of so many spans of a name it can be learned how their time depends on what hit them."""
USUAL: Final = 5
"""The percentile of a name's times that is work in any case, where all its spans were hit."""
STEPS: Final = 10
"""Of the regression; it hardly moves any more then."""
OUTLYING: Final = 2.2
"""From so many medians of the deviations on a span counts less: 1.5 standard deviations, if they were normal."""
REDUCED: Final = 0.5
"""Who is hit more also does more, such as to use the memory: of the time that goes along with hits half is taken to be reclaim
(docs/fidelity.md has what comes of it)."""


def share(spans: Mapping[str, Ints], usual: Ints, moments: tuple[Ints, Ints], amount: Floats) -> Floats:
    """Share amounts out among spans.

    Args:
        spans: Columns of the `spans` channel.
        usual: How long each span would have taken, shape (spans,), ns; below 0 where nobody knows.
        moments: Beginning and end, disjoint and sorted, shape (moments,), ns.
        amount: What is to be shared of each, shape (moments,).

    Returns:
        What of it each span gets, shape (spans,).
    """
    base = int(spans["start_ns"].min())
    start, end = (spans[name] - base for name in ("start_ns", "end_ns"))
    first, last = (times - base for times in moments)
    length = np.maximum(end - start, 1)
    weight = np.maximum((end - start - _least(spans, usual)) / length, LEAST_WEIGHT)
    kinds, kind = _kinds(spans["name_id"], length, max(1, min(KINDS, CELLS // first.size)))
    times = np.empty((kinds + 1, first.size))
    in_all = np.empty(kinds + 1)
    for i in range(kinds):
        of = kind == i
        times[i] = _in_flight(start[of], end[of], weight[of], first, last)
        in_all[i] = float((weight * length)[of].sum())
    times[kinds], in_all[kinds] = last - first, float(max(end.max(), last.max()))
    rate = np.append(np.ones(kinds), BESIDE)
    for _ in range(ROUNDS):
        breathe()
        rate *= (times @ (amount / np.maximum(rate @ times, 1e-12))) / np.maximum(in_all, 1)
    density = amount / np.maximum(rate @ times, 1e-12)
    given: Floats = weight * rate[kind] * _passed(first, last, density, start, end)
    return given


def slope(spans: Mapping[str, Ints], given: Floats) -> float | None:
    """By how many ns spans were longer for each of what they were given, within names; None where nothing tells.

    Regression with Huber's weights (1964), since some spans are long for reasons of their own.
    """
    group = numbered(spans["name_id"])[1]
    enough = np.bincount(group)[group] >= ENOUGH
    x, y = given[enough], (spans["end_ns"] - spans["start_ns"]).astype(np.float64)[enough]
    group = numbered(group[enough])[1]
    weight, found = np.ones(x.size), 0.0
    for _ in range(STEPS if x.size else 0):
        breathe()
        total = np.bincount(group, weights=weight)
        dx = x - (np.bincount(group, weights=weight * x) / total)[group]
        dy = y - (np.bincount(group, weights=weight * y) / total)[group]
        spread = float((weight * dx * dx).sum())
        found = float((weight * dx * dy).sum()) / spread if spread > 0 else 0.0
        rest = np.abs(dy - found * dx)
        weight = np.minimum(1.0, (OUTLYING * float(np.median(rest)) + 1) / np.maximum(rest, 1))
    return REDUCED * found if found > 0 else None


def _least(spans: Mapping[str, Ints], usual: Ints) -> Ints:
    """What a span takes anyway: the usual, or what nearly all of its name took."""
    least = np.maximum(usual, 0)
    duration = spans["end_ns"] - spans["start_ns"]
    for name in distinct(spans["name_id"][usual < 0]).tolist():
        of = spans["name_id"] == name
        if int(of.sum()) >= ENOUGH:
            least[of] = int(np.percentile(duration[of], USUAL))
    return least


def _kinds(names: Ints, length: Ints, most: int) -> tuple[int, Ints]:
    """Number the names by the time that they took, and let all beyond the last number be one."""
    kind = numbered(names)[1]
    order = np.argsort(-np.bincount(kind, weights=length), kind="stable")
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size)
    kind = np.minimum(rank[kind], most - 1)
    return int(kind.max()) + 1, kind


def _in_flight(start: Ints, end: Ints, weight: Floats, first: Ints, last: Ints) -> Floats:
    """Weighted time for which spans were in flight in each moment."""

    def until(t: Ints) -> Floats:
        breathe()
        total = np.zeros(t.size)
        for times, sign in ((start, 1), (end, -1)):
            order = np.argsort(times, kind="stable")
            weights = np.append(0, np.cumsum(weight[order]))
            begun = np.append(0, np.cumsum((weight * times)[order]))
            at = np.searchsorted(times[order], t, side="right")
            total += sign * (t * weights[at] - begun[at])
        return total

    return np.asarray(np.maximum(until(last) - until(first), 0))


def _passed(first: Ints, last: Ints, density: Floats, start: Ints, end: Ints) -> Floats:
    """The integral of the density over each span."""
    length = last - first
    before = np.append(0, np.cumsum(density * length))

    def until(t: Ints) -> Floats:
        at = np.maximum(np.searchsorted(first, t, side="right") - 1, 0)
        return np.asarray(before[at] + density[at] * np.clip(t - first[at], 0, length[at]))

    return np.asarray(until(end) - until(start))
