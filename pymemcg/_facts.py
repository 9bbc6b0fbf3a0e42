# SPDX-License-Identifier: Apache-2.0
"""What the channels say of given times: usage, limits, counters. Looked up when a stall begins and when it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from pymemcg._arrays import distinct
from pymemcg._breath import breathe
from pymemcg._ffi import NONE
from pymemcg._reading import HITS, OWN_HITS

if TYPE_CHECKING:
    import numpy.typing as npt

    from pymemcg.channel import Channel, Channels

    Ints: TypeAlias = npt.NDArray[np.int64]
    Facts: TypeAlias = dict[str, Ints]

USAGE: Final = ("usage_bytes", *HITS, "oom_kills")
STAT: Final = ("anon", "file", "workingset_refault", "workingset_refault_file", "workingset_refault_anon")
NODE: Final = ("pswpin",)
LIMITS: Final = ("limit_bytes", "above", "falls")
NAMES: Final = (*USAGE, *STAT, *NODE, "allocstall", *LIMITS)

JUST_NS: Final = 100_000_000
"""A hit of memory.max is counted before the reclaim begins (try_charge_memcg() in mm/memcontrol.c), and the thread may be
preempted in between: ticks may lie between the two. It does not wait for longer than this: the scheduler is fair."""
SLEEP_NS: Final = 2_100_000_000
"""A thread that hit memory.high sleeps after it, 2 s at most (MEMCG_MAX_HIGH_DELAY_JIFFIES there)."""


class Looking:
    """Looks up what the channels say of given times; NONE where they say nothing, or nothing any more."""

    def __init__(self, source: Channels) -> None:
        self._usage = source.usage
        self._stat = source.stat
        self._node = source.node
        self._limits = _Levels(source.limits)
        self._stalls = tuple(name for name in source.node.names if name.startswith("allocstall"))

    @property
    def looked_ns(self) -> int:
        """When limits and ancestors were looked at last; NONE = it cannot be told."""
        rows = self._node.window(rows=1)
        return int(rows["t_ns"][-1]) if len(rows) else NONE

    def rounds(self, times: Ints, *, after: bool) -> Ints:
        """When limits were looked at last before each time (or first after it); the time itself where nobody knows."""
        found = _find(self._node, times, ("t_ns",), after=after)["t_ns"]
        return np.where(found == NONE, times, found)

    def above(self, since_ns: int, until_ns: int) -> tuple[Ints, Ints]:
        """When in (since, until] hits of ancestors' limits were seen, and how many."""
        return self._limits.above(since_ns, until_ns)

    def forget(self) -> None:
        """What was looked at in a recording need not stay in memory."""
        for channel in (self._usage, self._stat, self._node):
            channel.forget(channel.head)

    def at(self, times: Ints, *, after: bool) -> Facts:
        """The last row before each time, or the first after it. All of `NAMES`, shape of `times`."""
        facts = _find(self._usage, times, USAGE, after=after)
        facts |= _find(self._stat, times, STAT, after=after)
        node = _find(self._node, times, (*NODE, *self._stalls), after=after)
        zones = [node.pop(name) for name in self._stalls]
        node["allocstall"] = np.sum(zones, axis=0) if zones and NONE not in zones[0] else np.full(times.size, NONE)
        facts |= node
        return facts | self._limits.at(times, self.rounds(times, after=after))

    def lately(self, times: Ints) -> Facts:
        """Hits so far, just before these times, or as long before as threads may sleep: later ones may be why it begins."""
        rows = self._usage.window()
        first = int(rows["t_ns"][0]) if len(rows) else NONE
        before = np.minimum(np.maximum(times - JUST_NS, first), times)  # as far as rows go back
        just = _find(self._usage, before, OWN_HITS, after=False)
        before = np.minimum(np.maximum(times - SLEEP_NS, first), times)
        asleep = _find(self._usage, before, ("high_hits",), after=False)
        above = self._limits.at(times, self.rounds(times - SLEEP_NS, after=False))["above"]
        return {f"{name}_lately": values for name, values in (just | asleep | {"above": above}).items()}


