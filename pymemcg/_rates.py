# SPDX-License-Identifier: Apache-2.0
"""How fast things happen: the part of `pymemcg.metrics` about cumulative counters. Its rules for arguments hold here too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pymemcg._arrays import exact_rows, increase, quotient

if TYPE_CHECKING:
    import numpy.typing as npt

    from pymemcg._arrays import Floats

_NS_PER_S: Final = 1e9
_US_PER_S: Final = 1e6


def rate(t_ns: npt.ArrayLike, counter: npt.ArrayLike) -> Floats:
    """Give the rate of a cumulative counter between neighbouring rows.

    Formula: ``(counter[i] - counter[i-1]) / (t_ns[i] - t_ns[i-1]) * 1e9``. For one figure over the whole window pass
    its first and last row alone.

    Whose: everybody's. Unlike Prometheus' `rate` it neither extrapolates nor takes a fall for a restart from 0: a
    counter that fell was reset by somebody (v1's failcnt can be written), so that row is NaN.

    Staleness: that of the counter. Counters of memory.stat have stat age, and jump where rows are closer than 2 s: some
    rows show 0, and a later one what they missed.

    Args:
        t_ns: ns, ascending.
        counter: Cumulative events, pages, bytes or time, one for each of them.

    Returns:
        The counter's unit per second, float64, one for each row; NaN in the first row, where the counter fell, and
        where time stood still.
    """
    times, values = exact_rows(t_ns, counter)
    return quotient(increase(values), increase(times)) * _NS_PER_S


def refault_rate(t_ns: npt.ArrayLike, *refaults: npt.ArrayLike) -> Floats:
    """Give the rate at which pages come back that were reclaimed too early: thrashing.

    Formula: the sum of `rate` over `workingset_refault_anon` and `workingset_refault_file` (one `workingset_refault` on
    old kernels). v1 has them from 6.1 on.

    Whose: the kernel's counters (mm/workingset.c). Staleness: stat age, with the jumps that `rate` tells of.

    Args:
        t_ns: ns, ascending.
        *refaults: pages, cumulative, one array or more.

    Returns:
        pages/s, float64, one for each row; NaN where `rate` of any is.
    """
    if not refaults:
        raise TypeError("refault_rate: one counter or more is wanted")
    total: Floats = np.sum([rate(t_ns, counter) for counter in refaults], axis=0)
    return total


def scan_rate(t_ns: npt.ArrayLike, pgscan: npt.ArrayLike) -> Floats:
    """Give the rate at which reclaim looks at the group's pages.

    Formula: `rate` of `pgscan`, or of one part of it (`pgscan_direct`, `pgscan_kswapd`, …). cgroup v2 only.

    Whose: the kernel's counter, charged to the group whose pages are scanned, not to the one that waits for it. Before
    `pgscan_proactive` exists (6.18), writes to memory.reclaim count as direct. Staleness: stat age, with jumps.

    Args:
        t_ns: ns, ascending.
        pgscan: pages, cumulative.

    Returns:
        pages/s, float64, one for each row; NaN as in `rate`.
    """
    return rate(t_ns, pgscan)


def steal_rate(t_ns: npt.ArrayLike, pgsteal: npt.ArrayLike) -> Floats:
    """Give the rate at which reclaim frees the group's pages.

    Formula: `rate` of `pgsteal`, or of one part of it (`pgsteal_direct`, `pgsteal_kswapd`, …). cgroup v2 only.

    Whose: the kernel's counter, charged as pgscan is. Staleness: stat age, with the jumps that `rate` tells of.

    Args:
        t_ns: ns, ascending.
        pgsteal: pages, cumulative.

    Returns:
        pages/s, float64, one for each row; NaN as in `rate`.
    """
    return rate(t_ns, pgsteal)


def reclaim_rate(t_ns: npt.ArrayLike, pgsteal: npt.ArrayLike, page_bytes: int) -> Floats:
    """Give the memory that reclaim frees in a second, to hold against `growth`.

    Formula: ``steal_rate * page_bytes``. cgroup v2 only; on v1 see `uncharge_rate_v1` for the little that is known.

    Whose: this project's, of the kernel's counter. Staleness: stat age, with the jumps that `rate` tells of.

    Args:
        t_ns: ns, ascending.
        pgsteal: pages, cumulative.
        page_bytes: bytes of a base page on the machine that was sampled.

    Returns:
        bytes/s, float64, one for each row; NaN as in `rate`.
    """
    return steal_rate(t_ns, pgsteal) * page_bytes


def uncharge_rate_v1(t_ns: npt.ArrayLike, pgpgout: npt.ArrayLike) -> Floats:
    """Give the rate at which folios leave the group, for cgroup v1: no reclaim rate, but a bound for one.

    Formula: `rate` of `pgpgout` (v1: `total_pgpgout`).

    Whose: the kernel's v1 counter. Each folio that leaves counts once, whatever its size and whatever the reason: the
    exit of a process, an munmap and a deleted file count as reclaim does. So where this is 0 nothing was reclaimed;
    where it is not, only limit hits or PSI can tell whether that was reclaim. Staleness: stat age, with jumps.

    Args:
        t_ns: ns, ascending.
        pgpgout: events, cumulative.

    Returns:
        events/s, float64, one for each row; NaN as in `rate`.
    """
    return rate(t_ns, pgpgout)


def reclaim_efficiency(pgscan: npt.ArrayLike, pgsteal: npt.ArrayLike) -> Floats:
    """Give the share of the scanned pages that reclaim could free.

    Formula: ``Δpgsteal / Δpgscan`` between neighbouring rows, of the same part of both (all, `_direct`, …). Near 1
    reclaim is easy; near 0 it works in vain, and an OOM kill is near. cgroup v2 only.

    Whose: sysstat's, which calls it %vmeff (sar -B). Staleness: stat age. Both counts are of one read but not of one
    moment, so that a row may exceed 1; rows 2 s apart or more are sound.

    Args:
        pgscan: pages, cumulative.
        pgsteal: pages, cumulative, one for each of them.

    Returns:
        A ratio, float64, one for each row; NaN in the first row, where nothing was scanned, and where a counter fell.
    """
    scanned, stolen = exact_rows(pgscan, pgsteal)
    return quotient(increase(stolen), increase(scanned))


def pressure_ratio(t_ns: npt.ArrayLike, stalled_us: npt.ArrayLike) -> Floats:
    """Give the share of time in which memory stalled somebody (some), or everybody (full).

    Formula: ``(stalled_us[i] - stalled_us[i-1]) * 1000 / (t_ns[i] - t_ns[i-1])``. The kernel's avg10, avg60 and avg300
    are the same share, in percent, smoothed over so many seconds.

    Whose: the kernel's PSI (`total=`). It weighs CPUs by their non-idle time, so the share of one thread lies between
    this and this times the number of busy CPUs of the group.

    Staleness: none at the time of a row; but rows come only when the gate allows, and each is the mean since the one
    before, which may be seconds.

    Args:
        t_ns: ns, ascending, of the `pressure` channel.
        stalled_us: µs, cumulative: `some_us` or `full_us` of the `pressure` channel.

    Returns:
        A ratio, float64, one for each row; NaN in the first row, and where the total fell or time stood still.
    """
    return rate(t_ns, stalled_us) / _US_PER_S
