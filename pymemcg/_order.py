# SPDX-License-Identifier: Apache-2.0
"""Which rows of a damaged channel can be believed: those whose times are some, and in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from pymemcg import schema
from pymemcg._ffi import NONE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    Ints: TypeAlias = npt.NDArray[np.int64]
    Bools: TypeAlias = npt.NDArray[np.bool_]

_CHUNK: Final = 1 << 19
"""Rows at a time: 4 MiB a column."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Rows, as pairs of the first and the one after the last."""

    pairs: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """How many rows these are."""
        return sum(end - first for first, end in self.pairs)


def sound_rows(columns: Mapping[str, Ints], *, latest_ns: int, names: int | None, forget: Callable[[int, int], None]) -> Ranges:
    """Find the rows to show.

    Args:
        columns: `t_ns`, in whose order rows are; or `start_ns` and `end_ns`, of which each row's are, in no order, and of spans
            `name_id` and `attribution`.
        latest_ns: No row is later; ignored where most are.
        names: How many names spans may have, where that is known.
        forget: Called with the first and the end of rows that need not stay in memory.
    """
    times = columns["t_ns"] if "t_ns" in columns else columns["end_ns"]
    runs: list[tuple[int, int]] = []
    late = 0
    before = -1
    for first in range(0, times.size, _CHUNK):
        part = {name: values[first : first + _CHUNK] for name, values in columns.items()}
        sane, too_late = _sane(part, latest_ns, names)
        late += too_late
        _add_runs(runs, part.get("t_ns"), sane, first, before)
        before = int(times[first + sane.size - 1])
        forget(first, first + sane.size)
    if 2 * late > times.size:  # it is the file's own time that is wrong
        return sound_rows(columns, latest_ns=NONE - 1, names=names, forget=forget)
    return Ranges(tuple(_chain(times, runs) if "t_ns" in columns and len(runs) > 1 else runs))


def _sane(part: Mapping[str, Ints], latest_ns: int, names: int | None) -> tuple[Bools, int]:
    """Which rows make sense alone, and how many of the others are only too late."""
    if "t_ns" in part:
        t = part["t_ns"]
        late = (t > latest_ns) & (t < NONE)
        return (t > 0) & (t <= latest_ns), int(late.sum())
    start, end = part["start_ns"], part["end_ns"]
    late = (start > latest_ns) & (start < NONE)
    sane = (start > 0) & (start <= latest_ns) & (end >= start) & ((end <= latest_ns) | (end == NONE))
    if "attribution" in part:
        sane &= np.isin(part["attribution"], tuple(schema.SPAN_ATTRIBUTIONS))
    if names is not None and "name_id" in part:
        sane &= (part["name_id"] >= 0) & (part["name_id"] < names)
    return sane, int(late.sum())


def _add_runs(runs: list[tuple[int, int]], t: Ints | None, sane: Bools, first: int, before: int) -> None:
    """Add stretches of rows that are sane and, where there is `t`, in order; the first may go on from the chunk before."""
    if sane.size == 0:
        return
    begins = sane.copy()
    begins[1:] &= ~sane[:-1] if t is None else ~sane[:-1] | (t[1:] < t[:-1])
    goes_on = bool(runs) and runs[-1][1] == first and sane[0] and (t is None or int(t[0]) >= before)
    ends = sane.copy()
    ends[:-1] &= ~sane[1:] | begins[1:]
    found = list(zip((np.flatnonzero(begins) + first).tolist(), (np.flatnonzero(ends) + first + 1).tolist(), strict=True))
    if goes_on:
        runs[-1] = (runs[-1][0], found.pop(0)[1])
    runs.extend(found)


def _chain(times: Ints, runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of runs that are not in order with each other: where two disagree, the fewer rows are wrong."""
    kept: list[tuple[int, int]] = []
    for first, end in runs:
        last = int(times[kept[-1][1] - 1]) if kept else 0
        under = int(np.searchsorted(times[first:end], last, side="left"))  # of this one, before what was kept
        begins = int(times[first])
        if under and _over(times, kept, begins, under) <= under:
            while kept and int(times[kept[-1][1] - 1]) > begins:
                a, b = kept.pop()
                upto = a + int(np.searchsorted(times[a:b], begins, side="right"))
                if upto > a:
                    kept.append((a, upto))
            under = 0
        if first + under < end:
            kept.append((first + under, end))
    return kept


def _over(times: Ints, kept: list[tuple[int, int]], begins: int, enough: int) -> int:
    """How many rows of what was kept are later than this time; counted up to what is enough."""
    over = 0
    for a, b in reversed(kept):
        here = b - a - int(np.searchsorted(times[a:b], begins, side="right"))
        over += here
        if over > enough or here < b - a:
            break
    return over
