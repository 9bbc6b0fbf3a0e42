# SPDX-License-Identifier: Apache-2.0
"""Channels, cursors and windows over a ring: the samples as numpy arrays."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pymemcg.errors import MemcgError, NotSupported

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from pymemcg._remains import Remains
    from pymemcg.ring import Ring, Table

_GUARD_SHARE = 16
"""A live window leaves 1/16 of the ring to the writer (4 s of the default 60), which is how long it stays good at least."""

_FOREVER_S = 1e9
"""Longer than any boot, and still nanoseconds that fit into 64 bits; so that an infinite number of seconds is all there is."""

_EMPTY: dict[str, str] = {}


class Window:
    """Consecutive rows of one channel.

    `window["usage_bytes"]` is a read-only, contiguous int64 array of shape (rows,): without a copy where the window is
    live, until the writer laps it (`valid` tells), or the window's own where it was made by `Channel.read` or `copy`.

    Thread-safe.
    """

    def __init__(self, channel: Channel, first: int, rows: int, own: dict[str, NDArray[np.int64]] | None = None) -> None:
        self._channel = channel
        self._own = own
        self.first_row = first
        self._rows = rows

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return self._channel.names

    @property
    def units(self) -> Mapping[str, str]:
        """Column name to unit."""
        return self._channel.units

    def __len__(self) -> int:
        """Rows."""
        return self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.units

    def __getitem__(self, name: str) -> NDArray[np.int64]:
        """One column, shape (rows,), int64, read-only.

        Raises:
            KeyError: There is no such column; the message says why where that is known.
        """
        if self._own is not None and name in self._own:
            return self._own[name]
        column = self._channel._column(name)  # noqa: SLF001 - one room
        start = self.first_row % self._channel.capacity if self._rows else 0
        return column[start : start + self._rows]

    def valid(self) -> bool:
        """Whether every row is still the one that the window was made of: the writer has not lapped it."""
        return self._own is not None or self._channel._kept_from() <= self.first_row  # noqa: SLF001 - one room

    def copy(self) -> Window:
        """A window that owns its rows. Rows which the writer overtook meanwhile are left out."""
        return self._channel._copy(self.first_row, self.first_row + self._rows)  # noqa: SLF001 - one room

    def part(self, first: int, end: int) -> Window:
        """Rows [first, end) of this window, counted from its own first, on the same terms: no copy is made."""
        end = min(end, self._rows)
        own = None if self._own is None else {name: values[first:end] for name, values in self._own.items()}
        return Window(self._channel, self.first_row + first, max(0, end - first), own)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """All columns by Arrow's C stream interface: pyarrow, polars, duckdb and pandas take the window as it is.

        Each column is an int64 with its unit in the field's metadata, null where it is absent. Columns of a recording, and of
        a window that owns its rows, are lent without a copy; those of a live ring are copied first. Batches have 2^20 rows.

        Raises:
            NotSupported: pyarrow is not installed.
        """
        from pymemcg.export.arrow import reader

        lasting = self if self._own is not None or not self._channel._live else self.copy()  # noqa: SLF001 - one room
        return reader(self._channel, lasting).__arrow_c_stream__(requested_schema)

    def to_numpy(self) -> NDArray[np.void]:
        """All columns in one structured array, shape (rows,), a copy."""
        import numpy as np

        out = np.empty(self._rows, dtype=[(name, np.int64) for name in self.names])
        for name in self.names:
            out[name] = self[name]
        return out

    def to_pandas(self) -> pd.DataFrame:
        """All columns as a DataFrame with a UTC index, a copy. Needs pandas.

        Raises:
            NotSupported: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise NotSupported("to_pandas() needs pandas", hint="pip install pandas") from error
        data = {name: self[name].copy() for name in self.names}
        if not data:
            return pd.DataFrame()
        index = pd.to_datetime(self._channel.realtime_ns(data[self._channel.time]), unit="ns", utc=True)
        return pd.DataFrame(data, index=pd.DatetimeIndex(index, name="time"))

    def __repr__(self) -> str:
        return f"<Window of {self._channel.name!r}: {self._rows} rows from row {self.first_row}>"


