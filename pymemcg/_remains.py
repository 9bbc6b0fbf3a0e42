# SPDX-License-Identifier: Apache-2.0
"""A file of channels that may be damaged: what of it can be read, and what cannot and why.

Nothing in it is believed. Tables are compared with each other and with the file's size before anything is looked up by them,
and rows by their times, so that what is shown is in order and inside the file. docs/file-format.md has the rules.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections import Counter
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from pymemcg import schema
from pymemcg._ffi import NONE, ffi, lib, text
from pymemcg._said import info_of
from pymemcg.errors import RecordingError
from pymemcg.ring import MAGIC, Table, is_used

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from pymemcg._order import Ranges

_HEADER, _CHANNEL, _COLUMN = "struct memcg_ring_header", "struct memcg_channel_header", "struct memcg_column_header"
_OF_FILES: Final = ("stat", "node")
"""Channels whose columns are whatever keys a file of the kernel has."""
_OPTIONAL: Final = {
    "usage": frozenset(schema.USAGE_UNITS) - {"t_ns"},
    "pressure": frozenset({"full_us", "cpu_us", "cpu_wait_us"}),
    "limits": frozenset({"high_bytes"}),
    "spans": frozenset({"pid"}),
}
"""Columns that may be lost; without one of the others the rows of a channel mean nothing."""
_MOST_ROWS: Final = 1 << 60
"""Nobody writes as many."""
_NAMED: Final = 4
"""Columns that a note names: there may be a hundred."""
_CLOCK_SLACK_NS: Final = 86_400 * 10**9
"""Rows that are later by a day than now, or than the file's own time, are nonsense; nobody sets a clock back by so much."""


