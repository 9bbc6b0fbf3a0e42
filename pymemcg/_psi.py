# SPDX-License-Identifier: Apache-2.0
"""How long threads were held, from PSI and counters: slow PSI says how much, fast counters say when.

`memory.pressure` is exact and slow: a window of it, as the gate lets it be read, holds one episode or a hundred. Limit hits are
fast and say nothing of time. What brings them together is that in a group reclaim of one kind costs about as much each time:
the windows tell what a unit of it costs, and the units are spread over the ticks. docs/evidence.md says how well that works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from pymemcg._breath import breathe
from pymemcg._ffi import NONE
from pymemcg._moments import PSI, Moments

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints: TypeAlias = npt.NDArray[np.int64]
    Floats: TypeAlias = npt.NDArray[np.float64]
    Bools: TypeAlias = npt.NDArray[np.bool_]

PAGE_BYTES: Final = 4096
HISTORY: Final = 15
"""Windows from which it is taken what a unit usually costs."""
USUAL: Final = 0.3
"""That quantile of what it cost in each: in some of them one reclaim that took long is spread over all."""
SHORT_NS: Final = 2_500_000
"""Only in ticks at most so long is a thread that hits in three in a row taken to have done nothing else in the middle one."""
PAUSE_NS: Final = 5_000_000
"""Hits further apart than this are not of one stall."""
CHOICE: Final = 0.75
"""Stall time that fits into some pauses went there if it fills them to such a part: else it is not known which it was."""
CALM: Final = 0.2
"""Where waiting for a CPU is more of the stall time than this, pauses are that, and not reclaims that outlasted their tick."""
LONGEST_WAIT_NS: Final = 100_000_000
"""A pause in which a thread waited for a CPU is not longer: the scheduler is fair."""
TOUCH_NS: Final = 4_200
"""What a page costs who touches it, beside reclaim: a fault, clearing it, and what is written to it, 1 to 4 µs."""
CLEARLY: Final = 0.8
"""PSI must show less than this share of what that leaves for reclaim, to be taken to show a part only."""
COLD: Final = 0.25
"""The first reclaim after a pause costs so much more: neither its code nor its data is in a cache."""
CLUSTER: Final = 42
"""Hits a reclaim where each page is one: it frees at least SWAP_CLUSTER_MAX = 32 pages, 41 as a rule, and is a hit itself."""
STEPS: Final = 24
"""Of bisections: a part in 16 million."""
LEAST: Final = 0.75
MOST: Final = 1.4
"""By what the true duration of one episode differs from its share of the window: 95 % of those measured are in between."""
SPREAD: Final = 1.3
"""How far windows may disagree on the cost of a unit before that widens the interval."""


@dataclass(frozen=True, slots=True)
class Ticks:
    """Ticks in which a limit was hit, sorted; those without hits may be left out. Arrays of shape (n,), int64.

    Attributes:
        t_ns: The tick.
        since_ns: The one before it, hit or not.
        hits: In between, of all limits together.
        usage_bytes: At `t_ns`; NONE = not known.
        before_bytes: At `since_ns`, likewise; None = known only where the row before is of that tick.
    """

    t_ns: Ints
    since_ns: Ints
    hits: Ints
    usage_bytes: Ints
    before_bytes: Ints | None = None


@dataclass(frozen=True, slots=True)
class Windows:
    """What PSI and cpu.stat grew by from one read to the next, sorted. Arrays of shape (n,), int64.

    Attributes:
        since_ns: The read before.
        t_ns: The read.
        some_us: Of memory.pressure.
        full_us: Likewise.
        cpu_us: CPU time of the group.
        cpu_wait_us: `some` of cpu.pressure; None = not known.
    """

    since_ns: Ints
    t_ns: Ints
    some_us: Ints
    full_us: Ints
    cpu_us: Ints
    cpu_wait_us: Ints | None = None


def estimate(ticks: Ticks, windows: Windows, *, cpus: int, outside: bool = False, asleep: Bools | None = None) -> Moments:
    """Say for how long threads were held in each tick that was hit, and in windows whose stall no hit explains.

    Args:
        ticks: Those inside of windows count.
        windows: Closed ones. Each is estimated from itself and those before it (`HISTORY`), never from later ones.
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
    rows = _rows(ticks, windows)
    if not rows.of.size:
        return _unhit(rows, windows, cpus)
    breathe()
    sums = _sums(rows, windows, cpus)
    cost, wide = _costs(rows, sums, unknown)
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


