# SPDX-License-Identifier: Apache-2.0
"""The detector: from channels, live or recorded, to stalls. docs/stalls.md says what a stall is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymemcg._stall import CAUSES, Policy, Stall, Stalls

if TYPE_CHECKING:
    from pymemcg._moments import Moments
    from pymemcg.channel import Channels

__all__ = ["CAUSES", "Detector", "Policy", "Stall", "Stalls", "moments", "stalls"]

POLICY = Policy()
EVIDENCE = ("auto", "trace", "psi", "counters")


def stalls(source: Channels, *, min_ns: int = 0, evidence: str = "auto", policy: Policy = POLICY) -> Stalls:
    """Find all stalls in a recording, or in what a running sampler's rings still have.

    Args:
        source: A `Recording` or a `Sampler`.
        min_ns: Only stalls of at least that much, by `Stall.longest_ns`; what has no known duration is left out then.
        evidence: "auto" joins all there is; "trace", "psi" or "counters" is used alone.
        policy: What counts as a stall.

    Raises:
        ValueError: There is no such evidence.
    """
    detector = Detector(source, evidence=evidence, policy=policy)
    found = [*detector.advance(), *detector.finish()]
    closed = (stall for stall in found if stall.state == "closed")
    return Stalls(stall for stall in closed if min_ns <= 0 or (stall.longest_ns or 0) >= min_ns)


def moments(source: Channels, since_ns: int, until_ns: int, *, evidence: str = "auto") -> Moments:
    """Find the moments between two times in which somebody was held, as `Detector.moments` does live."""
    from pymemcg._moments import Moments

    return Moments.none()


class Detector:
    """Finds stalls in channels as they grow: the same on recordings and live.

    Args:
        source: A `Recording` or a running `Sampler`.
        evidence: "auto" joins all there is; "trace", "psi" or "counters" is used alone.
        policy: What counts as a stall.

    Attributes:
        lost: Channel to rows that were overwritten before they were read.

    Raises:
        ValueError: There is no such evidence.

    Not thread-safe: one thread at a time.
    """

    def __init__(self, source: Channels, *, evidence: str = "auto", policy: Policy = POLICY) -> None:
        if evidence not in EVIDENCE:
            raise ValueError(f"evidence={evidence!r}: expected one of {', '.join(EVIDENCE)}")
        self._source = source
        self.lost: dict[str, int] = {}

    def advance(self) -> list[Stall]:
        """What became known since the last call: "open" once, then "closed"; harmless episodes every 10 s."""
        return []

    def finish(self) -> list[Stall]:
        """The rest: no more rows will come."""
        return []

    @property
    def final_until_ns(self) -> int:
        """Nothing more will be told of the time before."""
        return 0

    def moments(self, since_ns: int, until_ns: int) -> Moments:
        """The moments that overlap this time, as far as known and remembered (`Policy.reach_ns`)."""
        from pymemcg._moments import Moments

        return Moments.none()
