# SPDX-License-Identifier: Apache-2.0
"""What a running sampler knows right now, as one flat dictionary: for the screen, for lines of text and for JSON."""

from __future__ import annotations

import errno
import math
import os
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pymemcg import metrics
from pymemcg.errors import NotSupported, SourceError
from pymemcg.once import STAT_NAMES, absent_limit, read_limits
from pymemcg.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pymemcg.channel import Window

RATE_SECONDS = 5.0
"""Rates are means over so long: memory.stat is up to 2 s behind, so shorter ones would show its jumps."""

HITS = ("limit_hits", "memsw_hits", "high_hits", "oom_kills")
_STAT_RATES = {
    "faults_per_s": ("pgfault",),
    "major_faults_per_s": ("pgmajfault",),
    "refaults_per_s": ("workingset_refault_anon", "workingset_refault_file", "workingset_refault"),
    "scanned_pages_per_s": ("pgscan",),
    "reclaimed_pages_per_s": ("pgsteal",),
}


def sampler_of(target: str, **options: Any) -> Sampler:
    """A sampler that will sample.

    Raises:
        NotSupported: Sampling is disabled.
    """
    sampler = Sampler(target, **options)
    if sampler.role == "disabled":
        raise NotSupported("sampling is disabled by PYMEMCG_DISABLE=1", hint="unset it")
    return sampler


def ends_rate(window: Window, *names: str) -> float:
    """The rate of one or more counters, added up, between a window's first and last row; NaN where it is not known."""
    known = [name for name in names if name in window]
    if not known or len(window) < 2:
        return math.nan
    ends = window["t_ns"][[0, -1]]
    return float(sum(metrics.rate(ends, window[name][[0, -1]])[1] for name in known))


