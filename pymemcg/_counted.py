# SPDX-License-Identifier: Apache-2.0
"""What PSI and counters know, beyond what tracepoints explain."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from pymemcg._facts import SLEEP_NS
from pymemcg._ffi import NONE
from pymemcg._moments import COUNTERS, HIGH_SLEEP, MEMCG, UNTOLD, Moments
from pymemcg._psi import estimate
from pymemcg._psi_costs import Ticks, Windows
from pymemcg._reading import Cursor, Hits, Pressure, PressureFinder

if TYPE_CHECKING:
    import numpy.typing as npt

    from pymemcg._facts import Looking
    from pymemcg._stall import Policy
    from pymemcg._traced import Traced
    from pymemcg.channel import Channels

    Ints: TypeAlias = npt.NDArray[np.int64]
    Bools: TypeAlias = npt.NDArray[np.bool_]

CHUNK: Final = 1 << 16
GRAIN: Final = 4096
"""A recording's windows of PSI are estimated so many at a time: where they are parted must not depend on how it is read."""
BEFORE: Final = 64
"""… together with so many before them, from which the estimate may learn."""
LOOK_NS: Final = 100_000_000
"""How often ancestors are looked at, where no row of `node` tells when that was."""
OWN_NS: Final = 10_000_000_000
"""… and so long the group's own hits are remembered, to be compared with an ancestor's."""
COLUMNS: Final = ("t_ns", "since_ns", "some_us", "full_us", "cpu_us", "cpu_wait_us")


