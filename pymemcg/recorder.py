# SPDX-License-Identifier: Apache-2.0
"""Recordings as they are written: by an ordinary thread, in the ring's own format."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pymemcg import schema
from pymemcg._ffi import ffi
from pymemcg._spanlog import SpanChannel, Texts
from pymemcg.errors import RecordingError
from pymemcg.ring import RECORDING_ALIGN, ChannelSpec, Ring, create

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from pymemcg.channel import Channel, Window
    from pymemcg.sampler import Sampler

SEGMENT_S: Final = 600
"""How much a part of a recording holds, about: what is written of one need not stay in memory when the next begins."""
_PROCESSES: Final = 64
"""For so many at least there is room in a part."""
_CHUNK: Final = 1 << 20


def first_row(channel: Channel) -> int:
    """With which of a live channel's rows a recording begins that begins now."""
    if channel.name in ("limits", "clock"):  # what holds at the beginning was said before it
        return 0
    if channel.name == "pressure":  # the window of PSI that goes on at the beginning is known by the row before
        return max(0, channel.head - 1)
    return channel.head


@dataclass
class _Part:
    """A file of some of a recording's rows, which is a recording too."""

    path: str
    fd: int
    ring: Ring
    rows: dict[str, int]

    def room(self, name: str) -> int:
        return self.ring.tables[name].capacity - self.rows[name]

    def put(self, name: str, columns: Mapping[str, bytes], rows: int) -> None:
        """Append rows of a channel; they are shown by `publish`."""
        for column, data in columns.items():
            self._write(data, self.ring.tables[name].offsets[column] + 8 * self.rows[name])
        self.rows[name] += rows

    def take(self, name: str, column: str) -> Iterator[bytes]:
        """A column, in pieces."""
        at, size = self.ring.tables[name].offsets[column], 8 * self.rows[name]
        for done in range(0, size, _CHUNK):
            yield os.pread(self.fd, min(_CHUNK, size - done), at + done)

    def append(self, part: _Part) -> None:
        """All rows of a later part."""
        for name, table in self.ring.tables.items():
            for column, offset in table.offsets.items():
                at = offset + 8 * self.rows[name]
                for data in part.take(name, column):
                    self._write(data, at)
                    at += len(data)
            self.rows[name] += part.rows[name]

    def publish(self, channels: Mapping[str, Channel]) -> None:
        entry = ffi.typeof("struct memcg_channel_header")
        for name, table in self.ring.tables.items():
            at = self.ring.header.channels_offset + table.index * ffi.sizeof(entry)
            closed_ns, closed_errno = channels[name].closed_at or (0, 0)
            for word, value in (("head", self.rows[name]), ("closed_errno", closed_errno), ("closed_ns", closed_ns)):
                self._write(ffi.buffer(ffi.new("uint64_t *", value))[:], at + ffi.offsetof(entry, word))

    def _write(self, data: bytes, at: int) -> None:
        """All of it: a disk that is almost full takes a part and says nothing."""
        while data:
            done = os.pwrite(self.fd, data, at)
            data, at = data[done:], at + done

    def rest(self) -> None:
        """Nothing more is written: let the disk have it, so that it need not stay in memory."""
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fdatasync(self.fd)
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)


