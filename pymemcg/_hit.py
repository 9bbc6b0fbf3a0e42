# SPDX-License-Identifier: Apache-2.0
"""What reclaim did to spans, as it is told: the record of one hit, a table of hits, and the summary by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, overload

from pymemcg._stall import table_html
from pymemcg.errors import NotSupported

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

_SHOWN: Final = 50
"""Rows of a table in a notebook."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A span that fell together with reclaim. What is not known is None. Times are CLOCK_MONOTONIC.

    Attributes:
        name: The span's.
        ref: The span's.
        start_ns: Of the span.
        end_ns: Of the span.
        tid: The thread that did its work.
        attribution: How that is known: `thread`, `pool` or `loop`.
        own_ns: Time that this thread spent in reclaim for it; None without tracepoints.
        others_ns: Time in which other threads of the process were in reclaim: at most that much was passed on by the GIL,
            locks and executors. None without tracepoints.
        lost_ns: What reclaim took from it, the best single figure; None where only counters speak and nothing tells how long
            such a span takes else.
        lo_ns: It lost at least that much.
        hi_ns: At most that much.
        share: `lost_ns` by its duration.
        evidence: What this rests on: of `trace`, `psi`, `wchan`, `counters`.
        stalls: `Stall.start_ns` of those that it overlapped, as far as they are told already.
        cause: Of that one of them which it overlapped longest.
        final: Nothing of this will change any more.
    """

    name: str
    ref: str | int | None
    start_ns: int
    end_ns: int
    tid: int
    attribution: str
    own_ns: int | None
    others_ns: int | None
    lost_ns: int | None
    lo_ns: int
    hi_ns: int
    share: float | None
    evidence: tuple[str, ...]
    stalls: tuple[int, ...]
    cause: str | None
    final: bool

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON; what is not known is None."""
        row = asdict(self)
        row["evidence"], row["stalls"] = list(self.evidence), list(self.stalls)
        return row


FIELDS: Final = tuple(field.name for field in fields(Hit))


