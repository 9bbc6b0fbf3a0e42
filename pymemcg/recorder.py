# SPDX-License-Identifier: Apache-2.0
"""Recordings as they are written: by an ordinary thread, in the ring's own format."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pymemcg import schema
from pymemcg._leftovers import being_written, join, lay_aside, locked
from pymemcg._rowfile import RowFile, reading
from pymemcg._spanlog import SpanChannel, Texts
from pymemcg.errors import RecordingError
from pymemcg.ring import RECORDING_ALIGN, ChannelSpec, create

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pymemcg.channel import Channel, Window
    from pymemcg.sampler import Sampler

__all__ = ["Recorder", "first_row", "join"]

SEGMENT_S: Final = 600
"""How much a part of a recording holds, about: what is written of one need not stay in memory when the next begins."""
_PROCESSES: Final = 64
"""For so many at least there is room in a part."""
_NAMED: Final = 3
"""So many files are named one by one where there are many."""


def first_row(channel: Channel) -> int:
    """With which of a live channel's rows a recording begins that begins now."""
    if channel.name in ("limits", "clock"):  # what holds at the beginning was said before it
        return 0
    if channel.name == "pressure":  # the window of PSI that goes on at the beginning is known by the row before
        return max(0, channel.head - 1)
    return channel.head