@dataclass(frozen=True, slots=True)
class _Rows:
    """Ticks with reclaim in them, and the runs that they make: ticks one after the other, within one window.

    Attributes:
        start, end, hits: Of the tick.
        of: Its window.
        units: Of reclaim, see `_units`; more by COLD after a pause.
        length: ns.
        inner: Whether reclaim went on before and after it, and it is short: its whole length is work.
        pause: From its end to the next tick with reclaim or the end of the window, ns.
        run: Its run.
        run_of: Window of the run.
        run_units: Units of the run.
        run_least: ns for which the run was at work at least.
        run_most: … and at most.
    """

    start: Ints
    end: Ints
    hits: Ints
    of: Ints
    units: Floats
    length: Floats
    inner: Bools
    pause: Floats
    run: Ints
    run_of: Ints
    run_units: Floats
    run_least: Floats
    run_most: Floats


@dataclass(frozen=True, slots=True)
class _Sums:
    """Of each window, ns.

    Attributes:
        units: Units of reclaim.
        pace: Wall time of a unit while nothing else is done; infinite = not seen.
        held: Best estimate of the stall time.
        surely: It is at least that.
        most: … and at most that.
        share: Of the time for which reclaiming threads ran, so much was reclaim.
        calm: Whether hardly any of it was waiting for a CPU.
    """

    units: Floats
    pace: Floats
    held: Floats
    surely: Floats
    most: Floats
    share: Floats
    calm: Bools


def _units(ticks: Ticks, of: Ints, inside: Bools, count: int) -> tuple[Floats, Floats]:
    """What of reclaim there was in each tick, in units that cost about the same; and how many of them one reclaim is.

    v2 counts reclaims: `max` in memory.events rises once for each. v1's failcnt rises whenever a charge fails, and the charge
    of a page first tries to take a batch of 64 (try_charge_memcg() in mm/memcontrol.c): near the limit each page charged is a
    hit, also while there is room. There, hits less pages by which usage grew are the pages freed, and one for each reclaim.
    What kind it is shows: where each page charged is a hit, usage never grows by more than that. Each window is judged by it
    and all before it.
    """
    follows = np.append(False, ticks.since_ns[1:] == ticks.t_ns[:-1])
    before = ticks.before_bytes
    if before is None:
        before = np.where(follows, np.append(NONE, ticks.usage_bytes[:-1]), NONE)
    known = inside & (ticks.usage_bytes != NONE) & (before != NONE)
    amid = known & follows
    grown = np.where(known, ticks.usage_bytes - np.where(known, before, 0), 0) / PAGE_BYTES
    seen = np.cumsum(np.bincount(of[amid], minlength=count))
    against = np.cumsum(np.bincount(of[amid & (grown > ticks.hits)], minlength=count))
    paged = (seen > 0) & (against < 0.05 * seen)
    freed = np.maximum(ticks.hits - grown, 0)
    return np.where(inside, np.where(paged[of], freed, ticks.hits), 0.0), np.where(paged, float(CLUSTER), 1.0)