class Hits(Sequence[Hit]):
    """Hits in order of their spans' ends, as a table; records are made as they are asked for.

    Attributes:
        final_until_ns: Nothing more will become known of spans that ended before.
        incomplete: Why this may be short of something, or None.
    """

    def __init__(
        self,
        rows: Sequence[int],
        make: Callable[[int], Hit],
        *,
        final_until_ns: int,
        incomplete: str | None = None,
        select: Callable[[int], Sequence[int]],
        summarise: Callable[[], Summary],
    ) -> None:
        self._rows = rows
        self._make = make
        self._select = select
        self._summarise = summarise
        self.final_until_ns = final_until_ns
        self.incomplete = incomplete

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> Hits: ...

    def __getitem__(self, index: int | slice) -> Hit | Hits:
        return self._of(self._rows[index]) if isinstance(index, slice) else self._make(int(self._rows[index]))

    def _of(self, rows: Sequence[int]) -> Hits:
        return Hits(
            rows,
            self._make,
            final_until_ns=self.final_until_ns,
            incomplete=self.incomplete,
            select=self._select,
            summarise=self._summarise,
        )

    def __len__(self) -> int:
        return len(self._rows)

    def hits(self, *, min_ns: int = 0) -> Hits:
        """Those that lost at least `min_ns`."""
        return self._of(self._select(min_ns)) if min_ns > 0 else self

    def summary(self) -> Summary:
        """Of all spans that were looked at, hit or not."""
        return self._summarise()

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dict a hit, ready for JSON."""
        return [hit.to_dict() for hit in self]

    def to_pandas(self) -> pd.DataFrame:
        """A DataFrame with a row a hit; what is not known is NA. Needs pandas.

        Raises:
            NotSupported: pandas is not installed.
        """
        pandas = _pandas()
        made = list(self)
        columns = {name: pandas.Series([getattr(hit, name) for hit in made], dtype=object) for name in FIELDS}
        numbers = [name for name in FIELDS if name.endswith("_ns") or name == "tid"]
        types = dict.fromkeys(numbers, "Int64") | {"share": "Float64", "final": "boolean"}
        frame: pd.DataFrame = pandas.DataFrame(columns).astype(types)
        return frame

    def _repr_html_(self) -> str:
        """The first rows, for notebooks."""
        more = f"<p>{len(self) - _SHOWN} more</p>" if len(self) > _SHOWN else ""
        return table_html(FIELDS, [_values(hit) for hit in self[:_SHOWN]]) + more

    def __repr__(self) -> str:
        return f"<Hits: {len(self)}{', incomplete: ' + self.incomplete if self.incomplete else ''}>"


@dataclass(frozen=True, slots=True)
class SpanSummary:
    """How long the spans of one name took.

    Attributes:
        name: Theirs.
        count: How many there were.
        hits: How many of them lost a millisecond or more.
        p50_ns: Half of them took at most that long.
        p50_without_ns: … had there been no reclaim; None where it is not known what some of them lost.
        p99_ns: 99 of 100.
        p99_without_ns: Likewise without reclaim.
        p999_ns: 999 of 1000.
        p999_without_ns: Likewise without reclaim.
        lost_ns: What they lost to reclaim in all.
    """

    name: str
    count: int
    hits: int
    p50_ns: int
    p50_without_ns: int | None
    p99_ns: int
    p99_without_ns: int | None
    p999_ns: int
    p999_without_ns: int | None
    lost_ns: int | None

    def told(self, which: str) -> str:
        """A percentile in words, such as "14 ms, 9.1 ms of it reclaim"."""
        whole, without = getattr(self, f"{which}_ns"), getattr(self, f"{which}_without_ns")
        if without is None or whole - without < max(1000, whole // 1000):
            return duration(whole)
        return f"{duration(whole)}, {duration(whole - without)} of it reclaim"


SUMMARY_FIELDS: Final = tuple(field.name for field in fields(SpanSummary))
_TOLD: Final = ("p50", "p99", "p999")


class Summary(Sequence[SpanSummary]):
    """A row for each name of spans, those that lost most first.

    Attributes:
        final_until_ns: Nothing more will become known of spans that ended before.
    """

    def __init__(self, rows: Sequence[SpanSummary], *, final_until_ns: int) -> None:
        self._rows = sorted(rows, key=lambda row: (-(row.lost_ns or 0), -row.count, row.name))
        self.final_until_ns = final_until_ns

    @overload
    def __getitem__(self, index: int) -> SpanSummary: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[SpanSummary]: ...

    def __getitem__(self, index: int | slice) -> SpanSummary | Sequence[SpanSummary]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, name: str) -> SpanSummary:
        """The row of a name.

        Raises:
            KeyError: There is no span of that name.
        """
        for row in self._rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dict a name, ready for JSON."""
        return [asdict(row) for row in self._rows]

    def to_pandas(self) -> pd.DataFrame:
        """A DataFrame with a row a name. Needs pandas.

        Raises:
            NotSupported: pandas is not installed.
        """
        rows = [astuple(row) for row in self._rows]
        frame: pd.DataFrame = _pandas().DataFrame(rows, columns=list(SUMMARY_FIELDS))
        return frame.astype(dict.fromkeys(SUMMARY_FIELDS[1:], "Int64"))

    def _told(self) -> list[tuple[str, ...]]:
        return [(row.name, str(row.count), str(row.hits), *(row.told(which) for which in _TOLD)) for row in self._rows]

    def _repr_html_(self) -> str:
        return table_html(("span", "count", "hits", "p50", "p99", "p99.9"), self._told())

    def __str__(self) -> str:
        rows = [("span", "count", "hits", "p50", "p99", "p99.9"), *self._told()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Summary of {len(self)} names of spans>"


def duration(ns: int) -> str:
    """A duration in words: "9.1 ms"."""
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000), ("µs", 1000)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns < 1000 * size else f"{ns // size} {unit}"
    return f"{ns} ns"


def _pandas() -> Any:
    try:
        import pandas as pd
    except ImportError as error:
        raise NotSupported("to_pandas() needs pandas", hint="pip install pandas") from error
    return pd


def _values(hit: Hit) -> tuple[str, ...]:
    return tuple(_cell(getattr(hit, name)) for name in FIELDS)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