class Recorder:
    """Writes what a sampler samples into a file of the ring's own format.

    Rows go with `pwrite` to their columns in a sparse file, and the heads after them, so that the file is whole after every
    `write`; when it is full, or holds ten minutes, the next part begins (PATH.part, PATH.part.1 and so on). `close` puts the
    parts together, without the room that was not needed; what is put together stands in one of the files at any moment.

    What a recording into the same file has left that was broken off, by a kill, is renamed; `join` puts it together.

    Args:
        sampler: A running one.
        path: The file; it is replaced when the recording is whole.

    Attributes:
        path: The file.
        left: For `join`: by what name there is now what a recording that was broken off had left, or None.
        lost: Rows that the sampler's ring had overwritten before they were written out.

    Raises:
        RecordingError: The file cannot be created, or another recorder writes it.

    Not thread-safe: one thread at a time.
    """

    def __init__(self, sampler: Sampler, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        if os.path.isdir(self.path):  # it would be heard of at the end, when all is sampled
            raise RecordingError("is a folder, and the recording is one file", path=self.path)
        self.lost = 0
        channels = [getattr(sampler, name) for name in schema.CHANNELS]
        channels.sort(key=lambda channel: channel.position)  # as in the ring, since rows of `events` speak of positions
        self._channels: dict[str, Channel] = {channel.name: channel for channel in channels if channel.names}
        self._cursors = {name: first_row(channel) for name, channel in self._channels.items()}
        self._info = sampler.describe()
        spans = self._channels.get("spans")
        self._texts = Texts(spans.log, os.getpid()) if isinstance(spans, SpanChannel) else None
        self._files: dict[str, dict[str, int]] = {}  # in the order of their rows: how many by channel
        try:
            self.left = lay_aside(self.path)
        except OSError as error:
            raise RecordingError(f"cannot be created: {error.strerror}", path=self.path) from error
        self._part = self._next()

    def _next(self) -> RowFile:
        number = f".{len(self._files)}" if self._files else ""
        part = self._make(f"{self.path}.part{number}", self._wanted)
        self._files[part.path] = part.rows
        self._since = time.monotonic()
        return part

    def _wanted(self, channel: Channel) -> int:
        """Rows to make room for: by the clock where rows come by the clock, else what the ring holds, often."""
        if channel.name == "processes":
            hz = max(len(channel.window(seconds=1)), _PROCESSES * 1e9 / channel.period_ns)
            return max(channel.capacity, int(SEGMENT_S * hz))
        if channel.name in ("reclaim", "spans"):
            return channel.capacity * 64
        if channel.period_ns == 0:
            return channel.capacity
        return int((SEGMENT_S + 1) * 1e9 / channel.period_ns * 1.05) + 64

    def _make(self, path: str, rows: Callable[[Channel], int]) -> RowFile:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            if not locked(fd, path):
                os.close(fd)
                raise being_written(self.path)
            specs = [ChannelSpec(c.name, c.period_ns, max(1, rows(c)), dict(c.units)) for c in self._channels.values()]
            try:
                create(fd, specs, self._info, align=RECORDING_ALIGN, reserve=False)
                return RowFile(fd, path)
            except BaseException:
                os.close(fd)
                os.unlink(path)
                raise
        except OSError as error:
            raise RecordingError(f"cannot be created: {error.strerror}", path=path, hint=self._rest) from error

    def write(self) -> int:
        """Append what has come since the last call.

        Returns:
            Rows of `usage` so far.
        """
        try:
            if time.monotonic() > self._since + SEGMENT_S:
                self._roll()
            for name, channel in self._channels.items():
                window, self._cursors[name], lost = channel.read(self._cursors[name])
                self.lost += lost
                self._put(name, window)
            self._publish(self._part)
        except RecordingError:
            raise
        except OSError as error:
            raise RecordingError(f"cannot be written: {error.strerror}", path=self.path, hint=self._rest) from error
        return sum(rows["usage"] for rows in self._files.values())

    def _put(self, name: str, window: Window) -> None:
        columns = {column: window[column] for column in window}
        if "ref_id" in columns and self._texts:  # the channel's own are good for as long as it keeps the row
            columns["ref_id"] = self._texts.ref_ids(columns["ref_id"])
        done = 0
        while done < len(window):
            if self._part.room(name) == 0:
                self._roll()
            rows = min(len(window) - done, self._part.room(name))
            self._part.put(name, {c: values[done : done + rows].tobytes() for c, values in columns.items()}, rows)
            done += rows

    def _roll(self) -> None:
        self._publish(self._part)
        self._part.rest()
        done, self._part = self._part, self._next()
        done.close()

    def _publish(self, file: RowFile) -> None:
        file.publish({name: channel.closed_at for name, channel in self._channels.items()})

    @property
    def _rest(self) -> str | None:
        """Where it is what has been written."""
        files = list(self._files)
        if len(files) < 2:
            return f"{files[0]} is a recording too, of what was written until then" if files else None
        named = ", ".join(files) if len(files) <= _NAMED else f"{files[0]} to {files[-1]}, {len(files)} files,"
        return f"{named} are recordings too, of what was written until then; pymemcg.recorder.join makes one of them"

    def close(self) -> None:
        """Write the last rows and put the recording, without unused room, in its place. Twice is once.

        Raises:
            RecordingError: There is no room for it; what could be written stays beside it, as the error says.
        """
        if not self._files:  # it is closed
            return
        try:
            self.write()
            self._finish()
        finally:
            self._let_go()

    def _finish(self) -> None:
        if self._texts:
            self._info["spans"] = self._texts.info()
        parts = list(self._files)
        whole = self._make(f"{self.path}.whole", lambda channel: sum(rows[channel.name] for rows in self._files.values()))
        self._part.close()
        self._part, self._files = whole, {whole.path: whole.rows, **self._files}
        try:
            for path in parts:
                with reading(path) as part:
                    whole.append(part)
                self._publish(whole)
                whole.rest()
                self._drop(path)
            os.replace(whole.path, self.path)
        except BaseException as error:
            if len(self._files) > len(parts):  # the parts are all there: it has nothing that they have not
                self._drop(whole.path)
            if not isinstance(error, OSError):
                raise
            raise RecordingError(f"cannot be written: {error.strerror}", path=self.path, hint=self._rest) from error

    def _drop(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)
        del self._files[path]

    def _let_go(self) -> None:
        self._part.close()
        self._files = {}

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(value, RecordingError):
            self._let_go()  # it cannot be written any more
        else:
            self.close()
