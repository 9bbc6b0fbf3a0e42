# SPDX-License-Identifier: Apache-2.0
"""From moments to groups of them, as they come: a moment waits until it can be judged, and a group until it cannot grow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from pymemcg._arrays import distinct
from pymemcg._breath import breathe
from pymemcg._ffi import NONE
from pymemcg._intervals import LONG_AGO, Judged, added_ns, running_end
from pymemcg._moments import COUNTERS, Moments

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from pymemcg._stall import Policy

    Ints: TypeAlias = npt.NDArray[np.int64]
    Bools: TypeAlias = npt.NDArray[np.bool_]
    Rows: TypeAlias = dict[str, Ints]

KINDS: Final = 6
MOST_TIDS: Final = 1000
"""So many threads are named at most, those with the lowest ids: a group that forks all the time has no end of them."""

_HOW: Final[Mapping[str, Any]] = {
    "start_ns": np.minimum,
    "end_ns": np.maximum,
    "ticks_ns": np.maximum,
    "count": np.add,
    "wall_ns": np.add,
    "held_ns": np.add,
    "lo_ns": np.add,
    "hi_ns": np.add,
    "longest_ns": np.maximum,
    "known": np.add,
    "cpu_wait_ns": np.add,
    "cpu_wait_unknown": np.add,
    "hits": np.add,
    "pages": np.add,
    "pages_known": np.add,
    "open_ended": np.add,
    "evidence": np.bitwise_or,
} | {f"kind{kind}": np.add for kind in range(KINDS)}
"""How a column of two rows becomes that of the one that both make up."""

_NOBODY: Final[Ints] = np.empty(0, np.int64)
_NO_ROWS: Final[Rows] = dict.fromkeys(_HOW, _NOBODY)


class Settled:
    """Moments that nothing to come can change, judged; and what of those after them is known so far."""

    def __init__(self, moments: Moments, ends: Ints, judged: Judged, final: Bools, ahead: Bools) -> None:
        self.moments = moments
        self.ends = ends
        self.judged = judged
        self.final = final
        self.ahead = ahead

    def rows(self, which: Bools) -> tuple[Rows, Ints]:
        """Some of them as rows that can be added up, and their threads."""
        if not which.any():
            return _NO_ROWS, _NOBODY
        m, eff = self.moments.take(which), self.judged.held_ns[which]
        known = m.held_ns != NONE
        whole = known & (eff == m.held_ns)
        rows: Rows = {
            "start_ns": m.start_ns,
            "end_ns": self.ends[which],
            "ticks_ns": np.where(m.evidence == COUNTERS, self.ends[which] + 2 * (self.ends[which] - m.start_ns), LONG_AGO),
            "count": np.ones(len(m), np.int64),
            "held_ns": eff,
            "lo_ns": np.where(whole, m.lo_ns, eff),
            "hi_ns": np.where(whole, m.hi_ns, eff),
            "longest_ns": self.judged.longest_ns[which],
            "known": known.astype(np.int64),
            "cpu_wait_ns": np.where((m.cpu_wait_ns == NONE) | ~whole, 0, m.cpu_wait_ns),
            "cpu_wait_unknown": (m.cpu_wait_ns == NONE).astype(np.int64),
            "hits": np.where(m.hits == NONE, 0, m.hits),
            "pages": np.where(m.reclaimed_pages == NONE, 0, m.reclaimed_pages),
            "pages_known": (m.reclaimed_pages != NONE).astype(np.int64),
            "open_ended": (m.end_ns == NONE).astype(np.int64),
            "evidence": np.left_shift(1, m.evidence),
        }
        for kind in range(KINDS):
            rows[f"kind{kind}"] = np.where(m.kind == kind, eff + 1, 0)
        return rows, m.tid


class Waiting:
    """Moments that wait until everything that begins near them is known."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._moments = Moments.none()
        self._ends = self._moments.end_ns
        self._told = np.zeros(0, bool)

    def __len__(self) -> int:
        return len(self._moments)

    @property
    def first_ns(self) -> int:
        """When the first of them began; NONE = there is none."""
        open_ = np.flatnonzero(~self._told)
        return int(self._moments.start_ns[open_[0]]) if open_.size else NONE

    def add(self, moments: Moments, ends: Ints) -> None:
        """New ones, in order of their beginning. `ends`: until when they are taken to go on."""
        if len(moments) == 0:
            return
        whole = Moments.joined([self._moments, moments])
        order = np.argsort(np.concatenate([self._moments.start_ns, moments.start_ns]), kind="stable")
        self._ends = np.concatenate([self._ends, ends])[order]
        self._told = np.concatenate([self._told, np.zeros(len(moments), bool)])[order]
        self._moments = whole

    def settle(self, until_ns: int) -> Settled:
        """Judge those that can be: everything that began before `until_ns` has been added."""
        policy, count = self._policy, int(np.searchsorted(self._moments.start_ns, until_ns))
        known, ends, told = self._moments.take(slice(count)), self._ends[:count], self._told[:count]
        latest = running_end(ends, LONG_AGO)
        gaps = np.append(known.start_ns, until_ns) - latest >= policy.join_ns
        passed = int(np.searchsorted(latest[1:], until_ns - policy.window_ns - policy.join_ns, side="right"))
        final = max(passed, int(np.flatnonzero(gaps)[-1]) if gaps.any() else 0)
        at = np.arange(count)
        settled = Settled(known, ends, Judged(known, ends, policy), (at < final) & ~told, at >= final)
        self._told[:final] = True
        self._forget(until_ns)
        return settled

    def _forget(self, until_ns: int) -> None:
        """What lies too far behind to be in one window with anything that waits or comes."""
        far = min(self.first_ns, until_ns) - 2 * (self._policy.window_ns + self._policy.join_ns)
        keep = ~self._told | (self._ends > far)
        if not keep.all():
            self._moments, self._ends, self._told = self._moments.take(keep), self._ends[keep], self._told[keep]


