# SPDX-License-Identifier: Apache-2.0
"""Formulas over samples: arrays in, arrays out, nothing read and nothing kept.

Arguments are 1-D arrays over the rows of a window (`w["usage_bytes"]`), or plain numbers where a formula needs no
neighbouring row; they broadcast as in numpy and are never written to. Bytes given as integers stay integers (int64), all
else is float64 with NaN for "not known". Every function raises TypeError for what is not numeric, and those that need
neighbouring rows ValueError for columns that are not 1-D and of one length. All may be called from any thread.

**How old a figure is.** Usage, hits and limits are as old as their row. memory.stat is not: the kernel adds its per-CPU
counts up lazily, and from 6.8 on a read does so only once more than 64 updates per CPU are pending, else a worker does
every 2 s. So what comes from the `stat` channel may miss the last 2 s, beside the age of its row; the docstrings call
that "stat age". Channels tick at rates of their own: `align` brings them onto one clock and tells the row's age.

**cgroup v1** reports under v2's names (`pymemcg.schema`), so most formulas hold for both. Where v1 lacks what a formula
needs there is either a weaker one, named `…_v1`, or none: v1 counts neither pgscan nor pgsteal, so it has no scan,
steal or reclaim rate and no efficiency.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from pymemcg._arrays import block_medians, clamped, exact, exact_rows, quotient, scalar
from pymemcg._rates import (
    pressure_ratio,
    rate,
    reclaim_efficiency,
    reclaim_rate,
    refault_rate,
    scan_rate,
    steal_rate,
    uncharge_rate_v1,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from pymemcg._arrays import Array, Floats

__all__ = [
    "UNLIMITED_BYTES",
    "Aligned",
    "AnonFileSplit",
    "align",
    "anon_file_split",
    "docker_usage",
    "growth",
    "headroom",
    "non_reclaimable",
    "non_reclaimable_v1",
    "pressure_ratio",
    "rate",
    "reclaim_efficiency",
    "reclaim_rate",
    "refault_rate",
    "scan_rate",
    "steal_rate",
    "time_to_limit",
    "uncharge_rate_v1",
    "working_set",
]

UNLIMITED_BYTES: Final = 2**62
"""A limit from here on is none.

