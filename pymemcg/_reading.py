# SPDX-License-Identifier: Apache-2.0
"""What a detector reads: rows in chunks, and from them the ticks in which something was hit and the windows of PSI."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from pymemcg._breath import breathe
from pymemcg._ffi import NONE
from pymemcg.channel import Window

if TYPE_CHECKING:
    import numpy.typing as npt

    from pymemcg.channel import Channel

    Ints: TypeAlias = npt.NDArray[np.int64]
    Rows: TypeAlias = dict[str, Ints]

OWN_HITS: Final = ("limit_hits", "memsw_hits")
HITS: Final = (*OWN_HITS, "high_hits")


class Cursor:
    """Reads columns of a channel from its oldest row on, so many rows at a time.

    Args:
        channel: What to read.
        columns: Those of them that there are.
        live: It is being written.
        since: A column and a time: begin where that column reaches it.

    Attributes:
        lost: Rows that were overwritten before they were read.
    """

    def __init__(self, channel: Channel, columns: tuple[str, ...], *, live: bool, since: tuple[str, int] | None = None) -> None:
        self.channel = channel
        self.columns = tuple(name for name in columns if name in channel.names)
        self.lost = 0
        self._live = live
        self._next = max(0, channel.head - channel.capacity + 1) if live else 0
        if since is not None and since[0] in channel.names:
            window = Window(channel, self._next, channel.head - self._next)
            self._next += int(np.searchsorted(window[since[0]], since[1]))

    @property
    def left(self) -> int:
        """Rows that are there and not read."""
        return max(0, self.channel.head - self._next)

    def read(self, most: int) -> Rows:
        """The next rows, by column: copies where the channel is live, else views that are good until `forget`."""
        breathe()
        channel, head = self.channel, self.channel.head
        first = max(self._next, head - channel.capacity)
        window = Window(channel, first, max(0, min(most, head - first)))
        if self._live:
            window = Window(channel, first, len(window)).copy()
        self.lost += max(0, window.first_row - self._next)
        self._next = window.first_row + len(window)
        return {name: window[name] for name in self.columns}

    def forget(self) -> None:
        """What was read will not be looked at again: a recording's pages need not stay in memory."""
        self.channel.forget(self._next)


@dataclass(frozen=True, slots=True)
class Hits:
    """Ticks in which a counter of hits rose: arrays of shape (n,), int64. `since_ns` is the tick before.

    `own` are hits at the group's own limits, `high` those of memory.high, `above` those of an ancestor's limit;
    usage is that at `t_ns` and at `since_ns`.
    """

    since_ns: Ints
    t_ns: Ints
    own: Ints
    high: Ints
    above: Ints
    usage_bytes: Ints
    before_bytes: Ints

    @classmethod
    def none(cls) -> Hits:
        """No hits."""
        return cls(*(np.empty(0, np.int64) for _ in cls.__slots__))

    @classmethod
    def joined(cls, parts: list[Hits]) -> Hits:
        """All of them, in order of `t_ns`."""
        breathe()
        whole = [np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__]
        order = np.argsort(whole[1], kind="stable")
        return cls(*(column[order] for column in whole))

    def take(self, index: slice | npt.NDArray[np.bool_]) -> Hits:
        """Some of them."""
        return Hits(*(getattr(self, name)[index] for name in self.__slots__))

    def only_high(self) -> Hits:
        """Those of memory.high alone."""
        mine = self.take(self.high > 0)
        return replace(mine, own=np.zeros_like(mine.own), above=np.zeros_like(mine.above))

    def __len__(self) -> int:
        return int(self.t_ns.size)


