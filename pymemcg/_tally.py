# SPDX-License-Identifier: Apache-2.0
"""What stalls add up to."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pymemcg._words import number, share, span

if TYPE_CHECKING:
    from pymemcg._stall import Stall


@dataclass
class Tally:
    """Adds up closed stalls, and keeps the worst.

    Attributes:
        keep: How many to keep.
        count: Stalls that were not harmless.
        stall_ns: Their time, as far as it is known.
        unknown: Those of them whose time is not known.
        harmless: Harmless episodes.
        harmless_ns: Time for which somebody was held in them.
        harmless_lasted_ns: And how long they lasted.
        causes: How many stalls each cause had.
    """

    keep: int = 20
    count: int = 0
    stall_ns: int = 0
    unknown: int = 0
    harmless: int = 0
    harmless_ns: int = 0
    harmless_lasted_ns: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    _worst: list[tuple[int, int, Stall]] = field(default_factory=list)

    def add(self, stall: Stall) -> None:
        """Count one."""
        if stall.state != "closed":
            return
        if stall.harmless:
            self.harmless += 1
            self.harmless_ns += stall.stall_ns or 0
            self.harmless_lasted_ns += (stall.end_ns or stall.start_ns) - stall.start_ns
            return
        self.count += 1
        self.stall_ns += stall.stall_ns or 0
        self.unknown += stall.stall_ns is None
        self.causes[stall.cause] += 1
        heapq.heappush(self._worst, (stall.stall_ns or 0, -self.count, stall))
        if len(self._worst) > self.keep:
            heapq.heappop(self._worst)

    def worst(self) -> list[Stall]:
        """Those kept, in order of their beginning."""
        return sorted((stall for _, _, stall in self._worst), key=lambda stall: stall.start_ns)

    def says(self) -> str:
        """All of it in a sentence."""
        if not self.count:
            return "none"
        causes = ", ".join(f"{cause} {number(count)}" for cause, count in self.causes.most_common())
        text = f"{number(self.count)} ({causes})"
        if self.unknown < self.count:
            text += f", {span(self.stall_ns)} in all, the worst {span(max(self._worst)[0])}"
        if self.unknown:
            text += f"; {'the' if self.unknown == self.count else f'of {number(self.unknown)} the'} duration is not known"
        return text

    def figures(self) -> list[tuple[str, str]]:
        """Titles and texts: stalls, and harmless episodes where there were some."""
        rows = [("stalls", self.says())]
        if self.harmless:
            part = share(self.harmless_ns / max(1, self.harmless_lasted_ns))
            text = f"{span(self.harmless_ns)} of {span(self.harmless_lasted_ns)} ({part}) in reclaim that held nobody for 1 ms"
            rows.append(("harmless", text))
        return rows
