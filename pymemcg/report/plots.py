# SPDX-License-Identifier: Apache-2.0
"""The plots of a report as bokeh's models. They hold no data: the page's script fills them from its tracks, as one looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bokeh.layouts import gridplot
from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    CrosshairTool,
    DataRange1d,
    DatetimeTickFormatter,
    FixedTicker,
    HoverTool,
    Legend,
    LegendItem,
    NumeralTickFormatter,
    PanTool,
    PlainText,
    Range1d,
    ResetTool,
    SaveTool,
    Span,
    VArea,
    VStrip,
    WheelZoomTool,
    ZoomInTool,
    ZoomOutTool,
)
from bokeh.models.glyphs import Line, Quad, Step
from bokeh.plotting import figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bokeh.models import GridPlot, Model

    from pymemcg.report.content import Limit

_LEFT: Final = 130
"""Pixels for the labels of all y axes, so that the plots' edges are one line."""
_LABEL: Final = 20
"""Characters of a label that fit there."""
_LANE: Final = 20
"""Pixels of a lane."""
_NUMBER: Final = "0,0.[000]"
_TIME: Final = "@t{%F %T.%3N}"
_LEAST_MS: Final = 0.05
"""Nobody can zoom in further: times are right to a microsecond."""
_MATH: Final = ("$$", "\\(", "\\[", "\\)", "\\]")


def plain(text: str) -> str:
    """A text that bokeh draws as it is: it takes what stands between `$$` for a formula, and would load what draws it."""
    for mark in _MATH:
        text = text.replace(mark, mark[0] + "\N{WORD JOINER}" + mark[1])
    return text


