# SPDX-License-Identifier: Apache-2.0
"""Recordings: the ring's own format in a file, written by an ordinary thread and mapped back as the same channels."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from pymemcg import schema
from pymemcg._ffi import ffi
from pymemcg._remains import Remains
from pymemcg._spanlog import SpanChannel, Texts
from pymemcg._stall import POLICY
from pymemcg.channel import Channel, Channels
from pymemcg.errors import RecordingError
from pymemcg.ring import RECORDING_ALIGN, ChannelSpec, Ring, create
from pymemcg.stalls import stalls

if TYPE_CHECKING:
    from types import TracebackType

    from pymemcg._hit import Hits, Summary
    from pymemcg.sampler import Sampler
    from pymemcg.stalls import Policy, Stalls


_PROCESSES = 64
_RECLAIMS = 1 << 26
"""Rows of `reclaim` for which room is made at most: hours of the fastest reclaim, in a file that every file system takes."""
_GROWTH = 4
"""Of processes, room is made for so many, and for so many times as many as there are: the file is sparse."""


class Recording(Channels):
    """The channels of a recording or of a ring file, as a sampler has them; one that was not recorded has no columns.

    Of a ring that a process uses now it has what was there when it was opened, in memory.

    Args:
        path: The file.

    Attributes:
        path: The file.
        info: What it says of itself: target, kernel, host, what was absent and why.
        header: A copy of the file's header, as docs/file-format.md has it; its `state` tells of the sampler.
        is_ring: It is a sampler's ring, not a finished recording.
        is_copy: It is a ring's copy on a disk, which is made ten times a second.
        live: It is a ring that a process used when it was opened.

    Raises:
        RecordingError: It cannot be opened, is no recording, of another version, or nothing of it can be read. Of a file that
            is damaged, or cut short, it has what can be read; `missing` tells what is not there.

    Thread-safe. Arrays keep the file mapped.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for its writer
        except OSError as error:
            raise RecordingError(f"cannot be opened: {error.strerror}", path=self.path) from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise RecordingError("is no file", path=self.path)
            self._ring = ring = Remains(fd, self.path)
        finally:
            os.close(fd)
        self.info: dict[str, Any] = ring.info
        self.header: Any = ring.header
        self.is_ring, self.is_copy, self.live = ring.is_ring, ring.is_copy, ring.live
        for name in schema.CHANNELS:
            setattr(self, name, Channel(name, ring, ring.tables.get(name), live=False))

    @property
    def missing(self) -> dict[str, str]:
        """What is damaged and cannot be read, and why: by channel, or "file", "header", "info". Looks at the times of all rows.

        Rows whose times are none, or not between those of the rows beside them, are left out of their channel, and a channel
        that is damaged so is copied where it is used.
        """
        return self._ring.missing

    def hits(self, *, min_ns: int = 0) -> Hits:
        """The recorded spans that fell together with reclaim; see `Sampler.hits`."""
        from pymemcg import _hitting

        return _hitting.recorded(self).hits(min_ns=min_ns)

    def summary(self) -> Summary:
        """How long the recorded spans took, by name, with and without what they lost to reclaim."""
        from pymemcg import _hitting

        return _hitting.recorded(self).summary()

    def stalls(self, *, min_ns: int = 0, evidence: str = "auto", policy: Policy = POLICY) -> Stalls:
        """Find all stalls in it; see `pymemcg.stalls`."""
        return stalls(self, min_ns=min_ns, evidence=evidence, policy=policy)

    def __repr__(self) -> str:
        return f"<Recording {self.path!r}: {self.usage.head} rows of usage>"


def open(path: str | os.PathLike[str]) -> Recording:  # noqa: A001 - as in gzip.open
    """Open a recording; see `Recording`."""
    return Recording(path)


def first_row(channel: Channel) -> int:
    """With which of a live channel's rows a recording begins that begins now."""
    if channel.name in ("limits", "clock"):  # what holds at the beginning was said before it
        return 0
    if channel.name == "pressure":  # the window of PSI that goes on at the beginning is known by the row before
        return max(0, channel.head - 1)
    return channel.head


