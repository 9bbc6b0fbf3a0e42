# SPDX-License-Identifier: Apache-2.0
"""Show when a group was held up for memory, for how long, why, and how that is known.

Of a recording all stalls; of a group those that happen from now on, until Ctrl-C. --json prints one object a line, live as
soon as a stall is known ("state": "open") and again when it is over ("closed").
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pymemcg._tally import Tally
from pymemcg.cli._arguments import add_evidence, duration, short_duration
from pymemcg.cli._stalls import StallLines, figures, realtime_of, thread_name
from pymemcg.cli._text import has_colours, say_damaged, terminal_width
from pymemcg.errors import NotSupported, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from queue import SimpleQueue

    from pymemcg.channel import Channels
    from pymemcg.detecting import Stall
    from pymemcg.recording import Recording
    from pymemcg.sampler import Sampler

HELP: Final = "show a group's stalls live, or those in a recording"

_LOOK_S: Final = 0.5
_CLOCK_SET_NS: Final = 60 * 10**9  # by more than this nobody sets a clock between a recording and now


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.add_argument(
        "source",
        nargs="?",
        default="self",
        metavar="FILE|TARGET",
        help="a recording, or self (this process's own group; the default), pid:N, cgroup:/path, a cgroup's directory, or "
        "container:ID",
    )
    parser.add_argument(
        "--min",
        type=short_duration,
        default=0,
        metavar="TIME",
        help="only stalls of at least so long (500us, 1ms, 0.2s): within 10 ms one thread was held for so long, or throughout "
        "and for so long in all",
    )
    add_evidence(parser)
    parser.add_argument("--duration", type=duration, metavar="TIME", help="of a group: end after so long, as 10s, 5m")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def run(args: argparse.Namespace) -> int:
    """Show them."""
    if os.path.isfile(args.source):
        _of_recording(args)
    else:
        _of_group(args)
    return 0


# ---- Of a recording ------------------------------------------------------------------------------------------------


def _of_recording(args: argparse.Namespace) -> None:
    from pymemcg.detecting import stalls
    from pymemcg.recording import open as open_recording

    recording = open_recording(args.source)
    say_damaged(recording)
    evidence: dict[str, str | None] = recording.info.get("evidence", {})
    if args.evidence != "auto" and evidence.get(args.evidence, "") is not None:
        why = evidence.get(args.evidence) or "the recording does not have it"
        raise NotSupported(f"evidence {args.evidence!r} cannot be had: {why}", path=recording.path)
    name_of = thread_name if _is_of_this_boot(recording) else _nobody
    printer = _Printer(recording, args, page_bytes=recording.info.get("page_bytes", 4096), name_of=name_of)
    printer.begin()
    for stall in stalls(recording, evidence=args.evidence):
        printer.tell(stall)
    if recording.usage.closed_at is not None and not args.json:
        print(f"the group was not sampled to the end: {recording.usage.closed}")
    printer.end(evidence)


def _nobody(_tid: int, _end_ns: int | None) -> None:
    """The name of a thread of another machine, or of another boot."""


def _is_of_this_boot(recording: Recording) -> bool:
    now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    apart_ns = realtime_of(recording)(now_ns) - time.time_ns()
    same_host: bool = recording.info.get("host") == os.uname().nodename
    return same_host and abs(apart_ns) < _CLOCK_SET_NS


# ---- Live ----------------------------------------------------------------------------------------------------------


def _of_group(args: argparse.Namespace) -> None:
    from queue import SimpleQueue

    from pymemcg.cli._live import sampler_of

    told: SimpleQueue[Stall] = SimpleQueue()
    with sampler_of(args.source, evidence=args.evidence, on_stall=told.put) as sampler:
        printer = _Printer(sampler, args, page_bytes=os.sysconf("SC_PAGESIZE"))
        try:
            printer.begin()
            _follow(sampler, told, printer, args.duration)
        finally:
            evidence = sampler.evidence
            sampler.stop()  # it tells the rest, also of what is still open
            while not told.empty():
                printer.tell(told.get())
            printer.end(evidence)
        if sampler.usage.closed:
            raise SourceError(f"no longer sampled: {sampler.usage.closed}", path=args.source)


def _follow(sampler: Sampler, told: SimpleQueue[Stall], printer: _Printer, seconds: float | None) -> None:
    from queue import Empty

    until = time.monotonic() + seconds if seconds is not None else math.inf
    while (left := until - time.monotonic()) > 0 and not sampler.usage.closed:
        with suppress(Empty):
            printer.tell(told.get(timeout=min(left, _LOOK_S)))


# ---- Both ----------------------------------------------------------------------------------------------------------


class _Printer:
    """Prints stalls as they come, in words or as JSON, and at the end what they add up to."""

    def __init__(
        self,
        source: Channels,
        args: argparse.Namespace,
        *,
        page_bytes: int,
        name_of: Callable[[int, int | None], str | None] = thread_name,
    ) -> None:
        self._width, self._colours = terminal_width(), has_colours()
        self._lines = StallLines(realtime_of(source), self._width, self._colours, page_bytes, name_of)
        self._min_ns, self._json, self._evidence = args.min, args.json, args.evidence
        self._tally = Tally()

    def begin(self) -> None:
        """Print what comes before all stalls."""
        if not self._json:
            print(self._lines.header(), flush=True)

    def tell(self, stall: Stall) -> None:
        """Print one, if it is long enough; in words only when it is over."""
        if not stall.reaches(self._min_ns):
            return
        self._tally.add(stall)
        if self._json:
            realtime_ns = self._lines.realtime_ns(stall.start_ns)
            line = json.dumps(stall.to_dict() | {"start_realtime_ns": realtime_ns})
            print(f"{line}\n", end="", flush=True)  # in one piece: a signal would come between a line and its end
        elif stall.state == "closed":
            print("\n".join(self._lines.lines(stall)), flush=True)

    def end(self, evidence: Mapping[str, str | None]) -> None:
        """Print the sum."""
        if self._json:
            return
        if self._evidence != "auto":
            evidence = {self._evidence: None}
        print()
        print("\n".join(figures(self._tally, evidence, self._width, colours=self._colours)))
