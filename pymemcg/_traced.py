# SPDX-License-Identifier: Apache-2.0
"""What tracepoints know of the time up to now."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from pymemcg import _intervals
from pymemcg._ffi import NONE
from pymemcg._moments import WCHAN, Moments
from pymemcg._reading import Cursor

if TYPE_CHECKING:
    import numpy.typing as npt

    from pymemcg._stall import Policy
    from pymemcg._telling import Flaws
    from pymemcg.channel import Channel, Channels

    Ints: TypeAlias = npt.NDArray[np.int64]
    Bools: TypeAlias = npt.NDArray[np.bool_]

CHUNK: Final = 1 << 16
COLUMNS: Final = ("start_ns", "end_ns", "pid", "tid", "kind", "reclaimed_pages", "cpu_wait_ns")


class Traced:
    """Intervals of `reclaim`.

    Attributes:
        cursor: What reads it.
        works: There is such a channel.
        wchan: Rows of threads seen asleep, which are for PSI to explain.
    """

    def __init__(self, source: Channels, flaws: Flaws, policy: Policy, *, live: bool, since_ns: int | None) -> None:
        channel = getattr(source, "reclaim", None)
        self.works = channel is not None and bool(channel.names)
        if channel is None or not self.works:
            return
        self._source = source
        self._channel = channel
        self._flaws = flaws
        self._policy = policy
        self._live = live
        since = None if since_ns is None else ("end_ns", since_ns)
        self.cursor = Cursor(channel, COLUMNS, live=live, since=since)
        self.wchan = Moments.none()
        self._least_after = [] if live else _suffix_least(channel, since)
        self._chunks = 0
        self._uncovered: list[tuple[int, int]] = []
        self._union_start = self._union_end = np.empty(0, np.int64)

    @property
    def traces(self) -> bool:
        """Whether its rows come from tracepoints, too, and not from looks at `wchan` alone. Another writer may have less."""
        ring = self._channel._ring  # noqa: SLF001 - one room
        if not self._live:
            info = getattr(ring, "info", None) or {}
            return info.get("evidence", {}).get("trace") is None
        return int(getattr(getattr(getattr(ring, "header", None), "state", None), "trace_ns", 1)) != 0

    def ready(self) -> int:
        """Up to when every interval that began has its row, of those that can be read by now; ask before reading them."""
        if not self.traces:
            return NONE
        ring = self._channel._ring  # noqa: SLF001 - one room
        state = ring.header.state if ring is not None else None
        until = int(getattr(state, "trace_ns", 0))
        open_ = int(getattr(state, "trace_open_ns", 0))
        return min(until, open_) if open_ else until

    def uncover(self, since_ns: int, until_ns: int) -> None:
        """Rows of that time were lost."""
        self._uncovered.append((since_ns, until_ns))

    def covers(self, times: Ints, until: Ints | None = None) -> Bools:
        """Where nothing was lost: at these times, or from each until another."""
        ends = times if until is None else until
        covered = np.full(times.size, self.traces)
        for since, to in self._uncovered:
            covered &= (ends < since) | (times > to)
        closed = self._channel.closed_at
        if closed is not None:
            covered &= ends < closed[0]
        return covered

    def advance(self, now_ns: int, known_ns: int, last_ns: int) -> tuple[Moments, Ints, int]:
        """Read what there is, at least up to `now_ns` where it is recorded.

        Returns:
            (moments, until when each is taken to go on, up to when all that began are known)
        """
        parts = []
        while self.cursor.left and (self._live or (known_ns == NONE and self._known_ns < now_ns)):
            parts.append(self._read(last_ns))
            if self._live and self.cursor.left < CHUNK:
                break
        until = known_ns if self._live else self._known_ns
        moments = Moments.joined(parts)
        if len(moments) == 0:
            return moments, moments.end_ns, until
        seen = moments.evidence == WCHAN
        if seen.any():
            self.wchan = Moments.joined([self.wchan, moments.take(seen)])
            moments = moments.take(~seen)
        return *_ended(moments, self._last_ns(last_ns)), until

    @property
    def _known_ns(self) -> int:
        return self._least_after[self._chunks] if self._chunks < len(self._least_after) else NONE

    def _last_ns(self, last_ns: int) -> int:
        """When sampling ended, as far as it has."""
        rows = self._source.usage.window(rows=1)
        return int(rows["t_ns"][-1]) if not self._live and len(rows) else last_ns

    def _read(self, last_ns: int) -> Moments:
        lost = self.cursor.lost
        rows = self.cursor.read(CHUNK)
        self._chunks += 1
        if self.cursor.lost > lost:
            first = int(rows["end_ns"][0]) if rows["end_ns"].size else last_ns
            self._flaws.add(0, first, f"{self.cursor.lost - lost} rows of reclaim were overwritten before they were read")
            self.uncover(0, first)
        good = _intervals.usable(rows)
        if not good.all():
            bad = rows["start_ns"][~good]
            self._flaws.add(int(bad.min()), int(bad.max()), f"{bad.size} rows of reclaim make no sense")
        moments = _intervals.from_rows({name: values[good] for name, values in rows.items()})
        self._cover(moments)
        self.cursor.forget()
        return moments

    def _cover(self, moments: Moments) -> None:
        """Join intervals with those known before. Both are in order, and the new ones begin near the end of the others."""
        known = moments.take((moments.end_ns != NONE) & (moments.evidence != WCHAN))
        if len(known) == 0:
            return
        keep = int(np.searchsorted(self._union_end, known.start_ns[0]))
        start = np.concatenate([self._union_start[keep:], known.start_ns])
        order = np.argsort(start, kind="stable")
        start, end = start[order], np.concatenate([self._union_end[keep:], known.end_ns])[order]
        latest = _intervals.running_end(end, _intervals.LONG_AGO)
        first = np.flatnonzero(start > latest[:-1])
        self._union_start = np.concatenate([self._union_start[:keep], start[first]])
        self._union_end = np.concatenate([self._union_end[:keep], latest[first[1:]], latest[-1:]])

    def explained_ns(self, since: Ints, until: Ints) -> Ints:
        """Wall time in which somebody was held in each window, by tracepoints."""
        if self._union_start.size == 0:
            return np.zeros(since.size, np.int64)
        length = np.append(0, np.cumsum(self._union_end - self._union_start))

        def up_to(times: Ints) -> Ints:
            at = np.searchsorted(self._union_start, times, side="right")
            last = np.maximum(at - 1, 0)
            inside = np.minimum(times, self._union_end[last]) - self._union_start[last]
            return np.asarray(length[last] + np.where(at > 0, inside, 0), np.int64)

        return up_to(until) - up_to(since)

    def forget(self, before_ns: int) -> None:
        """Nobody will ask what explains the time before."""
        keep = int(np.searchsorted(self._union_end, before_ns))
        self._union_start, self._union_end = self._union_start[keep:], self._union_end[keep:]


def _ended(moments: Moments, last_ns: int) -> tuple[Moments, Ints]:
    """Let open-ended intervals go on until sampling ended: so long at least their threads were held."""
    open_ = moments.end_ns == NONE
    ends = np.where(open_, np.maximum(last_ns, moments.start_ns), moments.end_ns)
    if not open_.any():
        return moments, ends
    columns = {name: np.where(open_, ends - moments.start_ns, getattr(moments, name)) for name in ("held_ns", "lo_ns", "hi_ns")}
    return replace(moments, **columns), ends


def _suffix_least(channel: Channel, since: tuple[str, int] | None) -> list[int]:
    """The earliest beginning of all rows from each chunk on: rows come as they end, so that a long one comes late."""
    least = [NONE]
    reader = Cursor(channel, ("start_ns", "end_ns", "tid"), live=False, since=since)
    found = []
    while reader.left:
        rows = reader.read(CHUNK)
        good = _intervals.usable(rows)
        found.append(int(np.where(good, rows["start_ns"], NONE).min(initial=NONE)))
        reader.forget()
    for one in reversed(found):
        least.append(min(one, least[-1]))
    return least[::-1]