class Recorder:
    """Writes what a sampler samples into a file of the ring's own format.

    Rows go with `pwrite` to their columns in a sparse file of the wanted capacity, and the heads after them, so the file is
    whole after every `write`. `close` rewrites it without the room that was not needed.

    Args:
        sampler: A running one.
        path: The file; it is replaced when the recording is whole.
        seconds: The most that will be recorded.

    Attributes:
        path: The file.
        lost: Rows that the sampler's ring had overwritten before they were written out.
        cut: Rows for which the file had no room: more time passed, or more processes came, than was made room for.

    Raises:
        RecordingError: The file cannot be created.

    Not thread-safe: one thread at a time.
    """

    def __init__(self, sampler: Sampler, path: str | os.PathLike[str], seconds: float) -> None:
        self.path = os.fspath(path)
        self.lost = 0
        self.cut = 0
        channels = [getattr(sampler, name) for name in schema.CHANNELS]
        channels.sort(key=lambda channel: channel.position)  # as in the ring, since rows of `events` speak of positions
        self._channels: dict[str, Channel] = {channel.name: channel for channel in channels if channel.names}
        self._cursors = {name: first_row(channel) for name, channel in self._channels.items()}
        self._rows = dict.fromkeys(self._channels, 0)
        self._info = sampler.describe()
        spans = self._channels.get("spans")
        self._texts = Texts(spans.log, os.getpid()) if isinstance(spans, SpanChannel) else None
        self._seconds = seconds
        self._part = f"{self.path}.part"
        self._fd = self._make(self._part, self._wanted)
        self._ring = Ring(self._fd, self._part)

    def _wanted(self, channel: Channel) -> int:
        """Rows to make room for: by the clock where rows come by the clock, else what the ring holds over its own history."""
        if channel.name in ("reclaim", "spans"):
            return max(channel.capacity, min(channel.capacity * (1 + int(self._seconds)), _RECLAIMS))
        if channel.period_ns == 0:
            return channel.capacity * (1 + int(self._seconds // 60))
        if channel.name == "processes":
            hz = max(_GROWTH * len(channel.window(seconds=1)), _PROCESSES * 1e9 / channel.period_ns)
            return max(channel.capacity, int((self._seconds + 1) * hz))
        return int((self._seconds + 1) * 1e9 / channel.period_ns * 1.05) + 64

    def _make(self, path: str, rows: Any) -> int:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            specs = [ChannelSpec(c.name, c.period_ns, max(1, rows(c)), dict(c.units)) for c in self._channels.values()]
            self._create(fd, path, specs)
        except OSError as error:
            raise RecordingError(f"cannot be created: {error.strerror}", path=path) from error
        return fd

    def _create(self, fd: int, path: str, specs: list[ChannelSpec]) -> None:
        try:
            create(fd, specs, self._info, align=RECORDING_ALIGN, reserve=False)
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise

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
            self.cut += max(0, len(window) - room)
            for column, offset in table.offsets.items():
                values = window[column][:room]
                if column == "ref_id" and self._texts:  # the channel's own are good for as long as it keeps the row
                    values = self._texts.ref_ids(values)
                self._put(self._fd, values.tobytes(), offset + 8 * self._rows[name])
            self._rows[name] += min(room, len(window))
        self._publish(self._fd, self._ring)
        return self._rows["usage"]

    def _publish(self, fd: int, ring: Ring) -> None:
        entry = ffi.typeof("struct memcg_channel_header")
        for name, table in ring.tables.items():
            at = ring.header.channels_offset + table.index * ffi.sizeof(entry)
            closed_ns, closed_errno = self._channels[name].closed_at or (0, 0)
            for word, value in (("head", self._rows[name]), ("closed_errno", closed_errno), ("closed_ns", closed_ns)):
                self._put(fd, ffi.buffer(ffi.new("uint64_t *", value))[:], at + ffi.offsetof(entry, word))

    def _put(self, fd: int, data: bytes, at: int) -> None:
        """All of it: a disk that is almost full takes a part and says nothing."""
        try:
            while data:
                done = os.pwrite(fd, data, at)
                data, at = data[done:], at + done
        except OSError as error:
            raise RecordingError(f"cannot be written: {error.strerror}", path=self.path, hint=self._rest) from error

    @property
    def _rest(self) -> str:
        return f"{self._part} is a recording too, of what was written until then"

    def close(self) -> None:
        """Write the last rows and put the recording, without unused room, in its place.

        Raises:
            RecordingError: There is no room for it; what could be written stays beside it, as the error says.
        """
        try:
            self.write()
            self._finish()
        finally:
            os.close(self._fd)

    def _finish(self) -> None:
        whole = f"{self.path}.whole"
        if self._texts:
            self._info["spans"] = self._texts.info()
        try:
            fd = self._make(whole, lambda channel: self._rows[channel.name])
        except RecordingError as error:
            error.hint = self._rest
            raise
        try:
            ring = Ring(fd, whole)
            for name, table in ring.tables.items():
                for column, offset in table.offsets.items():
                    self._copy(self._ring.tables[name].offsets[column], fd, offset, 8 * self._rows[name])
            self._publish(fd, ring)
            os.replace(whole, self.path)
        except BaseException:
            os.unlink(whole)
            raise
        finally:
            os.close(fd)
        os.unlink(self._part)

    def _copy(self, source: int, fd: int, to: int, size: int) -> None:
        done = 0
        while done < size:
            chunk = os.pread(self._fd, min(1 << 20, size - done), source + done)
            self._put(fd, chunk, to + done)
            done += len(chunk)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(value, RecordingError):
            os.close(self._fd)  # it cannot be written any more
        else:
            self.close()
