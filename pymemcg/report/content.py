# SPDX-License-Identifier: Apache-2.0
"""Everything that a report shows of a recording: figures, tables, plots, and the tracks that fill them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pymemcg import schema
from pymemcg._hit import Hit, Summary, duration
from pymemcg._stall import CAUSES
from pymemcg._words import number, size, span
from pymemcg.errors import RecordingError
from pymemcg.report import tables, tracks

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from pymemcg._stall import Stall
    from pymemcg.recording import Recording
    from pymemcg.report.downsample import Thinned
    from pymemcg.report.plots import Plots

STALLS_DRAWN: Final = 20_000
EPISODES_DRAWN: Final = 2_000
SPANS_DRAWN: Final = 10_000
HITS_DRAWN: Final = 5_000
"""At most, the longest; so many intervals are 2 MB."""
_NAMES_DRAWN: Final = 12
_LANES: Final = 4
"""For spans of one name at the same time."""
_BETWEEN: Final = 0.1
"""Of a lane, above its bars and below them."""
_NEAR: Final = 2
"""Limits of ancestors above so many times what was used are out of sight at first, and told in the legend."""
_HARM_NS: Final = 1_000_000
"""What a span must have lost to stand out, as in `Summary`."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A line of a limit.

    Attributes:
        track: Its name; the column is `mib`.
        label: In the legend.
        own: It is the group's own.
        in_sight: The plot shows it without being asked to.
    """

    track: str
    label: str
    own: bool
    in_sight: bool


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A span as it is drawn."""

    name: str
    start_ns: int
    end_ns: int
    hit: Hit | None = None

    @property
    def harmed(self) -> bool:
        return self.hit is not None and (self.hit.hi_ns if self.hit.lost_ns is None else self.hit.lost_ns) >= _HARM_NS

    def says(self) -> str:
        took = duration(self.end_ns - self.start_ns)
        if self.hit is None:
            return f"{self.name}: {took}"
        ref = "" if self.hit.ref is None else f" {self.hit.ref}"
        lost = "it is not known how much" if self.hit.lost_ns is None else duration(self.hit.lost_ns)
        return f"{self.name}{ref}: {took}, {lost} of it lost to reclaim{f' ({self.hit.cause})' if self.hit.cause else ''}"


