# SPDX-License-Identifier: Apache-2.0
"""Arguments that several commands have."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

EVIDENCE = ("auto", "trace", "psi", "counters")

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_SHORT = re.compile(r"(\d+(?:\.\d+)?) ?(us|µs|ms|s)")
_NANOSECONDS = {"us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?B)?", re.IGNORECASE)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add TARGET."""
    parser.add_argument(
        "target",
        nargs="?",
        default="self",
        metavar="TARGET",
        help="self (this process's own group; the default), pid:N, cgroup:/path, a cgroup's directory, or container:ID",
    )


def add_evidence(parser: argparse.ArgumentParser) -> None:
    """Add --evidence."""
    parser.add_argument(
        "--evidence",
        choices=EVIDENCE,
        default="auto",
        help="by what stalls are known: all that works here (auto, the default), or one alone, which must work then",
    )


def duration(text: str) -> float:
    """Parse "10s", "500ms", "5m", "1h" or "90" into seconds."""
    found = _DURATION.fullmatch(text)
    if not found or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: expected a number and ms, s, m or h, as in 10s")
    return float(found[1]) * _SECONDS[found[2]]


def short_duration(text: str) -> int:
    """Parse "500us", "1ms" or "0.2s" into ns."""
    found = _SHORT.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration of a stall: expected a number and us, ms or s, as in 1ms")
    return round(float(found[1]) * _NANOSECONDS[found[2]])


def bytes_of(text: str) -> int:
    """Parse "512M", "1.5GiB" or "1048576" into bytes; units are binary, as everywhere where limits of groups are said."""
    found = _SIZE.fullmatch(text)
    count = round(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " ")) if found else 0
    if not 0 < count < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: expected a number and K, M, G or T, as in 512M")
    return count


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