class HitFinder:
    """Finds hits in rows of `usage`, which come in chunks.

    Attributes:
        last_ns: The last time of a row; 0 = there was none.
        unusable: Rows left out since their time was not after that of those before.
    """

    def __init__(self) -> None:
        self.last_ns = 0
        self.unusable = 0
        self._last: dict[str, int] = {}

    def find(self, rows: Rows) -> Hits:
        """The hits in the next rows."""
        rows = self._in_order(rows)
        times = rows.get("t_ns", np.empty(0, np.int64))
        if times.size == 0:
            return Hits.none()
        names = [name for name in HITS if name in rows]
        usage = rows.get("usage_bytes", np.full(times.size, NONE))
        usage_before = self._last.get("usage_bytes", NONE)
        changed = np.zeros(times.size, bool)
        for name in names:
            changed[1:] |= rows[name][1:] != rows[name][:-1]
        changed[0] = True
        at = np.flatnonzero(changed)
        rises = {name: self._rises(name, rows[name], at) for name in names}
        since = np.where(at > 0, times[at - 1], self.last_ns)
        first = self.last_ns == 0
        self.last_ns = int(times[-1])
        self._last = {name: int(rows[name][-1]) for name in names} | {"usage_bytes": int(usage[-1])}
        nothing = np.zeros(at.size, np.int64)
        usages = usage[at], np.where(at > 0, usage[at - 1], usage_before)
        own = sum((rises[name] for name in OWN_HITS if name in rises), nothing)
        hits = Hits(since, times[at], own, rises.get("high_hits", nothing), nothing, *usages)
        hit = (hits.own > 0) | (hits.high > 0)
        if first:  # what was hit before the first row, nobody knows when
            hit[0] = False
        return hits.take(hit)

    def _in_order(self, rows: Rows) -> Rows:
        """Without rows whose clock stands still or goes back, or that have no time."""
        times = rows.get("t_ns")
        if times is None or times.size == 0:
            return {}
        if times[0] > self.last_ns and times[-1] < NONE and bool((times[1:] > times[:-1]).all()):
            return rows
        sane = np.where((times > 0) & (times < NONE), times, 0)
        before = np.maximum.accumulate(np.append(self.last_ns, sane))[:-1]
        good = sane > before
        self.unusable += int(times.size - good.sum())
        return {name: values[good] for name, values in rows.items()}

    def _rises(self, name: str, values: Ints, at: Ints) -> Ints:
        now = values[at]
        before = np.where(at > 0, values[at - 1], self._last.get(name, NONE))
        known = (now != NONE) & (before != NONE)
        return np.where(known, np.maximum(now - np.where(known, before, now), 0), 0)


@dataclass(frozen=True, slots=True)
class Pressure:
    """Windows of PSI: arrays of shape (n,), int64. What stalled between `since_ns` and `t_ns`."""

    since_ns: Ints
    t_ns: Ints
    some_us: Ints
    full_us: Ints
    cpu_us: Ints
    cpu_wait_us: Ints

    @classmethod
    def none(cls) -> Pressure:
        """No windows."""
        return cls(*(np.empty(0, np.int64) for _ in range(6)))

    @classmethod
    def joined(cls, parts: list[Pressure]) -> Pressure:
        """All of them, one part after the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))

    def take(self, index: slice | npt.NDArray[np.bool_]) -> Pressure:
        """Some of them."""
        return Pressure(*(getattr(self, name)[index] for name in self.__slots__))

    def __len__(self) -> int:
        return int(self.t_ns.size)


class PressureFinder:
    """Makes windows of rows of `pressure`, which come in chunks.

    A row speaks of the time since the row before, unless another process took over in between or rows were lost.
    """

    def __init__(self) -> None:
        self._last: Rows = {}

    def find(self, rows: Rows) -> Pressure:
        """The windows that end with the next rows."""
        if not rows or rows["t_ns"].size == 0:
            return Pressure.none()
        if self._last:
            rows = {name: np.concatenate([self._last[name], values]) for name, values in rows.items()}
        self._last = {name: values[-1:].copy() for name, values in rows.items()}
        since, t = rows["since_ns"][1:], rows["t_ns"]
        good = (since < t[1:]) & (since == t[:-1]) & (t[1:] < NONE)
        deltas = {name: self._delta(rows.get(name), t.size - 1) for name in ("some_us", "full_us", "cpu_us", "cpu_wait_us")}
        good &= ("cpu_us" not in rows) | (deltas["cpu_us"] != NONE)
        good &= (deltas["some_us"] != NONE) & (deltas["some_us"] <= (t[1:] - t[:-1]) // 900 + 1000)  # more cannot be
        return Pressure(since, t[1:], *deltas.values()).take(good)

    @staticmethod
    def _delta(values: Ints | None, size: int) -> Ints:
        if values is None:
            return np.full(size, NONE)
        known = (values[1:] != NONE) & (values[:-1] != NONE) & (values[1:] >= values[:-1])
        return np.where(known, values[1:] - np.where(known, values[:-1], 0), NONE)
