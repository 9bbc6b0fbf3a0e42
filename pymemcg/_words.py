# SPDX-License-Identifier: Apache-2.0
"""Numbers and names as people read them, in plain text. Needs no other module."""

from __future__ import annotations

import math
from typing import Final

UNKNOWN: Final = "–"
_SIZES: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_MINUTES_NS: Final = 99_500_000_000
"""From here on `span` has two units."""


def plain(text: str) -> str:
    r"""A text of a file or of the kernel in one line, with what a terminal would obey as escapes: "\x1b"."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(count: float | None, *, sign: bool = False) -> str:
    """Bytes in the binary unit that leaves one to four digits before the point: "61.8 MiB"."""
    if count is None or math.isnan(count):
        return UNKNOWN
    prefix = "-" if count < 0 else "+" if sign and count > 0 else ""
    left, power = abs(count), 0
    while left >= 1024 and power < len(_SIZES) - 1:
        left /= 1024
        power += 1
    return f"{prefix}{left:.1f} {_SIZES[power]}" if power else f"{prefix}{left:.0f} B"


def number(count: float | None) -> str:
    """A count with its thousands apart; one decimal where it is below ten and not whole."""
    if count is None or math.isnan(count):
        return UNKNOWN
    return f"{count:.1f}" if abs(count) < 10 and count != int(count) else f"{count:,.0f}"


def share(ratio: float | None) -> str:
    """A ratio in percent."""
    if ratio is None or math.isnan(ratio):
        return UNKNOWN
    return f"{ratio * 100:.1f} %" if ratio < 0.0995 and ratio != 0 else f"{ratio * 100:.0f} %"


def span(ns: float | None) -> str:
    """A duration in the unit that suits it: "340 µs", "12.9 ms", "4.1 s", "3 min 20 s", "5 h 3 min"."""
    if ns is None or math.isnan(ns):
        return UNKNOWN
    if ns == 0:
        return "0 s"
    for unit, factor in (("ns", 1.0), ("µs", 1e3), ("ms", 1e6)):
        if abs(ns) < factor * 999.5:
            return f"{ns / factor:.0f} {unit}" if unit == "ns" or abs(ns) >= factor * 99.5 else f"{ns / factor:.1f} {unit}"
    seconds = ns / 1e9
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:,.0f} h {seconds % 3600 // 60:.0f} min"


def held(ns: int | None) -> str:
    """A duration as one number and one unit, so that columns stay columns."""
    return span(ns) if ns is None or ns < _MINUTES_NS else f"{ns / 1e9:,.0f} s"


def between(low_ns: int | None, high_ns: int | None) -> str:
    """Two durations, with their unit once where it is the same: "11.0–15.2 ms"; nothing where they read the same."""
    if low_ns is None or high_ns is None:
        return ""
    if held(low_ns) == held(high_ns):
        return ""
    (low, low_unit), (high, high_unit) = held(low_ns).split(" "), held(high_ns).split(" ")
    if low_unit == high_unit or low_ns == 0:
        return f"{low}–{high} {high_unit}"
    return f"{low} {low_unit}–{high} {high_unit}"
