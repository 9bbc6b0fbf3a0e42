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
_SAMPLE: Final = 4096
"""Times from which it is told when a file is from."""
_DAY_NS: Final = 86_400 * 10**9
_LONGEST_NS: Final = 30 * _DAY_NS
"""No span and no interval of reclaim takes longer."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Rows, as pairs of the first and the one after the last."""

    pairs: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """How many rows these are."""
        return sum(end - first for first, end in self.pairs)


def around(times: Ints) -> tuple[int, int] | None:
    """When rows can be from that belong to the same file as these, of which most are right; None where they are too few."""
    sample = times[:: max(1, times.size // _SAMPLE)]
    sample = np.sort(sample[(sample > 0) & (sample < NONE)])
    if sample.size < 4:
        return None
    low, high = int(sample[sample.size // 4]), int(sample[3 * sample.size // 4])
    slack = 4 * (high - low) + _DAY_NS
    return low - slack, min(high + slack, NONE - 1)


def sound_rows(
    columns: Mapping[str, Ints], *, between_ns: tuple[int, int], names: int | None, forget: Callable[[int, int], None]
) -> Ranges:
    """Find the rows to show.

    Args:
        columns: `t_ns`, in whose order rows are; or `start_ns` and `end_ns`, of which each row's are, in no order, and of spans
            `name_id` and `attribution`.
        between_ns: No row is later than the second, and none of no order ended before the first; ignored where most do.
        names: How many names spans may have, where that is known.
        forget: Called with the first and the end of rows that need not stay in memory.
    """
    times = columns["t_ns"] if "t_ns" in columns else columns["end_ns"]
    runs: list[tuple[int, int]] = []
    late = 0
    before = -1
    for first in range(0, times.size, _CHUNK):
        part = {name: values[first : first + _CHUNK] for name, values in columns.items()}
        sane, strange = _sane(part, between_ns, names)
        late += strange
        _add_runs(runs, part.get("t_ns"), sane, first, before)
        before = int(times[first + sane.size - 1])
        forget(first, first + sane.size)
    if 2 * late > times.size:  # it is what is known of the file that is wrong
        return sound_rows(columns, between_ns=(0, NONE - 1), names=names, forget=forget)
    return Ranges(tuple(_chain(times, runs) if "t_ns" in columns and len(runs) > 1 else runs))


def _sane(part: Mapping[str, Ints], between_ns: tuple[int, int], names: int | None) -> tuple[Bools, int]:
    """Which rows make sense alone, and how many of the others are only of another time."""
    earliest, latest = between_ns
    if "t_ns" in part:
        t = part["t_ns"]
        return (t > 0) & (t <= latest), int(((t > latest) & (t < NONE)).sum())
    start, end = part["start_ns"], part["end_ns"]
    over = np.where(end == NONE, start, end)  # of a thread that was still in reclaim, the end is not known
    sane = (start > 0) & (start < NONE) & (over >= start) & (over - start <= _LONGEST_NS)
    near = (over >= earliest) & (over <= latest)
    strange = int((sane & ~near).sum())
    sane &= near
    if "attribution" in part:
        sane &= np.isin(part["attribution"], tuple(schema.SPAN_ATTRIBUTIONS))
    if "ran_start_ns" in part and "ran_end_ns" in part:
        ran, until = part["ran_start_ns"], part["ran_end_ns"]
        sane &= (ran >= start) & (ran <= end) & (until <= end) & (until > np.maximum(start - _LONGEST_NS, 0))
    if names is not None and "name_id" in part:
        sane &= (part["name_id"] >= 0) & (part["name_id"] < names)
    return sane, strange


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
