# SPDX-License-Identifier: Apache-2.0
"""A post-mortem as it is told: its records."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymemcg._ending import Ending
    from pymemcg._stall import Stall


@dataclass(frozen=True, slots=True)
class LimitUse:
    """A limit, and what was used of it at the end.

    Attributes:
        level: 0 is the group itself, 1 the group above it, and so on.
        name: The group's path.
        kind: "limit" (memory.max, memory.limit_in_bytes) or "high" (memory.high, which slows down and does not kill).
        limit_bytes: The limit.
        usage_bytes: The level's last usage; of the groups above up to 0.1 s old.
        left_bytes: What was left to it.
        near: Usage was at it (1/64 of it or 4 MiB was left at most), or would have been before the next rows, as it grew.
    """

    level: int
    name: str | None
    kind: str
    limit_bytes: int
    usage_bytes: int | None
    left_bytes: int | None
    near: bool | None


@dataclass(frozen=True, slots=True)
class Growth:
    """The trend of usage before the end: the Theil-Sen slope, see `metrics.growth`, which spikes do not move.

    Attributes:
        seconds: Over so long.
        bytes_per_s: None where less than half of that is there.
        to_limit_s: How long it would have taken to the nearest hard limit; None where there is none or usage did not grow.
    """

    seconds: int
    bytes_per_s: float | None
    to_limit_s: float | None


@dataclass(frozen=True, slots=True)
class StallSum:
    """The stalls in the ring; those that harmed nobody are left out.

    Attributes:
        count: How many.
        stall_ns: Their time, as far as it is known; None where of none.
        worst_ns: The longest.
        causes: How many of each cause.
    """

    count: int
    stall_ns: int | None
    worst_ns: int | None
    causes: dict[str, int]


@dataclass(frozen=True, slots=True)
class SpanHits:
    """Spans that lost a millisecond or more to reclaim.

    Attributes:
        count: How many.
        spans: Of how many in the file.
        lost_ns: What they lost in all, as far as it is known.
        worst: Names of the worst, at most five.
    """

    count: int
    spans: int
    lost_ns: int | None
    worst: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of the last second.

    Attributes:
        before_ns: It began so long before the last row.
        usage_bytes: The highest usage in it.
        limit_hits: How often a limit of the group's own was hit.
        in_stall_ns: How much of it lies in a stall.
    """

    before_ns: int
    usage_bytes: int | None
    limit_hits: int | None
    in_stall_ns: int


@dataclass(frozen=True, slots=True)
class Postmortem:
    """What a ring tells of its end. What is not known is None. Times are CLOCK_MONOTONIC.

    Attributes:
        path: The file.
        target: The group's directory.
        host: Where it was.
        writer_pid: The process that wrote it, in its own pid namespace; None where none died.
        ended_ns: The last row.
        ended_realtime_ns: The last row, by the wall clock.
        lasted_ns: From the first row of usage to the last.
        ending: How it ended.
        usage_bytes: The last usage of the group.
        peak_bytes: The highest in the ring.
        limits: Every limit of the group and the groups above.
        nearest: That of the hard ones of which least was left.
        growth: Over 1 s, 10 s and 60 s.
        anon: Anonymous memory at the end; memory.stat is up to 2 s older than its row.
        file: Page cache at the end, likewise.
        working_set: Usage without `inactive_file`, as the kubelet counts it.
        limit_hits: Hits of the group's own limits in the last second.
        oom_kills: The kernel's counter in the last row.
        stalls: All of the ring.
        last_stalls: Those of the last second.
        held_ns: For how long a thread had been in reclaim at the end, by a tracepoint whose end never came.
        hits: Of spans; None where no spans are in the file.
        steps: The last second.
        missing: What is damaged, and why.
        absent: What was not sampled, and why.
        gap_ns: How much later than the last row the file was written; None where that is not known, as on a tmpfs.
    """

    path: str
    target: str | None
    host: str | None
    writer_pid: int | None
    ended_ns: int | None
    ended_realtime_ns: int | None
    lasted_ns: int | None
    ending: Ending
    usage_bytes: int | None
    peak_bytes: int | None
    limits: tuple[LimitUse, ...]
    nearest: LimitUse | None
    growth: tuple[Growth, ...]
    anon: int | None
    file: int | None
    working_set: int | None
    limit_hits: int | None
    oom_kills: int | None
    stalls: StallSum
    last_stalls: tuple[Stall, ...]
    held_ns: int | None
    hits: SpanHits | None
    steps: tuple[Step, ...]
    missing: dict[str, str]
    absent: dict[str, str]
    gap_ns: int | None

    @property
    def verdict(self) -> str:
        """What happened, and how sure that is, in a sentence or two."""
        from pymemcg._verdict import verdict

        return verdict(self)

    def line(self) -> str:
        """How it ended, the last usage, growth and stalls in one line, as the next start logs it."""
        from pymemcg._verdict import line

        return line(self)

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON; what is not known is None."""
        return asdict(self) | {"verdict": self.verdict, "last_stalls": [stall.to_dict() for stall in self.last_stalls]}