def _rows(ticks: Ticks, windows: Windows) -> _Rows:
    """Put ticks into windows and runs."""
    count, n = windows.t_ns.size, ticks.t_ns.size
    of = np.minimum(np.searchsorted(windows.t_ns, ticks.t_ns), count - 1)
    inside = (ticks.t_ns > windows.since_ns[of]) & (ticks.t_ns <= windows.t_ns[of]) & (ticks.hits > 0)
    units, reclaim = _units(ticks, of, inside, count) if n else (np.zeros(0), np.zeros(0))
    some = np.flatnonzero(units > 0)
    of, units, end, hits = of[some], units[some], ticks.t_ns[some], ticks.hits[some]
    # Ticks of two clocks may overlap.
    before = np.maximum.accumulate(np.append(np.int64(-NONE), end))[:-1]
    start = np.minimum(np.maximum(np.maximum(ticks.since_ns[some], windows.since_ns[of]), before), end)
    length = (end - start).astype(float)
    last = np.append(of[1:] != of[:-1], True)[: of.size]
    pause = (np.where(last, windows.t_ns[of], np.append(start[1:], 0)[: of.size]) - end).astype(float)
    joins = ~last & (pause <= 0)
    first = np.append(True, ~joins)[: of.size]
    inner = joins & ~first & (length <= SHORT_NS)
    cold = np.append(True, last | (pause >= PAUSE_NS))[: of.size]
    units = units + COLD * cold * np.minimum(units, reclaim[of])
    run, runs = np.cumsum(first) - 1, int(first.sum())
    return _Rows(
        *(start, end, hits, of, units, length, inner, np.maximum(pause, 0), run, of[first]),
        *(_summed(run, weights, runs) for weights in (units, length * inner, length)),
    )


def _sums(rows: _Rows, windows: Windows, cpus: int) -> _Sums:
    """What PSI's figures mean.

    `total=` grows by Σ (tᵢ nᵢ) / Σ nᵢ over the CPUs, t stalled and n non-idle time of each (collect_percpu_times() in
    kernel/sched/psi.c). Of all non-idle time N the reclaiming threads had A, which the ticks show, and others o = N - A. Was a
    share f of o on the CPU that stalled, then PSI shows (A + f o) / N of the stall: between f = 1, or what A leaves of the wall
    time, and as little as does not fit on the other CPUs. Threads that wander, or stall on several CPUs by turns, may add
    another factor of two.

    Time for which a thread was preempted while in reclaim is in `some`, too. Where another thread of the group ran instead, it
    is not in `full`, which tells of reclaim as it runs (psi_group_change()). Of the rest, w of waiting beside A of running, so
    much was within reclaim as PSI makes of both together.

    At the same time a run of ticks without a pause spends what is beyond TOUCH_NS a page in reclaim, if nothing else is
    done: where PSI allows for so much, it is that much.
    """
    count = windows.t_ns.size
    wall = (windows.t_ns - windows.since_ns).astype(float)
    some, cpu = windows.some_us * 1e3, windows.cpu_us * 1e3
    wait = (
        np.zeros(count) if windows.cpu_wait_us is None else np.where(windows.cpu_wait_us == NONE, 0, windows.cpu_wait_us * 1e3)
    )
    full = np.minimum(windows.full_us * 1e3, some)
    alone, contended = np.maximum(full, some - wait), wait / np.maximum(cpu, 1)
    wait = np.maximum(wait - (some - alone), 0) * full / np.maximum(some, 1)
    some = alone
    units = _summed(rows.of, rows.units, count)
    pace = _pace(rows, units)
    work = np.clip(_times(pace[rows.run_of], rows.run_units), rows.run_least, rows.run_most)
    busy = np.minimum(_summed(rows.run_of, work, count), np.maximum(cpu + some, 1))
    pauses, waits = (
        _summed(rows.of, np.where(rows.pause < most, rows.pause, 0), count) for most in (4 * PAUSE_NS, LONGEST_WAIT_NS)
    )
    nonidle = np.maximum(cpu, busy)
    other = nonidle - busy
    together = np.clip((wall - busy) / np.maximum(other, 1), 0, 1)
    apart = np.clip(1 - (cpus - 1) * wall / np.maximum(other, 1), 0, 1)
    least = nonidle / np.maximum(busy + other * together, 1)
    most = np.maximum(min(cpus, 2), nonidle / np.maximum(busy + other * apart, 1))
    told = np.where(units > 0, some * np.maximum(least, 1), some)
    part = np.clip(np.maximum(busy / np.maximum(cpu, 1), (busy + pauses) / wall), 0, 1)
    waited = np.minimum(wait * np.maximum(least, 1) * part, waits)
    held = np.maximum(told - waited * np.minimum(told / np.maximum(busy + waited, 1), 1), 0)
    free = np.where(np.isfinite(pace), pace, 0) / (1 + contended * part)
    floor = units * np.maximum(free - TOUCH_NS, 0)
    held = np.where(held < CLEARLY * floor, np.maximum(held, np.minimum(some * most, floor)), held)
    surely, share = np.maximum(some - waited, 0), np.clip(held / np.maximum(busy, 1), 0, 1)
    return _Sums(units, pace, held, surely, np.maximum(some * most, held), share, waited <= CALM * told)


