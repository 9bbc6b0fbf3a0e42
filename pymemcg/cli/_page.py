# SPDX-License-Identifier: Apache-2.0
"""A post-mortem as one small page: no script, nothing from elsewhere, all text escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from pymemcg._ffi import NONE
from pymemcg._words import size, span
from pymemcg.cli._figures import STEP_TITLES, figures, steps, when

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pymemcg._findings import Postmortem
    from pymemcg.recording import Recording

_WIDTH: Final = 800
_HEIGHT: Final = 160
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; color: #222; background: #fff }
h1 { font-size: 1.3em; overflow-wrap: anywhere } h2 { font-size: 1.05em; margin-top: 2em }
th { text-align: left; font-weight: 600; padding-right: 1.5em; vertical-align: top; white-space: nowrap }
td { padding-right: 1.5em; white-space: pre-line; overflow-wrap: anywhere }
.verdict { font-size: 1.1em; border-left: 4px solid #b3261e; padding-left: 1em }
svg { width: 100%; height: auto } .usage { fill: none; stroke: #1f5fbf; stroke-width: 1.5 }
.limit { stroke: #b3261e; stroke-dasharray: 6 4 } .stall { fill: #b3261e; opacity: .25 }
text { font-size: 12px; fill: #555 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818 } text { fill: #aaa } .usage { stroke: #7fb0ff } }
"""


def page(recording: Recording, told: Postmortem) -> str:
    """The whole page."""
    title = f"Post-mortem of {told.target or told.path}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="verdict">{escape(told.verdict)}</p>
<p>Certainty: {escape(told.ending.certainty)}. The last row is of {escape(when(told.ended_realtime_ns))}.</p>
<h2>Usage</h2>
{_sparkline(recording, told)}
<h2>Figures</h2>
{_table((), figures(told))}
<h2>The last second</h2>
{_table(STEP_TITLES, steps(told))}
</body>
</html>
"""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    titles = "<tr>" + "".join(f"<th>{escape(title)}</th>" for title in head) + "</tr>\n" if head else ""
    body = "\n".join(
        f"<tr><th>{escape(first)}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    return f"<table>\n{titles}{body}\n</table>"


def _sparkline(recording: Recording, told: Postmortem) -> str:
    """Usage against the group's own limit, the least and the most of each column of pixels, and stalls as bands."""
    window = recording.usage.window()
    if len(window) < 2 or "usage_bytes" not in window:
        return "<p>There are no rows of usage.</p>"
    import numpy as np

    t, usage = window["t_ns"], window["usage_bytes"]
    begin, end = int(t[0]), int(t[-1])
    if end == begin:
        return "<p>There is only a moment of usage.</p>"
    limit = next((one.limit_bytes for one in told.limits if one.level == 0 and one.kind == "limit"), None)
    top = 1.05 * max(limit or 0, told.peak_bytes or 0, 1)
    cuts = np.searchsorted(t, np.linspace(begin, end, _WIDTH + 1)[:-1]).tolist()
    points = []
    for x, (first, last) in enumerate(zip(cuts, [*cuts[1:], len(window)], strict=True)):
        part = usage[first:last]
        part = part[(part != NONE) & (part >= 0)]
        if part.size:
            points += [f"{x},{_y(int(value), top)}" for value in dict.fromkeys((int(part.min()), int(part.max())))]
    bands = "".join(_band(stall.start_ns, stall.end_ns or stall.start_ns, begin, end) for stall in told.last_stalls)
    line = "" if limit is None else f'<line class="limit" x1="0" x2="{_WIDTH}" y1="{_y(limit, top)}" y2="{_y(limit, top)}"/>'
    most = size(told.peak_bytes) + ("" if limit is None else f" at most, the limit is {size(limit)}")
    label = escape(f"{span(end - begin)} of usage: {most}")
    return f"""<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 20}" role="img" aria-label="{label}">
{bands}{line}
<polyline class="usage" points="{" ".join(points)}"/>
<text x="0" y="{_HEIGHT + 15}">{label}</text>
</svg>"""


def _y(value: int, top: float) -> float:
    return round(_HEIGHT * (1 - value / top), 1)


def _x(t_ns: int, begin: int, end: int) -> float:
    return round(_WIDTH * min(max((t_ns - begin) / (end - begin), 0.0), 1.0), 1)


def _band(since_ns: int, until_ns: int, begin: int, end: int) -> str:
    x = _x(since_ns, begin, end)
    wide = max(1.0, round(_x(until_ns, begin, end) - x, 1))
    return f'<rect class="stall" x="{x}" y="0" width="{wide}" height="{_HEIGHT}"/>'