class Groups:
    """Adds rows up to groups, of which the last stays open while something closer than `join_ns`, or two ticks, can come."""

    def __init__(self, join_ns: int) -> None:
        self._join_ns = join_ns
        self.open: Rows | None = None
        self.open_tids: set[int] = set()

    def add(self, rows: Rows, tids: Ints, until_ns: int) -> tuple[Rows, list[tuple[int, ...]]]:
        """Add rows in order of their beginning; all that begins before `until_ns` has been added with these.

        Returns:
            The groups that can grow no more, a row each, and the threads of each.
        """
        groups, sets = self._reduced(rows, tids)
        count = groups["start_ns"].size
        if count and until_ns < max(int(groups["end_ns"][-1]) + self._join_ns, int(groups["ticks_ns"][-1])):
            count -= 1
            self.open = {name: values[count:] for name, values in groups.items()}
            self.open_tids = sets[count]
        else:
            self.open, self.open_tids = None, set()
        closed = {name: values[:count] for name, values in groups.items()}
        return closed, [tuple(sorted(tids)) for tids in sets[:count]]

    def peek(self, rows: Rows, tids: Ints) -> tuple[Rows, tuple[int, ...]] | None:
        """The last group, as it would be with these; nothing is changed."""
        groups, sets = self._reduced(rows, tids)
        if not sets:
            return None
        return {name: values[-1:] for name, values in groups.items()}, tuple(sorted(sets[-1]))

    def _reduced(self, rows: Rows, tids: Ints) -> tuple[Rows, list[set[int]]]:
        if tids.size == 0:
            return (self.open, [set(self.open_tids)]) if self.open else (_NO_ROWS, [])
        before = int(self.open["end_ns"][0]) if self.open else LONG_AGO
        rows = rows | {"wall_ns": added_ns(rows["start_ns"], rows["end_ns"], before)}
        if self.open:
            rows = {name: np.concatenate([self.open[name], rows[name]]) for name in _HOW}
        start = rows["start_ns"]
        new = start - running_end(rows["end_ns"], LONG_AGO)[:-1] >= self._join_ns
        new &= start >= running_end(rows["ticks_ns"], LONG_AGO)[:-1]
        new[0] = True
        breathe()
        first = np.flatnonzero(new)
        groups = {name: how.reduceat(rows[name], first) for name, how in _HOW.items()}
        sets: list[set[int]] = [set() for _ in first]
        if self.open:
            sets[0] |= self.open_tids
        group = (np.cumsum(new) - 1)[-tids.size :] if tids.size else np.empty(0, np.int64)
        for g, tid in _pairs(group, tids):
            if tid:
                sets[g].add(tid)
        return groups, [tids if len(tids) <= MOST_TIDS else set(sorted(tids)[:MOST_TIDS]) for tids in sets]


def _pairs(group: Ints, tids: Ints) -> Any:
    """Each group with each of its threads once."""
    if not tids.any():
        return ()
    pairs = distinct(group << 32 | tids)
    return zip((pairs >> 32).tolist(), (pairs & 0xFFFFFFFF).tolist(), strict=True)
