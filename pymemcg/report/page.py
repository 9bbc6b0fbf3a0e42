# SPDX-License-Identifier: Apache-2.0
"""The page of a report: plots, their data and tables in one file that asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from pymemcg.errors import NotSupported
from pymemcg.report.colours import PALETTES
from pymemcg.report.content import Content

if TYPE_CHECKING:
    from pymemcg.recording import Recording
    from pymemcg.report.plots import Plots


def html(recording: Recording) -> str:
    """Make the page of a recording.

    Args:
        recording: Of any length: what this takes of memory beside the stalls and spans does not grow with it.

    Returns:
        One HTML document with everything in it.

    Raises:
        NotSupported: bokeh or tsdownsample is not installed.
        RecordingError: It has no rows.

    Safe to call from any thread.
    """
    try:
        import bokeh.resources
        import jinja2
        import tsdownsample  # noqa: F401 - better now than after a minute

        from pymemcg.report.plots import Plots
    except ImportError as error:
        raise NotSupported(f"a report needs {error.name}", hint="pip install 'pymemcg[report]'") from error
    report = Content(recording)
    begin, end = (float(report.clock.ms(ns)) for ns in (report.begin_ns, report.end_ns))
    plots = Plots(begin, end)
    report.draw(plots)
    data = {"begin": begin, "end": end, "tracks": report.tracks, "palettes": PALETTES}
    folder = files("pymemcg.report")
    scripts = [
        *bokeh.resources.Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw,
        (folder / "report.js").read_text(),
    ]
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (folder / "page.html").read_text()
    )
    return template.render(
        title=f"pymemcg: {report.directory}",
        directory=report.directory,
        figures=report.figures,
        tables=report.tables,
        style=(folder / "report.css").read_text(),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        bokeh=_json(_item(plots)) if plots.drawn else None,
        tracks=_json(data),
    )


def _item(plots: Plots) -> Any:
    from bokeh.embed import json_item

    return json_item(plots.layout())


def _hash(script: str) -> str:
    """What the page's policy knows a script by: no other may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _json(value: Any) -> str:
    """JSON for a `script` element: whatever is in its strings cannot end that."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