class Recorder:
    """Writes what a sampler samples into a file of the ring's own format.

    Rows go with `pwrite` to their columns in a sparse file, and the heads after them, so that the file is whole after every
    `write`; when it is full, or holds ten minutes, the next part begins. `close` puts the parts together, without the room that
    was not needed; what is put together stands in one of the files at any moment.

    Args:
        sampler: A running one.
        path: The file; it is replaced when the recording is whole.

    Attributes:
        path: The file.
        lost: Rows that the sampler's ring had overwritten before they were written out.

    Raises:
        RecordingError: The file cannot be created.

    Not thread-safe: one thread at a time.
    """

    def __init__(self, sampler: Sampler, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.lost = 0
        channels = [getattr(sampler, name) for name in schema.CHANNELS]
        channels.sort(key=lambda channel: channel.position)  # as in the ring, since rows of `events` speak of positions
        self._channels: dict[str, Channel] = {channel.name: channel for channel in channels if channel.names}
        self._cursors = {name: first_row(channel) for name, channel in self._channels.items()}
        self._info = sampler.describe()
        spans = self._channels.get("spans")
        self._texts = Texts(spans.log, os.getpid()) if isinstance(spans, SpanChannel) else None
        self._parts: list[_Part] = []
        self._next()

    def _next(self) -> None:
        number = f".{len(self._parts)}" if self._parts else ""
        self._parts.append(self._make(f"{self.path}.part{number}", self._wanted))
        self._since = time.monotonic()

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

    def _make(self, path: str, rows: Callable[[Channel], int]) -> _Part:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            specs = [ChannelSpec(c.name, c.period_ns, max(1, rows(c)), dict(c.units)) for c in self._channels.values()]
            try:
                create(fd, specs, self._info, align=RECORDING_ALIGN, reserve=False)
                return _Part(path, fd, Ring(fd, path), dict.fromkeys(self._channels, 0))
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
            self._parts[-1].publish(self._channels)
        except RecordingError:
            raise
        except OSError as error:
            raise RecordingError(f"cannot be written: {error.strerror}", path=self.path, hint=self._rest) from error
        return sum(part.rows["usage"] for part in self._parts)

    def _put(self, name: str, window: Window) -> None:
        columns = {column: window[column] for column in window}
        if "ref_id" in columns and self._texts:  # the channel's own are good for as long as it keeps the row
            columns["ref_id"] = self._texts.ref_ids(columns["ref_id"])
        done = 0
        while done < len(window):
            if self._parts[-1].room(name) == 0:
                self._roll()
            rows = min(len(window) - done, self._parts[-1].room(name))
            self._parts[-1].put(name, {c: values[done : done + rows].tobytes() for c, values in columns.items()}, rows)
            done += rows

    def _roll(self) -> None:
        self._parts[-1].publish(self._channels)
        self._parts[-1].rest()
        self._next()

    @property
    def _rest(self) -> str | None:
        """Where it is what has been written."""
        files = [part.path for part in self._parts]
        also = "is a recording too" if len(files) == 1 else "are recordings too"
        return f"{', '.join(files)} {also}, of what was written until then" if files else None

    def close(self) -> None:
        """Write the last rows and put the recording, without unused room, in its place.

        Raises:
            RecordingError: There is no room for it; what could be written stays beside it, as the error says.
        """
        try:
            self.write()
            self._finish()
        finally:
            self._let_go()

    def _finish(self) -> None:
        if self._texts:
            self._info["spans"] = self._texts.info()
        whole = self._make(f"{self.path}.whole", lambda channel: sum(part.rows[channel.name] for part in self._parts))
        parts, self._parts = self._parts, [whole, *self._parts]
        try:
            for part in parts:
                whole.append(part)
                whole.publish(self._channels)
                whole.rest()
                if part is not parts[-1]:  # as long as there is only one, it is all there is
                    self._drop(part)
            os.replace(whole.path, self.path)
            self._drop(parts[-1])
        except BaseException as error:
            if len(self._parts) > len(parts):  # the parts are all there: it has nothing that they have not
                self._drop(whole)
            if not isinstance(error, OSError):
                raise
            raise RecordingError(f"cannot be written: {error.strerror}", path=self.path, hint=self._rest) from error

    def _drop(self, part: _Part) -> None:
        os.unlink(part.path)
        os.close(part.fd)
        self._parts.remove(part)

    def _let_go(self) -> None:
        for part in self._parts:
            os.close(part.fd)
        self._parts = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(value, RecordingError):
            self._let_go()  # it cannot be written any more
        else:
            self.close()
