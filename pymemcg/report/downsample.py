# SPDX-License-Identifier: Apache-2.0
"""Fewer rows that look the same: the least and the most of each block of rows, and every row where something happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from pymemcg._ffi import NONE
from pymemcg.channel import Window
from pymemcg.errors import NotSupported

if TYPE_CHECKING:
    import numpy.typing as npt
    from tsdownsample import MinMaxDownsampler

    from pymemcg.channel import Channel

    Ints: TypeAlias = npt.NDArray[np.int64]
    Floats: TypeAlias = npt.NDArray[np.float64]
    Derive: TypeAlias = Callable[["Ints", Window], dict[str, "Floats"]]

CHUNK: Final = 1 << 16
"""Rows that are looked at at a time: half a megabyte a column, however long the recording is."""
MARGIN_NS: Final = 20_000_000
"""Around what happened, rows are of interest for so long: the window of a stall (10 ms) on both sides of it."""


@dataclass(frozen=True, slots=True)
class Thinned:
    """Rows that were chosen of a channel.

    Attributes:
        t_ns: Their times, ascending; shape (n,), int64, CLOCK_MONOTONIC.
        columns: Name to values, shape (n,), float64, NaN where they are not known.
        rows: How many there were.
        block: Of so many rows in a row there are the least and the most of each column; 1 = every row is there.
        whole_ns: From when to when every row is there, (m, 2), int64, ascending.
    """

    t_ns: Ints
    columns: dict[str, Floats]
    rows: int
    block: int
    whole_ns: Ints


def floats(values: Ints) -> Floats:
    """A column of a channel as float64, exact up to 2**53; NaN where a row has no value."""
    result = values.astype(np.float64)
    result[values == NONE] = np.nan
    return result


def thin(channel: Channel, derive: Derive, names: Sequence[str], *, most: int, near_ns: Ints) -> Thinned:
    """Choose rows of a recorded channel.

    Where there are more than `most`, half of that goes to the least and the most of each column in blocks of as many rows
    each; the other half to all rows of those blocks that matter most: near the longest of `near_ns`, and then where a
    column's least and most are furthest apart, as in a spike. So a spike of a single row keeps its value and its time, and
    the largest of them their surroundings. The memory that this takes does not depend on the recording's length.

    Args:
        channel: A recording's, with `t_ns`.
        derive: Makes the columns, each of shape (rows,), from times and a window; its first row is only there for differences
            with the row before, except at the channel's very beginning.
        names: Of the columns that it makes.
        most: So many rows at most, and one block more.
        near_ns: Intervals of interest, (m, 2).

    Returns:
        The rows; none where the channel has none.
    """
    rows = channel.head
    if rows == 0 or not names:
        return Thinned(np.empty(0, np.int64), {name: np.empty(0) for name in names}, 0, 1, np.empty((0, 2), np.int64))
    ends = 2 * len(names)
    block = 1 if rows <= most else -(-rows * 2 * ends // most)
    chosen = _Chosen(names)
    if block == 1:
        for first, end in _parts(0, rows, CHUNK):
            chosen.add(first, *_derived(channel, derive, first, end))
        return chosen.thinned(rows, 1, np.array([[chosen.first_ns, chosen.last_ns]]))
    blocks = _extremes(channel, derive, names, block, chosen)
    wanted = blocks.best(max(1, most // 2 // block), near_ns)
    chosen.drop(wanted, block)
    runs = np.flatnonzero(np.diff(wanted, prepend=-2) > 1)
    for run in np.split(wanted, runs[1:]):
        for first, end in _parts(int(run[0]) * block, min(rows, (int(run[-1]) + 1) * block), CHUNK):
            chosen.add(first, *_derived(channel, derive, first, end))
    whole = np.stack([blocks.first_ns[wanted[runs]], blocks.last_ns[wanted[np.append(runs[1:], wanted.size) - 1]]], axis=1)
    return chosen.thinned(rows, block, whole)


class _Chosen:
    """Collects rows, in any order."""

    def __init__(self, names: Sequence[str]) -> None:
        self._index: list[Ints] = []
        self._t_ns: list[Ints] = []
        self._columns: dict[str, list[Floats]] = {name: [] for name in names}

    def add(self, first: int, t_ns: Ints, columns: dict[str, Floats], which: Ints | None = None) -> None:
        """Rows from `first` on; or `which` of them, counted from there."""
        which = np.arange(t_ns.size) if which is None else which
        self._index.append(first + which)
        self._t_ns.append(t_ns[which])
        for name, parts in self._columns.items():
            parts.append(columns[name][which])

    def drop(self, blocks: Ints, block: int) -> None:
        """Forget what was chosen of these blocks."""
        for i, index in enumerate(self._index):
            kept = ~np.isin(index // block, blocks)
            self._index[i], self._t_ns[i] = index[kept], self._t_ns[i][kept]
            for parts in self._columns.values():
                parts[i] = parts[i][kept]

    @property
    def first_ns(self) -> int:
        return int(self._t_ns[0][0])

    @property
    def last_ns(self) -> int:
        return int(self._t_ns[-1][-1])

    def thinned(self, rows: int, block: int, whole_ns: Ints) -> Thinned:
        order = np.argsort(np.concatenate(self._index), kind="stable")
        columns = {name: np.concatenate(parts)[order] for name, parts in self._columns.items()}
        return Thinned(np.concatenate(self._t_ns)[order], columns, rows, block, whole_ns)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """When blocks of rows begin and end, and how far apart each column's least and most are in them, (blocks, columns)."""

    first_ns: Ints
    last_ns: Ints
    spread: Floats

    def best(self, most: int, near_ns: Ints) -> Ints:
        """The blocks that matter most, ascending."""
        with np.errstate(invalid="ignore", divide="ignore"):
            score = np.nanmax(np.nan_to_num(self.spread / np.nanmax(self.spread, axis=0, initial=0.0)), axis=1)
        length = np.zeros(self.first_ns.size, np.int64)
        if len(near_ns):
            begin, end = near_ns[:, 0] - MARGIN_NS, near_ns[:, 1] + MARGIN_NS
            first, after = np.searchsorted(self.last_ns, begin), np.searchsorted(self.first_ns, end, side="right")
            for at, until, ns in zip(first.tolist(), after.tolist(), (end - begin).tolist(), strict=True):
                np.maximum(length[at:until], ns, out=length[at:until])
        order = np.lexsort((score, length))[::-1][:most]
        return np.sort(order)