class Counted:
    """Moments of PSI and counters.

    Attributes:
        cursor: What reads `pressure`.
    """

    def __init__(
        self,
        source: Channels,
        looking: Looking,
        policy: Policy,
        *,
        psi: bool,
        wchan: bool,
        live: bool,
        since: tuple[str, int] | None,
    ) -> None:
        self._looking = looking
        self._policy = policy
        self._live = live
        self._wchan = wchan
        self._channel = source.pressure
        self._psi = psi and bool(source.pressure.names)
        self.cursor = Cursor(source.pressure, COLUMNS, live=live, since=since)
        info = _info(source)
        self._cpus = int(info.get("cpus") or os.cpu_count() or 1)
        self._whole_host = info.get("target", {}).get("pressure_scope") == "host"
        self._finder = PressureFinder()
        self._windows = Pressure.none()
        self._before = Pressure.none()
        self._hits = Hits.none()
        self._old = Hits.none()
        self._own_ns = np.empty(0, np.int64)
        self._above_ns = since[1] if since else 0
        self._done_ns = 0

    def add(self, hits: Hits) -> None:
        """Ticks in which something was hit."""
        if len(hits):
            self._hits = Hits.joined([self._hits, hits])
            self._own_ns = np.append(self._own_ns, hits.t_ns[hits.own > 0])

    def advance(self, now_ns: int, trace: Traced | None, last_ns: int) -> tuple[Moments, int]:
        """Make moments of what is known by now.

        Args:
            now_ns: Hits and tracepoints are known up to then; NONE = nothing more will come.
            trace: Tracepoints, where there are any.
            last_ns: The last tick that was read.

        Returns:
            (moments, up to when all that began are known)
        """
        self._look_above(now_ns)
        parts = []
        while self._read(now_ns):
            count = len(self._windows) if self._live or (now_ns == NONE and not self.cursor.left) else GRAIN
            if not self._live:
                count = min(count, GRAIN)
            due = int(np.searchsorted(self._windows.t_ns[:count], now_ns, side="right"))
            if due == 0 or (due < count and not self._live):
                break
            parts += self._estimate(self._windows.take(slice(due)), trace)
            self._windows = self._windows.take(slice(due, None))
        parts += self._count(now_ns, trace, last_ns)
        if trace is not None and self._wchan:
            parts.append(trace.wchan)
            trace.wchan = Moments.none()
        if trace is not None:
            trace.forget(self._done_ns if self._psi and not self._over else now_ns)
        first = int(self._hits.since_ns.min()) if len(self._hits) else NONE
        until = min(self._until(now_ns), first)
        return Moments.joined(parts), until

    def _until(self, now_ns: int) -> int:
        """Up to when what hits and windows know has become moments."""
        if now_ns == NONE:
            return NONE
        looked = self._looking.looked_ns
        if looked > now_ns:  # in the middle of a recording, or not known
            rounds = self._looking.rounds(np.array([now_ns]), after=False)
            looked = int(rounds[0]) if rounds[0] < now_ns else now_ns - LOOK_NS
        waits = self._psi and not self._over
        return min(looked, max(self._done_ns, now_ns - self._policy.patience_ns)) if waits else looked

    @property
    def _over(self) -> bool:
        """No more windows come."""
        return self._channel.closed_at is not None and not self.cursor.left and len(self._windows) == 0

    def _read(self, now_ns: int) -> bool:
        """Read windows, as many as are needed; whether there are any."""
        if not self._psi:
            return False
        while self.cursor.left and (self._live or len(self._windows) < GRAIN or self._windows.t_ns[-1] <= now_ns):
            self._windows = Pressure.joined([self._windows, self._finder.find(self.cursor.read(CHUNK))])
            self.cursor.forget()
        return len(self._windows) > 0

    def _look_above(self, now_ns: int) -> None:
        """Hits at an ancestor's limit, unless the group's own were hit in the same time, which v2 counts there too."""
        t, hits = self._looking.above(self._above_ns, now_ns)
        if t.size == 0:
            return
        self._above_ns = int(t[-1])
        t, first = np.unique(t, return_index=True)
        hits = np.add.reduceat(hits, first)
        since = self._looking.rounds(t - 1, after=False)
        since = np.where(since < t - 1, since, t - LOOK_NS)
        own = self._own_ns
        self._own_ns = own[own > self._above_ns - OWN_NS]
        alone = np.searchsorted(own, t, side="right") == np.searchsorted(own, since, side="right")
        nothing = np.zeros(t.size, np.int64)
        unknown = np.full(t.size, NONE)
        above = Hits(since, t, nothing, nothing, hits, unknown, unknown).take(alone)
        self._hits = Hits.joined([self._hits, above])

    def _estimate(self, windows: Pressure, trace: Traced | None) -> list[Moments]:
        """Moments of some windows and the hits in them."""
        first, last = int(windows.since_ns[0]), int(windows.t_ns[-1])
        mine = int(np.searchsorted(self._hits.t_ns, last, side="right"))
        hits, self._hits = self._hits.take(slice(mine)), self._hits.take(slice(mine, None))
        late = windows.t_ns[np.searchsorted(windows.t_ns, hits.t_ns)] - hits.t_ns > self._policy.patience_ns
        parts, hits = self._alone(hits.take(late), trace), hits.take(~late)
        if trace is not None:
            windows, hits = self._unexplained(windows, hits, trace)
        inside = _window_of(hits.t_ns, windows) >= 0
        early = (hits.t_ns <= first) & (self._done_ns == 0)
        before = self._beside(windows, hits.take(inside | early)) if early.any() else Moments.none()
        before = before.take(before.end_ns <= first)
        parts += [before] if len(before) else self._alone(hits.take(early), trace)
        parts += self._alone(hits.take(~inside & ~early), trace)
        both, ticks = Pressure.joined([self._before, windows]), Hits.joined([self._old, hits.take(inside)])
        asleep = _asleep(ticks, both)
        found = self._for_group(estimate(_ticks(ticks), _psi_windows(both), cpus=self._cpus, asleep=asleep))
        found = found.take(found.end_ns > first)
        self._done_ns = last
        self._before = both.take(slice(max(0, len(both) - BEFORE), None))
        self._old = ticks.take(ticks.t_ns > int(self._before.since_ns[0]) if len(self._before) else slice(0))
        return [*parts, found.take(found.hi_ns > 0)]

    def _beside(self, windows: Pressure, hits: Hits) -> Moments:
        """What hits before or after all windows cost, by what they cost next to there."""
        found = self._for_group(estimate(_ticks(hits), _psi_windows(windows), cpus=self._cpus, outside=True))
        return found.take(found.hi_ns > 0)

    def _for_group(self, found: Moments) -> Moments:
        if not self._whole_host:
            return found
        found = replace(found, lo_ns=np.zeros_like(found.lo_ns))  # somebody on this host was held: nobody knows who
        return found.take((found.hits != NONE) & (found.hits > 0))

    def _unexplained(self, windows: Pressure, hits: Hits, trace: Traced) -> tuple[Pressure, Hits]:
        """What tracepoints leave: nearly all of what memory.high and refaults cost, and nothing of what limits do."""
        covered = trace.covers(windows.since_ns, windows.t_ns)
        explained = trace.explained_ns(windows.since_ns, windows.t_ns)
        rest = windows.some_us * 1000 - explained
        noise = np.maximum(self._policy.noise_ns, (explained * self._policy.noise_ratio).astype(np.int64))
        some = np.where(covered, np.where(rest > noise, rest // 1000, 0), windows.some_us)
        left = replace(windows, some_us=some, full_us=np.minimum(windows.full_us, some))
        of = _window_of(hits.t_ns, windows)
        told = (covered & (some == 0))[np.maximum(of, 0)]  # what is left happened where there were hits, too
        return left, _but_high(hits, np.where(of >= 0, told, trace.covers(hits.t_ns)))

    def _count(self, now_ns: int, trace: Traced | None, last_ns: int) -> list[Moments]:
        """Hits that no window will tell of."""
        if len(self._hits) == 0:
            return []
        alone = now_ns == NONE or not self._psi or self._over
        due = self._hits.t_ns <= (now_ns if alone else now_ns - self._policy.patience_ns)
        if len(self._windows):
            due &= self._hits.t_ns > self._windows.t_ns[-1]
        hits, self._hits = self._hits.take(due), self._hits.take(~due)
        if now_ns != NONE or self._over or not len(self._before):
            return self._alone(hits, trace)
        late = hits.t_ns <= last_ns - self._policy.patience_ns
        parts, hits = self._alone(hits.take(late), trace), hits.take(~late)
        told = hits if trace is None else _but_high(hits, trace.covers(hits.t_ns))
        if len(told) == 0:
            return parts
        after = self._beside(self._before, Hits.joined([self._old, told]))
        after = after.take(after.start_ns >= self._done_ns)
        return [*parts, after] if len(after) else [*parts, *self._alone(hits, trace)]

    @staticmethod
    def _alone(hits: Hits, trace: Traced | None) -> list[Moments]:
        """Hits of which nobody knows how long they held anybody."""
        if trace is not None:
            covered = trace.covers(hits.since_ns, hits.t_ns)
            hits = Hits.joined([hits.take(~covered), hits.take(covered).only_high()])
        if len(hits) == 0:
            return []
        kind = np.where(hits.own > 0, MEMCG, np.where(hits.high > 0, HIGH_SLEEP, UNTOLD))
        return [Moments.of(hits.since_ns, hits.t_ns, evidence=COUNTERS, hits=hits.own + hits.high + hits.above, kind=kind)]


def _but_high(hits: Hits, which: Bools) -> Hits:
    """Of some hits only those of memory.high."""
    left = replace(hits, own=np.where(which, 0, hits.own), above=np.where(which, 0, hits.above))
    return left.take(left.own + left.high + left.above > 0)


def _window_of(times: Ints, windows: Pressure) -> Ints:
    """In which window each time lies; -1 = in none."""
    if len(windows) == 0:
        return np.full(times.size, -1)
    at = np.minimum(np.searchsorted(windows.t_ns, times), len(windows) - 1)
    return np.where((times > windows.since_ns[at]) & (times <= windows.t_ns[at]), at, -1)


def _ticks(hits: Hits) -> Ticks:
    return Ticks(
        t_ns=hits.t_ns,
        since_ns=hits.since_ns,
        hits=hits.own + hits.high + hits.above,
        usage_bytes=hits.usage_bytes,
        before_bytes=hits.before_bytes,
    )


def _asleep(hits: Hits, windows: Pressure) -> Bools:
    """Windows that began so soon after a hit of memory.high, perhaps an ancestor's, that threads may have slept then."""
    high = hits.t_ns[hits.high + hits.above > 0]
    last = np.append(-NONE, high)[np.searchsorted(high, windows.since_ns, side="right")]
    return np.asarray(last > windows.since_ns - SLEEP_NS)


def _psi_windows(windows: Pressure) -> Windows:
    wait = windows.cpu_wait_us
    return Windows(
        since_ns=windows.since_ns,
        t_ns=windows.t_ns,
        some_us=windows.some_us,
        full_us=windows.full_us,
        cpu_us=windows.cpu_us,
        cpu_wait_us=None if bool((wait == NONE).all()) else np.where(wait == NONE, 0, wait),
    )


def _info(source: Channels) -> dict[str, Any]:
    describe = getattr(source, "describe", None)
    info: dict[str, Any] = describe() if describe else getattr(source, "info", {})
    return info