class Content:
    """Everything that the page shows of a recording."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._lanes: list[str] = []
        self.begin_ns, self.end_ns = _time_of(recording)
        self.directory = str(recording.info.get("target", {}).get("directory", recording.path))
        self.clock = _clock(recording, self.begin_ns)
        self._stalls = recording.stalls()
        near_ns = tracks.near(self._stalls)
        self._hits = recording.hits()
        self._summary: Summary = self._hits.summary()
        self._worst = tables.worst_hits(self._hits, HITS_DRAWN)
        make = {"usage": tracks.usage, "memory": tracks.memory, "rates": tracks.rates, "pressure": tracks.pressure}
        self._thinned = {name: of(recording, near_ns) for name, of in make.items()}
        self.tracks: dict[str, Any] = {
            name: self._rows(thinned) for name, thinned in self._thinned.items() if thinned.t_ns.size
        }

    # ---- In words ----------------------------------------------------------------------------------------------------

    @property
    def figures(self) -> list[tuple[str, str]]:
        """The main numbers."""
        begin, end = self.begin_ns, self.end_ns
        when = ("recorded", f"{span(end - begin)}, from {self.clock.says(begin)} to {self.clock.says(end)} UTC")
        return [when, *tables.figures(self._recording, self._thinned["usage"], self._stalls, self._summary)]

    @property
    def tables(self) -> list[tables.Table]:
        """All of them that have rows."""
        recording, clock = self._recording, self.clock
        page_bytes = int(recording.info.get("page_bytes", 4096))
        told = [(f"{name} in this page", _chosen(thinned)) for name, thinned in self._thinned.items() if thinned.rows]
        made = [
            tables.stall_table(self._stalls, clock, page_bytes),
            tables.hit_table(self._worst, self._hits, clock),
            tables.summary_table(self._summary),
            tables.limit_table(recording),
            tables.absent_table(recording),
            tables.provenance_table(recording, told, clock),
        ]
        return [table for table in made if table.rows]

    # ---- In plots ----------------------------------------------------------------------------------------------------

    def draw(self, plots: Plots) -> None:
        """Add the plots, and the tracks that only they know of."""
        self._add_stalls()
        if "usage" in self.tracks:
            labels = {"usage": "usage", "working_set": "working set"}
            plots.lines(
                "usage", "Usage against limits", self._labels("usage", labels), unit="MiB", steps=False, limits=self._limits()
            )
        self._draw_stalls(plots)
        self._draw_spans(plots)
        if "memory" in self.tracks:
            below, above = ("swap_backed", "anonymous and shmem"), ("file_backed", "files")
            plots.stack("memory", "What it would take to reclaim it: swap, or files", below, above, "total", unit="MiB")
        if "rates" in self.tracks:
            labels = {
                "refault": "refaulted pages",
                "scan": "scanned pages",
                "steal": "stolen pages",
                "uncharge": "uncharged folios (v1 counts no scans and steals)",
            }
            if pages := self._labels("rates", labels):
                plots.lines("rates", "Rates", pages, unit="per second", steps=True)
            if hits := self._labels("rates", {"hits": "limit hits"}):
                plots.lines("rates", "Limit hits: charges that found the group full", hits, unit="per second", steps=True)
            if reclaim := self._labels("rates", {"reclaim": "reclaimed"}):
                plots.lines("rates", "Reclaim: what stealing pages gave back", reclaim, unit="MiB/s", steps=True)
        if "pressure" in self.tracks:
            labels = {"some": "somebody stalled", "full": "everybody stalled"}
            plots.lines("pressure", "Memory pressure (PSI)", self._labels("pressure", labels), unit="%", steps=True)

    def _labels(self, track: str, labels: dict[str, str]) -> dict[str, str]:
        return {name: label for name, label in labels.items() if name in self.tracks[track]["columns"]}

    def _rows(self, thinned: Thinned) -> dict[str, Any]:
        columns = {"t": self.clock.ms(thinned.t_ns)} | thinned.columns
        whole = self.clock.ms(thinned.whole_ns).tolist()
        return {"columns": {name: _packed(of) for name, of in columns.items()}, "block": thinned.block, "whole": whole}

    def _limits(self) -> list[Limit]:
        """Lines of limits, with a track each."""
        made = []
        for steps in tracks.limits(self._recording):
            track = f"{steps.kind}-{steps.level}"
            t_ns = np.append(np.maximum(steps.t_ns, self.begin_ns), self.end_ns)
            columns = {"t": _packed(self.clock.ms(t_ns)), "mib": _packed(np.append(steps.mib, steps.mib[-1]))}
            self.tracks[track] = {"columns": columns, "block": 1, "whole": []}
            made.append(Limit(track, _limit_says(steps), own=steps.level == 0, in_sight=self._is_near(steps)))
        return made

    def _is_near(self, steps: tracks.Steps) -> bool:
        """Whether usage can still be seen beside it: an ancestor may have a thousand times as much."""
        used = self._thinned["usage"].columns["usage"]
        most = np.nanmax(used) if np.isfinite(used).any() else 0.0
        return steps.level == 0 or bool(np.nanmax(steps.mib) <= _NEAR * most)

    def _add_stalls(self) -> None:
        """Those that matter most first: those that harmed, by how long somebody was held."""
        longest = sorted(self._stalls, key=lambda stall: -(stall.stall_ns or 0))
        harmful = [stall for stall in longest if not stall.harmless][:STALLS_DRAWN]
        drawn = harmful + [stall for stall in longest if stall.harmless][:EPISODES_DRAWN]
        keys = [_lane(stall) for stall in drawn]
        if not drawn:
            return
        self._lanes = [name for name in (*CAUSES, "harmless") if name in keys]
        self.tracks["stalls"] = self._intervals(
            [(stall.start_ns, tracks.ended(stall)) for stall in drawn],
            np.array([self._lanes.index(key) for key in keys], np.float64),
            {"key": keys, "about": [tables.stall_says(stall) for stall in drawn]},
        )

    def _intervals(
        self, times_ns: list[tuple[int, int]], lane: npt.NDArray[np.float64], texts: dict[str, list[str]]
    ) -> dict[str, Any]:
        """A track of bars, each in the middle of its lane."""
        times = self.clock.ms(np.asarray(times_ns, np.int64).reshape(-1, 2))
        numbers = {"left": times[:, 0], "right": times[:, 1], "top": lane + _BETWEEN, "bottom": lane + 1 - _BETWEEN}
        return {"columns": {name: _packed(of) for name, of in numbers.items()} | texts}

    def _draw_stalls(self, plots: Plots) -> None:
        if self._lanes:
            labels = [(cause, i + 0.5) for i, cause in enumerate(self._lanes)]
            plots.bars("stalls", "Stalls by cause", labels, len(self._lanes))

    def _draw_spans(self, plots: Plots) -> None:
        """The spans of the names that lost most: those that were hit, and the longest of the others."""
        names = [row.name for row in self._summary[:_NAMES_DRAWN]]
        spans = self._spans(names)
        if not spans:
            return
        in_order = sorted(spans, key=lambda one: one.start_ns)
        lanes = tracks.lanes(
            [names.index(s.name) for s in in_order], [s.start_ns for s in in_order], [s.end_ns for s in in_order], _LANES
        )
        lane_of = {id(one): lane for one, lane in zip(in_order, lanes, strict=True)}
        used = [1 + max((lane_of[id(one)] for one in spans if one.name == name), default=0) for name in names]
        base = np.concatenate([[0], np.cumsum(used)])
        self.tracks["spans"] = self._intervals(
            [(one.start_ns, one.end_ns) for one in spans],
            np.array([base[names.index(one.name)] + lane_of[id(one)] for one in spans], np.float64),
            {"key": ["hit" if one.harmed else "span" for one in spans], "about": [one.says() for one in spans]},
        )
        labels = [(name, float(base[i] + base[i + 1]) / 2) for i, name in enumerate(names)]
        plots.bars("spans", "Spans; those that lost 1 ms or more to reclaim stand out", labels, int(base[-1]))

    def _spans(self, names: Sequence[str]) -> list[_Drawn]:
        """Those to draw, what matters most first."""
        hits = [_Drawn(hit.name, hit.start_ns, hit.end_ns, hit) for hit in self._worst if hit.name in names]
        known = {(one.name, one.start_ns, one.end_ns) for one in hits}
        called: Sequence[str] = self._recording.info.get("spans", {}).get("names", [])
        rows = tracks.longest_spans(self._recording, SPANS_DRAWN)
        others = []
        for start, end, name_id in zip(*(rows[of].tolist() for of in ("start_ns", "end_ns", "name_id")), strict=True):
            name = called[name_id] if 0 <= name_id < len(called) else ""
            if name in names and (name, start, end) not in known:
                others.append(_Drawn(name, start, end))
        return hits + sorted(others, key=lambda one: one.start_ns - one.end_ns)


def _limit_says(steps: tracks.Steps) -> str:
    """What the legend calls it: kind, whose it is, and what it was at the end."""
    kind = "limit" if steps.kind == "limit" else "memory.high"
    whose = f" of {steps.name.rstrip('/').rpartition('/')[2] or '/'}" if steps.level else ""
    last = size(float(steps.mib[-1]) * tracks.MIB) if np.isfinite(steps.mib[-1]) else "none"
    return f"{kind}{whose}: {last}"


def _lane(stall: Stall) -> str:
    return "harmless" if stall.harmless else stall.cause


def _packed(values: npt.ArrayLike) -> dict[str, str]:
    """Numbers for the page's script."""
    return {"float64": base64.b64encode(np.ascontiguousarray(values, "<f8").tobytes()).decode()}


def _time_of(recording: Recording) -> tuple[int, int]:
    """From the first row of what ticks to the last one."""
    windows = [getattr(recording, name).window() for name in schema.CHANNELS if name not in ("limits", "clock", "events")]
    windows = [window for window in windows if len(window) and "t_ns" in window]
    if not windows:
        raise RecordingError("has no rows", path=recording.path)
    times = [window["t_ns"][[0, -1]].tolist() for window in windows]
    return min(first for first, _ in times), max(last for _, last in times)


def _clock(recording: Recording, begin_ns: int) -> tables.Clock:
    def realtime_ns(t_ns: int) -> int:
        return int(recording.usage.realtime_ns(np.array([t_ns]))[0])

    return tables.Clock(realtime_ns, realtime_ns(begin_ns) - begin_ns)


def _chosen(thinned: Thinned) -> str:
    """How much of a channel's rows the page has."""
    if thinned.block == 1:
        return f"all {number(thinned.rows)} rows"
    return (
        f"{number(thinned.t_ns.size)} of {number(thinned.rows)} rows: the least and the most of every "
        f"{number(thinned.block)}, and all of {number(len(thinned.whole_ns))} times around stalls and spikes"
    )