def _pace(rows: _Rows, units: Floats) -> Floats:
    """Wall time of a unit in ticks in which nothing else was done, over the windows of the HISTORY: Σ length u / Σ u².

    That is a mean weighed by the units once more, near the fastest: a thread that pauses within a tick hits less.
    """
    some = np.flatnonzero(units > 0)
    pace = np.full(units.size, np.inf)
    inner = rows.units * rows.inner
    above, below = (
        _recent(_summed(rows.of, weights, units.size)[some]) for weights in (rows.length * inner, rows.units * inner)
    )
    pace[some] = np.divide(above, below, out=np.full(some.size, np.inf), where=below > 0)
    return pace


def _recent(values: Floats) -> Floats:
    """Sums over each window and those of the HISTORY before it."""
    sums = np.append(np.zeros(HISTORY), np.cumsum(values))
    recent: Floats = sums[HISTORY:] - sums[:-HISTORY]
    return recent


def _summed(of: Ints, values: npt.NDArray[Any], count: int) -> Floats:
    breathe()
    return np.bincount(of, values, count).astype(float)


def _times(pace: Floats, units: Floats) -> Floats:
    return np.where(np.isfinite(pace), np.where(np.isfinite(pace), pace, 0) * units, np.inf)


def _beyond(rows: _Rows, sums: _Sums) -> Floats:
    """By what each run took longer (or less) than its units explain at the usual pace: a slow one, or dear ones among cheap.

    What took longer was reclaim in so far as the time is spent in reclaim at all.
    """
    usual = _times(sums.pace[rows.run_of], rows.run_units)
    known = np.isfinite(usual)
    usual = np.where(known, usual, 0)
    beyond = np.where(known, np.clip(0, rows.run_least - usual, rows.run_most - usual), 0)
    return np.where(beyond > 0, beyond * sums.share[rows.run_of], beyond)


def _costs(rows: _Rows, sums: _Sums, unknown: Bools) -> tuple[Floats, Floats]:
    """What a unit costs in each window, and how far windows differ in that.

    A run of u units is held for c u + x, x as `_beyond` has it and at least 0; c makes the sum over the window what PSI says.
    The usual cost is a quantile over the HISTORY: one window's own is too high where one reclaim took very long, and too low
    where PSI showed half. Of `unknown` windows it is all there is: before the first known one, that one's.
    """
    count = sums.units.size
    some = np.flatnonzero(sums.units > 0)
    beyond = _beyond(rows, sums)
    mean = np.zeros(count)
    mean[some] = sums.held[some] / sums.units[some]
    low, high = 0.3 * mean, 2 * mean + np.where(np.isfinite(sums.pace), sums.pace, 0)
    for _ in range(STEPS):
        cost = (low + high) / 2
        total = _summed(rows.run_of, np.maximum(cost[rows.run_of] * rows.run_units + beyond, 0), count)
        low, high = np.where(total > sums.held, low, cost), np.where(total > sums.held, cost, high)
    low[unknown] = np.nan
    padded = np.append(np.full(HISTORY - 1, np.nan), low[some])
    recent = np.sort(np.lib.stride_tricks.sliding_window_view(padded, HISTORY), axis=1)  # what is not known comes last
    last, at = np.maximum(np.isfinite(recent).sum(axis=1) - 1, 0), np.arange(some.size)
    usual, wide = np.zeros(count), np.ones(count)
    usual[some] = np.nan_to_num(recent[at, (last * USUAL).astype(np.int64)])
    wide[some] = np.nan_to_num(recent[at, (last * 0.9).astype(np.int64)]) / np.maximum(usual[some], 1)
    cost = np.where(low > usual, usual, np.minimum(usual, 2 * low))
    if unknown.any():
        known = np.flatnonzero((sums.units > 0) & ~unknown)
        usual[0] = usual[known[0]] if unknown[0] and known.size else usual[0]
        cost[unknown] = usual[unknown]
        held = _summed(rows.run_of, np.maximum(cost[rows.run_of] * rows.run_units + beyond, 0), count)
        sums.held[unknown] = np.where(usual > 0, held, 0)[unknown]
        sums.surely[unknown], sums.most[unknown] = sums.held[unknown] / 2, sums.held[unknown] * 2
    return cost, wide


