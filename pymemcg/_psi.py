# SPDX-License-Identifier: Apache-2.0
"""How long threads were held, from PSI and counters: slow PSI says how much, fast counters say when.

`memory.pressure` is exact and slow: a window of it, as the gate lets it be read, holds one episode or a hundred. Limit hits are
fast and say nothing of time. What brings them together is that in a group reclaim of one kind costs about as much each time:
the windows tell what a unit of it costs, and the units are spread over the ticks. docs/evidence.md says how well that works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pymemcg._breath import breathe
from pymemcg._ffi import NONE
from pymemcg._moments import PSI, Moments
from pymemcg._psi_costs import STEPS, Rows, Sums, Ticks, Windows, beyond_usual, costs_of, rows_of, summed, sums_of

if TYPE_CHECKING:
    from pymemcg._psi_costs import Bools, Floats

CHOICE: Final = 0.75
"""Stall time that fits into some pauses went there if it fills them to such a part: else it is not known which it was."""
LEAST: Final = 0.75
MOST: Final = 1.4
"""By what the true duration of one episode differs from its share of the window: 95 % of those measured are in between."""
SPREAD: Final = 1.3
"""How far windows may disagree on the cost of a unit before that widens the interval."""


def estimate(ticks: Ticks, windows: Windows, *, cpus: int, outside: bool = False, asleep: Bools | None = None) -> Moments:
    """Say for how long threads were held in each tick that was hit, and in windows whose stall no hit explains.

    Args:
        ticks: Those inside of windows count.
        windows: Closed ones. Each is estimated from itself and those before it (`_psi_costs.HISTORY`), never from later ones.
        cpus: That the group may use.
        outside: Whether ticks before the first and after the last window count, too, by what units cost next to there.
        asleep: Windows into which threads may have slept at memory.high from before; None = none. Not with `outside`.

    Returns:
        A moment for each tick with reclaim in it: `held_ns` within it, or where that went on into the pause after it, up to
        its end; and one for each window that has stall time and no reclaim to hang it on (memory.high, refaults). The sums over
        the moments of an episode are the best estimate, and the bounds, of its stall time.

    Pure, and vectorised: nothing but arithmetic on arrays.
    """
    count = windows.t_ns.size
    if count == 0:
        return Moments.none()
    unknown = np.zeros(count, bool)
    if outside and ticks.t_ns.size:
        windows, unknown = _around(windows, int(ticks.since_ns[0]), int(ticks.t_ns[-1]))
    rows = rows_of(ticks, windows)
    if not rows.of.size:
        return _unhit(rows, windows, cpus)
    breathe()
    sums = sums_of(rows, windows, cpus)
    cost, wide = costs_of(rows, sums, unknown)
    hit = _hit(rows, sums, cost, wide)
    slept = Moments.none() if asleep is None else _slept_on(rows, sums, windows, hit, asleep)
    return Moments.joined([_unhit(rows, windows, cpus), hit, slept])


def _around(windows: Windows, since_ns: int, until_ns: int) -> tuple[Windows, Bools]:
    """Windows before and after these where ticks are, and which of all are such, of which nothing is known."""
    first, last = since_ns < windows.since_ns[0], until_ns > windows.t_ns[-1]
    at = np.array([0] * int(first) + [windows.t_ns.size] * int(last), np.int64)
    of = {name: np.insert(v, at, 0) for name in windows.__slots__ if (v := getattr(windows, name)) is not None}
    if first:
        of["since_ns"][0], of["t_ns"][0] = since_ns, windows.since_ns[0]
    if last:
        of["since_ns"][-1], of["t_ns"][-1] = windows.t_ns[-1], until_ns
    unknown = np.zeros(of["t_ns"].size, bool)
    unknown[0], unknown[-1] = first, last
    return Windows(**of), unknown


def _hit(rows: Rows, sums: Sums, cost: Floats, wide: Floats) -> Moments:
    """Spread each window's stall time over its ticks, and over pauses where ticks cannot have held it."""
    count = sums.units.size
    runs = np.maximum(cost[rows.run_of] * rows.run_units + beyond_usual(rows, sums), 0)
    left = np.maximum(sums.held - summed(rows.run_of, runs, count), 0)
    paused = _fitting(rows, np.where(sums.calm & (left > np.maximum(0.1 * sums.held, 1e6)), left, 0))
    left -= summed(rows.of, paused, count)
    runs += (np.maximum(left, 0) / np.maximum(sums.units, 1e-9))[rows.run_of] * rows.run_units
    runs = np.minimum(runs, rows.run_most)
    held = np.minimum(runs[rows.run] * (rows.units / rows.run_units[rows.run]), rows.length)
    left = np.where(sums.calm, sums.held - summed(rows.of, held + paused, count), 0)
    paused = np.where(paused > 0, paused, _fitting(rows, np.where(left > 0.1 * sums.held, left, 0)))
    left = np.where(sums.calm, sums.held - summed(rows.of, held + paused, count), 0)
    after = _after(rows, np.where(left > 0.1 * sums.held, left, 0), np.where(paused > 0, 0, rows.pause))
    held, gone = held + paused + after, np.where(paused > 0, rows.pause, after)
    ratio = np.divide(sums.surely, sums.held, out=np.zeros(count), where=sums.held > 0)
    room = np.divide(sums.most, sums.held, out=np.ones(count), where=sums.held > 0)
    low = LEAST * np.clip(ratio, 0.45, 1)
    high = np.maximum(MOST, np.minimum(np.minimum(room, 2), np.maximum(SPREAD * wide, 1.5 / np.maximum(ratio, 0.5))))
    kept = np.flatnonzero(held >= 1)
    held, wall = held[kept], (rows.length + gone)[kept]
    return Moments.of(
        rows.start[kept],
        rows.end[kept] + gone[kept].astype(np.int64),
        held_ns=held,
        lo_ns=held * low[rows.of[kept]],
        hi_ns=np.maximum(np.minimum(held * high[rows.of[kept]], wall), held),
        hits=rows.hits[kept],
        evidence=PSI,
    )


