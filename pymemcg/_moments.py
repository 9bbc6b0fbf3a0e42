# SPDX-License-Identifier: Apache-2.0
"""Moments: when somebody was held for memory, as far as an evidence knows. Stalls are made of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from pymemcg._breath import breathe
from pymemcg._ffi import NONE

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints: TypeAlias = npt.NDArray[np.int64]

TRACE: Final = 1
PSI: Final = 2
COUNTERS: Final = 3
WCHAN: Final = 4
EVIDENCES: Final = {TRACE: "trace", PSI: "psi", COUNTERS: "counters", WCHAN: "wchan"}
"""What `Moments.evidence` says."""

UNTOLD: Final = 0
MEMCG: Final = 1
DIRECT: Final = 2
COMPACTION: Final = 3
THROTTLED: Final = 4
HIGH_SLEEP: Final = 5
"""What `Moments.kind` says: the kinds of the `reclaim` channel, or 0 where the evidence tells none."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """When somebody was held: arrays of shape (n,), int64, sorted by `start_ns`; NONE (2**63 - 1) = not known.

    Attributes:
        start_ns: CLOCK_MONOTONIC. With trace the very interval; else it is known only that it was from here on.
        end_ns: Until here; NONE = open-ended: it went on when the evidence ended.
        pid: 0 = not known.
        tid: 0 = not known.
        held_ns: For how long, without the time for which the thread only waited for a CPU as far as that is known.
        lo_ns: At least that long.
        hi_ns: At most that long.
        cpu_wait_ns: Time for which the thread was runnable but preempted.
        hits: Hits of a limit that fell into it.
        reclaimed_pages: What it freed.
        kind: UNTOLD, MEMCG, DIRECT, COMPACTION, THROTTLED or HIGH_SLEEP.
        evidence: TRACE, PSI, COUNTERS or WCHAN.
    """

    start_ns: Ints
    end_ns: Ints
    pid: Ints
    tid: Ints
    held_ns: Ints
    lo_ns: Ints
    hi_ns: Ints
    cpu_wait_ns: Ints
    hits: Ints
    reclaimed_pages: Ints
    kind: Ints
    evidence: Ints

    @classmethod
    def of(
        cls, start_ns: npt.ArrayLike, end_ns: npt.ArrayLike, *, evidence: npt.ArrayLike, **columns: npt.ArrayLike
    ) -> Moments:
        """Make moments from columns or single numbers, and sort them.

        Args:
            start_ns: Shape (n,); the others are of this shape or one number for all.
            end_ns: ns.
            evidence: TRACE, PSI, COUNTERS or WCHAN.
            columns: The rest; what is not given is not known (NONE), or 0 for `pid`, `tid` and `kind`.
        """
        start = np.atleast_1d(np.asarray(start_ns, dtype=np.int64))
        given = {"start_ns": start, "end_ns": end_ns, "evidence": evidence} | columns
        made = {name: _column(start.size, given.get(name, _ABSENT.get(name, NONE))) for name in COLUMNS}
        moments = cls(**made)
        return (
            moments if start.size < 2 or bool((np.diff(start) >= 0).all()) else moments.take(np.argsort(start, kind="stable"))
        )

    @classmethod
    def none(cls) -> Moments:
        """No moments."""
        return _NOTHING

    @classmethod
    def joined(cls, parts: list[Moments]) -> Moments:
        """All of them, sorted by `start_ns`; of those that start together the first part's come first."""
        parts = [part for part in parts if len(part)]
        if len(parts) < 2:
            return parts[0] if parts else cls.none()
        whole = cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS})
        return whole.take(np.argsort(whole.start_ns, kind="stable"))

    def take(self, index: Any) -> Moments:
        """Some of them: an index, mask or slice of numpy's that keeps the order."""
        breathe()
        return Moments(**{name: getattr(self, name)[index] for name in COLUMNS})

    def between(self, since_ns: int, until_ns: int) -> Moments:
        """Those that overlap [since_ns, until_ns)."""
        which = (self.start_ns < until_ns) & (self.end_ns >= since_ns)
        return self if which.all() else self.take(which)

    def __len__(self) -> int:
        return int(self.start_ns.size)


COLUMNS: Final = tuple(field.name for field in fields(Moments))
_ABSENT: Final = {"pid": 0, "tid": 0, "kind": UNTOLD}


def _column(size: int, values: npt.ArrayLike) -> Ints:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(values, dtype=np.int64), (size,)))


_NOTHING: Final = Moments.of(np.empty(0, np.int64), 0, evidence=0)
