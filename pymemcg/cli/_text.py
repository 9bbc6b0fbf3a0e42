# SPDX-License-Identifier: Apache-2.0
"""Lines of plain text, as wide as the terminal is. Needs neither numpy nor rich."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from pymemcg._words import plain

if TYPE_CHECKING:
    from pymemcg.recording import Recording

_BARS = "▁▂▃▄▅▆▇█"
_PARTS = " ▏▎▍▌▋▊▉█"
_LEAST_WRAPPED = 24  # narrower text is worse than a line that is too long


def wrapped(text: str, width: int) -> list[str]:
    """Lines of a text. What is longer than a line stays whole: paths and commands are there to be copied.

    As `textwrap.wrap` does it, which takes twenty times as long.
    """
    first, *words = re.split(r"\s", text.rstrip())
    lines = [first]
    for word in words:
        if len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        elif word:
            lines.append(word)
    return [line.rstrip() for line in lines if line.strip()]


def bar(ratio: float | None, width: int) -> str:
    """A bar of `width` cells, filled to eighths."""
    eighths = round(min(max(ratio or 0.0, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_PARTS[rest] if rest else "")).ljust(width)


def spark(values: Sequence[float], low: float, high: float) -> str:
    """One character a value between `low` and `high`; a space where it is NaN, not known.

    The lowest character means `low` itself: the least that is more stands out.
    """

    def drawn(value: float) -> str:
        if math.isnan(value):
            return " "
        if value <= low:
            return _BARS[0]
        return _BARS[min(max(round((value - low) / (high - low) * (len(_BARS) - 1)), 1), len(_BARS) - 1)]

    return "".join(map(drawn, values))


def aligned(
    rows: Iterable[Sequence[str]],
    *,
    indent: str = "  ",
    gap: str = "  ",
    left: Collection[int] = (0,),
    width: int | None = None,
) -> str:
    """Rows as columns, those of `left` to the left and the others, which are numbers, to the right.

    Args:
        rows: Of one length.
        indent: Before each line.
        gap: Between columns.
        left: Which columns are text.
        width: Columns of the terminal: the last column, being text, is wrapped where it has none left; None = it is not.
    """
    table = [list(map(plain, row)) for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    before = len(indent) + sum(widths[:-1]) + len(gap) * (len(widths) - 1)
    lines = []
    for *cells, last in table:
        padded = [cell.ljust(widths[i]) if i in left else cell.rjust(widths[i]) for i, cell in enumerate(cells)]
        if width is None:
            ends = [last if len(cells) in left else last.rjust(widths[-1])]
        else:
            ends = wrapped(last, max(width - before, _LEAST_WRAPPED)) or [""]
        lines.append(indent + gap.join([*padded, ends[0]]))
        lines += [" " * before + end for end in ends[1:]]
    return "\n".join(line.rstrip() for line in lines)


def terminal_width(stream: TextIO | None = None, *, least: int = 40, most: int = 120) -> int:
    """Columns to write in: COLUMNS, the terminal's, or 100 where there is none.

    shutil's own costs 0.3 MiB to import.

    Args:
        stream: Where it will be written; None = stdout.
        least: Fewer are not believed.
        most: More are not used.
    """
    stream = stream or sys.__stdout__
    text = os.environ.get("COLUMNS", "")
    if text.isdigit() and int(text) > 0:
        width = int(text)
    else:
        try:
            width = os.get_terminal_size(stream.fileno()).columns if stream else 100
        except (OSError, ValueError):
            width = 100
    return min(max(width or 100, least), most)


def elided(path: str, width: int) -> str:
    """The end of a path that is too long: what tells groups apart stands there."""
    return path if len(path) <= width else f"…{path[len(path) - width + 1 :]}"


def has_colours(stream: TextIO | None = None) -> bool:
    """Whether a stream, stdout if none is named, is a terminal whose user wants colours (no-color.org)."""
    return (stream or sys.stdout).isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str, colour: int, *, colours: bool = True) -> str:
    """A text in one of SGR's colours (31 red, 32 green, 33 yellow, 34 blue, 35 magenta, 36 cyan; 1 bold, 2 dim)."""
    return f"\x1b[{colour}m{text}\x1b[0m" if colours and text else text


def say_damaged(recording: Recording) -> None:
    """Say on stderr what of a recording cannot be read."""
    for name, why in recording.missing.items():
        print(f"pymemcg: {recording.path} is damaged: {name}: {why}", file=sys.stderr)


def has_rich() -> bool:
    """Whether rich is installed."""
    try:
        import rich  # noqa: F401
    except ImportError:
        return False
    return True
