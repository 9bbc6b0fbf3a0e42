# SPDX-License-Identifier: Apache-2.0
"""From groups of moments to records: how long, why, and what may be missing."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from pymemcg import _causes
from pymemcg._breath import breathe
from pymemcg._ffi import NONE, or_none
from pymemcg._groups import KINDS
from pymemcg._moments import COUNTERS, PSI, TRACE, WCHAN
from pymemcg._stall import Stall

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from pymemcg._facts import Facts, Looking
    from pymemcg._groups import Rows

    Ints: TypeAlias = npt.NDArray[np.int64]
    Tids: TypeAlias = list[tuple[int, ...]]

_NAMED: Final = ((TRACE, "trace"), (PSI, "psi"), (WCHAN, "wchan"), (COUNTERS, "counters"))
_TOLD: Final = (
    *("start_ns", "end_ns", "stall", "lo", "hi", "longest_ns", "known", "cpu_wait_ns", "cpu_wait_unknown", "evidence", "hits"),
    *("count", "hits_of", "pages", "pages_known", "open_ended", "usage_bytes", "limit_bytes", "anon", "file"),
)
_OPEN_ENDED: Final = "it was going on when sampling ended"


class Flaws:
    """When something of the data was missing, and what."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int, str]] = []

    def add(self, since_ns: int, until_ns: int, why: str) -> None:
        """Something was missing between these times."""
        if (since_ns, until_ns, why) not in self._spans[-8:]:
            self._spans.append((since_ns, until_ns, why))

    def of(self, start_ns: int, end_ns: int) -> str | None:
        """What was missing meanwhile."""
        if not self._spans:
            return None
        found = dict.fromkeys(why for since, until, why in self._spans if since <= end_ns and start_ns <= until)
        return "; ".join(found) or None


class Teller:
    """Makes records of groups.

    Args:
        looking: What the channels say.
        flaws: What is missing.
        traced: The groups are of tracepoints; else of PSI and counters.
    """

    def __init__(self, looking: Looking, flaws: Flaws, *, traced: bool) -> None:
        self._looking = looking
        self._flaws = flaws
        self._traced = traced

    def begun(self, groups: Rows) -> Facts:
        """What held when they began."""
        times = groups["start_ns"]
        return self._looking.at(times, after=False) | self._looking.lately(times)

    def rises(self, groups: Rows, before: Facts) -> _causes.Rises:
        """What rose meanwhile, as far as it is known by now."""
        return _causes.Rises(before, self._looking.at(groups["end_ns"], after=True))

    def unexplained(self, groups: Rows, rises: _causes.Rises) -> npt.NDArray[np.bool_]:
        """Which of them only the next look at limits can explain."""
        if not self._traced:
            return np.zeros(groups["start_ns"].size, bool)
        return _causes.needs_looking(_kinds(groups), rises)

    def tell(
        self, groups: Rows, tids: Tids, before: Facts, rises: _causes.Rises, *, harmless: bool | None, state: str, residual: Any
    ) -> Iterator[Stall]:
        """The records of groups.

        Args:
            groups: A row a group.
            tids: The threads of each.
            before: What held when they began.
            rises: What rose meanwhile.
            harmless: What they are; None = nobody knows.
            state: "open" or "closed".
            residual: Mask of those that are what tracepoints leave unexplained.
        """
        breathe()
        kinds = _kinds(groups)
        causes = _causes.by_kind(kinds, rises) if self._traced else _causes.by_rises(kinds, rises, residual)
        hits = _causes.hits_of(causes, rises)
        figures = _traced(groups) if self._traced else _counted(groups)
        columns = [(groups | figures | before | {"hits_of": hits})[name].tolist() for name in _TOLD]
        for cause, named, row in zip(causes, tids, zip(*columns, strict=True), strict=True):
            start, end, stall, lo, hi, longest, known, wait, no_wait, bits, hit, count, hits_of, pages, paged, ended = row[:16]
            if cause == _causes.OUTSIDE or (cause == "ancestor" and hi == 0):
                continue
            breathe()
            usage, limit, anon, file = map(or_none, row[16:])
            flaw = self._flaws.of(start, end)
            yield Stall(
                start_ns=start,
                end_ns=None if ended else end,
                stall_ns=or_none(stall),
                stall_lo_ns=or_none(lo),
                stall_hi_ns=None if ended else or_none(hi),
                longest_ns=longest if known else None,
                cpu_wait_ns=wait if known and not no_wait else None,
                cause=cause,
                harmless=harmless,
                evidence=_evidence(bits, hit > 0),
                tids=named,
                intervals=count if known else None,
                limit_hits=or_none(hits_of),
                reclaimed_pages=pages if paged else None,
                usage_bytes=usage,
                limit_bytes=limit,
                anon=anon,
                file=file,
                state=state,
                incomplete="; ".join(filter(None, (_OPEN_ENDED, flaw))) if ended else flaw,
            )


def _kinds(groups: Rows) -> Ints:
    return np.stack([groups[f"kind{kind}"] for kind in range(KINDS)], axis=1)


def _traced(groups: Rows) -> Rows:
    """Wall time in which somebody was held.

    What is known of waiting for a CPU is the most that it can have been, so that without it there is the least. Where threads
    overlap, it is not known either whose wait fell on whose stall.
    """
    wall, held = groups["wall_ns"], np.minimum(groups["wall_ns"], groups["held_ns"])
    least = np.minimum(np.maximum(wall - groups["cpu_wait_ns"], groups["longest_ns"]), held)
    unknown = groups["held_ns"] - groups["lo_ns"]
    return {"stall": (least + held) // 2, "lo": np.maximum(least - unknown, 0), "hi": wall}


def _counted(groups: Rows) -> Rows:
    """What PSI says; nothing where only counters speak."""
    none = groups["known"] == 0
    names = (("stall", "held_ns"), ("lo", "lo_ns"), ("hi", "hi_ns"))
    return {name: np.where(none, NONE, np.minimum(groups[column], groups["wall_ns"])) for name, column in names}


@cache
def _evidence(bits: int, hit: bool) -> tuple[str, ...]:
    if bits & 1 << PSI and hit:
        bits |= 1 << COUNTERS
    return tuple(name for code, name in _NAMED if bits & 1 << code)
