# SPDX-License-Identifier: Apache-2.0
"""The live screen of `watch`. The only module of it that needs rich."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pymemcg._words import UNKNOWN, number, share, size, span
from pymemcg.cli._live import HITS, Observer, extremes, increases, ratios
from pymemcg.cli._text import bar, elided, spark

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from rich.console import RenderableType

    from pymemcg.sampler import Sampler

    Row: TypeAlias = tuple[str, str | Text, str | Text]

_HISTORY_S = 60.0
_LABEL, _VALUE = 12, 24  # columns; what remains of the line is a bar or a sparkline
_FULL, _TIGHT = 0.9, 0.75  # of the limit: where red and yellow begin
_HIT_TITLES = {"limit_hits": "limit hits", "memsw_hits": "memsw hits", "high_hits": "high hits", "oom_kills": "OOM kills"}
_RATES = (
    ("faults", "faults_per_s", "pgfault", ""),
    ("major faults", "major_faults_per_s", "pgmajfault", ""),
    ("refaults", "refaults_per_s", "workingset_refault_file", " pages"),
    ("scanned", "scanned_pages_per_s", "pgscan", " pages"),
    ("reclaimed", "reclaimed_pages_per_s", "pgsteal", " pages"),
)


def show(sampler: Sampler, interval_s: float) -> None:
    """Show a sampler's group until Ctrl-C."""
    console = Console(highlight=False, markup=False, emoji=False)
    observer = Observer(sampler)
    with Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
        while True:
            live.update(_Screen(sampler, observer.observe(), console.width).render(), refresh=True)
            time.sleep(interval_s)


def _colour(ratio: float) -> str:
    return "red" if ratio >= _FULL else "yellow" if ratio >= _TIGHT else "green"


