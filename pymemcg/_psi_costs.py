# SPDX-License-Identifier: Apache-2.0
"""What PSI and counters say of each window: the stall time in it, reclaim in units, and what a unit costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from pymemcg._breath import breathe
from pymemcg._ffi import NONE

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


@dataclass(frozen=True, slots=True)
class Rows:
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
class Sums:
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


def rows_of(ticks: Ticks, windows: Windows) -> Rows:
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
    return Rows(
        *(start, end, hits, of, units, length, inner, np.maximum(pause, 0), run, of[first]),
        *(summed(run, weights, runs) for weights in (units, length * inner, length)),
    )


def sums_of(rows: Rows, windows: Windows, cpus: int) -> Sums:
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
    units = summed(rows.of, rows.units, count)
    pace = _pace(rows, units)
    work = np.clip(_times(pace[rows.run_of], rows.run_units), rows.run_least, rows.run_most)
    busy = np.minimum(summed(rows.run_of, work, count), np.maximum(cpu + some, 1))
    pauses, waits = (
        summed(rows.of, np.where(rows.pause < most, rows.pause, 0), count) for most in (4 * PAUSE_NS, LONGEST_WAIT_NS)
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
    return Sums(units, pace, held, surely, np.maximum(some * most, held), share, waited <= CALM * told)


def _pace(rows: Rows, units: Floats) -> Floats:
    """Wall time of a unit in ticks in which nothing else was done, over the windows of the HISTORY: Σ length u / Σ u².

    That is a mean weighed by the units once more, near the fastest: a thread that pauses within a tick hits less.
    """
    some = np.flatnonzero(units > 0)
    pace = np.full(units.size, np.inf)
    inner = rows.units * rows.inner
    above, below = (
        _recent(summed(rows.of, weights, units.size)[some]) for weights in (rows.length * inner, rows.units * inner)
    )
    pace[some] = np.divide(above, below, out=np.full(some.size, np.inf), where=below > 0)
    return pace


def _recent(values: Floats) -> Floats:
    """Sums over each window and those of the HISTORY before it."""
    sums = np.append(np.zeros(HISTORY), np.cumsum(values))
    recent: Floats = sums[HISTORY:] - sums[:-HISTORY]
    return recent


def summed(of: Ints, values: npt.NDArray[Any], count: int) -> Floats:
    breathe()
    return np.bincount(of, values, count).astype(float)


def _times(pace: Floats, units: Floats) -> Floats:
    return np.where(np.isfinite(pace), np.where(np.isfinite(pace), pace, 0) * units, np.inf)


def beyond_usual(rows: Rows, sums: Sums) -> Floats:
    """By what each run took longer (or less) than its units explain at the usual pace: a slow one, or dear ones among cheap.

    What took longer was reclaim in so far as the time is spent in reclaim at all.
    """
    usual = _times(sums.pace[rows.run_of], rows.run_units)
    known = np.isfinite(usual)
    usual = np.where(known, usual, 0)
    beyond = np.where(known, np.clip(0, rows.run_least - usual, rows.run_most - usual), 0)
    return np.where(beyond > 0, beyond * sums.share[rows.run_of], beyond)


def costs_of(rows: Rows, sums: Sums, unknown: Bools) -> tuple[Floats, Floats]:
    """What a unit costs in each window, and how far windows differ in that.

    A run of u units is held for c u + x, x as `beyond_usual` has it and at least 0; c makes the sum over the window what PSI
    says. The usual cost is a quantile over the HISTORY: one window's own is too high where one reclaim took very long, and too
    low where PSI showed half. Of `unknown` windows it is all there is: before the first known one, that one's.
    """
    count = sums.units.size
    some = np.flatnonzero(sums.units > 0)
    beyond = beyond_usual(rows, sums)
    mean = np.zeros(count)
    mean[some] = sums.held[some] / sums.units[some]
    low, high = 0.3 * mean, 2 * mean + np.where(np.isfinite(sums.pace), sums.pace, 0)
    for _ in range(STEPS):
        cost = (low + high) / 2
        total = summed(rows.run_of, np.maximum(cost[rows.run_of] * rows.run_units + beyond, 0), count)
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
        held = summed(rows.run_of, np.maximum(cost[rows.run_of] * rows.run_units + beyond, 0), count)
        sums.held[unknown] = np.where(usual > 0, held, 0)[unknown]
        sums.surely[unknown], sums.most[unknown] = sums.held[unknown] / 2, sums.held[unknown] * 2
    return cost, wide