def _hit(rows: _Rows, sums: _Sums, cost: Floats, wide: Floats) -> Moments:
    """Spread each window's stall time over its ticks, and over pauses where ticks cannot have held it."""
    count = sums.units.size
    runs = np.maximum(cost[rows.run_of] * rows.run_units + _beyond(rows, sums), 0)
    left = np.maximum(sums.held - _summed(rows.run_of, runs, count), 0)
    paused = _fitting(rows, np.where(sums.calm & (left > np.maximum(0.1 * sums.held, 1e6)), left, 0))
    left -= _summed(rows.of, paused, count)
    runs += (np.maximum(left, 0) / np.maximum(sums.units, 1e-9))[rows.run_of] * rows.run_units
    runs = np.minimum(runs, rows.run_most)
    held = np.minimum(runs[rows.run] * (rows.units / rows.run_units[rows.run]), rows.length)
    left = np.where(sums.calm, sums.held - _summed(rows.of, held + paused, count), 0)
    paused = np.where(paused > 0, paused, _fitting(rows, np.where(left > 0.1 * sums.held, left, 0)))
    left = np.where(sums.calm, sums.held - _summed(rows.of, held + paused, count), 0)
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


def _slept_on(rows: _Rows, sums: _Sums, windows: Windows, hit: Moments, asleep: Bools) -> Moments:
    """A thread that hit memory.high before a window may have slept on into it: what hits leave of it, from its beginning on."""
    count = windows.t_ns.size
    of = np.minimum(np.searchsorted(windows.t_ns, hit.start_ns, side="right"), count - 1)
    left = sums.held - _summed(of, hit.held_ns, count)
    first = np.array(windows.t_ns)
    np.minimum.at(first, rows.of, rows.start)
    told = np.minimum(left, first - windows.since_ns)
    on = asleep & (sums.units > 0) & (left > np.maximum(0.1 * sums.held, 1e6)) & (told >= 1e6)
    since, held = windows.since_ns[on], told[on].astype(np.int64)
    most = np.minimum(held * MOST, first[on] - since)
    return Moments.of(since, since + held, held_ns=held, lo_ns=held * LEAST, hi_ns=np.maximum(most, held), hits=0, evidence=PSI)


def _fitting(rows: _Rows, left: Floats) -> Floats:
    """What is left of a window's stall time goes into the pauses that it can have filled, where there is little choice."""
    fits = (rows.pause > 0) & (rows.pause <= 1.1 * left[rows.of] + 1e6) & (left[rows.of] > 0)
    pauses = np.where(fits, rows.pause, 0)
    share = left / np.maximum(_summed(rows.of, pauses, left.size), 1)
    return pauses * np.where(share > CHOICE, np.minimum(share, 1), 0)[rows.of]


def _after(rows: _Rows, left: Floats, pauses: Floats) -> Floats:
    """What is left even then follows the hits, evenly: threads sleep after a hit of memory.high, or wait for a disk."""
    if not left.any():
        return np.zeros(pauses.size)
    low, high = np.zeros(left.size), left.copy()
    for _ in range(STEPS):
        each = (low + high) / 2
        over = _summed(rows.of, np.minimum(pauses, each[rows.of]), left.size) > left
        low, high = np.where(over, low, each), np.where(over, each, high)
    return np.minimum(pauses, low[rows.of])


def _unhit(rows: _Rows, windows: Windows, cpus: int) -> Moments:
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