class _Screen:
    """One frame."""

    def __init__(self, sampler: Sampler, now: dict[str, Any], width: int) -> None:
        self._sampler = sampler
        self._now = now
        self._width = width
        self._rest = max(8, width - _LABEL - _VALUE - 8)

    def render(self) -> RenderableType:
        now = self._now
        right = f"  cgroup v{now['cgroup_version']}  {time.strftime('%H:%M:%S')}"
        room = self._width - len(right) - 2
        title = Text.assemble(" ", (elided(now["group"], room).ljust(room), "bold"), (right, "dim"))
        return Group(
            title,
            self._panel("memory", self._memory()),
            self._panel(f"the last {_HISTORY_S:.0f} s", self._events()),
            self._footer(),
        )

    def _panel(self, title: str, rows: Sequence[Row]) -> Panel:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=_LABEL, no_wrap=True, style="dim")
        table.add_column(width=_VALUE, no_wrap=True)
        table.add_column(width=self._rest, no_wrap=True)
        for row in rows:
            table.add_row(*row)
        return Panel(table, title=title, title_align="left", border_style="dim", padding=(0, 1))

    # ---- Rows ----

    def _memory(self) -> list[Row]:
        now = self._now
        rows: list[Row] = []
        usage, limit = now.get("usage_bytes"), now["limit_bytes"]
        if usage is None:
            rows.append(("usage", UNKNOWN, now["absent"].get("usage", "")))
        elif limit is None:
            rows.append(("usage", size(usage), "no limit to be seen from here"))
        else:
            ratio = usage / limit
            filled = Text(bar(ratio, self._rest - 6), style=f"{_colour(ratio)} on grey23")
            rows.append(("usage", f"{size(usage)} of {size(limit)}", Text.assemble(filled, f"{share(ratio):>6}")))
        rows.append(self._usage_history())
        rows.append(("headroom", size(now["headroom_bytes"]), self._forecast()))
        rows.append(("working set", size(now.get("working_set_bytes")), "usage − inactive_file, as in kubelet"))
        rows.append(self._split())
        return rows

    def _usage_history(self) -> Row:
        window, end_ns = self._sampler.usage.window(seconds=_HISTORY_S), self._now["t_ns"]
        parts = extremes(window, "usage_bytes", end_ns, _HISTORY_S, self._rest)
        known = [part for part in parts if not math.isnan(part[1])]
        if not known:
            return ("", "", "")
        low, high = min(part[0] for part in known), max(part[1] for part in known)
        values = f"{size(low)} … {size(high)}"
        return (f"in {_HISTORY_S:.0f} s", values, Text(spark([part[1] for part in parts], low, high), style="cyan"))

    def _forecast(self) -> str:
        now = self._now
        growth, seconds = now.get("growth_bytes_per_s"), now.get("time_to_limit_s")
        text = f"{size(growth, sign=True)}/s" if growth is not None else ""
        if seconds is not None and seconds > 0:
            text += f": full in {span(seconds * 1e9)}"
        return text

    def _split(self) -> Row:
        now = self._now
        if "anon_bytes" not in now or "file_bytes" not in now:
            return ("anon, file", UNKNOWN, now["absent"].get("stat", ""))
        anon, file = now["anon_bytes"], now["file_bytes"]
        cells = round(self._rest * anon / (anon + file)) if anon + file else 0
        drawn = Text.assemble(("█" * cells, "magenta"), ("▒" * (self._rest - cells if anon + file else 0), "blue"))
        return ("anon, file", Text.assemble((size(anon), "magenta"), ", ", (size(file), "blue")), drawn)

    def _events(self) -> list[Row]:
        now = self._now
        rows: list[Row] = []
        usage = self._sampler.usage.window(seconds=_HISTORY_S)
        if "limit_hits" not in now:
            rows.append((_HIT_TITLES["limit_hits"], UNKNOWN, now["absent"].get("limit_hits") or now["absent"].get("hits", "")))
        for name in HITS:
            if now.get(name) or (name == "limit_hits" and name in now):
                rises = increases(usage, name, now["t_ns"], _HISTORY_S, self._rest)
                new = sum(rise for rise in rises if not math.isnan(rise))
                value = Text(f"+{number(new)}, now {number(now.get(f'{name}_per_s'))}/s", style="red" if new else "")
                rows.append((_HIT_TITLES[name], value, self._drawn(rises, "red")))
        rows += self._pressure()
        return rows + self._rates()

    def _rates(self) -> list[Row]:
        now, stat = self._now, self._sampler.stat.window(seconds=_HISTORY_S)
        rows: list[Row] = []
        for title, name, key, unit in _RATES:
            if name in now and key in stat:
                drawn = self._drawn(increases(stat, key, now["t_ns"], _HISTORY_S, self._rest), "cyan")
                rows.append((title, f"{number(now[name])}{unit}/s", drawn))
        return rows

    def _pressure(self) -> list[Row]:
        now, channel = self._now, self._sampler.pressure
        if "pressure_scope" not in now:
            return [("pressure", UNKNOWN, now["absent"].get("pressure", "not read yet"))]
        rows: list[Row] = []
        for name in ("some", "full"):
            series = ratios(channel.window(), f"{name}_us", now["t_ns"], _HISTORY_S, self._rest)
            value = share(now.get(f"{name}_ratio"))
            if name == "some":
                host = ", host" if now["pressure_scope"] == "host" else ""
                value += f", {span(now['t_ns'] - now['pressure_t_ns'])} ago{host}"
            rows.append((f"PSI {name}", value, self._drawn(series, "yellow")))
        return rows

    @staticmethod
    def _drawn(series: Sequence[float], style: str) -> Text:
        high = max((value for value in series if not math.isnan(value)), default=0.0)
        return Text(spark(series, 0.0, high) if high > 0 else "", style=style)

    def _footer(self) -> Text:
        now = self._now
        role = {"sampling": "this process samples", "attached": f"attached to pid {now['writer_pid']}"}.get(
            now["role"], now["role"]
        )
        processes = now.get("processes", 0)
        ticks = f"{number(now.get('ticks_per_s'))} ticks/s, {number(now['missed'])} missed"
        return Text(f" {role}: {ticks}; {processes} process{'es' * (processes != 1)}. Ctrl-C ends.", style="dim", no_wrap=True)
