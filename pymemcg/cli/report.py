# SPDX-License-Identifier: Apache-2.0
"""Make a page of a recording: usage against limits, rates, pressure, stalls and spans, in plots that zoom, and tables.

The page is one file that needs no network. Of a long recording it has every row around stalls, and of the rest the least and
the most. Needs the extra [report].
"""

from __future__ import annotations

import argparse
import sys
from typing import Final

from pymemcg.cli._text import say_damaged

HELP: Final = "make a page to look at of a recording"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.add_argument("file", metavar="FILE", help="the recording")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the page; replaced if it exists; - = stdout")


def run(args: argparse.Namespace) -> int:
    """Make it."""
    from pymemcg.export._part import Part
    from pymemcg.recording import open as open_recording
    from pymemcg.report import html

    recording = open_recording(args.file)
    say_damaged(recording)
    if args.output == "-":
        sys.stdout.buffer.write(_bytes(html(recording)))
        return 0
    part = Part(args.output)  # before the work, so that it is not in vain
    try:
        part.file.write(_bytes(html(recording)))
        part.keep()
    finally:
        part.drop()
    return 0


def _bytes(page: str) -> bytes:
    return page.encode(errors="backslashreplace")  # a path may be no UTF-8
