# SPDX-License-Identifier: Apache-2.0
"""A data set of Parquet files that grows while a sampler samples: `record --parquet`."""

from __future__ import annotations

import json
import os
import time
import uuid
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import numpy as np

from pymemcg import schema
from pymemcg.errors import MemcgError
from pymemcg.export import parquet
from pymemcg.export._part import Part, unwritten
from pymemcg.export._pyarrow import pa
from pymemcg.export.arrow import KEY, Table, Texts, provenance
from pymemcg.recorder import first_row

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pymemcg.channel import Channel, Window
    from pymemcg.sampler import Sampler

_DAY_NS: Final = 86_400 * 10**9
_PENDING_SHARE: Final = 8
"""The ring itself is the buffer: rows are taken out of it when they fill 1/8 of it."""
_GROUP_BYTES: Final = 8 << 20
"""Of rows in memory before they are written, as a row group: usage at 1 kHz fills it in two minutes."""
_LATE_NS: Final = 10 * 10**9
"""So long after its time a file waits for rows that come late, such as intervals whose thread had to be asked for."""


class DataSet:
    """Writes what a sampler samples as `FOLDER/CHANNEL/host=HOST/date=DATE/TIME-RUN-NUMBER.parquet`, dates in UTC.

    A file has its name when it is closed: when an hour of the day is over, when it is large, and by `close`. Until then it is
    hidden, and of no use if the writer is killed. One that is closed is never touched again.

    Args:
        sampler: A running one.
        folder: The data set; others may write to it as well.
        roll_s: A file has rows of one such part of a day.
        roll_bytes: A file that has become so large is closed.

    Attributes:
        folder: As given.
        run: What in the names of files stands for this writer.
        lost: Rows that the sampler's ring had overwritten before they were taken.
        files: Files that are closed.
        size_bytes: Of those.
        rows: Of those, by channel.

    Raises:
        MemcgError: The folder cannot be made.

    Not thread-safe: one thread at a time.
    """

    def __init__(
        self, sampler: Sampler, folder: str | os.PathLike[str], *, roll_s: float = 3600, roll_bytes: int = 64 << 20
    ) -> None:
        self.folder = os.fspath(folder)
        self.run = uuid.uuid4().hex[:12]
        self.lost = 0
        self.files = 0
        self.size_bytes = 0
        self.rows: dict[str, int] = {}
        self._sampler = sampler
        self._info: dict[str, Any] = {}
        self._roll_ns, self._roll_bytes = int(roll_s * 1e9), roll_bytes
        self._usage = 0
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise unwritten(self.folder, error) from error
        channels = [channel for channel in (getattr(sampler, name) for name in schema.CHANNELS) if channel.names]
        self._channels = channels
        self._host = quote(str(self._said()["info"].get("host", os.uname().nodename)), safe="")
        self._streams = [_Stream(self, channel) for channel in channels]

    def _said(self) -> dict[str, Any]:
        self._info = self._sampler.describe() or self._info  # it is stopped
        info = dict(self._info)
        if any(channel.name == "spans" for channel in self._channels):
            info["spans"] = {"pid": os.getpid(), "refs_left_out": 0}
        return {**provenance(self._channels, info), "run": self.run}

    def part_of_day(self, realtime_ns: Any) -> Any:
        """In which file a time belongs: equal for equal ones; ints or an array of them."""
        return realtime_ns // _DAY_NS * _DAY_NS + realtime_ns % _DAY_NS // self._roll_ns * self._roll_ns

    def place(self, channel: str, begin_ns: int, number: int) -> str:
        """The name of a file."""
        begin = datetime.fromtimestamp(begin_ns // 10**9, timezone.utc)
        folder = os.path.join(self.folder, channel, f"host={self._host}", f"date={begin:%Y-%m-%d}")
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise unwritten(folder, error) from error
        return os.path.join(folder, f"{begin:%H%M%S}-{self.run}-{number:06d}.parquet")

    def write(self) -> int:
        """Take what has come, where it is worth it, and close files whose time is over; to be called several times a second.

        Returns:
            Rows of `usage` so far.

        Raises:
            MemcgError: A file cannot be written; nothing more of its channel is.
        """
        self._each(lambda stream: stream.write(time.time_ns()))
        return self._usage

    def close(self) -> None:
        """Take the rest, and close all files. Twice is once.

        Raises:
            MemcgError: A file cannot be written; the others are closed.
        """
        try:
            self._each(_Stream.finish)
        finally:
            self.drop()
            self._streams = []

    def _each(self, do: Callable[[_Stream], None]) -> None:
        """With each stream for itself, and then the first error. What is in a file that could not be written nobody knows."""
        failed: list[MemcgError] = []
        for stream in list(self._streams):
            try:
                do(stream)
            except BaseException as error:
                self._streams.remove(stream)
                stream.drop()
                if not isinstance(error, MemcgError):
                    raise
                failed.append(error)
        if failed:
            raise failed[0]

    def drop(self) -> None:
        """Leave out what is not in a closed file yet."""
        for stream in self._streams:
            stream.drop()

    def told(self, channel: Channel, rows: int, lost: int) -> None:
        """Count what a stream has taken."""
        self.lost += lost
        self._usage += rows * (channel.name == "usage")

    def closed(self, channel: Channel, rows: int, size_bytes: int) -> None:
        """Count a file."""
        self.files += 1
        self.size_bytes += size_bytes
        self.rows[channel.name] = self.rows.get(channel.name, 0) + rows

    def said_of(self, channel: Channel, texts: Texts | None) -> dict[str, Any]:
        """What a file says of itself when it is closed."""
        said = self._said() | {"channel": channel.name}
        if texts is not None and "spans" in said["info"]:
            said["info"]["spans"]["int_refs"] = bool(texts.int_refs)
        return said

    def __enter__(self) -> DataSet:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(MemcgError) if isinstance(value, MemcgError) else nullcontext():  # the first says most
            self.close()


@dataclass(slots=True)
class _File:
    """One that is not closed yet."""

    part: Part
    writer: Any
    table: Table
    begin_ns: int
    rows: int = 0


class _Stream:
    """One channel on its way into files."""

    def __init__(self, dataset: DataSet, channel: Channel) -> None:
        self._set = dataset
        self._channel = channel
        self._cursor = first_row(channel)
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._file: _File | None = None
        self._number = 0
        self._part = dataset.part_of_day(time.time_ns())

    def write(self, now_ns: int) -> None:
        """Take rows, where there are many or the time of a file has begun; close the file, if its own is over."""
        part = self._set.part_of_day(now_ns)
        if part != self._part or self._channel.head - self._cursor >= max(1, self._channel.capacity // _PENDING_SHARE):
            self._part = part
            self.take()
        if self._file is not None and now_ns > self._file.begin_ns + self._set._roll_ns + _LATE_NS:  # noqa: SLF001 - one room
            self.take()
            self.close()

    def take(self) -> None:
        """Take all rows that there are."""
        window, self._cursor, lost = self._channel.read(self._cursor)
        self._set.told(self._channel, len(window), lost)
        if len(window) == 0:
            return
        parts = self._set.part_of_day(self._channel.realtime_ns(window[self._channel.time]))
        cuts = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(window)]
        for first, end in pairwise(cuts):
            self._put(window.part(first, end), int(parts[first]))

    def _put(self, window: Window, begin_ns: int) -> None:
        if self._file is not None and self._file.begin_ns != begin_ns:
            self.close()
        if self._file is None:
            self._file = self._open(begin_ns)
        batch = self._file.table.batch(window)
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_bytes >= _GROUP_BYTES:
            self._flush(self._file)
            if self._file.part.file.tell() >= self._set._roll_bytes:  # noqa: SLF001 - one room
                self.close()

    def _open(self, begin_ns: int) -> _File:
        texts = Texts.of(self._channel, {}) if self._channel.name == "spans" else None
        table = Table(self._channel, self._set.said_of(self._channel, texts), texts)
        part = Part(self._set.place(self._channel.name, begin_ns, self._number))
        self._number += 1
        return _File(part, parquet.writer(part.file, table.schema), table, begin_ns)

    def _flush(self, file: _File) -> None:
        if self._pending:
            rows = pa.Table.from_batches(self._pending)
            try:
                file.writer.write_table(rows, row_group_size=max(1, rows.num_rows))
            except OSError as error:
                raise unwritten(file.part.path, error) from error
            file.rows += rows.num_rows
        self._pending, self._pending_bytes = [], 0

    def finish(self) -> None:
        """Take the rest, and give the file its name."""
        self.take()
        self.close()

    def close(self) -> None:
        """Give the file its name."""
        if self._file is None:
            return
        file = self._file
        self._flush(file)
        said = self._set.said_of(self._channel, file.table.texts)
        try:
            file.writer.add_key_value_metadata({KEY.decode(): json.dumps(said)})
            file.writer.close()
        except OSError as error:
            raise unwritten(file.part.path, error) from error
        self._set.closed(self._channel, file.rows, file.part.keep())
        self._file = None

    def drop(self) -> None:
        """Remove the file, if it has no name yet."""
        if self._file is not None:
            with suppress(OSError):  # there may be no room for what nobody will read
                self._file.writer.close()
            self._file.part.drop()
            self._file = None
            self._pending, self._pending_bytes = [], 0