class Observer:
    """Looks at a sampler again and again.

    Args:
        sampler: A running one.

    Not thread-safe.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        target = sampler.target
        assert target is not None
        self._target = target
        self._since_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def observe(self) -> dict[str, Any]:
        """What is known now.

        Returns:
            What `pymemcg.once.read_once` does (memory.stat and the limits included), and: usage_min_bytes, usage_max_bytes and
            rows since the last call; growth_bytes_per_s, time_to_limit_s, limit_hits_per_s, and the rates of memory.stat, over
            the last 5 s; pressure_scope, some_us, full_us and, between the two newest permitted reads of PSI
            (pressure_since_ns, pressure_t_ns), some_ratio and full_ratio; processes; role, ticks_per_s, missed. What is
            absent, or not known yet, has no key or is None.

        Raises:
            SourceError: The group is gone.
        """
        sampler, target = self._sampler, self._target
        if sampler.usage.closed:
            raise SourceError(f"no longer sampled: {sampler.usage.closed}", path=target.directory)
        if not os.path.isdir(target.directory):  # who is attached to another's rings is not told by them
            raise SourceError("the group is gone", path=target.directory, errno=errno.ENODEV)
        now: dict[str, Any] = {
            "t_ns": time.clock_gettime_ns(time.CLOCK_MONOTONIC),
            "realtime_ns": time.time_ns(),
            "group": target.directory,
            "cgroup_version": target.version,
        }
        self._add_usage(now)
        now |= read_limits(target)
        self._add_stat(now)
        if "growth_bytes_per_s" in now and now["headroom_bytes"] is not None:
            now["time_to_limit_s"] = float(metrics.time_to_limit(now["headroom_bytes"], now["growth_bytes_per_s"]))
        self._add_pressure(now)
        self._add_sampler(now)
        self._since_ns = now["t_ns"]
        now["absent"] = sampler.absent | absent_limit(now)
        return {name: value for name, value in now.items() if not isinstance(value, float) or math.isfinite(value)}

    def _add_usage(self, now: dict[str, Any]) -> None:
        channel = self._sampler.usage
        recent, fresh = channel.window(seconds=RATE_SECONDS), channel.window(since_ns=self._since_ns)
        now["rows"] = len(fresh)
        for name in ("usage_bytes", *HITS):
            if name in recent and len(recent):
                now[name] = int(recent[name][-1])
        for name in HITS:
            now[f"{name}_per_s"] = ends_rate(recent, name)
        if "usage_bytes" in recent and len(recent):
            usage = fresh["usage_bytes"] if len(fresh) else recent["usage_bytes"][-1:]
            now["usage_min_bytes"], now["usage_max_bytes"] = int(usage.min()), int(usage.max())
            now["growth_bytes_per_s"] = metrics.growth(recent["t_ns"], recent["usage_bytes"])

    def _add_stat(self, now: dict[str, Any]) -> None:
        recent = self._sampler.stat.window(seconds=RATE_SECONDS)
        if len(recent) == 0:
            return
        now.update((name, int(recent[key][-1])) for key, name in STAT_NAMES.items() if key in recent)
        if "usage_bytes" in now and "inactive_file" in recent:
            now["working_set_bytes"] = int(metrics.working_set(now["usage_bytes"], recent["inactive_file"][-1]))
        now.update((name, ends_rate(recent, *keys)) for name, keys in _STAT_RATES.items())

    def _add_pressure(self, now: dict[str, Any]) -> None:
        last = self._sampler.pressure.window(rows=2)
        if len(last) == 0:
            return
        now["pressure_scope"] = self._target.pressure_scope
        now["pressure_t_ns"] = int(last["t_ns"][-1])
        for name in ("some", "full"):
            if f"{name}_us" in last:
                now[f"{name}_us"] = int(last[f"{name}_us"][-1])
                now[f"{name}_ratio"] = ends_rate(last, f"{name}_us") / 1e6
        if len(last) == 2:
            now["pressure_since_ns"] = int(last["t_ns"][0])

    def _add_sampler(self, now: dict[str, Any]) -> None:
        processes = self._sampler.processes.window(rows=4096)
        if len(processes):
            now["processes"] = int((processes["t_ns"] == processes["t_ns"][-1]).sum())
        stats = self._sampler.stats()
        recent = self._sampler.usage.window(seconds=RATE_SECONDS)
        if len(recent) >= 2:
            now["ticks_per_s"] = (len(recent) - 1) * 1e9 / float(recent["t_ns"][-1] - recent["t_ns"][0])
        now["missed"], now["role"], now["writer_pid"] = stats["missed"], stats["role"], stats["writer_pid"]


# ---- Series for sparklines -----------------------------------------------------------------------------------------


def _cuts(t_ns: NDArray[np.int64], end_ns: int, seconds: float, count: int) -> Sequence[int]:
    edges = np.linspace(end_ns - seconds * 1e9, end_ns + 1, count + 1)
    return np.searchsorted(t_ns, edges).tolist()  # type: ignore[no-any-return]


def extremes(window: Window, name: str, end_ns: int, seconds: float, count: int) -> list[tuple[float, float]]:
    """Minimum and maximum of a column in each of `count` equal parts of the time before `end_ns`; NaN where no row is."""
    if name not in window or len(window) == 0:
        return [(math.nan, math.nan)] * count
    cuts, values = _cuts(window["t_ns"], end_ns, seconds, count), window[name]
    parts = (values[a:b] for a, b in pairwise(cuts))
    return [(float(part.min()), float(part.max())) if len(part) else (math.nan, math.nan) for part in parts]


def increases(window: Window, name: str, end_ns: int, seconds: float, count: int) -> list[float]:
    """By how much a counter rose in each of `count` equal parts of the time before `end_ns`; NaN before its first row."""
    if name not in window or len(window) == 0:
        return [math.nan] * count
    cuts, values = _cuts(window["t_ns"], end_ns, seconds, count), window[name]
    return [float(values[b - 1] - values[max(a - 1, 0)]) if b > 0 else math.nan for a, b in pairwise(cuts)]


def ratios(window: Window, name: str, end_ns: int, seconds: float, count: int) -> list[float]:
    """The share of time that PSI tells of, in each of `count` equal parts of the time before `end_ns`; NaN where not read.

    Its rows lie as far apart as the gate wants: a part has the mean of the row that covers its middle.
    """
    if name not in window or len(window) < 2:
        return [math.nan] * count
    t_ns, shares = window["t_ns"], metrics.pressure_ratio(window["t_ns"], window[name])
    middles = end_ns - seconds * 1e9 * (1 - (np.arange(count) + 0.5) / count)
    rows = np.searchsorted(t_ns, middles)
    return [float(shares[row]) if 0 < row < len(shares) else math.nan for row in rows.tolist()]