def _extremes(channel: Channel, derive: Derive, names: Sequence[str], block: int, chosen: _Chosen) -> _Blocks:
    """Choose the least and the most of each column in each block of rows."""
    downsampler = _downsampler()
    step = max(1, CHUNK // block) * block
    first_ns, last_ns, spread = [], [], []
    for first, end in _parts(0, channel.head, step):
        t_ns, columns = _derived(channel, derive, first, end)
        full = (end - first) // block * block
        picked, apart = (
            [np.arange(full, t_ns.size)],
            [],
        )  # what is left over at the end is a block of its own, with all its rows
        if first == 0:
            picked.append(np.array([0]))
        for name in names if full else ():
            ends = downsampler.downsample(columns[name][:full], n_out=2 * full // block).astype(np.int64)
            picked.append(ends)
            apart.append(np.abs(np.diff(columns[name][ends].reshape(-1, 2), axis=1))[:, 0])
        chosen.add(first, t_ns, columns, np.unique(np.concatenate(picked)))
        edges = np.arange(0, t_ns.size, block)
        first_ns.append(t_ns[edges])
        last_ns.append(t_ns[np.minimum(edges + block, t_ns.size) - 1])
        spread.append(np.zeros((edges.size, len(names))))
        if apart:
            spread[-1][: full // block] = np.stack(apart, axis=1)
    return _Blocks(np.concatenate(first_ns), np.concatenate(last_ns), np.concatenate(spread))


def _derived(channel: Channel, derive: Derive, first: int, end: int) -> tuple[Ints, dict[str, Floats]]:
    """Rows [first, end): their times and what is made of them."""
    before = min(first, 1)
    window = Window(channel, first - before, end - first + before)
    t_ns = window["t_ns"]
    columns = derive(t_ns, window)
    taken = t_ns[before:].copy(), {name: values[before:] for name, values in columns.items()}
    channel.forget(end)
    return taken


def _parts(first: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    return ((at, min(at + step, end)) for at in range(first, end, step))


def _downsampler() -> MinMaxDownsampler:
    try:
        from tsdownsample import MinMaxDownsampler
    except ImportError as error:
        raise NotSupported("a report needs tsdownsample", hint="pip install 'pymemcg[report]'") from error
    return MinMaxDownsampler()