class Plots:
    """Makes plots above each other whose time axes are one.

    Every source has the name of its track, and every glyph that of its colour as its first tag: the page's script knows both.

    Args:
        begin_ms: Where the time axis begins, ms since 1970.
        end_ms: Where it ends.
    """

    def __init__(self, begin_ms: float, end_ms: float) -> None:
        room = max(0.01 * (end_ms - begin_ms), 1.0)
        bounds = (begin_ms - room, end_ms + room)
        self._x = Range1d(*bounds, bounds=bounds, min_interval=_LEAST_MS, name="time")
        self._cursor = Span(dimension="height", line_dash="dotted", line_width=1, line_color="gray")
        self._plots: list[Any] = []
        self._sources: dict[str, ColumnDataSource] = {}

    @property
    def drawn(self) -> int:
        """How many there are."""
        return len(self._plots)

    def layout(self) -> GridPlot:
        """All of them."""
        options = {"logo": None}
        rows = [[plot] for plot in self._plots]
        return gridplot(rows, sizing_mode="stretch_width", toolbar_location="right", toolbar_options=options, merge_tools=True)

    def _source(self, track: str, columns: Sequence[str]) -> ColumnDataSource:
        if track not in self._sources:
            self._sources[track] = ColumnDataSource({name: [] for name in columns}, name=track)
        for name in columns:
            self._sources[track].data.setdefault(name, [])
        return self._sources[track]

    def _figure(self, title: str, height: int, **options: Any) -> Any:
        plot = figure(
            title=title,
            height=height,
            sizing_mode="stretch_width",
            x_range=self._x,
            x_axis_type="datetime",
            tools=[
                PanTool(dimensions="width"),
                BoxZoomTool(dimensions="width"),
                WheelZoomTool(dimensions="width"),
                ZoomInTool(dimensions="width", factor=0.5),
                ZoomOutTool(dimensions="width", factor=0.5),
                ResetTool(),
                SaveTool(),
            ],
            min_border_left=_LEFT,
            **options,
        )
        plot.toolbar.active_drag = plot.tools[0]
        plot.toolbar.active_scroll = plot.tools[2]
        plot.add_tools(CrosshairTool(overlay=self._cursor))
        plot.xaxis.formatter = DatetimeTickFormatter(
            microseconds="%H:%M:%S.%6N",
            milliseconds="%H:%M:%S.%3N",
            seconds="%H:%M:%S",
            minsec="%H:%M:%S",
            minutes="%H:%M",
            hourmin="%H:%M",
            hours="%H:%M",
            days="%d %b",
            strip_leading_zeros=False,
        )
        plot.xaxis.ticker.desired_num_ticks = 8
        self._plots.append(plot)
        return plot

    def _bands(self, plot: Any) -> None:
        """Stalls, behind everything."""
        glyph = VStrip(x0="left", x1="right", fill_color="band", line_color="band")
        plot.add_glyph(self._source("stalls", BARS), glyph, level="underlay")

    def lines(
        self,
        track: str,
        title: str,
        columns: Mapping[str, str],
        *,
        unit: str,
        steps: bool,
        limits: Sequence[Limit] | None = None,
    ) -> None:
        """A plot of a track of rows.

        Args:
            track: Its name.
            title: Of the plot.
            columns: Of the track, and what the legend calls them; the first column's colour is named as it, and so on.
            unit: Of the y axis.
            steps: A value holds for the time up to its row, as a rate since the row before does; else rows are moments.
            limits: To be drawn as well.
        """
        plot = self._figure(title, 180 if limits is None else 260)
        plot.yaxis.axis_label, plot.yaxis.formatter = unit, NumeralTickFormatter(format=_NUMBER)
        self._bands(plot)
        source = self._source(track, ("t", *columns))
        items, drawn = [], []
        for name, label in columns.items():
            glyph = Step(x="t", y=name, mode="before", line_width=1.5) if steps else Line(x="t", y=name, line_width=1.5)
            glyph.tags = [name]
            drawn.append(plot.add_glyph(source, glyph))
            items.append(LegendItem(label=label, renderers=[drawn[-1]]))
        within = list(drawn)
        for limit in limits or ():
            glyph = Step(
                x="t", y="mib", mode="after", line_width=2 if limit.own else 1.5, line_dash="solid" if limit.own else "dashed"
            )
            glyph.tags = ["own_limit" if limit.own else "other_limit"]
            line = plot.add_glyph(self._source(limit.track, ("t", "mib")), glyph)
            within += [line] if limit.in_sight else []
            items.append(LegendItem(label=plain(limit.label), renderers=[line]))
        plot.y_range = DataRange1d(renderers=within, range_padding=0.08, only_visible=True)
        told = [("time", _TIME), *((label, f"@{name}{{{_NUMBER}}} {unit}") for name, label in columns.items())]
        plot.add_tools(_hover(drawn[:1], told, mode="vline"))
        if len(items) > 1:
            self._legend(plot, items)

    def stack(self, track: str, title: str, below: tuple[str, str], above: tuple[str, str], total: str, *, unit: str) -> None:
        """A plot of two columns on top of each other; each with its label, and the column that is their sum."""
        plot = self._figure(title, 180, y_range=DataRange1d(start=0, range_padding=0.08))
        plot.yaxis.axis_label, plot.yaxis.formatter = unit, NumeralTickFormatter(format=_NUMBER)
        source = self._source(track, ("t", below[0], above[0], total))
        first = VArea(x="t", y1=0, y2=below[0], fill_alpha=0.75, tags=[below[0]])
        second = VArea(x="t", y1=below[0], y2=total, fill_alpha=0.75, tags=[above[0]])
        areas = [plot.add_glyph(source, glyph) for glyph in (first, second)]
        edge = plot.add_glyph(source, Line(x="t", y=total, line_width=1, tags=[above[0]]))
        plot.y_range.renderers = [edge]
        self._bands(plot)
        told = [("time", _TIME), *((label, f"@{name}{{{_NUMBER}}} {unit}") for name, label in (below, above))]
        plot.add_tools(_hover([edge], told, mode="vline"))
        items = [(below[1], areas[0]), (above[1], areas[1])]
        self._legend(plot, [LegendItem(label=label, renderers=[area]) for label, area in items])

    def bars(self, track: str, title: str, labels: Sequence[tuple[str, float]], lanes: int) -> None:
        """A plot of a track of intervals in lanes from the top down.

        Args:
            track: Its name.
            title: Of the plot.
            labels: Texts, and at which lane's middle they stand.
            lanes: How many there are.
        """
        plot = self._figure(title, 62 + _LANE * max(lanes, 2), y_range=Range1d(lanes, 0, bounds=(0, lanes)))
        glyph = Quad(left="left", right="right", top="top", bottom="bottom", fill_color="colour", line_color="colour")
        glyph.line_width = 1
        bars = plot.add_glyph(self._source(track, BARS), glyph)
        plot.yaxis.ticker = FixedTicker(ticks=[at for _, at in labels])
        plot.yaxis.major_label_overrides = {at: PlainText(text=_elided(text)) for text, at in labels}
        plot.ygrid.grid_line_color = None
        plot.add_tools(_hover([bars], [("", "@about"), ("from", "@left{%F %T.%3N}")], mode="mouse"))

    def _legend(self, plot: Any, items: list[LegendItem]) -> None:
        legend = Legend(items=items, orientation="horizontal", location="top_left", click_policy="hide")
        legend.update(
            padding=0, margin=3, spacing=14, border_line_alpha=0, background_fill_alpha=0, label_text_font_size="12px"
        )
        plot.add_layout(legend, "above")


BARS: Final = ("left", "right", "top", "bottom", "colour", "band", "about")


def _elided(text: str) -> str:
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"


def _hover(renderers: list[Model], told: list[tuple[str, str]], *, mode: str) -> HoverTool:
    formatters = {"@t": "datetime", "@left": "datetime"}
    return HoverTool(renderers=renderers, tooltips=told, formatters=formatters, mode=mode, visible=False)
