# SPDX-License-Identifier: Apache-2.0
"""A stall as it is told: the record, a table of records, and the constants that decide what counts as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, overload

from pymemcg.errors import NotSupported

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

CAUSES: Final = ("limit", "high", "ancestor", "global", "thrash", "swap", "oom_wait", "unknown")
_SHOWN: Final = 50
"""Rows of a table in a notebook."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What counts as a stall. Each constant has a reason; another reason may want another constant.

    Attributes:
        least_ns: Who is held for less is not harmed: a timer tick, an interrupt or one disk access cost as much.
        window_ns: … within so long: many short reclaims in a row delay a request as one long one does, and requests that
            matter take some 10 ms.
        join_ns: Moments closer than this are one stall: between two reclaims a thread touches the pages that it was given.
        episode_ns: What harmed nobody, or nobody knows how long it took, is told as episodes, which pauses of less than this
            do not end: a group that lives at its limit reclaims all the time.
        harmless_every_ns: A harmless episode that goes on is told so often.
        burst: Stall time that nothing but a PSI window dates is taken to have been so many times as dense as if it were
            spread evenly: waits for memory come in bursts.
        noise_ratio: PSI beyond what trace explains counts from this share of it on, since the two clocks and PSI's weighting
            do not agree better than that …
        noise_ns: … and from so much on.
        patience_ns: Hits that no PSI followed for so long are told without a duration.
        look_ns: Limits are looked at so often at least: so much later than a stall its cause may become known.
        reach_ns: How far back `Detector.moments` remembers.
    """

    least_ns: int = 1_000_000
    window_ns: int = 10_000_000
    join_ns: int = 5_000_000
    episode_ns: int = 1_000_000_000
    harmless_every_ns: int = 10_000_000_000
    burst: int = 10
    noise_ratio: float = 0.1
    noise_ns: int = 1_000_000
    patience_ns: int = 600_000_000_000
    look_ns: int = 1_200_000_000
    reach_ns: int = 60_000_000_000


POLICY: Final = Policy()


@dataclass(frozen=True, slots=True)
class Stall:
    """One stall, or one episode of harmless reclaim. What is not known is None. Times are CLOCK_MONOTONIC.

    Attributes:
        start_ns: From here on somebody was held; with psi and counters the tick before it was noticed.
        end_ns: Until here.
        stall_ns: Wall time in which at least one thread was held, without time spent waiting for a CPU.
        stall_lo_ns: At least that much.
        stall_hi_ns: At most that much.
        longest_ns: The most that one thread was held within any 10 ms (`Policy.window_ns`); "a stall of at least X" means this.
        cpu_wait_ns: For how long held threads waited for a CPU, at most; None = not known of all. What is not is in `stall_ns`.
        cause: `limit`, `high`, `ancestor`, `global`, `thrash`, `swap`, `oom_wait` or `unknown`.
        harmless: It held nobody for a millisecond (`Policy.least_ns`).
        evidence: What this rests on: of `trace`, `psi`, `wchan`, `counters`.
        tids: Threads that were held, as far as known, in the pid namespace of the sampler.
        intervals: How many moments it is made of; None where only counters know.
        limit_hits: Hits of limits meanwhile.
        reclaimed_pages: What the held threads freed.
        usage_bytes: The group's usage when it began.
        limit_bytes: The group's own limit then.
        anon: Anonymous memory then, as old as memory.stat is.
        file: Page cache then, likewise.
        state: "open": told when it became known; or "closed".
        incomplete: Why this may be short of something.
    """

    start_ns: int
    end_ns: int | None
    stall_ns: int | None
    stall_lo_ns: int | None
    stall_hi_ns: int | None
    longest_ns: int | None
    cpu_wait_ns: int | None
    cause: str
    harmless: bool | None
    evidence: tuple[str, ...]
    tids: tuple[int, ...]
    intervals: int | None
    limit_hits: int | None
    reclaimed_pages: int | None
    usage_bytes: int | None
    limit_bytes: int | None
    anon: int | None
    file: int | None
    state: str
    incomplete: str | None

    def reaches(self, min_ns: int) -> bool:
        """Whether it is at least that big; what has no known duration is not, unless anything will do.

        That is, whether within 10 ms (`Policy.window_ns`) one thread was held for so long. For what is longer than that, it was
        held throughout, and all of the stall is as long.
        """
        if min_ns <= 0:
            return True
        if self.longest_ns is None or self.longest_ns < min(min_ns, POLICY.window_ns):
            return False
        return min_ns <= POLICY.window_ns or (self.stall_ns or 0) >= min_ns

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON; what is not known is None."""
        row = asdict(self)
        row["evidence"], row["tids"] = list(self.evidence), list(self.tids)
        return row


FIELDS: Final = tuple(field.name for field in fields(Stall))


class Stalls(Sequence[Stall]):
    """Stalls in order of their beginning, as a table."""

    def __init__(self, records: Iterable[Stall] = ()) -> None:
        self._records = sorted(records, key=lambda stall: stall.start_ns)

    @overload
    def __getitem__(self, index: int) -> Stall: ...

    @overload
    def __getitem__(self, index: slice) -> Stalls: ...

    def __getitem__(self, index: int | slice) -> Stall | Stalls:
        return Stalls(self._records[index]) if isinstance(index, slice) else self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stalls) and self._records == other._records

    __hash__ = None  # type: ignore[assignment]

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dict a stall, ready for JSON."""
        return [stall.to_dict() for stall in self._records]

    def to_pandas(self) -> pd.DataFrame:
        """A DataFrame with a row a stall; what is not known is NA. Needs pandas.

        Raises:
            NotSupported: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise NotSupported("to_pandas() needs pandas", hint="pip install pandas") from error
        frame = pd.DataFrame(
            {name: pd.Series([getattr(stall, name) for stall in self._records], dtype=object) for name in FIELDS}
        )
        numbers = [name for name in FIELDS if name not in ("cause", "harmless", "evidence", "tids", "state", "incomplete")]
        return frame.astype(dict.fromkeys(numbers, "Int64") | {"harmless": "boolean"})

    def _repr_html_(self) -> str:
        """The first rows, for notebooks."""
        shown = ("start_ns", "stall_ns", "stall_lo_ns", "stall_hi_ns", "longest_ns", "cause", "harmless", "evidence", "tids")
        table = table_html(shown, [[_cell(getattr(stall, name)) for name in shown] for stall in self._records[:_SHOWN]])
        more = f"<p>{len(self) - _SHOWN} more</p>" if len(self) > _SHOWN else ""
        return table + more

    def __repr__(self) -> str:
        harmless = sum(stall.harmless is True for stall in self._records)
        return f"<Stalls: {len(self)}, {harmless} of them harmless>"


def table_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for notebooks."""
    from html import escape  # its list of all entities would be a quarter of a megabyte in every service

    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
