# SPDX-License-Identifier: Apache-2.0
"""Stalls as people read them: a line each as they come, and what they add up to. For `stalls`, `run` and `demo`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pymemcg._words import UNKNOWN, between, held, number, plain, share, size, span
from pymemcg.cli._text import painted, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymemcg._tally import Tally
    from pymemcg.channel import Channels
    from pymemcg.detecting import Stall

BOLD, DIM, _RED, _YELLOW = 1, 2, 31, 33
_LONG_NS: Final = 10_000_000  # what a request notices
_WAITED_NS: Final = 1_000_000  # less is not worth a line
_GAP: Final = "  "
TITLE_WIDTH: Final = 9
_WHEN_WIDTH, _LEAST_THREADS_WIDTH = 12, 24
_COLUMNS: Final = (("stalled", 8), ("between", 13), ("cause", 8), ("evidence", 12), ("hits", 6), ("reclaimed", 9))
_MORE_EVIDENCE: Final = len("trace+psi+counters") - 12  # where there is room
_TEXTS: Final = {"cause", "evidence"}  # the others are numbers
_NAMED: Final = 6  # threads; there may be hundreds
_BELOW: Final = " " * (_WHEN_WIDTH + len(_GAP))


def thread_name(tid: int, end_ns: int | None) -> str | None:
    """A thread's name; None where it is gone, or where its number is a younger one's by now."""
    try:
        with open(f"/proc/{tid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    name, _, rest = text[text.index("(") + 1 :].rpartition(")")
    if end_ns is None:
        return name
    asleep_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    begun_ns = int(rest.split()[19]) * 10_000_000 - asleep_ns  # in ticks of USER_HZ since the boot
    return name if begun_ns <= end_ns else None


def realtime_of(source: Channels) -> Callable[[int], int]:
    """A function from CLOCK_MONOTONIC to CLOCK_REALTIME, both ns, by the clock of a recording or a sampler."""
    import numpy as np

    return lambda t_ns: int(source.usage.realtime_ns(np.array([t_ns]))[0])


# ---- A line each ---------------------------------------------------------------------------------------------------


@dataclass
class StallLines:
    """Makes lines of stalls.

    Attributes:
        realtime_ns: From CLOCK_MONOTONIC to CLOCK_REALTIME.
        width: Columns to write in.
        colours: Whether to use colours.
        page_bytes: Of the machine that they are from.
        name_of: A thread's name, by its number and a time at which it lived.
    """

    realtime_ns: Callable[[int], int]
    width: int = 80
    colours: bool = False
    page_bytes: int = 4096
    name_of: Callable[[int, int | None], str | None] = thread_name
    _day: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self._widths = dict(_COLUMNS)
        left = self.width - _WHEN_WIDTH - sum(width + len(_GAP) for width in self._widths.values()) - len(_GAP)
        self._threads_width = left if left >= _LEAST_THREADS_WIDTH else 0  # 0: they go below
        if left >= _LEAST_THREADS_WIDTH + _MORE_EVIDENCE:
            self._widths["evidence"] += _MORE_EVIDENCE
            self._threads_width -= _MORE_EVIDENCE

    def header(self) -> str:
        """The columns' titles."""
        titles = [_cell(title, title, width) for title, width in self._widths.items()]
        threads = ["threads"] if self._threads_width else []
        return self._painted(_GAP.join(["when".ljust(_WHEN_WIDTH), *titles, *threads]).rstrip(), BOLD)

    def lines(self, stall: Stall) -> Iterator[str]:
        """One stall, below the day where that is another one than before."""
        seconds, ns = divmod(self.realtime_ns(stall.start_ns), 10**9)
        at = time.localtime(seconds)
        day = time.strftime("%a %d %b %Y", at)
        if day != self._day:
            self._day = day
            yield self._painted(day, DIM)
        when = f"{time.strftime('%H:%M:%S', at)}.{ns // 10**6:03}"
        if stall.harmless:
            yield self._painted(f"{when}{_GAP}{_harmless(stall, self.width - len(_BELOW))}", DIM)
        else:
            yield from self._harmful(when, stall)

    def _harmful(self, when: str, stall: Stall) -> Iterator[str]:
        pages = stall.reclaimed_pages
        cells = {
            "stalled": held(stall.stall_ns),
            "between": between(stall.stall_lo_ns, stall.stall_hi_ns),
            "cause": stall.cause,
            "evidence": _joined(stall.evidence, self._widths["evidence"]),
            "hits": number(stall.limit_hits),
            "reclaimed": UNKNOWN if pages is None else _short(size(pages * self.page_bytes)),
        }
        line = _GAP.join([when, *(_cell(title, cells[title], width) for title, width in self._widths.items())])
        threads, says = self._threads(stall), _remarks(stall)
        if self._threads_width and len(threads) <= self._threads_width:
            line, threads = f"{line}{_GAP}{threads}", ""
        long = (stall.stall_ns or 0) >= _LONG_NS
        yield self._painted(line.rstrip(), _RED if long else _YELLOW)
        below = "; ".join(text for text in (threads and f"held: {threads}", says) if text)
        for text in wrapped(below, self.width - len(_BELOW)):
            yield self._painted(_BELOW + text, DIM)

    def _threads(self, stall: Stall) -> str:
        named = [
            f"{tid} {plain(name)}" if name else str(tid)
            for tid in stall.tids[:_NAMED]
            for name in [self.name_of(tid, stall.end_ns)]
        ]
        more = [f"{len(stall.tids) - _NAMED} more"] if len(stall.tids) > _NAMED else []
        return ", ".join([*named, *more])

    def _painted(self, text: str, colour: int) -> str:
        return painted(text, colour, colours=self.colours)