def _find(channel: Channel, times: Ints, names: tuple[str, ...], *, after: bool) -> Facts:
    breathe()
    window = channel.window()
    found: Facts = {name: np.full(times.size, NONE) for name in names}
    if len(window) == 0 or times.size == 0:
        return found
    rows = window["t_ns"]
    if after:
        at = np.minimum(np.searchsorted(rows, times, side="left"), len(window) - 1)
    else:
        at = np.searchsorted(rows, times, side="right") - 1
    for name in names:
        if name in window:
            found[name] = np.where(at >= 0, window[name][np.maximum(at, 0)], NONE)
    if not window.valid():  # its oldest rows have been overwritten meanwhile, perhaps those
        return {name: np.full(times.size, NONE) for name in names}
    return found


class _Levels:
    """The rows of `limits`, as far as a channel that has a row a change still has them."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._head = -1
        nothing = np.empty(0, np.int64)
        self._own = _Steps(nothing, nothing)
        self._above = _Steps(nothing, nothing)
        self._falls = _Steps(nothing, nothing)
        self._hit_t = self._hit = nothing

    def at(self, times: Ints, rounds: Ints) -> Facts:
        """The own limit then; and by the look at limits next to it, hits of ancestors and lowered limits so far."""
        self._refresh()
        return {"limit_bytes": self._own.at(times), "above": self._above.at(rounds), "falls": self._falls.at(rounds)}

    def above(self, since_ns: int, until_ns: int) -> tuple[Ints, Ints]:
        self._refresh()
        first, end = np.searchsorted(self._hit_t, [since_ns, until_ns], side="right").tolist()
        return self._hit_t[first:end], self._hit[first:end]

    def _refresh(self) -> None:
        """A row counts only where it says something new: with the hits of a busy level come thousands that do not."""
        channel = self._channel
        if channel.head == self._head:
            return
        self._head = channel.head
        rows = channel.window()
        if len(rows) == 0:
            return
        level, t = rows["level"], np.maximum.accumulate(rows["t_ns"])
        above = np.where(level > 0, np.maximum(_change(level, rows["hits"]), 0), 0)
        fell = _change(level, rows["limit_bytes"], no_limit=True) < 0
        if "high_bytes" in rows:
            fell |= _change(level, rows["high_bytes"], no_limit=True) < 0
        own = level == 0
        self._own = _Steps(t[own], rows["limit_bytes"][own])
        self._above, self._falls = _Steps(t, np.cumsum(above)), _Steps(t, np.cumsum(fell, dtype=np.int64))
        self._hit_t, self._hit = t[above > 0], above[above > 0]
        channel.forget(channel.head)


class _Steps:
    """A value that changes now and then."""

    def __init__(self, times: Ints, values: Ints) -> None:
        new = np.ones(values.size, bool)
        new[1:] = values[1:] != values[:-1]
        self.times = times[new]
        self.values = values[new]

    def at(self, times: Ints) -> Ints:
        """The value at these times; before the first, that one. NONE = there is none."""
        if self.times.size == 0:
            return np.full(times.size, NONE)
        return self.values[np.maximum(np.searchsorted(self.times, times, side="right") - 1, 0)]


def _change(level: Ints, values: Ints, *, no_limit: bool = False) -> Ints:
    """What each row adds to the row before it of the same level; 0 where there is none or one of them is not known."""
    change = np.zeros(level.size, np.int64)
    for one in distinct(level).tolist():
        at = np.flatnonzero(level == one)
        mine = values[at]
        known = np.ones(at.size - 1, bool) if no_limit else (mine[1:] != NONE) & (mine[:-1] != NONE)
        change[at[1:]] = np.where(known, mine[1:] - mine[:-1], 0)
    return change
