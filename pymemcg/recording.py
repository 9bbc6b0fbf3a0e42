# SPDX-License-Identifier: Apache-2.0
"""Recordings: the ring's own format in a file, written by an ordinary thread and mapped back as the same channels."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pymemcg import schema
from pymemcg._ffi import ffi
from pymemcg.channel import Channel
from pymemcg.errors import RecordingError
from pymemcg.ring import RECORDING_ALIGN, ChannelSpec, Ring, create

if TYPE_CHECKING:
    from types import TracebackType

    from pymemcg.sampler import Sampler


class Recording:
    """A recording's channels, as a sampler has them.

    Args:
        path: The file.

    Attributes:
        path: The file.
        info: What it says of itself: target, kernel, host, what was absent and why.
        usage, stat, pressure, limits, node, processes, clock, events: The channels; one that was not recorded has no columns.

    Raises:
        RecordingError: It cannot be opened, is damaged, no recording, or of another version.

    Thread-safe. Arrays keep the file mapped.
    """

    usage: Channel
    stat: Channel
    pressure: Channel
    limits: Channel
    node: Channel
    processes: Channel
    clock: Channel
    events: Channel

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise RecordingError(f"cannot be opened: {error.strerror}", path=self.path) from error
        try:
            ring = Ring(fd, self.path)
        finally:
            os.close(fd)
        self.info: dict[str, Any] = ring.info
        for name in schema.CHANNELS:
            setattr(self, name, Channel(name, ring, ring.tables.get(name), live=False))

    def __repr__(self) -> str:
        return f"<Recording {self.path!r}: {self.usage.head} rows of usage>"


def open(path: str | os.PathLike[str]) -> Recording:  # noqa: A001 - as in gzip.open
    """Open a recording; see `Recording`."""
    return Recording(path)


class Recorder:
    """Writes what a sampler samples into a file of the ring's own format.

    Rows go with `pwrite` to their columns in a sparse file of the wanted capacity, and the heads after them, so the file is
    whole after every `write`. `close` rewrites it without the room that was not needed.

    Args:
        sampler: A running one.
        path: The file; it is replaced when the recording is whole.
        seconds: The most that will be recorded.

    Raises:
        RecordingError: The file cannot be created.

    Not thread-safe: one thread at a time.
    """

    def __init__(self, sampler: Sampler, path: str | os.PathLike[str], seconds: float) -> None:
        self.path = os.fspath(path)
        self.lost = 0
        self._channels = {name: getattr(sampler, name) for name in schema.CHANNELS}
        self._channels = {name: channel for name, channel in self._channels.items() if channel.names}
        self._cursors = {name: channel.head for name, channel in self._channels.items()}
        for name in ("limits", "clock"):  # what holds at the beginning was said before it
            self._cursors[name] = 0
        self._rows = dict.fromkeys(self._channels, 0)
        self._info = sampler.describe()
        self._seconds = seconds
        self._part = f"{self.path}.part"
        self._fd = self._make(self._part, self._wanted)
        self._ring = Ring(self._fd, self._part)

    def _wanted(self, channel: Channel) -> int:
        """Rows to make room for: by the clock where rows come by the clock, else what the ring holds over its own history."""
        if channel.period_ns == 0 or channel.name == "processes":
            return channel.capacity * (1 + int(self._seconds // 60))
        return int((self._seconds + 1) * 1e9 / channel.period_ns * 1.05) + 64

    def _make(self, path: str, rows: Any) -> int:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise RecordingError(f"cannot be created: {error.strerror}", path=path) from error
        specs = [ChannelSpec(c.name, c.period_ns, max(1, rows(c)), dict(c.units)) for c in self._channels.values()]
        create(fd, specs, self._info, align=RECORDING_ALIGN, reserve=False)
        return fd

    def write(self) -> int:
        """Append what has come since the last call.

        Returns:
            Rows of `usage` so far.
        """
        for name, channel in self._channels.items():
            window, self._cursors[name], lost = channel.read(self._cursors[name])
            self.lost += lost
            table = self._ring.tables[name]
            room = table.capacity - self._rows[name]
            self.lost += max(0, len(window) - room)
            for column, offset in table.offsets.items():
                os.pwrite(self._fd, window[column][:room].tobytes(), offset + 8 * self._rows[name])
            self._rows[name] += min(room, len(window))
        self._publish(self._fd, self._ring)
        return self._rows["usage"]

    def _publish(self, fd: int, ring: Ring) -> None:
        entry = ffi.typeof("struct memcg_channel_header")
        head = ffi.offsetof(entry, "head")
        for name, table in ring.tables.items():
            at = ring.header.channels_offset + table.index * ffi.sizeof(entry) + head
            os.pwrite(fd, ffi.buffer(ffi.new("uint64_t *", self._rows[name]))[:], at)

    def close(self) -> None:
        """Write the last rows and put the recording, without unused room, in its place."""
        self.write()
        whole = f"{self.path}.whole"
        fd = self._make(whole, lambda channel: self._rows[channel.name])
        ring = Ring(fd, whole)
        for name, table in self._ring.tables.items():
            for column, offset in table.offsets.items():
                self._copy(offset, fd, ring.tables[name].offsets[column], 8 * self._rows[name])
        self._publish(fd, ring)
        os.close(fd)
        os.close(self._fd)
        os.replace(whole, self.path)
        os.unlink(self._part)

    def _copy(self, source: int, fd: int, to: int, size: int) -> None:
        done = 0
        while done < size:
            chunk = os.pread(self._fd, min(1 << 20, size - done), source + done)
            done += os.pwrite(fd, chunk, to + done)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