class Remains:
    """What can be read of a ring's file or a recording, as a `Ring` has it; rows that are left out have no number.

    Args:
        fd: The file; it may be closed afterwards.
        path: What errors call it.

    Attributes:
        header: A copy of its header.
        info: What it says of itself; what of that is damaged is left out.
        tables: What can be read, by channel.
        is_ring: A sampler writes or wrote it: it is no finished recording.
        is_copy: It was copied from the ring, row by row, by a thread of the sampler's.
        live: A process uses it now. Then all is of one moment, and copied.

    Raises:
        RecordingError: Nothing of it can be read, and why.

    Thread-safe. Arrays made from it keep it mapped.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.path = path
        status = os.fstat(fd)
        self._size = status.st_size
        self._notes: dict[str, list[str]] = {}
        self._left_out: dict[str, str] = {}
        self._ranges: dict[str, Ranges] = {}
        self.header = self._read_header(fd)
        self.is_ring = self.header.state.writer_started_ns != 0
        self.live = self.is_ring and is_used(fd)
        try:
            mapped = _mapped(fd, self._size)
        except (OSError, ValueError) as error:  # it was cut just now, or there is no room for it
            raise RecordingError(f"cannot be mapped: {error}", path=path) from error
        self._data: mmap.mmap | bytes = mapped
        self._latest_ns = self._bound_ns(status.st_mtime_ns)
        self.info = self._checked_info()
        self.tables: dict[str, Table] = {}
        self._read_tables()
        self.is_copy = self.is_ring and any(self._word(table, "begun") for table in self.tables.values())
        heads = {name: self._word(table, "head") for name, table in self.tables.items()}
        if self.live:  # what is overwritten while it is copied is told by what the heads are after it
            self._data = bytes(mapped)
        self._rows = {name: self._kept(mapped, self.tables[name], head) for name, head in heads.items()}
        for name in list(self.tables):
            self._check_columns(name)
        self._take_texts()

    # ---- The header ----

    def _damaged(self, why: str) -> RecordingError:
        return RecordingError(f"is damaged: {why}", path=self.path)

    def _read_header(self, fd: int) -> Any:
        wanted = ffi.sizeof(_HEADER)
        data = os.pread(fd, wanted, 0)
        if data[:8] != MAGIC:
            if not data.strip(b"\0"):
                raise self._damaged("it is empty" if not data else "it begins with zeros")
            raise RecordingError("is damaged or no ring of pymemcg: it does not begin as one", path=self.path)
        if len(data) < wanted:
            raise self._damaged(f"it has {len(data)} bytes, and its header alone has {wanted}")
        header = ffi.new("struct memcg_ring_header *")
        ffi.memmove(header, data, wanted)
        if header.byte_order != lib.MEMCG_RING_BYTE_ORDER:
            if header.byte_order == int.from_bytes(lib.MEMCG_RING_BYTE_ORDER.to_bytes(4, "little"), "big"):
                raise RecordingError("has another byte order", path=self.path, hint="a machine like the writer's can read it")
            raise self._damaged("its header has no byte order")
        if header.version != lib.MEMCG_RING_VERSION:
            raise RecordingError(
                f"has layout version {header.version}: expected {lib.MEMCG_RING_VERSION}",
                path=self.path,
                hint="the pymemcg that wrote it can read it",
            )
        self._check_places(header)
        if header.file_bytes != self._size:
            change = "was cut" if self._size < header.file_bytes else "grew"
            self._note("file", f"it {change}: {self._size} bytes are there, and its header says {header.file_bytes}")
        return header

    def _check_places(self, header: Any) -> None:
        end = ffi.sizeof(_HEADER)
        for what, count, entry in (("channels", header.channels, _CHANNEL), ("columns", header.columns, _COLUMN)):
            offset = getattr(header, f"{what}_offset")
            size = count * ffi.sizeof(entry)
            if not count or count > lib.MEMCG_CHANNELS * (1 if what == "channels" else lib.MEMCG_CHANNEL_COLUMNS):
                raise self._damaged(f"its header says that there are {count} {what}")
            if offset < end or offset % 8 or offset + size > self._size:
                raise self._damaged(f"the table of {what} is not inside the file, which has {self._size} bytes")
            end = offset + size
        self._tables_end = end

    def _bound_ns(self, changed_ns: int) -> int:
        """No row can be later; NONE where nobody knows."""
        boot_id = text(self.header.boot_id)
        if boot_id and boot_id == running_boot_id():
            import time

            return time.clock_gettime_ns(time.CLOCK_MONOTONIC) + _CLOCK_SLACK_NS
        if self.is_ring:  # what is stored into a mapped file of a tmpfs does not change the file's time
            return NONE - 1
        bound = int(self.header.created_ns + changed_ns - self.header.created_realtime_ns + _CLOCK_SLACK_NS)
        return bound if self.header.created_ns < bound < NONE else NONE - 1

    def _checked_info(self) -> dict[str, Any]:
        begin, size = self.header.info_offset, self.header.info_bytes
        try:
            if begin < self._tables_end or begin + size > self._size:
                raise ValueError("it is not inside the file")  # noqa: TRY301 - noted just below
            info, damaged = info_of(self._data[begin : begin + size])
        except (ValueError, TypeError, RecursionError) as error:
            self._note("info", f"what the file says of itself is damaged: {error}")
            return {}
        for key in damaged:
            self._note("info", f"what the file says of {key} is damaged")
        return info

    # ---- The tables ----

    def _note(self, name: str, why: str) -> None:
        self._notes.setdefault(name, []).append(why)

    def _entry(self, kind: str, offset: int) -> Any:
        entry = ffi.new(f"{kind} *")
        ffi.memmove(entry, self._data[offset : offset + ffi.sizeof(kind)], ffi.sizeof(kind))
        return entry

    def _read_tables(self) -> None:
        header = self.header
        for index in range(header.channels):
            entry = self._entry(_CHANNEL, header.channels_offset + index * ffi.sizeof(_CHANNEL))
            name = _name(entry.name)
            first, count = entry.first_column, entry.columns
            if name is None or name in self.tables:
                self._note("header", f"channel {index} has {'the name of another' if name else 'no name'}")
            elif not 0 < count <= lib.MEMCG_CHANNEL_COLUMNS or first + count > header.columns:
                self._note(name, "its entry in the table of channels is damaged")
            else:
                at = range(first, first + count)
                columns = [self._entry(_COLUMN, header.columns_offset + i * ffi.sizeof(_COLUMN)) for i in at]
                self._read_table(index, name, entry, columns)
            if name is not None and name not in (*schema.CHANNELS, "names"):
                self._note(name, "is a channel that this version does not know")

    def _read_table(self, index: int, name: str, entry: Any, columns: list[Any]) -> None:
        """Columns stand one behind the other and are of one length, so that a place that is wrong is known by the others."""
        apart = [second.offset - first.offset for first, second in pairwise(columns)]
        size = Counter([8 * entry.capacity, *apart]).most_common(1)[0][0]
        base, agreeing = Counter(c.offset - i * size for i, c in enumerate(columns)).most_common(1)[0]
        if size <= 0 or size % 8 or base < self._tables_end or base % 8 or (agreeing < 2 and len(columns) > 1):
            self._note(name, "nothing tells where its columns stand")
            return
        if size != 8 * entry.capacity or agreeing < len(columns):
            self._note(name, "its size or a column's place is damaged, and known by the other columns")
        units, offsets = {}, {}
        for i, column in enumerate(columns):
            called, unit = _name(column.name), _name(column.unit)
            if called is None or called in units or bytes(ffi.buffer(column.dtype)).rstrip(b"\0") != _DTYPE:
                self._note(name, f"the entry of its column {i} is damaged")
                continue
            units[called], offsets[called] = unit or "", base + i * size
        self.tables[name] = Table(index, name, size // 8, entry.period_ns, entry.first_column, units, offsets)

    def _check_columns(self, name: str) -> None:
        """Leave columns out that are not inside the file, and a channel that means nothing without them."""
        table = self.tables[name]
        first, end = self._rows[name]
        need = 8 * min(end, table.capacity)
        inside = {column: offset for column, offset in table.offsets.items() if offset + need <= self._size or first == end}
        if len(inside) < len(table.offsets):
            cut = [column for column in table.offsets if column not in inside]
            self._note(name, f"the file ends before {len(cut)} of its {len(table.offsets)} columns do: {_some(cut)}")
        known = set(schema.CHANNELS.get(name, inside))
        times = {"t_ns"} if "t_ns" in known else {"start_ns", "end_ns"}
        needed = known - _OPTIONAL.get(name, frozenset()) if name == "spans" or self._is_short(name, inside) else known & times
        lacking = needed - set(inside)
        if lacking:
            self._note(name, f"nothing of it can be read without {_some(sorted(lacking))}")
            del self.tables[name]
            return
        units = {column: table.units[column] for column in inside}
        self.tables[name] = Table(table.index, name, table.capacity, table.period_ns, table.first, units, inside)

    def _is_short(self, name: str, columns: Mapping[str, int]) -> bool:
        """Whether columns that were written are gone: damaged ones, or those whose name is none any more."""
        return name in self._notes or (
            name not in _OF_FILES and not schema.CHANNELS.get(name, columns).keys() >= columns.keys()
        )

    def _take_texts(self) -> None:
        """Of spans that a sampler wrote into its ring: then `info` says of them what it says of those of a recording."""
        from pymemcg import _spanring

        named, spans = self.tables.pop("names", None), self.tables.get("spans")
        if spans is None or not self.is_ring or "spans" in self.info:
            return
        if named is None or not _spanring.whole(named):
            self._note("spans", "nothing of it can be read without its names")
            del self.tables["spans"]
            return
        import numpy as np

        columns = ({name: self._raw(table, name) for name in table.units} for table in (spans, named))
        slots = np.arange(*self._rows["spans"]) % spans.capacity
        self.info["spans"] = _spanring.texts(next(columns), slots, next(columns), self._word(spans, "lost"))
        self.tables["spans"] = _spanring.shown(spans)

    # ---- Rows ----

    def _word(self, table: Table, word: str, data: mmap.mmap | None = None) -> int:
        at = self.header.channels_offset + table.index * ffi.sizeof(_CHANNEL) + ffi.offsetof(_CHANNEL, word)
        return int.from_bytes((data or self._data)[at : at + 8], sys.byteorder)

    def _kept(self, mapped: mmap.mmap, table: Table, head: int) -> tuple[int, int]:
        """First and end of the rows that are whole."""
        if head > _MOST_ROWS:
            self._note(table.name, f"it says that it has {head} rows")
            return 0, 0
        if not self.is_ring:
            if head > table.capacity:
                self._note(table.name, f"it says that it has {head} rows, and has room for {table.capacity}")
            return 0, min(head, table.capacity)
        ahead = self._word(table, "head", mapped)
        begun = self._word(table, "begun", mapped)
        if ahead < begun <= ahead + table.capacity:
            ahead = begun
        elif begun > ahead:
            self._note(table.name, f"it says that rows up to {begun} were being written, and has {ahead}")
        return min(head, max(0, ahead - table.capacity + 1)), head

    def _raw(self, table: Table, name: str) -> NDArray[np.int64]:
        """A column in the order of its rows; without a copy unless it has been round."""
        import numpy as np

        first, end = self._rows[table.name]
        slots = min(end, table.capacity)
        column = np.frombuffer(self._data, np.int64, slots, table.offsets[name]) if first < end else np.empty(0, np.int64)
        begin, rows = first % table.capacity, end - first
        if begin + rows <= slots:
            return column[begin : begin + rows]
        return np.concatenate([column[begin:], column[: begin + rows - slots]])

    @cached_property
    def _between_ns(self) -> tuple[int, int]:
        """When rows can be from; by channels that tick all the time, the steady ones first."""
        from pymemcg._order import around

        for name in ("node", "stat", "usage"):
            if name in self.tables and (found := around(self._raw(self.tables[name], "t_ns"))) is not None:
                return found[0], min(found[1], self._latest_ns)
        return 0, self._latest_ns

    def _kept_ranges(self, table: Table) -> Ranges:
        """Which of its rows are in order."""
        if table.name not in self._ranges:
            from pymemcg._order import Ranges, sound_rows

            columns: dict[str, NDArray[np.int64]] = {
                name: self._raw(table, name) for name in ("t_ns", *_SPAN_COLUMNS) if name in table.units
            }
            rows = self._rows[table.name][1] - self._rows[table.name][0]
            if "t_ns" not in columns and "end_ns" not in columns:
                self._ranges[table.name] = Ranges(((0, rows),) if rows else ())
                return self._ranges[table.name]
            said = self.info.get("spans") if table.name == "spans" else None
            names = len(said["names"]) if said else None
            ranges = sound_rows(
                columns, between_ns=self._between_ns, names=names, forget=lambda a, b: self._forget(table, a, b, _SPAN_COLUMNS)
            )
            if ranges.count < rows:
                why = "their times are none, or not between those of the rows beside them"
                self._left_out[table.name] = f"{rows - ranges.count} of {rows} rows are left out: {why}"
            self._ranges[table.name] = ranges
        return self._ranges[table.name]

    @property
    def missing(self) -> dict[str, str]:
        """What cannot be read, by channel, `file`, `header` or `info`, and why. Looks at all times in the file."""
        for table in self.tables.values():
            self._kept_ranges(table)
        names = [*self._notes, *(name for name in self._left_out if name not in self._notes)]
        left_out = self._left_out
        return {
            name: "; ".join([*self._notes.get(name, ()), *([left_out[name]] if name in left_out else [])]) for name in names
        }

    # ---- As of a ring ----

    def column(self, table: Table, name: str) -> NDArray[np.int64]:
        """One column: shape (rows,), int64, read-only; without a copy where no row is left out."""
        import numpy as np

        values, ranges = self._raw(table, name), self._kept_ranges(table).pairs
        if len(ranges) == 1:
            values = values[slice(*ranges[0])]
        else:
            values = np.concatenate([values[a:b] for a, b in ranges]) if ranges else np.empty(0, np.int64)
        values.flags.writeable = False
        return values

    def head(self, table: Table) -> int:
        """Rows that there are."""
        return self._kept_ranges(table).count

    def oldest(self, table: Table) -> int:  # noqa: ARG002 - as `Ring`
        """Nobody writes it."""
        return 0

    def closed(self, table: Table) -> tuple[int, int] | None:
        """When (ns) and with which errno a channel was closed, or None."""
        when = self._word(table, "closed_ns")
        return (when, self._word(table, "closed_errno") & 0x7FFFFFFF) if 0 < when < NONE else None

    def forget(self, table: Table, first: int, end: int) -> None:
        """Take rows [first, end) of all columns out of this process's memory until they are read again."""
        ranges = self._kept_ranges(table).pairs
        if len(ranges) == 1:
            self._forget(table, ranges[0][0] + first, ranges[0][0] + end, tuple(table.offsets))

    def _forget(self, table: Table, first: int, end: int, columns: tuple[str, ...]) -> None:
        begin, last = self._rows[table.name]
        if not isinstance(self._data, mmap.mmap) or last > table.capacity:
            return
        for name in columns:
            if name in table.offsets:
                at = table.offsets[name] + 8 * (begin + first)
                start = at - at % mmap.PAGESIZE
                stop = table.offsets[name] + 8 * (begin + end)
                if start < stop - stop % mmap.PAGESIZE:  # the last page may hold rows that are still wanted
                    self._data.madvise(mmap.MADV_DONTNEED, start, stop - stop % mmap.PAGESIZE - start)


_SPAN_COLUMNS: Final = ("t_ns", "start_ns", "end_ns", "name_id", "attribution", "ran_start_ns", "ran_end_ns")
_DTYPE: Final = b"<i8" if sys.byteorder == "little" else b">i8"


def running_boot_id() -> str | None:
    """Of the kernel that runs now; None where it cannot be read."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


def _mapped(fd: int, size: int) -> mmap.mmap:
    """The file, read-only; before Python 3.13 that keeps a descriptor of its own."""
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, size, access=mmap.ACCESS_READ, trackfd=False)
    return mmap.mmap(fd, size, access=mmap.ACCESS_READ)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _name(field: Any) -> str | None:
    """A text of a table, or None where it is none."""
    data = bytes(ffi.buffer(field))
    end = data.find(b"\0")
    return data[:end].decode("ascii") if end > 0 and data[:end].isascii() and data[:end].decode("ascii").isprintable() else None
