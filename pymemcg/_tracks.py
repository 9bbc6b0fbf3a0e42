# SPDX-License-Identifier: Apache-2.0
"""A track: what one kind of evidence makes of its moments, from waiting to be judged to being told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from pymemcg._ffi import NONE
from pymemcg._groups import Groups, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from pymemcg._facts import Facts, Looking
    from pymemcg._groups import Rows, Settled
    from pymemcg._moments import Moments
    from pymemcg._stall import Policy, Stall
    from pymemcg._telling import Teller

    Ints: TypeAlias = npt.NDArray[np.int64]
    Bools: TypeAlias = npt.NDArray[np.bool_]
    Batch: TypeAlias = tuple[Rows, list[tuple[int, ...]], Facts]

HARMFUL: Final = 0
HARMLESS: Final = 1
UNKNOWN: Final = 2


class Track:
    """Moments of one kind of evidence on their way to records.

    Args:
        teller: Makes the records.
        looking: Tells when limits were looked at last.
        policy: What counts as a stall.
        explained: Start times to a mask of those for which tracepoints have explained all that they can see.
        live: More may become known of what is over.
    """

    def __init__(
        self, teller: Teller, looking: Looking, policy: Policy, explained: Callable[[Ints], Bools], *, live: bool
    ) -> None:
        self._teller = teller
        self._looking = looking
        self._policy = policy
        self._explained = explained
        self._live = live
        self._waiting = Waiting(policy)
        self._groups = (Groups(policy.join_ns), Groups(policy.episode_ns), Groups(policy.join_ns))
        self._begun: list[tuple[int, Facts] | None] = [None, None, None]
        self._told: list[tuple[int, int]] = [(NONE, 0)] * 3
        self._unexplained: list[tuple[int, Batch]] = []
        self.until_ns = 0

    @property
    def final_until_ns(self) -> int:
        """Nothing more will be told of the time before."""
        begun = [int(group.open["start_ns"][0]) for group in self._groups if group.open]
        held = [int(rows["start_ns"].min()) for _, (rows, _, _) in self._unexplained]
        return min([self.until_ns, self._waiting.first_ns, *begun, *held])

    def add(self, moments: Moments, ends: Ints) -> None:
        """New moments; `ends`: until when each is taken to go on."""
        self._waiting.add(moments, ends)

    def advance(self, until_ns: int, *, final: bool = False) -> list[Stall]:
        """Tell what is known, now that every moment that began before `until_ns` was added.

        Args:
            until_ns: ns.
            final: Nothing more will become known of it.
        """
        if until_ns < self.until_ns and not final:
            return []
        self.until_ns = max(until_ns, self.until_ns)
        if not (len(self._waiting) or self._unexplained or any(group.open for group in self._groups)):
            return []  # as nearly always, many times a second
        settled = self._waiting.settle(until_ns)
        part, known = settled.judged.part, settled.moments.held_ns != NONE
        out: list[Stall] = self._explain(final)
        safe = min(until_ns, self._waiting.first_ns)
        for what, which in ((HARMFUL, part), (HARMLESS, ~part & known), (UNKNOWN, ~part & ~known)):
            rows, tids = settled.rows(which & settled.final)
            if rows["start_ns"].size == 0 and self._groups[what].open is None:
                continue
            out += self._closed(what, self._groups[what].add(rows, tids, safe), final)
            self._remember(what)
        if not final:
            out += self._open(settled)
            out += self._going_on()
        return out

    def _remember(self, what: int) -> None:
        """What held when the group that stays open began: its ring may have forgotten that by the time it is over."""
        group = self._groups[what].open
        begun = self._begun[what]
        if group is None:
            self._begun[what] = None
        elif begun is None or begun[0] != int(group["start_ns"][0]):
            self._begun[what] = int(group["start_ns"][0]), self._teller.begun(group)

    def _before(self, what: int, groups: Rows) -> Facts:
        facts, begun = self._teller.begun(groups), self._begun[what]
        if begun is not None and begun[0] == int(groups["start_ns"][0]):
            for name, values in begun[1].items():
                facts[name][0] = values[0]
        return facts

    def _closed(self, what: int, closed: tuple[Rows, list[tuple[int, ...]]], final: bool) -> list[Stall]:
        rows, tids = closed
        if not tids:
            return []
        return self._tell(what, (rows, tids, self._before(what, rows)), final)

    def _tell(self, what: int, batch: Batch, final: bool) -> list[Stall]:
        """Those that can be explained; the others wait until limits have been looked at."""
        rows, tids, before = batch
        rises = self._teller.rises(rows, before)
        if self._live and not final:
            later = self._teller.unexplained(rows, rises) & (rows["end_ns"] > self._looking.looked_ns)
            later &= rows["end_ns"] > self.until_ns - self._policy.look_ns
            if later.any():
                self._unexplained.append((what, _some(batch, later)))
                rows, tids, before = _some(batch, ~later)
                rises = self._teller.rises(rows, before)
        return self._records(what, (rows, tids, before), rises, "closed")

    def _explain(self, final: bool) -> list[Stall]:
        waiting, self._unexplained = self._unexplained, []
        return [stall for what, batch in waiting for stall in self._tell(what, batch, final)]

    def _records(self, what: int, batch: Batch, rises: Any, state: str) -> list[Stall]:
        rows, tids, before = batch
        harmless = (False, True, None)[what]
        residual = self._explained(rows["start_ns"])
        return list(self._teller.tell(rows, tids, before, rises, harmless=harmless, state=state, residual=residual))

    def _open(self, settled: Settled) -> list[Stall]:
        """A stall is told when it becomes known, once."""
        ahead = settled.ahead & settled.judged.part
        rows, tids = settled.rows(ahead)
        last = self._groups[HARMFUL].peek(rows, tids)
        if last is None or last[0]["start_ns"][0] == self._told[HARMFUL][0]:
            return []
        told = self._tell_open(HARMFUL, last[0], last[1])
        if told:
            self._told[HARMFUL] = int(last[0]["start_ns"][0]), int(last[0]["end_ns"][0])
        return told

    def _going_on(self) -> list[Stall]:
        """A harmless episode is told now and then as long as it goes on."""
        group = self._groups[HARMLESS].open
        if group is None:
            return []
        start, end = int(group["start_ns"][0]), int(group["end_ns"][0])
        since = self._told[HARMLESS][1] if self._told[HARMLESS][0] == start else start
        if end - since < self._policy.harmless_every_ns:
            return []
        self._told[HARMLESS] = start, end
        return self._tell_open(HARMLESS, group, tuple(sorted(self._groups[HARMLESS].open_tids)))

    def _tell_open(self, what: int, group: Rows, tids: tuple[int, ...]) -> list[Stall]:
        before = self._before(what, group)
        rises = self._teller.rises(group, before)
        if self._live and self._teller.unexplained(group, rises).any():
            return []  # perhaps an administrator's
        return self._records(what, (group, [tids], before), rises, "open")


def _some(batch: Batch, which: Bools) -> Batch:
    rows, tids, before = batch
    return (
        {name: values[which] for name, values in rows.items()},
        [tids[i] for i in np.flatnonzero(which).tolist()],
        {name: values[which] for name, values in before.items()},
    )
