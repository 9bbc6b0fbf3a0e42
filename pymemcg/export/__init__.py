# SPDX-License-Identifier: Apache-2.0
"""Recordings as files of others: Parquet, Arrow, CSV, and traces for Perfetto."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import IO, TYPE_CHECKING, Final

from pymemcg.errors import MemcgError
from pymemcg.export._part import Part, unwritten
from pymemcg.schema import CHANNELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymemcg.export.arrow import Table
    from pymemcg.recording import Recording

    Told = Callable[[int], object]

SUFFIXES: Final = {"parquet": ".parquet", "arrow": ".arrow", "csv": ".csv", "perfetto": ".pftrace"}
"""Format to what names of its files end with."""
_IN_TRACE: Final = ("usage", "stat", "pressure", "limits", "reclaim", "spans", "clock")


@dataclass(frozen=True, slots=True)
class Written:
    """A file that is whole.

    Attributes:
        path: Its name.
        rows: Rows of its table; of a trace, its events.
        size_bytes: Its size.
    """

    path: str
    rows: int
    size_bytes: int


def nothing_told(_rows: int) -> None:
    """For who does not want to know how far it is."""


def rows_to_read(recording: Recording, to: str, channel: str | None) -> int:
    """How many rows `tell` will have been told of when an export is done."""
    names = (channel,) if channel is not None else _IN_TRACE if to == "perfetto" else CHANNELS
    return sum(len(getattr(recording, name).window()) for name in names)


def write_one(recording: Recording, to: str, sink: IO[bytes], *, channel: str | None, tell: Told = nothing_told) -> int:
    """Write a trace, or one channel as one table, in chunks of 2^18 rows: memory stays the same however many there are.

    Args:
        recording: What to export.
        to: "parquet", "arrow" (an IPC file), "csv" or "perfetto".
        sink: Where to; it needs not be able to seek.
        channel: One that was recorded; None for a trace.
        tell: Called with the rows of each chunk that was written.

    Returns:
        Rows; of a trace, its events.

    Raises:
        MemcgError: There is no such channel in it.
        NotSupported: The library for this format is not installed.
    """
    if to == "perfetto":
        from pymemcg.export import perfetto

        return perfetto.write(recording, sink, tell)
    from pymemcg.export import arrow

    tables = arrow.tables(recording)
    if channel not in tables:
        raise MemcgError(f"has no channel {channel!r}, but {', '.join(tables)}", path=recording.path)
    return _write(tables[channel], to, sink, tell=tell)


def _write(table: Table, to: str, sink: IO[bytes], *, tell: Told) -> int:
    rows = 0
    with import_module(f"{__name__}.{to}").writer(sink, table.schema) as writer:
        for batch in table.batches():
            writer.write_batch(batch)
            rows += batch.num_rows
            tell(batch.num_rows)
    return rows


def export(
    recording: Recording, to: str, path: str | os.PathLike[str], *, channel: str | None = None, tell: Told = nothing_told
) -> list[Written]:
    """Export a recording, in bounded memory however long it is.

    Args:
        recording: What to export.
        to: "parquet", "arrow", "csv", or "perfetto", which is one trace of all channels.
        path: The file; of several tables the folder, which may exist. They have their names when all of them are whole.
        channel: Only this one; None = a table for each that was recorded.
        tell: Called with the rows of each chunk that was written.

    Raises:
        MemcgError: There is no such channel in it, or a file cannot be written.
        NotSupported: The library for this format is not installed.
    """
    place = os.fspath(path)
    with ExitStack() as stack:
        if to == "perfetto" or channel is not None:
            part = Part(place)
            stack.callback(part.drop)
            rows = _into(part, partial(write_one, recording, to, channel=channel, tell=tell))
            return [Written(part.path, rows, part.keep())]
        from pymemcg.export import arrow

        tables = arrow.tables(recording)
        _make_folder(place, stack)
        parts = {name: Part(os.path.join(place, f"{name}{SUFFIXES[to]}")) for name in tables}
        for part in parts.values():
            stack.callback(part.drop)
        many = {name: _into(part, partial(_write, tables[name], to, tell=tell)) for name, part in parts.items()}
        return [Written(part.path, many[name], part.keep()) for name, part in parts.items()]


def _into(part: Part, write: Callable[[IO[bytes]], int]) -> int:
    try:
        return write(part.file)
    except OSError as error:
        raise unwritten(part.path, error) from error


def _make_folder(path: str, stack: ExitStack) -> None:
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise MemcgError("is no folder, and several tables need one", path=path) from None
    except OSError as error:
        raise unwritten(path, error) from error
    else:
        stack.callback(_remove_if_empty, path)


def _remove_if_empty(path: str) -> None:
    with suppress(OSError):  # it has files
        os.rmdir(path)
