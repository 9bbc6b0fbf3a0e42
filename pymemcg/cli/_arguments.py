# SPDX-License-Identifier: Apache-2.0
"""Arguments that several commands have."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add TARGET."""
    parser.add_argument(
        "target",
        nargs="?",
        default="self",
        metavar="TARGET",
        help="self (this process's own group; the default), pid:N, cgroup:/path, a cgroup's directory, or container:ID",
    )


def duration(text: str) -> float:
    """Parse "10s", "500ms", "5m", "1h" or "90" into seconds."""
    found = _DURATION.fullmatch(text)
    if not found or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: expected a number and ms, s, m or h, as in 10s")
    return float(found[1]) * _SECONDS[found[2]]


def rate(most: float) -> Callable[[str], float]:
    """A parser of rates in Hz, up to `most`."""

    def parse(text: str) -> float:
        try:
            hertz = float(text)
        except ValueError:
            hertz = 0.0
        if not 0.01 <= hertz <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no rate: expected rows a second, from 0.01 to {most:,.0f}")
        return hertz

    return parse
