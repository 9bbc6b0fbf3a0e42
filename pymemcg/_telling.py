# SPDX-License-Identifier: Apache-2.0
"""From groups of moments to records: how long, why, and what may be missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from pymemcg import _causes
from pymemcg._ffi import NONE
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
        return self._looking.at(groups["start_ns"], after=False)

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
        causes = _causes.by_kind(_kinds(groups), rises) if self._traced else _causes.by_rises(rises, residual)
        hits = _causes.hits_of(causes, rises)
        figures = _traced(groups) if self._traced else _counted(groups)
        columns = {name: values.tolist() for name, values in (groups | figures).items()}
        facts = {name: before[name].tolist() for name in ("usage_bytes", "limit_bytes", "anon", "file")}
        for i, cause in enumerate(causes):
            if cause == _causes.OUTSIDE or (cause == "ancestor" and columns["hi"][i] == 0):
                continue
            row = {name: values[i] for name, values in columns.items()}
            open_ended = row["open_ended"] > 0
            flaw = self._flaws.of(row["start_ns"], row["end_ns"])
            yield Stall(
                start_ns=row["start_ns"],
                end_ns=None if open_ended else row["end_ns"],
                stall_ns=_known(row["stall"]),
                stall_lo_ns=_known(row["lo"]),
                stall_hi_ns=None if open_ended else _known(row["hi"]),
                longest_ns=row["longest_ns"] if row["known"] else None,
                cpu_wait_ns=row["cpu_wait_ns"] if row["known"] and not row["cpu_wait_unknown"] else None,
                cause=cause,
                harmless=harmless,
                evidence=_evidence(row["evidence"], row["hits"]),
                tids=tids[i],
                intervals=row["count"] if row["known"] else None,
                limit_hits=_known(int(hits[i])),
                reclaimed_pages=row["pages"] if row["pages_known"] else None,
                **{name: _known(values[i]) for name, values in facts.items()},
                state=state,
                incomplete="; ".join(filter(None, (_OPEN_ENDED if open_ended else None, flaw))) or None,
            )


def _known(value: int) -> int | None:
    return None if value == NONE else value


def _kinds(groups: Rows) -> Ints:
    return np.stack([groups[f"kind{kind}"] for kind in range(KINDS)], axis=1)


def _traced(groups: Rows) -> Rows:
    """Wall time in which somebody was held. Where threads overlap, it is not known whose wait for a CPU fell on whose stall."""
    hi = np.minimum(groups["wall_ns"], groups["held_ns"])
    lo = np.minimum(np.maximum(groups["wall_ns"] - groups["cpu_wait_ns"], groups["longest_ns"]), hi)
    return {"stall": (lo + hi) // 2, "lo": lo, "hi": hi}


def _counted(groups: Rows) -> Rows:
    """What PSI says; nothing where only counters speak."""
    none = groups["known"] == 0
    names = (("stall", "held_ns"), ("lo", "lo_ns"), ("hi", "hi_ns"))
    return {name: np.where(none, NONE, np.minimum(groups[column], groups["wall_ns"])) for name, column in names}


def _evidence(bits: int, hits: int) -> tuple[str, ...]:
    if bits & 1 << PSI and hits:
        bits |= 1 << COUNTERS
    return tuple(name for code, name in _NAMED if bits & 1 << code)
