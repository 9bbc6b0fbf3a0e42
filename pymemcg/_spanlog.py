# SPDX-License-Identifier: Apache-2.0
"""The ended spans of a process: a queue that any thread appends to, and columns that whoever looks moves them into."""

from __future__ import annotations

from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from pymemcg import schema
from pymemcg._breath import breathe
from pymemcg._watch import native_lock
from pymemcg.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pymemcg.ring import Ring
    from pymemcg.spans import Ref, Span

ENDED: Final = 8192
"""Ended spans that nobody has looked at yet, some 200 bytes each; the oldest are overwritten."""
KEPT: Final = 16384
"""Spans that are kept for those who look: 2 MiB of columns once numpy is there, and the references."""
NAMES: Final = 1024
"""Names that are told apart; a service that has more has put something variable into them."""
OTHER: Final = "(other)"
"""The name of spans with names beyond that."""
REFS: Final = 1 << 16
"""References whose texts a recording keeps, some 200 bytes each while it is written: those of the first so many spans."""


class SpanLog:
    """The ended spans of one sampler in this process.

    They come into a queue, and whoever looks moves them into columns. Both are of fixed size; what is overwritten is known.

    Attributes:
        note: Takes a span that has ended; atomic.
        names: Texts of `name_id`.
        gaps: (since_ns, until_ns) of times in which more spans ended than the queue holds; the last few.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = native_lock()
        self._ended: deque[Span | None] = deque([None], maxlen=ENDED)
        self.note: Callable[[Span], None] = self._ended.append
        self._since_ns = 0
        self._begin()

    def _begin(self) -> None:
        self.names: list[str] = []
        self.gaps: deque[tuple[int, int]] = deque(maxlen=16)
        self._ids: dict[str, int] = {}
        self._looked_ns = monotonic_ns()
        self._head = 0
        self._columns: dict[str, NDArray[np.int64]] = {}
        self._refs: list[Ref] = []

    def forget(self) -> None:
        """In a forked child: what has begun is the parent's."""
        self._lock = native_lock()
        self._since_ns = monotonic_ns()
        self._ended.clear()
        self._ended.append(None)
        self._begin()

    @property
    def used(self) -> bool:
        """Whether there was ever a span."""
        return self._head > 0 or len(self._ended) > 1 or bool(self.gaps)

    def gather(self) -> int:
        """Move what has ended into the columns.

        Returns:
            Spans so far, without those that the queue lost.
        """
        with self._lock:
            taken: list[Span | None] = []
            try:
                for _ in range(len(self._ended)):
                    taken.append(self._ended.popleft())  # noqa: PERF401 - others append meanwhile
            except IndexError:  # another process's child: it was cleared
                pass
            since, self._looked_ns = self._looked_ns, monotonic_ns()
            self._ended.append(None)  # as long as it is there, nothing was overwritten
            spans = [span for span in taken if span is not None and span.start_ns >= self._since_ns]
            if None not in taken and spans:
                self.gaps.append((since, spans[0].end_ns))
            if spans:
                self._store(spans)
            return self._head

    def _store(self, spans: Sequence[Span]) -> None:
        import numpy as np

        if not self._columns:
            self._columns = {name: np.zeros(2 * KEPT, np.int64) for name in schema.SPANS_UNITS}
            self._refs = [None] * KEPT
        rows = [self._row(span, self._head + i) for i, span in enumerate(spans)]
        at = np.arange(self._head, self._head + len(rows)) % KEPT
        for (name, column), values in zip(self._columns.items(), zip(*rows, strict=True), strict=True):
            column[at] = column[at + KEPT] = np.array(values, np.int64)
            assert name in schema.SPANS_UNITS
        for i, span in zip(at.tolist(), spans, strict=True):
            self._refs[i] = span.ref
        self._head += len(rows)

    def _row(self, span: Span, row: int) -> tuple[int, ...]:
        """In the order of `schema.SPANS_UNITS`."""
        breathe()
        start, end = span.start_ns, max(span.end_ns, span.start_ns)
        first, last = min(max(start, span._ran_start_ns), end), min(end, span._ran_end_ns)  # noqa: SLF001 - one room
        ref = -1 if span.ref is None else row
        return start, end, span._tid, self._id(span.name), ref, span._attribution, first, max(first, last)  # noqa: SLF001 - likewise

    def _id(self, name: str) -> int:
        known = self._ids.get(name)
        if known is None:
            name = name if len(self.names) < NAMES - 1 else OTHER
            known = self._ids.get(name)
            if known is None:
                known = self._ids[name] = len(self.names)
                self.names.append(name)
        return known

    def column(self, name: str) -> NDArray[np.int64]:
        """One column twice in a row, as a ring has it."""
        import numpy as np

        column = self._columns[name] if self._columns else np.zeros(0, np.int64)
        lent = column.view()
        lent.flags.writeable = False
        return lent

    def refs(self, rows: Sequence[int]) -> list[Ref]:
        """The references of rows; None where there is none, or it was overwritten."""
        with self._lock:
            oldest = self._head - KEPT
            return [self._refs[row % KEPT] if max(oldest, 0) <= row < self._head else None for row in rows]


class SpanChannel(Channel):
    """The `spans` channel of this process: a log as a channel."""

    def __init__(self, log: SpanLog, ring: Ring) -> None:
        super().__init__("spans", ring, None)
        self.log = log

    @property
    def units(self) -> Mapping[str, str]:
        """Column name to unit, in order."""
        return schema.SPANS_UNITS

    @property
    def capacity(self) -> int:
        """Rows that are kept."""
        return KEPT

    @property
    def head(self) -> int:
        """Spans that have ended so far."""
        return self.log.gather()

    @property
    def position(self) -> int:
        """After all that are in the ring."""
        return 1 << 30

    def _column(self, name: str) -> NDArray[np.int64]:
        if name not in self.units:
            raise KeyError(f"spans has no column {name!r}: the columns are {', '.join(self.names)}")
        return self.log.column(name)


class Texts:
    """What a recording says of its spans beside their columns.

    Args:
        log: Where the spans come from.
        pid: Of the process that they belong to.
    """

    def __init__(self, log: SpanLog, pid: int) -> None:
        self._log = log
        self._pid = pid
        self._ids: dict[Ref, int] = {}
        self._left_out = 0

    def ref_ids(self, ref_ids: Iterable[int]) -> NDArray[np.int64]:
        """Make of `ref_id` of the channel that of the recording, -1 for those that it has no room for; shape as given."""
        import numpy as np

        wanted = list(ref_ids)
        return np.array([self._ref_id(ref) for ref in self._log.refs(wanted)], np.int64)

    def _ref_id(self, ref: Ref) -> int:
        if ref is None:
            return -1
        if ref not in self._ids:
            if len(self._ids) >= REFS:
                self._left_out += 1
                return -1
            self._ids[ref] = len(self._ids)
        return self._ids[ref]

    def info(self) -> dict[str, Any]:
        """For the file; JSON."""
        refs = [ref if isinstance(ref, (int, str)) else str(ref) for ref in self._ids]
        return {"pid": self._pid, "names": list(self._log.names), "refs": refs, "refs_left_out": self._left_out}
