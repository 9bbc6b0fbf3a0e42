# SPDX-License-Identifier: Apache-2.0
"""A file of the ring's format that ordinary writes fill: rows go to their places, and then the words that show them."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from pymemcg._ffi import ffi
from pymemcg.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

_CHUNK: Final = 1 << 20
_HEADER: Final = "struct memcg_ring_header"
_ENTRY: Final = "struct memcg_channel_header"


class RowFile:
    """Nothing of it is mapped, however many there are.

    Args:
        fd: The file, which is laid out.
        path: What errors call it.

    Attributes:
        path: As given.
        fd: As given.
        info: What it says of itself.
        tables: Its channels.
        rows: Channel to how many there are, also those that are not shown yet.
        closed_at: Channel to when (ns) it was closed and with which errno, or None.
        created: CLOCK_MONOTONIC and CLOCK_REALTIME (ns) at one moment, and the boot.

    Raises:
        RecordingError: It is none, or damaged.

    Not thread-safe.
    """

    def __init__(self, fd: int, path: str) -> None:
        ring = Ring(fd, path)
        self.path, self.fd = path, fd
        self.info, self.tables = ring.info, ring.tables
        self.rows = {name: ring.head(table) for name, table in ring.tables.items()}
        self.closed_at = {name: ring.closed(table) for name, table in ring.tables.items()}
        header = ring.header
        self.created = (int(header.created_ns), int(header.created_realtime_ns), bytes(ffi.buffer(header.boot_id)))
        self._entries = int(header.channels_offset)

    def room(self, name: str) -> int:
        """For how many rows there is still room in a channel."""
        return self.tables[name].capacity - self.rows[name]

    def fill(self, name: str, column: str, pieces: Iterable[bytes]) -> None:
        """Write values of a column behind the channel's rows; they are rows when `rows` counts them."""
        at = self.tables[name].offsets[column] + 8 * self.rows[name]
        for data in pieces:
            self._write(data, at)
            at += len(data)

    def put(self, name: str, columns: Mapping[str, bytes], rows: int) -> None:
        """Append rows of a channel; `publish` shows them."""
        for column, data in columns.items():
            self.fill(name, column, (data,))
        self.rows[name] += rows

    def append(self, other: RowFile, *, without: Collection[str] = ()) -> None:
        """All rows of another with the same channels, but for some of these."""
        for name in self.tables.keys() - set(without):
            for column in self.tables[name].offsets:
                self.fill(name, column, other.take(name, column))
            self.rows[name] += other.rows[name]

    def take(self, name: str, column: str, first: int = 0) -> Iterator[bytes]:
        """A column from a row on, in pieces."""
        at, size = self.tables[name].offsets[column] + 8 * first, 8 * (self.rows[name] - first)
        for done in range(0, size, _CHUNK):
            yield os.pread(self.fd, min(_CHUNK, size - done), at + done)

    def ends_as(self, other: RowFile, name: str) -> bool:
        """Whether a channel has rows in both, and the same last one."""

        def last(file: RowFile) -> list[bytes]:
            return [b"".join(file.take(name, column, file.rows[name] - 1)) for column in file.tables[name].offsets]

        return bool(self.rows[name] and other.rows[name]) and last(self) == last(other)

    def publish(self, closed_at: Mapping[str, Sequence[int] | None]) -> None:
        """Show all rows, and which channels are closed."""
        for name, table in self.tables.items():
            closed_ns, closed_errno = closed_at[name] or (0, 0)
            at = self._entries + table.index * ffi.sizeof(_ENTRY)
            for word, value in (("head", self.rows[name]), ("closed_errno", closed_errno), ("closed_ns", closed_ns)):
                self._put_word(at + ffi.offsetof(_ENTRY, word), value)

    def date(self, created_ns: int, created_realtime_ns: int, boot_id: bytes) -> None:
        """Say by which clocks its times are, where they are older than it."""
        self._put_word(ffi.offsetof(_HEADER, "created_ns"), created_ns)
        self._put_word(ffi.offsetof(_HEADER, "created_realtime_ns"), created_realtime_ns)
        self._write(boot_id[:39].ljust(40, b"\0"), ffi.offsetof(_HEADER, "boot_id"))

    def _put_word(self, at: int, value: int) -> None:
        self._write(bytes(ffi.buffer(ffi.new("uint64_t *", value))), at)

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

    def close(self) -> None:
        """Close the file. Twice is once."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


@contextlib.contextmanager
def reading(path: str) -> Iterator[RowFile]:
    """One that is there.

    Raises:
        OSError: It cannot be opened.
        RecordingError: It is none, or damaged.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield RowFile(fd, path)
    finally:
        os.close(fd)