class Channel:
    """One table of samples that grows at its end and forgets at its beginning.

    Attributes:
        name: Of the channel.

    Thread-safe: any number of threads and processes may read while one writes.
    """

    def __init__(
        self,
        name: str,
        ring: Ring | Remains | None,
        table: Table | None,
        *,
        hidden: Mapping[str, str] = _EMPTY,
        live: bool = True,
    ) -> None:
        self.name = name
        self._live = live
        self._ring = ring
        self._table = table
        self._hidden = hidden
        units = table.units if table else _EMPTY
        self._units = {name: unit for name, unit in units.items() if name not in hidden}
        self._columns: dict[str, NDArray[np.int64]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The columns; none where the channel is absent."""
        return tuple(self.units)

    @property
    def units(self) -> Mapping[str, str]:
        """Column name to unit, in order."""
        return self._units

    @property
    def capacity(self) -> int:
        """Rows that the ring holds."""
        return self._table.capacity if self._table else 0

    @property
    def time(self) -> str:
        """The column that says when a row came: its moment, or the end of what it tells of."""
        return "t_ns" if "t_ns" in self.units else "end_ns"

    @property
    def period_ns(self) -> int:
        """Nominal distance of rows in ns; 0 where they come as they happen. Rows have their own `t_ns`: use that."""
        return self._table.period_ns if self._table else 0

    @property
    def head(self) -> int:
        """Rows ever published; the newest is head - 1."""
        return self._ring.head(self._table) if self._ring and self._table else 0

    @property
    def closed(self) -> str | None:
        """Why no more rows come, or None."""
        why = self.closed_at
        return os.strerror(why[1]) if why else None

    @property
    def closed_at(self) -> tuple[int, int] | None:
        """When (CLOCK_MONOTONIC, ns) and with which errno it was closed, or None."""
        return self._ring.closed(self._table) if self._ring and self._table else None

    @property
    def position(self) -> int:
        """Its place in the ring's table of channels, as rows of `events` say it; -1 where the channel is absent."""
        return self._table.index if self._table else -1

    def window(self, *, seconds: float | None = None, rows: int | None = None, since_ns: int | None = None) -> Window:
        """The newest rows, without a copy.

        Args:
            seconds: Those of so many seconds before the newest.
            rows: So many at most.
            since_ns: Those from this time on (CLOCK_MONOTONIC).

        With more than one of them the smallest window, with none all that a live ring can lend safely.
        """
        head = self.head
        if head == 0 or self._ring is None:
            return Window(self, 0, 0)
        lendable = self.capacity - (self.capacity // _GUARD_SHARE if self._live else 0)
        first = max(0, head - lendable)
        if rows is not None:
            first = max(first, head - max(rows, 0))
        if seconds is not None or since_ns is not None:
            times = Window(self, first, head - first)[self.time]
            since = since_ns if since_ns is not None else -(2**63)
            if seconds is not None and len(times):
                since = max(since, int(times[-1]) - int(min(seconds, _FOREVER_S) * 1e9))
            first += int(times.searchsorted(since))
        return Window(self, first, head - first)

    def read(self, cursor: int | None = None) -> tuple[Window, int, int]:
        """What came since the last call.

        Args:
            cursor: What the last call returned; None for all that the ring still has.

        Returns:
            (window that owns its copy, cursor for the next call, rows lost since `cursor` because the writer lapped them)
        """
        head = self.head
        window = self._copy(min(cursor or 0, head), head)
        lost = window.first_row - cursor if cursor is not None else 0
        return window, head, max(0, lost)

    def forget(self, end: int) -> None:
        """Take the rows of a recording before row `end` out of this process's memory; they are read again when they are used.

        A recording is mapped, so what is read of it counts as this process's memory until then. Of a live ring nothing is
        forgotten: it is in memory anyway. Nor is anything of a ring that has been round: its rows have moved.
        """
        if self._ring is not None and self._table is not None and not self._live and self.head <= self.capacity:
            self._ring.forget(self._table, 0, min(end, self.head))

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """All rows that there are, by Arrow's C stream interface; see `Window.__arrow_c_stream__`."""
        window = self.read()[0] if self._live else self.window()
        return window.__arrow_c_stream__(requested_schema)

    def to_numpy(self) -> NDArray[np.void]:
        """All rows that the ring still has as one structured array, a copy."""
        return self.read()[0].to_numpy()

    def to_pandas(self) -> pd.DataFrame:
        """All rows that the ring still has as a DataFrame with a UTC index, a copy; see `Window.to_pandas`."""
        return self.read()[0].to_pandas()

    def realtime_ns(self, t_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """CLOCK_MONOTONIC to CLOCK_REALTIME, by the last clock pair before each time. Both in ns, same shape."""
        import numpy as np

        if self._ring is None:
            raise MemcgError("there is no clock: the sampler is disabled")
        header = self._ring.header
        pairs_t, offsets = [header.created_ns], [header.created_realtime_ns - header.created_ns]
        if "clock" in self._ring.tables:
            pairs = Channel("clock", self._ring, self._ring.tables["clock"]).read()[0]
            pairs_t += pairs["t_ns"].tolist()
            offsets += (pairs["realtime_ns"] - pairs["t_ns"]).tolist()
        ends = np.asarray([t_ns.min(), t_ns.max()] if np.size(t_ns) else [0, 0])
        first, last = np.maximum(np.searchsorted(np.asarray(pairs_t), ends, side="right") - 1, 0)
        if first == last:  # of many rows most chunks lie between two pairs
            return t_ns + np.int64(offsets[first])
        at = np.searchsorted(np.asarray(pairs_t), t_ns, side="right") - 1
        shifted: NDArray[np.int64] = t_ns + np.asarray(offsets, dtype=np.int64)[np.maximum(at, 0)]
        return shifted

    def _column(self, name: str) -> NDArray[np.int64]:
        if self._ring is None:  # disabled: a service's code that looks at columns must go on, whatever they are
            import numpy as np

            return np.empty(0, np.int64)
        if name not in self.units:
            why = self._hidden.get(name, f"the columns are {', '.join(self.names) or 'none: the channel is absent'}")
            raise KeyError(f"{self.name} has no column {name!r}: {why}")
        if name not in self._columns:
            assert self._table is not None
            self._columns[name] = self._ring.column(self._table, name)
        return self._columns[name]

    def _kept_from(self) -> int:
        """The oldest row that is whole: a live writer is at the next ones already, in the places of the oldest."""
        if self._live and self._ring is not None and self._table is not None:
            return self._ring.oldest(self._table)
        return max(0, self.head - self.capacity)

    def _copy(self, first: int, end: int) -> Window:
        """Rows [first, end), copied, without those that the writer had begun to overwrite by the time the copy was done."""
        first = min(max(first, self._kept_from()), end)
        lent = Window(self, first, end - first)
        own = {name: lent[name].copy() for name in self.names}
        safe = min(max(first, self._kept_from()), end)
        for name, values in own.items():
            own[name] = values[safe - first :]
            own[name].flags.writeable = False
        return Window(self, safe, end - safe, own)

    def __repr__(self) -> str:
        return f"<Channel {self.name!r}: {self.head} rows so far, room for {self.capacity}; {', '.join(self.names)}>"


class Channels:
    """What a running sampler and a recording have in common."""

    usage: Channel
    """A row a tick: usage, hits, OOM kills, and RSS of the sampling process."""
    stat: Channel
    """memory.stat, ten rows a second by default."""
    pressure: Channel
    """Stall time so far by PSI, a row whenever it may be read."""
    limits: Channel
    """Limit, usage and hits of every level, a row a change."""
    node: Channel
    """What of /proc/vmstat tells of reclaim on the whole machine, ten rows a second."""
    processes: Channel
    """RSS of every process in the group and below, ten times a second."""
    reclaim: Channel
    """Every interval that a thread of the group spent in reclaim or compaction, by tracepoints, as it ends."""
    spans: Channel
    """What this process has marked as its work by `Sampler.span`, a row a span, as it ends."""
    clock: Channel
    """CLOCK_MONOTONIC and CLOCK_REALTIME at one moment, a row a minute."""
    events: Channel
    """What happened to the sampling itself, as it happens."""
