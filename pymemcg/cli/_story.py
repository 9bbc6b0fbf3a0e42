# SPDX-License-Identifier: Apache-2.0
"""What `demo` prints: a group's memory over some seconds as pictures on one time axis, and its figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pymemcg._words import UNKNOWN, number, share, size, span
from pymemcg.cli._live import extremes, increases, ratios
from pymemcg.cli._text import aligned, painted, spark

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pymemcg.channel import Window
    from pymemcg.sampler import Sampler

_ROWS = 8  # of the picture
_LEFT, _RIGHT = 14, 20  # columns beside it
_PSI_TOP = 0.01  # a full bar is at least so much, or next to nothing would fill it
_NEAR_NS = 5_000_000  # a hit so near to a request is one that may have to do with it
_ANON, _CACHE, _HIT, _PSI, _SLOW = 35, 34, 31, 33, 36  # colours
_BOLD, _DIM = 1, 2
_EIGHTHS = "▁▂▃▄▅▆▇█"


@dataclass
class Story:
    """What was seen.

    Attributes:
        sampler: Of the group; it may still run.
        begun_ns, ended_ns: The time to tell of.
        limit_bytes: The effective limit, or None.
        requests: int64 of shape (n, 2), begin and duration in ns, of a service in the group; None where there is none.
        works: Who did something at times, and begin and end of each, in ns: a strip each.
        width: Columns to write in.
        colours: Whether to use colours.
    """

    sampler: Sampler
    begun_ns: int
    ended_ns: int
    limit_bytes: int | None = None
    requests: NDArray[np.int64] | None = None
    works: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    width: int = 80
    colours: bool = False

    def __post_init__(self) -> None:
        self.usage = self.sampler.usage.window(since_ns=self.begun_ns).copy()
        self.stat = self.sampler.stat.window(since_ns=self.begun_ns).copy()
        self.pressure = self._pressure_rows().copy()
        self._seconds = (self.ended_ns - self.begun_ns) / 1e9
        self._cells = max(16, self.width - _LEFT - _RIGHT)

    def _pressure_rows(self) -> Window:
        """From the last row before the beginning on, so that the increases cover this time."""
        rows = self.sampler.pressure.window()
        if len(rows) == 0:
            return rows
        before = int(np.searchsorted(rows["t_ns"], self.begun_ns, side="right")) - 1
        return self.sampler.pressure.window(rows=len(rows) - max(before, 0))

    def lines(self) -> Iterator[str]:
        """All of it."""
        yield from self.picture()
        yield ""
        if self.requests is not None and len(self.requests):
            yield from self._requests()
            yield ""
        yield from self.figures()

    def _paint(self, text: str, colour: int) -> str:
        return painted(text, colour, colours=self.colours)

    def hits(self) -> str | None:
        """The column that counts hits of the limit; None where none does."""
        return next((name for name in ("limit_hits", "memsw_hits") if name in self.usage), None) if len(self.usage) else None

    def kills(self) -> int | None:
        """OOM kills in this time; None where they are not counted."""
        kills = self.usage["oom_kills"] if "oom_kills" in self.usage and len(self.usage) else None
        return None if kills is None else int(kills[-1] - kills[0])

    # ---- Pictures ----

    def picture(self) -> Iterator[str]:
        """Usage, and strips on the same axis of time."""
        peaks = [high for _, high in extremes(self.usage, "usage_bytes", self.ended_ns, self._seconds, self._cells)]
        anon = [high for _, high in extremes(self.stat, "anon", self.ended_ns, self._seconds, self._cells)]
        known = [peak for peak in peaks if not math.isnan(peak)]
        if known:
            top = self.limit_bytes if self.limit_bytes is not None and self.limit_bytes < 4 * max(known) else max(known)
            what = "usage, limit" if top == self.limit_bytes else "usage, peak"
            legend = f"{self._paint('█', _ANON)} anonymous   {self._paint('▒', _CACHE)} page cache and the rest"
            yield f"{what:>{_LEFT - 1}} ┬{'─' * self._cells}"
            yield from self._area(peaks, _filled(anon), float(top))
            yield f"{'':{_LEFT}} {legend}"
        yield from self._strips()

    def _area(self, peaks: list[float], anon: list[float], top: float) -> Iterator[str]:
        step = top / _ROWS
        for row in reversed(range(_ROWS)):
            label = size((row + 1) * step) if row in (_ROWS - 1, _ROWS // 2 - 1) else ""
            cells = "".join(self._cell(peak, least, row * step, step) for peak, least in zip(peaks, anon, strict=True))
            yield f"{label:>{_LEFT - 1}} {'┤' if label else '│'}{cells}".rstrip()
        ticks = "".join(f"{'┴'}{'─' * (self._cells // 8 - 1)}" for _ in range(8)).ljust(self._cells, "─")
        yield f"{'0':>{_LEFT - 1}} {ticks}  {span(self._seconds * 1e9)}"

    def _cell(self, peak: float, anon: float, low: float, step: float) -> str:
        if math.isnan(peak) or peak <= low:
            return " "
        if anon >= low + step / 2:
            return self._paint("█", _ANON)
        if peak >= low + step * 0.94:
            return self._paint("▒", _CACHE)
        return self._paint(_EIGHTHS[min(max(round((peak - low) / step * 8) - 1, 0), 6)], _CACHE)

    def _strips(self) -> Iterator[str]:
        args = self.ended_ns, self._seconds, self._cells
        edges = np.linspace(self.begun_ns, self.ended_ns, self._cells + 1)
        for who, times in self.works.items():
            at_work = [any(begin < after and edge < end for begin, end in times) for edge, after in pairwise(edges)]
            yield self._strip(who, "".join("■" if works else "·" for works in at_work), "", _DIM)
        hits = self.hits()
        if hits:
            rises = increases(self.usage, hits, *args)
            most = _most(rises)
            yield self._strip(
                "limit hits", spark(rises, 0, most) if most else "", f"up to {number(most)}" if most else "none", _HIT
            )
        if len(self.pressure) > 1:
            shares = ratios(self.pressure, "some_us", *args)
            most = _most(shares)
            yield self._strip("PSI some", spark(shares, 0, max(most, _PSI_TOP)) if most else "", f"up to {share(most)}", _PSI)
        if self.requests is not None and len(self.requests):
            slow = self._slowest()
            yield self._strip(
                "slowest req.",
                spark([math.log(v) for v in slow], math.log(min(slow)), math.log(max(slow))),
                f"{span(min(slow))} … {span(max(slow))}",
                _SLOW,
            )

    def _strip(self, title: str, drawn: str, says: str, colour: int) -> str:
        return f"{title:>{_LEFT - 1}}  {self._paint(drawn.ljust(self._cells), colour)}  {says}".rstrip()

    def _slowest(self) -> list[float]:
        """Duration of the slowest request in each cell; of the cell before where none began."""
        assert self.requests is not None
        edges = np.linspace(self.begun_ns, self.ended_ns, self._cells + 1)
        cuts = np.searchsorted(self.requests[:, 0], edges).tolist()
        most = [float(self.requests[a:b, 1].max()) if a < b else math.nan for a, b in pairwise(cuts)]
        return _filled(most)

    # ---- Figures ----

    def _requests(self) -> Iterator[str]:
        assert self.requests is not None
        near = self._near_hits()
        parts = [("all", self.requests[:, 1])]
        if near is not None and near.any() and not near.all():
            parts += [("no limit hit near", self.requests[~near, 1]), ("a limit hit near", self.requests[near, 1])]
        table = [["requests", *(title for title, _ in parts)], ["  how many", *(number(len(ns)) for _, ns in parts)]]
        for title, percent in (("  p50", 50), ("  p99", 99), ("  slowest", 100)):
            table.append([title, *(span(float(np.percentile(ns, percent, method="higher"))) for _, ns in parts)])
        head, *rest = aligned(table).split("\n")
        yield self._paint(head, _BOLD)
        yield from rest
        if len(parts) > 1:
            yield f"  Near = within {_NEAR_NS // 10**6} ms; a coincidence, no proof: the batch job takes disk and CPU time too."

    def _near_hits(self) -> NDArray[np.bool_] | None:
        hits, t_ns = self.hits(), self.usage["t_ns"]
        if not hits or self.requests is None:
            return None
        before = np.searchsorted(t_ns, self.requests[:, 0] - _NEAR_NS, side="right") - 1
        after = np.searchsorted(t_ns, self.requests.sum(axis=1) + _NEAR_NS)
        counts = self.usage[hits]
        risen: NDArray[np.bool_] = counts[np.minimum(after, len(counts) - 1)] > counts[np.maximum(before, 0)]
        return risen

    def figures(self) -> Iterator[str]:
        """What it adds up to, and what sampling cost."""
        rows = [*self._memory(), *self._cost()]
        for title, says in rows:
            yield f"  {self._paint(f'{title:<14}', _BOLD)}  {says}"

    def _memory(self) -> Iterator[tuple[str, str]]:
        usage, stat, stats = self.usage, self.stat, self.sampler.stats()
        if "usage_bytes" in usage:
            low, high = int(usage["usage_bytes"].min()), int(usage["usage_bytes"].max())
            limit = f" of {size(self.limit_bytes)}" if self.limit_bytes is not None else ", no limit to be seen from here"
            yield "usage", f"{size(low)} … {size(high)}{limit}"
        if "anon" in stat and len(stat):
            anon, file = stat["anon"], stat["file"]
            yield "anon, file", f"up to {size(int(anon.max()))} anonymous, {size(int(file.max()))} page cache"
        hits = self.hits()
        if hits:
            count = int(usage[hits][-1] - usage[hits][0])
            yield (
                "limit hits",
                f"{number(count)}, charges that found the group full and had to reclaim first" if count else "none",
            )
        else:
            yield "limit hits", f"{UNKNOWN}  {self.sampler.absent.get('limit_hits', 'not counted here')}"
        yield "stalled", self._stalled(stats)
        if "pgmajfault" in stat and len(stat):
            count = int(stat["pgmajfault"][-1] - stat["pgmajfault"][0])
            yield (
                "major faults",
                f"{number(count)}, waits for the disk; PSI counts those for pages that were dropped while in use",
            )
        if kills := self.kills():
            yield "OOM kills", number(kills)

    def _stalled(self, stats: dict[str, Any]) -> str:
        pressure = self.pressure
        if not pressure.names:
            return f"{UNKNOWN}  {self.sampler.absent.get('pressure', 'PSI is absent')}"
        if len(pressure) < 2:
            return f"{UNKNOWN}  PSI was not read: the group did too little for that to be harmless"
        totals = [
            f"{name} {span(int(pressure[f'{name}_us'][-1] - pressure[f'{name}_us'][0]) * 1e3)}"
            for name in ("some", "full")
            if f"{name}_us" in pressure
        ]
        over = span(int(pressure["t_ns"][-1] - pressure["t_ns"][0]))
        host = ", of the whole host" if self.sampler.target is not None and self.sampler.target.pressure_scope == "host" else ""
        return (
            f"PSI {', '.join(totals)} of {over}{host}; read {number(stats['psi_reads'])} times, rarely enough to keep it true"
        )

    def _cost(self) -> Iterator[tuple[str, str]]:
        stats = self.sampler.stats()
        kept = stats["ticks"] / max(1, stats["ticks"] + stats["missed"])
        rows = len(self.usage)
        yield "sampled", f"{number(rows)} rows, {number(rows / self._seconds)} a second; {kept * 100:.1f} % of the ticks kept"
        lived = max(1, self.ended_ns - stats["writer_started_ns"])
        cpu = (stats["tick_cpu_ns"] + stats["keeper_cpu_ns"]) / lived
        yield "what it cost", f"{cpu * 100:.1f} % of a core, {size(stats['held_bytes'])}"


def _most(series: list[float]) -> float:
    return max((value for value in series if not math.isnan(value)), default=0.0)


def _filled(series: list[float]) -> list[float]:
    """What is not known is as it was before, or as it comes first."""
    last = next((value for value in series if not math.isnan(value)), math.nan)
    filled = []
    for value in series:
        last = last if math.isnan(value) else value
        filled.append(last)
    return filled
