# SPDX-License-Identifier: Apache-2.0
"""A ring as Python sees it: a read-only mapping, its tables, and its columns as arrays without a copy."""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pymemcg._ffi import check_ring, ffi, lib, text
from pymemcg._said import whole_info
from pymemcg.errors import RecordingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"PYMEMCG\0"
"""What a ring begins with, from when it is whole."""

RECORDING_ALIGN = 65536
"""Columns of a recording begin on multiples of this, the largest page that Linux uses, so that any machine can map them."""


@dataclass(frozen=True, slots=True)
class ChannelSpec:
    """A table to be laid out.

    Attributes:
        name: Of the channel.
        period_ns: Nominal distance of rows; 0 where rows come as they happen.
        rows: Wanted capacity.
        columns: Column name to unit, in order.
    """

    name: str
    period_ns: int
    rows: int
    columns: dict[str, str]


def create(fd: int, channels: Sequence[ChannelSpec], info: dict[str, Any], *, align: int, reserve: bool) -> None:
    """Lay out a ring in the empty file `fd`.

    Args:
        fd: Open for reading and writing.
        channels: The tables.
        info: What the ring says of itself; JSON.
        align: To what columns are aligned: the page size, or RECORDING_ALIGN.
        reserve: Allocate every byte now; without it the file is sparse.

    Raises:
        SourceError: No room (ENOSPC), or a name or table that does not fit.
    """
    alive: list[Any] = []

    def c_text(value: str) -> Any:
        alive.append(ffi.new("char[]", value.encode()))
        return alive[-1]

    specs = ffi.new("struct memcg_channel_spec[]", len(channels))
    for spec, channel in zip(specs, channels, strict=True):
        columns = ffi.new("struct memcg_column_spec[]", [(c_text(n), c_text(u)) for n, u in channel.columns.items()])
        alive.append(columns)
        spec.name, spec.period_ns, spec.rows = c_text(channel.name), channel.period_ns, channel.rows
        spec.columns, spec.column = len(channel.columns), columns
    data = json.dumps(info).encode()
    check_ring(
        lib.memcg_ring_create(fd, specs, len(channels), data, len(data), align, reserve), "the ring", "cannot be created"
    )


def is_used(fd: int) -> bool:
    """Whether a process uses the ring in this file, opened for this question: whoever does holds a lock on it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system that has no locks has no users either
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


@dataclass(frozen=True, slots=True)
class Table:
    """One channel's entry in a ring.

    Attributes:
        index: Its position.
        name: Of the channel.
        capacity: Rows that it holds.
        period_ns: Nominal distance of rows; 0 where rows come as they happen.
        first: Index of its first column in the ring.
        units: Column name to unit, in order.
        offsets: Column name to its place in the file.
    """

    index: int
    name: str
    capacity: int
    period_ns: int
    first: int
    units: dict[str, str]
    offsets: dict[str, int]


class _Memory:
    """Lets numpy make a read-only array of mapped memory, which keeps the mapping alive as its base."""

    def __init__(self, ring: Ring, address: int, rows: int) -> None:
        self._ring = ring
        typestr = "<i8" if ffi.cast("char *", ffi.new("int *", 1))[0] == b"\1" else ">i8"
        self.__array_interface__ = {"version": 3, "data": (address, True), "shape": (rows,), "typestr": typestr}


def _info(data: bytes, path: str) -> dict[str, Any]:
    try:
        return whole_info(data)
    except (ValueError, TypeError, RecursionError) as error:
        raise RecordingError(f"is damaged: what it says of itself: {error}", path=path) from error


class Ring:
    """A read-only mapping of a ring, live or recorded.

    Args:
        fd: The ring's file; it may be closed afterwards.
        path: What errors call it.

    Raises:
        RecordingError: It is damaged, no ring, or of another version.

    Thread-safe. Arrays made from it keep it mapped.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.path = path
        out = ffi.new("struct memcg_map **")
        check_ring(lib.memcg_map_open(fd, out), path, "cannot be mapped")
        self._map = ffi.gc(out[0], lib.memcg_map_free)
        self.header = lib.memcg_map_header(self._map)
        layout = lib.memcg_map_layout(self._map)
        base = ffi.cast("char *", layout)
        self.info = _info(ffi.buffer(base + layout.info_offset, layout.info_bytes)[:], path)
        channels = ffi.cast("struct memcg_channel_header *", base + layout.channels_offset)
        columns = ffi.cast("struct memcg_column_header *", base + layout.columns_offset)
        mapped = ffi.cast("char *", self.header) + layout.channels_offset
        self._channels = ffi.cast("struct memcg_channel_header *", mapped)
        self.tables: dict[str, Table] = {}
        for i in range(layout.channels):
            c = channels[i]
            mine = [columns[k] for k in range(c.first_column, c.first_column + c.columns)]
            units = {text(k.name): text(k.unit) for k in mine}
            offsets = {text(k.name): k.offset for k in mine}
            self.tables[text(c.name)] = Table(i, text(c.name), c.capacity, c.period_ns, c.first_column, units, offsets)

    def column(self, table: Table, name: str) -> NDArray[np.int64]:
        """One column, twice in a row: shape (2 * capacity,), int64, read-only, no copy.

        Row i is element i % capacity, and so is what follows it: a window is one slice.
        """
        import numpy as np

        index = table.first + list(table.units).index(name)
        address = int(ffi.cast("uintptr_t", lib.memcg_map_column(self._map, index)))
        return np.asarray(_Memory(self, address, 2 * table.capacity))

    def forget(self, table: Table, first: int, end: int) -> None:
        """Take rows [first, end) of all columns out of this process's memory until they are read again."""
        for index in range(table.first, table.first + len(table.units)):
            lib.memcg_map_forget(self._map, index, first, end)

    def head(self, table: Table) -> int:
        """Rows published so far. Rows that were read before this call are whole if they are > head - capacity."""
        return lib.memcg_map_head(self._map, table.index)  # type: ignore[no-any-return]

    def oldest(self, table: Table) -> int:
        """The oldest row that is whole while somebody writes: the next ones may be in the places of those before it.

        Where the ring is copied to a disk many rows are written at once, and up to which is said before.
        """
        head = self.head(table)  # first: what is read after it is not older than the rows that were read before it
        return max(0, max(head, self._channels[table.index].begun) - table.capacity + 1)  # type: ignore[no-any-return]

    def lost(self, table: Table) -> int:
        """Rows of a channel with several writers that one of them had no room for while another held the lock."""
        return self._channels[table.index].lost  # type: ignore[no-any-return]

    @property
    def is_copy(self) -> bool:
        """Whether it is a sampler's ring copied to a disk."""
        return any(self._channels[table.index].begun for table in self.tables.values())

    def closed(self, table: Table) -> tuple[int, int] | None:
        """When (ns) and with which errno a channel was closed, or None."""
        channel = self._channels[table.index]
        when = channel.closed_ns
        return (when, channel.closed_errno) if when else None
