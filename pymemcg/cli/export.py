# SPDX-License-Identifier: Apache-2.0
"""Write a recording in a form that other programs read: Parquet, Arrow or CSV, or a trace for ui.perfetto.dev.

Parquet, Arrow and CSV are a table for each channel that was recorded, in a folder, or with --channel a single one. A trace has
all channels: counters, the stalls, and reclaim and spans by thread. What was written is told on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pymemcg._words import number, size
from pymemcg.cli._progress import progress
from pymemcg.cli._text import say_damaged
from pymemcg.errors import MemcgError
from pymemcg.export import SUFFIXES, Written, export, rows_to_read, write_one
from pymemcg.schema import CHANNELS

if TYPE_CHECKING:
    from pymemcg.recording import Recording

HELP: Final = "write a recording as Parquet, Arrow, CSV or a trace for Perfetto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.add_argument("file", metavar="FILE", help="the recording")
    parser.add_argument("--to", choices=tuple(SUFFIXES), required=True, help="the form")
    parser.add_argument(
        "--channel", choices=tuple(CHANNELS), metavar="NAME", help=f"only this table: {', '.join(CHANNELS)} (not for perfetto)"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE|-",
        help="the file, or the folder for several tables (default: named after the recording, beside it); - is stdout",
    )
    parser.set_defaults(refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    """Export."""
    from pymemcg.recording import open as open_recording

    several = args.channel is None and args.to != "perfetto"
    if args.channel is not None and args.to == "perfetto":
        args.refuse("--channel is for tables: a trace has all channels")
    if several and args.output == "-":
        args.refuse("several tables do not fit into one stream: name one with --channel")
    if args.output == "-" and args.to != "csv" and sys.stdout.isatty():
        args.refuse("this is for no terminal: give stdout to a file or a program")
    recording = open_recording(args.file)
    say_damaged(recording)
    with _bar(recording, args.channel, args.to) as tell:
        if args.output == "-":
            written = [Written("stdout", _to_stdout(recording, args.to, args.channel, tell), 0)]
        else:
            written = export(recording, args.to, args.output or _place(args, several), channel=args.channel, tell=tell)
    what = "events" if args.to == "perfetto" else "rows"
    for one in written:
        held = f", {size(one.size_bytes)}" if one.size_bytes else ""
        print(f"{one.path}: {number(one.rows)} {what}{held}", file=sys.stderr)
    return 0


def _to_stdout(recording: Recording, to: str, channel: str | None, tell: Callable[[int], None]) -> int:
    try:
        rows = write_one(recording, to, sys.stdout.buffer, channel=channel, tell=tell)
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # its reader went away, which all commands end by
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is not tried again at the exit
        raise MemcgError(f"cannot be written: {error.strerror or error}", path="stdout") from error
    return rows


def _place(args: argparse.Namespace, several: bool) -> str:
    stem, suffix = os.path.splitext(args.file)
    if suffix not in (".memcg", ".ring"):  # service.ring.1 is another ring than service.ring.2
        stem = args.file
    if several:
        return f"{stem}-{args.to}" if stem == args.file else stem
    return f"{stem}{f'-{args.channel}' if args.channel else ''}{SUFFIXES[args.to]}"


@contextmanager
def _bar(recording: Recording, channel: str | None, to: str) -> Iterator[Callable[[int], None]]:
    total = rows_to_read(recording, to, channel)
    done = 0
    with progress("exporting", total, f"{{says}} of {number(total)} to {to}") as told:

        def tell(rows: int) -> None:
            nonlocal done
            done += rows
            told(done, f"{number(done)} rows")

        yield tell