def _slept_on(rows: Rows, sums: Sums, windows: Windows, hit: Moments, asleep: Bools) -> Moments:
    """A thread that hit memory.high before a window may have slept on into it: what hits leave of it, from its beginning on."""
    count = windows.t_ns.size
    of = np.minimum(np.searchsorted(windows.t_ns, hit.start_ns, side="right"), count - 1)
    left = sums.held - summed(of, hit.held_ns, count)
    first = np.array(windows.t_ns)
    np.minimum.at(first, rows.of, rows.start)
    told = np.minimum(left, first - windows.since_ns)
    on = asleep & (sums.units > 0) & (left > np.maximum(0.1 * sums.held, 1e6)) & (told >= 1e6)
    since, held = windows.since_ns[on], told[on].astype(np.int64)
    most = np.minimum(held * MOST, first[on] - since)
    return Moments.of(since, since + held, held_ns=held, lo_ns=held * LEAST, hi_ns=np.maximum(most, held), hits=0, evidence=PSI)


def _fitting(rows: Rows, left: Floats) -> Floats:
    """What is left of a window's stall time goes into the pauses that it can have filled, where there is little choice."""
    fits = (rows.pause > 0) & (rows.pause <= 1.1 * left[rows.of] + 1e6) & (left[rows.of] > 0)
    pauses = np.where(fits, rows.pause, 0)
    share = left / np.maximum(summed(rows.of, pauses, left.size), 1)
    return pauses * np.where(share > CHOICE, np.minimum(share, 1), 0)[rows.of]


def _after(rows: Rows, left: Floats, pauses: Floats) -> Floats:
    """What is left even then follows the hits, evenly: threads sleep after a hit of memory.high, or wait for a disk."""
    if not left.any():
        return np.zeros(pauses.size)
    low, high = np.zeros(left.size), left.copy()
    for _ in range(STEPS):
        each = (low + high) / 2
        over = summed(rows.of, np.minimum(pauses, each[rows.of]), left.size) > left
        low, high = np.where(over, low, each), np.where(over, each, high)
    return np.minimum(pauses, low[rows.of])


def _unhit(rows: Rows, windows: Windows, cpus: int) -> Moments:
    """One moment for each window without reclaim and with stall time: it held somebody at some time in between."""
    some = np.bincount(rows.of, minlength=windows.t_ns.size) == 0
    some &= windows.some_us > 0
    since, t = windows.since_ns[some], windows.t_ns[some]
    wait = 0 if windows.cpu_wait_us is None else np.where(windows.cpu_wait_us == NONE, 0, windows.cpu_wait_us)[some]
    told = np.minimum(windows.some_us[some] * 1000, t - since)
    return Moments.of(
        since,
        t,
        held_ns=np.maximum(told - wait * 1000, 0),
        lo_ns=np.maximum(told - wait * 1000, 0),
        hi_ns=np.minimum(told * min(cpus, 2), t - since),
        hits=0,
        evidence=PSI,
    )
