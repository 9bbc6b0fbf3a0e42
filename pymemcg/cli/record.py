# SPDX-License-Identifier: Apache-2.0
"""Sample a group for a while into a file, which pymemcg.open(FILE) maps back as the same channels.

The rate is that of the usage channel near a limit. Far from every limit ticks slow down to 100 a second, and to less where
they would otherwise dilute the group's PSI; --fixed-rate keeps the full rate. Ctrl-C ends early and keeps what there is.

With --parquet the rows go into a data set of Parquet files instead, DIR/CHANNEL/host=HOST/date=DATE/…, which many hosts may
share. A file is there when it is closed: when an hour is over, when it is large, and at the end.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from pymemcg._words import number, size, span
from pymemcg.cli import Terminated
from pymemcg.cli._arguments import add_evidence, add_target, duration, rate
from pymemcg.cli._progress import progress
from pymemcg.cli._text import aligned
from pymemcg.errors import MemcgError, SourceError
from pymemcg.sampler import MAX_RATE_HZ, MAX_STAT_RATE_HZ

if TYPE_CHECKING:
    from pymemcg.recorder import Recorder
    from pymemcg.recording import Recording
    from pymemcg.sampler import Sampler

HELP: Final = "record a group's samples into a file"


_WRITE_S = 0.2  # the rings hold a minute: more often only makes Ctrl-C and the bar smoother


class Writer(Protocol):
    """What takes a sampler's rows: a file or a data set."""

    def write(self) -> int:
        """Take what has come; tells the rows of `usage` so far."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    add_target(parser)
    parser.add_argument(
        "--duration",
        type=duration,
        metavar="TIME",
        help="how long: 10s, 5m, 1h (with --parquet until Ctrl-C if it is not given)",
    )
    parser.add_argument("--rate", type=rate(MAX_RATE_HZ), default=1000, metavar="HZ", help="ticks a second (default: 1000)")
    parser.add_argument(
        "--stat-rate",
        type=rate(MAX_STAT_RATE_HZ),
        default=10,
        metavar="HZ",
        help="reads of memory.stat a second (default: 10)",
    )
    parser.add_argument(
        "--fixed-rate", action="store_true", help="do not slow down far from the limit; dilutes a quiet group's PSI"
    )
    add_evidence(parser)
    into = parser.add_mutually_exclusive_group(required=True)
    into.add_argument("-o", "--output", metavar="FILE", help="the recording; replaced if it exists")
    into.add_argument("--parquet", metavar="DIR", help="a data set of Parquet files; more are added to what it has")
    parser.set_defaults(refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    """Record."""
    from pymemcg.cli._live import sampler_of

    if args.duration is None and args.parquet is None:
        args.refuse("the following arguments are required: --duration")
    if args.parquet is not None and os.path.exists(args.parquet) and not os.path.isdir(args.parquet):
        raise MemcgError("is no folder, and a data set needs one", path=args.parquet)
    options = {"rate_hz": args.rate, "stat_rate_hz": args.stat_rate, "adaptive": not args.fixed_rate, "evidence": args.evidence}
    with sampler_of(args.target, **options) as sampler:
        asked = _into_data_set(sampler, args) if args.parquet is not None else _into_file(sampler, args)
    if asked:
        raise asked[0]
    return 0


def _into_file(sampler: Sampler, args: argparse.Namespace) -> list[KeyboardInterrupt]:
    from pymemcg.recorder import Recorder

    with _interrupts_kept() as asked, Recorder(sampler, args.output) as recorder:
        _record(recorder, sampler, args.duration, asked)
    print("\n".join(_summary(sampler, recorder, args, interrupted=bool(asked))))
    return asked


def _into_data_set(sampler: Sampler, args: argparse.Namespace) -> list[KeyboardInterrupt]:
    from pymemcg.export.dataset import DataSet

    with _interrupts_kept() as asked, DataSet(sampler, args.parquet) as written:
        _record(written, sampler, math.inf if args.duration is None else args.duration, asked)
    early = " (ended early)" if asked and args.duration is not None else ""
    print(f"{number(written.files)} files{early} in {args.parquet}, {size(written.size_bytes)}; their names have {written.run}")
    print(aligned((name, f"{number(rows)} rows") for name, rows in written.rows.items()) if written.rows else "no rows")
    print("\n".join(_told(sampler, written.lost)))
    if sampler.usage.closed:
        raise SourceError(f"no longer sampled: {sampler.usage.closed}", path=args.target)
    return asked


@contextmanager
def _interrupts_kept() -> Iterator[list[KeyboardInterrupt]]:
    """What would end the command, told afterwards: it must not break off a write in the middle."""
    asked: list[KeyboardInterrupt] = []

    def keep(which: int, _frame: object) -> None:
        asked.append(Terminated() if which == signal.SIGTERM else KeyboardInterrupt())

    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    heeded = {which: handler for which, handler in before.items() if handler is not signal.SIG_IGN}
    for which in heeded:
        signal.signal(which, keep)
    try:
        yield asked
    finally:
        for which, handler in heeded.items():
            signal.signal(which, handler)


def _record(written: Writer, sampler: Sampler, seconds: float, asked_to_end: list[KeyboardInterrupt]) -> None:
    begun = time.monotonic()
    plain = "{done:5.1f} s, {says}" if math.isinf(seconds) else f"{{done:5.1f}} of {seconds:g} s, {{says}}"
    with progress("recording", None if math.isinf(seconds) else seconds, plain) as tell:
        while not asked_to_end:
            left = begun + seconds - time.monotonic()
            time.sleep(min(_WRITE_S, max(0.0, left)))
            rows = written.write()
            tell(min(time.monotonic() - begun, seconds), f"{number(rows)} rows")
            if left <= _WRITE_S or (math.isinf(seconds) and sampler.usage.closed):
                return


# ---- Summary, on stdout --------------------------------------------------------------------------------------------


def _summary(sampler: Sampler, recorder: Recorder, args: argparse.Namespace, *, interrupted: bool) -> Iterator[str]:
    from pymemcg import schema
    from pymemcg.recording import open as open_recording

    recording = open_recording(args.output)
    lasted = _lasted_ns(recording)
    early = " (ended early)" if interrupted else ""
    on_disk = size(os.stat(args.output).st_blocks * 512)
    yield f"{span(lasted)} of {recording.info['target']['directory']}{early} in {args.output}, {on_disk} on disk"
    if recorder.left:
        yield f"one before it was broken off: pymemcg.recorder.join({recorder.left!r}) makes a recording of what it left"
    channels = [(name, getattr(recording, name)) for name in schema.CHANNELS]
    yield aligned(
        (name, f"{number(channel.head)} rows", f"{len(channel.names)} columns") for name, channel in channels if channel.names
    )
    rows = recording.usage.head
    full = int(lasted * args.rate / 1e9)
    if not args.fixed_rate and rows < 0.95 * full:
        yield (
            f"usage has {number(rows)} rows where the full rate gives {number(full)}: ticks slow down far from the limit, "
            "and in a quiet group (--fixed-rate keeps them up)"
        )
    yield from _told(sampler, recorder.lost)


def _told(sampler: Sampler, lost: int) -> Iterator[str]:
    if lost:
        yield f"lost: {number(lost)} rows, which were overwritten before they were written out"
    for name, reason in sampler.absent.items():
        yield f"absent: {name}: {reason}"
    evidence = sampler.evidence
    yield f"evidence of stalls: {', '.join(name for name, why_not in evidence.items() if why_not is None) or 'none'}"
    for name, why_not in evidence.items():
        if why_not is not None:
            yield f"no evidence {name}: {why_not}"


def _lasted_ns(recording: Recording) -> int:
    """From the first to the last row of any channel that ticks."""
    times: list[Any] = [channel.window()["t_ns"] for channel in (recording.usage, recording.stat) if channel.head]
    return max((int(t_ns[-1]) - int(t_ns[0]) for t_ns in times), default=0)
