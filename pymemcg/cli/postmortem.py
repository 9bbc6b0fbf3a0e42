# SPDX-License-Identifier: Apache-2.0
"""Say what happened before a sampled process ended, from its ring file.

How it ended and how sure that is, usage against every limit, growth, stalls and hits, and the last second; and what the
kernel's log says of the end, where that may be read and is of the same boot. FILE is a ring file (`Sampler(ring_file=…)`), one
kept of an earlier life (`.1`), or a recording. Where it is damaged that is told, and what can be read is used.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pymemcg.cli._figures import STEP_TITLES, figures, steps
from pymemcg.cli._stalls import figure, realtime_of
from pymemcg.cli._text import aligned, has_colours, terminal_width
from pymemcg.errors import NotSupported

if TYPE_CHECKING:
    from pymemcg._findings import Postmortem
    from pymemcg.oom import Kill
    from pymemcg.recording import Recording

HELP: Final = "say what happened before a sampled process ended"
_TITLE_WIDTH: Final = 11


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.add_argument("file", metavar="FILE", help="a ring file or a recording")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print one JSON object")
    how.add_argument("--html", metavar="PAGE", help="write a page that needs no network; replaced if it exists")


def run(args: argparse.Namespace) -> int:
    """Say it."""
    from pymemcg.postmortem import postmortem, running_boot_id
    from pymemcg.recording import open as open_recording

    recording = open_recording(args.file)
    here = recording.info.get("host") == os.uname().nodename
    boot_id = running_boot_id() if here else None
    told = postmortem(recording, boot_id=boot_id, logged=_kernels_log() if boot_id else ())
    if args.json:
        print(json.dumps(told.to_dict()))
    elif args.html is not None:
        from pymemcg.cli._page import page
        from pymemcg.export._part import Part

        part = Part(args.html)
        try:
            part.file.write(page(recording, told).encode(errors="backslashreplace"))
            part.keep()
        finally:
            part.drop()
    else:
        print("\n".join(_lines(recording, told)))
    return 0


def _kernels_log() -> Iterator[Kill]:
    """The OOM kills that the kernel's log has; none where it may not be read, as in a container."""
    from pymemcg.oom import kills
    from pymemcg.oom._logs import kernel_lines

    with suppress(NotSupported):
        yield from kills(kernel_lines())


# ---- In words ------------------------------------------------------------------------------------------------------


def _lines(recording: Recording, told: Postmortem) -> Iterator[str]:
    width, colours = terminal_width(), has_colours()
    yield from figure("verdict", told.verdict, width, colours=colours, title_width=_TITLE_WIDTH)
    for title, text in figures(told):
        yield from figure(title, text, width, colours=colours, title_width=_TITLE_WIDTH)
    if told.steps:
        yield ""
        yield "The last second"
        yield aligned([STEP_TITLES, *steps(told)])
    if told.last_stalls:
        from pymemcg.cli._stalls import StallLines

        lines = StallLines(realtime_of(recording), width, colours, recording.info.get("page_bytes", 4096), lambda *_: None)
        yield ""
        yield "Stalls in it"
        yield lines.header()
        for stall in told.last_stalls:
            yield from lines.lines(stall)