v2 says "max", v1 the largest page counter, which depends on the page size, and the rings hold 2**63 - 1; no machine has this
much. cAdvisor draws the line at the same place (maxMemorySize).
"""

# Growth is a median over all pairs of points: of the rows themselves they would be n²/2.
_GROWTH_POINTS: Final = 64
_NS_PER_S: Final = 1e9


class AnonFileSplit(NamedTuple):
    """Where a group's user memory would have to go to be reclaimed.

    Attributes:
        swap_backed_bytes: Memory that only swap, or a kill, can free.
        file_backed_bytes: Memory that can be dropped, or written back to its files.
    """

    swap_backed_bytes: Array
    file_backed_bytes: Array


class Aligned(NamedTuple):
    """Values of another channel, brought onto the rows of this one.

    Attributes:
        values: float64; NaN before the other channel's first row.
        age_ns: float64, ns; how much older than the row the value's own row is. NaN where there is no value.
    """

    values: Floats
    age_ns: Floats


# ---- How much is in use --------------------------------------------------------------------------------------------


def working_set(usage: npt.ArrayLike, inactive_file: npt.ArrayLike) -> Array:
    """Give the working set as the kubelet counts it.

    Formula: ``max(0, usage - inactive_file)``, for both cgroup versions (v1: `total_inactive_file`, which the `stat`
    channel calls `inactive_file`).

    Whose: cAdvisor's `setMemoryStats` (container/libcontainer/handler.go), by which the kubelet evicts, and
    containerd's `getWorkingSet` and `getWorkingSetV2`.

    Staleness: usage is live and `inactive_file` has stat age. So after a burst of file reads the figure is too high
    until the counts are added up, and after reclaim it is too low, down to the clamp at 0.

    Args:
        usage: bytes, `usage_bytes` of the `usage` channel.
        inactive_file: bytes, of the `stat` channel, on the same rows (see `align`).

    Returns:
        bytes; int64 where both arguments are integers, else float64.
    """
    return clamped(exact(usage) - exact(inactive_file))


def docker_usage(usage: npt.ArrayLike, inactive_file: npt.ArrayLike, local_inactive_file: npt.ArrayLike | None = None) -> Array:
    """Give the memory usage that `docker stats` shows.

    Formula: ``usage - inactive_file`` where ``inactive_file < usage``, else plain ``usage``: unlike the kubelet's
    working set it is not clamped but jumps to the whole usage. On v1 `inactive_file` is the subtree's, and where that
    is too large Docker tries the group's own, ``usage - local_inactive_file``, on the same condition, before it gives up.

    Whose: the Docker CLI's `calculateMemUsageUnixNoCache` (cli/command/container/stats_helpers.go) from 20.10 on.
    Docker 19.03 and older showed ``usage - cache`` of v1.

    Staleness: as `working_set`, live usage against stat age; the jump is that mixture made visible.

    Args:
        usage: bytes, `usage_bytes` of the `usage` channel.
        inactive_file: bytes, of the `stat` channel, on the same rows (see `align`).
        local_inactive_file: bytes, v1 only: the unprefixed `inactive_file` of its memory.stat, which the `stat`
            channel leaves out. Without it the second try is left out too, which matters for groups with children only.

    Returns:
        bytes; int64 where all arguments are integers, else float64 with NaN where `inactive_file` is NaN.
    """
    total, inactive = exact(usage), exact(inactive_file)
    otherwise = total
    if local_inactive_file is not None:
        local = exact(local_inactive_file)
        otherwise = np.where(local < total, total - local, total)
    shown = np.where(inactive < total, total - inactive, otherwise)
    return scalar(np.where(np.isnan(inactive), np.nan, shown) if shown.dtype.kind == "f" else shown)


def non_reclaimable(usage: npt.ArrayLike, file: npt.ArrayLike, slab_reclaimable: npt.ArrayLike) -> Array:
    """Give the memory that dropping caches cannot free.

    Formula: ``max(0, usage - file - slab_reclaimable)``, cgroup v2.

    Whose: this project's, of the kernel's figures (memory.current, memory.stat). It is a lower bound: `file` includes
    shmem and tmpfs, which need swap to be freed, and dirty or mapped pages, which take time.

    Staleness: live usage against stat age, hence the clamp.

    Args:
        usage: bytes, `usage_bytes` of the `usage` channel.
        file: bytes, of the `stat` channel, on the same rows (see `align`).
        slab_reclaimable: bytes, likewise.

    Returns:
        bytes; int64 where all arguments are integers, else float64.
    """
    return clamped(exact(usage) - exact(file) - exact(slab_reclaimable))


def non_reclaimable_v1(usage: npt.ArrayLike, file: npt.ArrayLike) -> Array:
    """Give the memory that dropping the page cache cannot free, for cgroup v1.

    Formula: ``max(0, usage - file)``. v1's memory.stat says nothing of slab, so reclaimable slab (dentries, inodes)
    counts as not reclaimable here, where `non_reclaimable` takes it off.

    Whose: this project's. Staleness: live usage against stat age, hence the clamp.

    Args:
        usage: bytes, `usage_bytes` of the `usage` channel.
        file: bytes, of the `stat` channel (v1: `total_cache`), on the same rows (see `align`).

    Returns:
        bytes; int64 where both arguments are integers, else float64.
    """
    return clamped(exact(usage) - exact(file))


def anon_file_split(anon: npt.ArrayLike, file: npt.ArrayLike, shmem: npt.ArrayLike) -> AnonFileSplit:
    """Split user memory by what it takes to reclaim it.

    Formula: ``(anon + shmem, max(0, file - shmem))``.

    Whose: the kernel's. It keeps shmem and tmpfs on the anonymous LRU lists, since only swap can take them, although
    `file` counts them. So the figures are those lists' sizes (`inactive_anon + active_anon` and `inactive_file +
    active_file`), but for pages that are unevictable or just on their way from list to list.

    Staleness: stat age; the three are of one read, so they fit each other.

    Args:
        anon: bytes, of the `stat` channel (v1: `total_rss`).
        file: bytes, likewise (v1: `total_cache`).
        shmem: bytes, likewise.

    Returns:
        Two figures in bytes; int64 where all arguments are integers, else float64.
    """
    shared = exact(shmem)
    return AnonFileSplit(exact(anon) + shared, clamped(exact(file) - shared))


# ---- How much is left ----------------------------------------------------------------------------------------------


def headroom(
    usage: npt.ArrayLike,
    limit: npt.ArrayLike | None,
    ancestors: Iterable[tuple[npt.ArrayLike, npt.ArrayLike | None]] = (),
) -> Floats:
    """Give the bytes that are left to the nearest limit of the group and its ancestors.

    Formula: the least of ``max(0, limit - usage)`` over the levels. Each level counts its own usage, which for an
    ancestor includes the group's siblings.

    Whose: the kernel's: a charge must fit every level up to the root (`try_charge_memcg` in mm/memcontrol.c).

    Staleness: none beyond the rows' own age, but usage is not exact: it includes pages that each CPU has charged in
    advance (32 up to 6.0, then 64 and more). A limit outside the cgroup namespace cannot be seen; then less is left.

    Args:
        usage: bytes, of the group itself.
        limit: bytes, of the group itself; None or anything from `UNLIMITED_BYTES` on is no limit. A `high` limit may
            stand here as well as a hard one.
        ancestors: (usage, limit) of each visible ancestor, likewise.

    Returns:
        bytes, float64; inf where nothing limits, NaN where a level's figures are NaN.
    """
    room = _room(usage, limit)
    for level_usage, level_limit in ancestors:
        room = np.minimum(room, _room(level_usage, level_limit))
    return scalar(room)


def _room(usage: npt.ArrayLike, limit: npt.ArrayLike | None) -> Floats:
    used = exact(usage)
    most = exact(UNLIMITED_BYTES if limit is None else limit)
    left = clamped(most - used).astype(np.float64)
    return np.where(most >= UNLIMITED_BYTES, left + np.inf, left)


def growth(t_ns: npt.ArrayLike, usage: npt.ArrayLike) -> float:
    """Give the trend of usage over a window.

    Formula: the Theil-Sen slope, which is the median of the slopes between all pairs of points; spikes in fewer than
    about 29 % of the points do not move it. The points are the rows, or from 65 rows on the medians of 64 blocks of
    equal duration: so the cost stays linear, and each part of the window counts by its time, not by its ticks.

    Whose: Theil's (1950) and Sen's (1968). Staleness: a window's trend is on average half as old as the window is long.

    Args:
        t_ns: ns, ascending.
        usage: bytes, one for each of them; rows with NaN are left out.

    Returns:
        bytes/s, negative when shrinking; NaN with fewer than two distinct times.
    """
    times, values = exact_rows(t_ns, usage)
    known = np.isfinite(values)
    times, values = times[known], values[known].astype(np.float64)
    if times.size < 2 or times[-1] <= times[0]:
        return float("nan")
    seconds = (times - times[0]) / _NS_PER_S
    if seconds.size > _GROWTH_POINTS:
        seconds, values = block_medians(seconds, values, _GROWTH_POINTS)
    first, second = np.triu_indices(seconds.size, k=1)
    apart = seconds[second] - seconds[first]
    slopes = quotient(values[second] - values[first], apart)
    return float(np.median(slopes[apart > 0]))


def time_to_limit(headroom_bytes: npt.ArrayLike, growth_bytes_per_s: npt.ArrayLike) -> Floats:
    """Give the time until the limit is reached if usage goes on growing as it does.

    Formula: ``headroom / growth``; 0 where there is no headroom left, however usage moves now (reclaim holds it there);
    inf where there is no limit, or usage does not grow.

    Whose: this project's; a straight line into the future, no forecast. Staleness: that of `growth`.

    Args:
        headroom_bytes: bytes, from `headroom`.
        growth_bytes_per_s: bytes/s, from `growth`.

    Returns:
        s, float64; NaN where the headroom, or with headroom left the growth, is NaN.
    """
    room, slope = np.broadcast_arrays(exact(headroom_bytes), exact(growth_bytes_per_s))
    seconds = np.full(room.shape, np.inf)
    np.divide(room, slope, out=seconds, where=(slope > 0) & np.isfinite(room))
    seconds[np.isnan(slope) | np.isnan(room)] = np.nan
    seconds[room <= 0] = 0.0
    return scalar(seconds)


# ---- Two channels on one clock -------------------------------------------------------------------------------------


def align(t_ns: npt.ArrayLike, source_t_ns: npt.ArrayLike, values: npt.ArrayLike) -> Aligned:
    """Bring a slower channel's column onto the rows of another.

    Formula: for each row the value of the last source row at or before it. Nothing is interpolated, so no row knows
    what was only read after it.

    Whose: this project's. Staleness: `age_ns`, and for the `stat` channel its stat age on top.

    Args:
        t_ns: ns, of the rows wanted; of any order and shape, or a plain number.
        source_t_ns: ns, ascending, of the channel that has the values.
        values: One for each of them; exact up to 2**53.

    Returns:
        The values and their age, both float64 and of the shape of `t_ns`.
    """
    wanted = exact(t_ns)
    times, known = exact_rows(source_t_ns, values)
    rows = wanted.reshape(-1)
    last = np.searchsorted(times, rows, side="right") - 1
    found = last >= 0
    taken, age_ns = np.full(rows.shape, np.nan), np.full(rows.shape, np.nan)
    taken[found] = known[last[found]]
    age_ns[found] = rows[found] - times[last[found]]
    return Aligned(scalar(taken.reshape(wanted.shape)), scalar(age_ns.reshape(wanted.shape)))