def _cell(title: str, text: str, width: int) -> str:
    return text.ljust(width) if title in _TEXTS else text.rjust(width)


def _short(text: str) -> str:
    """A size without its decimal where that makes it too wide: "1000 KiB"."""
    number, unit = text.split(" ")
    return text if len(text) <= dict(_COLUMNS)["reclaimed"] else f"{float(number):.0f} {unit}"


def _joined(evidence: tuple[str, ...], width: int) -> str:
    for count in range(len(evidence), 0, -1):
        text = "+".join([*evidence[:count], *(["…"] if count < len(evidence) else [])])
        if len(text) <= width:
            return text
    return UNKNOWN


def _remarks(stall: Stall) -> str:
    waited = f"{span(stall.cpu_wait_ns)} of waiting for a CPU left out" if (stall.cpu_wait_ns or 0) >= _WAITED_NS else ""
    return "; ".join(text for text in (waited, stall.incomplete or "") if text)


def _harmless(stall: Stall, width: int) -> str:
    parts = ["harmless"]
    if stall.intervals is not None:
        parts.append(f"{number(stall.intervals)} times")
    if stall.end_ns is not None and stall.end_ns > stall.start_ns:
        lasted = stall.end_ns - stall.start_ns
        if stall.stall_ns is not None:
            parts.append(f"{span(stall.stall_ns)} of {span(lasted)} ({share(stall.stall_ns / lasted)})")
        else:
            parts.append(f"within {span(lasted)}")
    parts.append(stall.cause)
    text = ", ".join(parts)
    evidence = _joined(stall.evidence, width - len(text) - 2)
    return text if evidence == UNKNOWN else f"{text}, {evidence}"


# ---- What they add up to -------------------------------------------------------------------------------------------


def table(tally: Tally, lines: StallLines) -> Iterator[str]:
    """The worst as a table; nothing where there are none."""
    worst = tally.worst()
    if worst:
        yield lines.header()
    for stall in worst:
        yield from lines.lines(stall)
    if tally.count > len(worst):
        yield painted(f"and {number(tally.count - len(worst))} that were shorter", DIM, colours=lines.colours)


def figures(
    tally: Tally, evidence: Mapping[str, str | None], width: int, *, colours: bool, title_width: int = TITLE_WIDTH
) -> Iterator[str]:
    """All of it below each other, and which evidence there was."""
    for title, text in [*tally.figures(), ("evidence", _evidence_says(evidence))]:
        yield from figure(title, text, width, colours=colours, title_width=title_width)


def figure(title: str, text: str, width: int, *, colours: bool, title_width: int = TITLE_WIDTH) -> Iterator[str]:
    """A title, and a text beside it that may take several lines."""
    room = width - title_width - 2 * len(_GAP)
    lines = [line for part in text.split("\n") for line in wrapped(plain(part), room)]
    for i, line in enumerate(lines):
        head = painted(title.ljust(title_width), BOLD, colours=colours) if i == 0 else " " * title_width
        yield f"{_GAP}{head}{_GAP}{line}"


def _evidence_says(evidence: Mapping[str, str | None]) -> str:
    """Which evidence there was, and a line each why there was not more."""
    works = [name for name, why_not in evidence.items() if why_not is None]
    absent = [f"no {name}: {why_not}" for name, why_not in evidence.items() if why_not is not None]
    return "\n".join([", ".join(works) or "none", *absent])
