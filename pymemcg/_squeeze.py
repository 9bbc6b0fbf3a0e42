# SPDX-License-Identifier: Apache-2.0
"""Whether a group that was at its limit could still free memory: then its OOM killer had no reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pymemcg._ending import is_at
from pymemcg._ffi import NONE
from pymemcg._words import size, span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pymemcg._findings import LimitUse
    from pymemcg.channel import Window
    from pymemcg.recording import Recording

SECOND_NS: Final = 1_000_000_000
STAT_AGE_NS: Final = 2 * SECOND_NS
"""memory.stat is up to so old: the file pages that go within it may be gone."""
LAST: Final = 8
"""Intervals of reclaim that are looked at: before it kills, the kernel tries sixteen times without success …"""
LITTLE_PAGES: Final = 8
"""… and each time it is out for 32 pages at least."""
HELD_NS: Final = 1_000_000
"""A thread that was held for less was not: as for stalls (`Policy.least_ns`)."""
_MEMCG: Final = 1
_PAGE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Squeeze:
    """What tells, in words.

    Attributes:
        grown: That usage came to the limit in the last second, or was about to; "" = it did not.
        short: Signs that there was nothing left to free.
        spare: Signs that there was still some to free; () where nothing tells of it.
    """

    grown: str
    short: tuple[str, ...]
    spare: tuple[str, ...]


def of(recording: Recording, end_ns: int, nearest: LimitUse | None, held_ns: int | None) -> Squeeze:
    """Of the last second before the last row."""
    if nearest is None or not nearest.near:
        return Squeeze("", (), ())
    reclaim = _reclaim(recording, end_ns)
    short = [reclaim.failed(), reclaim.never_ended(held_ns)]
    left, soon = _file_pages(recording)
    none = left is not None and is_at(nearest.limit_bytes, soon)
    if left is not None and none and nearest.level == 0:  # below a group above others may have some
        short.append(_gone(left, nearest.limit_bytes))
    spare = () if left is None or none else (*reclaim.freed(), f"{size(left)} were file pages, which can be freed")
    return Squeeze(_grown(recording, end_ns, nearest), tuple(text for text in short if text), spare)


def _gone(left: int, limit: int) -> str:
    if not is_at(limit, left):
        return f"{size(left)} of file pages were left, and went so fast that they were soon gone"
    return f"next to no file pages were left ({size(left)})" if left else "no file pages were left"


def _grown(recording: Recording, end_ns: int, nearest: LimitUse) -> str:
    """That usage came to the limit in the last second, or was about to: in the second before that it was never there."""
    if not is_at(nearest.limit_bytes, nearest.left_bytes or 0):
        return "it grew so fast that the next rows would have been at it" if nearest.level == 0 else ""
    channel = recording.usage if nearest.level == 0 else recording.limits
    rows = channel.window(since_ns=end_ns - 2 * SECOND_NS)
    if "usage_bytes" not in rows or len(rows) == 0:
        return ""
    t_ns, usage = rows["t_ns"], rows["usage_bytes"]
    known = usage != NONE
    if nearest.level and "level" in rows:
        known &= rows["level"] == nearest.level
    t_ns, usage = t_ns[known], usage[known]
    # The first, too, where nothing is older than a second: a life was short, or a group's limits have few rows.
    before = usage[: max(1, int((t_ns < end_ns - SECOND_NS).sum()))]
    came = usage.size > before.size and not is_at(nearest.limit_bytes, nearest.limit_bytes - int(before.max()))
    return "usage grew into the limit in the last second" if came else ""


def _file_pages(recording: Recording) -> tuple[int | None, int]:
    """The file pages in the last row that can be freed, and how many there were when it was read, if it was that old."""
    last = recording.stat.window(rows=1)
    since_ns = int(last["t_ns"][-1]) - STAT_AGE_NS if len(last) and "t_ns" in last else 0
    rows = recording.stat.window(since_ns=since_ns)
    if not {"inactive_file", "active_file"} <= set(rows.names) or len(rows) == 0:
        return None, 0
    inactive, active = rows["inactive_file"], rows["active_file"]
    known = (inactive != NONE) & (active != NONE)
    if not known.any():
        return None, 0
    pages = inactive[known] + active[known]
    left = int(pages[-1])
    return left, max(0, left - max(0, int(pages[0]) - left))


@dataclass(frozen=True, slots=True)
class _Reclaim:
    """Reclaim at the limit in the last second; empty arrays where nothing tells of it."""

    pages: NDArray[np.int64]
    times_ns: NDArray[np.int64]
    page_bytes: int

    def failed(self) -> str:
        last = self.pages[-LAST:]
        if not last.size or last.mean() >= LITTLE_PAGES:
            return ""
        freed = size(int(last.sum()) * self.page_bytes) if last.any() else "nothing"
        return f"the last reclaim freed {freed}"

    def never_ended(self, held_ns: int | None) -> str:
        """A thread that was at it for longer than any other: one that SIGKILL meets in reclaim has been there for as long."""
        if held_ns is None or held_ns < HELD_NS or held_ns <= self.times_ns.max(initial=0):
            return ""
        return f"a thread had been in reclaim for {span(held_ns)} without end"

    def freed(self) -> tuple[str, ...]:
        if not self.pages.size:
            return ()
        return (f"reclaim still freed {size(float(self.pages[-LAST:].mean()) * self.page_bytes)} each time",)


def _reclaim(recording: Recording, end_ns: int) -> _Reclaim:
    import numpy as np

    rows: Window = recording.reclaim.window()
    page_bytes = recording.info.get("page_bytes", _PAGE_BYTES)
    if len(rows) == 0 or not {"start_ns", "end_ns", "kind", "reclaimed_pages"} <= set(rows.names):
        none = np.empty(0, np.int64)
        return _Reclaim(none, none, page_bytes)
    end = rows["end_ns"]
    which = np.flatnonzero((end > end_ns - SECOND_NS) & (end != NONE) & (rows["kind"] == _MEMCG))
    which = which[np.argsort(end[which], kind="stable")]
    pages = rows["reclaimed_pages"][which]
    times_ns = end[which] - rows["start_ns"][which]
    return _Reclaim(pages[pages != NONE], times_ns, page_bytes)
