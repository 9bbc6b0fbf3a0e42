# SPDX-License-Identifier: Apache-2.0
"""Drives the detection: reads channels in chunks, makes moments of all evidences, and lets their tracks tell what is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from pymemcg._counted import Counted
from pymemcg._facts import Looking
from pymemcg._ffi import NONE
from pymemcg._moments import Moments
from pymemcg._reading import HITS, Cursor, HitFinder
from pymemcg._telling import Flaws, Teller
from pymemcg._traced import Traced
from pymemcg._tracks import Track
from pymemcg.recording import Recording

if TYPE_CHECKING:
    import numpy.typing as npt

    from pymemcg._reading import Rows
    from pymemcg._stall import Policy, Stall
    from pymemcg.channel import Channels

    Ints: TypeAlias = npt.NDArray[np.int64]
    Bools: TypeAlias = npt.NDArray[np.bool_]

CHUNK: Final = 1 << 19
"""Rows at a time: 4 MiB a column."""
PART: Final = 2048
"""Moments that are remembered are joined until so many are one part: live they come a few at a time."""
TAKEOVER: Final = 1
TRACE_LOST: Final = 6


class Detection:
    """What a `Detector` does, with numpy.

    Args:
        source: A recording or a sampler.
        evidence: "auto", or the one to use.
        policy: What counts as a stall.
        chunk: Rows of `usage` at a time.
        since_ns: Begin there; None = with the oldest row.
    """

    def __init__(
        self, source: Channels, evidence: str, policy: Policy, *, chunk: int = CHUNK, since_ns: int | None = None
    ) -> None:
        self._source = source
        self._policy = policy
        self._chunk = chunk
        self._live = not isinstance(source, Recording)
        self._flaws = Flaws()
        since = None if since_ns is None else ("t_ns", since_ns)
        self._usage = Cursor(source.usage, ("t_ns", "usage_bytes", *HITS), live=self._live, since=since)
        self._events = Cursor(source.events, ("t_ns", "since_ns", "kind", "value"), live=self._live)
        self._finder = HitFinder()
        self._looking = looking = Looking(source)
        self._trace: Traced | None = Traced(source, self._flaws, policy, live=self._live, since_ns=since_ns)
        if not self._trace.works or evidence not in ("auto", "trace"):
            self._trace = None
        self._count = None
        if evidence != "trace":
            psi = evidence != "counters"
            self._count = Counted(source, looking, policy, psi=psi, wchan=evidence == "auto", live=self._live, since=since)
        traced = Teller(looking, self._flaws, traced=True)
        counted = Teller(looking, self._flaws, traced=False)
        self._tracks = (
            Track(traced, looking, policy, self._unexplained, live=self._live),
            Track(counted, looking, policy, self._unexplained, live=self._live),
        )
        self._history: list[Moments] = []

    @property
    def lost(self) -> dict[str, int]:
        """Channel to rows that were overwritten before they were read."""
        cursors = [self._usage, self._events]
        cursors += [self._trace.cursor] if self._trace else []
        cursors += [self._count.cursor] if self._count else []
        return {cursor.channel.name: cursor.lost for cursor in cursors if cursor.lost}

    @property
    def final_until_ns(self) -> int:
        """Nothing more will be told of the time before."""
        return min((track.final_until_ns for track in self._used), default=0)

    @property
    def _used(self) -> list[Track]:
        return [track for track, of in zip(self._tracks, (self._trace, self._count), strict=True) if of is not None]

    def moments(self, since_ns: int, until_ns: int) -> Moments:
        """Those that are known and remembered."""
        return Moments.joined([part.between(since_ns, until_ns) for part in self._history])

    def advance(self) -> list[Stall]:
        """Read all that is there."""
        out: list[Stall] = []
        while True:
            more = self._usage.left > self._chunk
            out += self._step(final=False)
            if not more:
                return out

    def reach(self, until_ns: int) -> None:
        """Read until everything before this time is known, or to the end."""
        while self._usage.left and min(track.until_ns for track in self._used) < until_ns:
            self._step(final=False)
        if min(track.until_ns for track in self._used) < until_ns:
            self._step(final=True)

    def finish(self) -> list[Stall]:
        """The rest."""
        return [*self.advance(), *self._step(final=True)]

    def _unexplained(self, times: Ints) -> Bools:
        """Where tracepoints have told all that they can."""
        return self._trace.covers(times) if self._trace else np.zeros(times.size, bool)

    def _step(self, *, final: bool) -> list[Stall]:
        known_ns = self._trace.ready() if self._trace and self._live and not final else NONE
        self._read_events()
        self._read_usage()
        now_ns = NONE if final or self._ended else self._finder.last_ns
        out: list[Stall] = []
        if self._trace is not None:
            moments, ends, until_ns = self._trace.advance(now_ns, known_ns, self._finder.last_ns)
            self._keep(moments)
            self._tracks[0].add(moments, ends)
            out += self._tracks[0].advance(min(until_ns, now_ns), final=final)
            now_ns = min(until_ns, now_ns)
        if self._count is not None:
            moments, until_ns = self._count.advance(now_ns, self._trace, self._finder.last_ns)
            self._keep(moments)
            self._tracks[1].add(moments, moments.end_ns)
            out += self._tracks[1].advance(until_ns, final=final)
        self._looking.forget()
        return out

    @property
    def _ended(self) -> bool:
        """A recording is read to its end, and so is what it says of the last moments."""
        return not self._live and self._usage.left == 0

    def _read_usage(self) -> None:
        before, lost, unusable = self._finder.last_ns, self._usage.lost, self._finder.unusable
        hits = self._finder.find(self._usage.read(self._chunk))
        if self._count is not None:
            self._count.add(hits)
        self._usage.forget()
        if self._usage.lost > lost:
            why = f"{self._usage.lost - lost} rows of usage were overwritten before they were read"
            self._flaws.add(before, self._finder.last_ns, why)
        if self._finder.unusable > unusable:
            why = f"{self._finder.unusable - unusable} rows of usage had no time, or one that was over"
            self._flaws.add(before, self._finder.last_ns, why)
        closed = self._source.usage.closed_at
        if closed is not None:
            why = f"the target could not be sampled any more: {self._source.usage.closed}"
            self._flaws.add(closed[0] - self._policy.window_ns, NONE, why)

    def _read_events(self) -> None:
        rows: Rows = self._events.read(self._chunk)
        if not rows:
            return
        for t, since, kind, value in zip(*(rows[name].tolist() for name in ("t_ns", "since_ns", "kind", "value")), strict=True):
            if kind == TAKEOVER:
                self._flaws.add(since, t, "nobody sampled until another process went on")
            elif kind == TRACE_LOST and self._trace is not None:
                self._flaws.add(since, t, f"tracepoints were lost ({value} so far)")
                self._trace.uncover(since, t)

    def _keep(self, moments: Moments) -> None:
        if len(moments) == 0 or self._policy.reach_ns <= 0:
            return
        far = self._finder.last_ns - self._policy.reach_ns
        self._history = [part for part in self._history if part.start_ns[-1] >= far]
        self._history.append(moments)
        while len(self._history) > 1 and len(self._history[-2]) <= min(2 * len(self._history[-1]), PART):
            self._history[-2:] = [Moments.joined(self._history[-2:])]
