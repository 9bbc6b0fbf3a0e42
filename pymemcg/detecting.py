# SPDX-License-Identifier: Apache-2.0
"""The detector: from channels, live or recorded, to stalls. docs/stalls.md says what a stall is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pymemcg._stall import CAUSES, POLICY, Policy, Stall, Stalls

if TYPE_CHECKING:
    from pymemcg._moments import Moments
    from pymemcg.channel import Channels

__all__ = ["CAUSES", "Detector", "Policy", "Stall", "Stalls", "moments", "stalls"]

EVIDENCE = ("auto", "trace", "psi", "counters")
_BEFORE_NS = 10_000_000_000
"""What began so long before may reach into a time, and what is known of it may depend on it."""


def stalls(source: Channels, *, min_ns: int = 0, evidence: str = "auto", policy: Policy = POLICY) -> Stalls:
    """Find all stalls in a recording, or in what a running sampler's rings still have.

    Args:
        source: A `Recording` or a `Sampler`.
        min_ns: Only stalls of at least that much, see `Stall.reaches`; what has no known duration is left out then.
        evidence: "auto" joins all there is; "trace", "psi" or "counters" is used alone.
        policy: What counts as a stall.

    Raises:
        ValueError: There is no such evidence.
    """
    found = Detector(source, evidence=evidence, policy=replace(policy, reach_ns=0)).finish()
    closed = (stall for stall in found if stall.state == "closed")
    return Stalls(stall for stall in closed if stall.reaches(min_ns))


def moments(source: Channels, since_ns: int, until_ns: int, *, evidence: str = "auto") -> Moments:
    """Find the moments that overlap [since_ns, until_ns): when somebody was held, as far as the evidence knows.

    Args:
        source: A `Recording` or a `Sampler`.
        since_ns: CLOCK_MONOTONIC.
        until_ns: CLOCK_MONOTONIC.
        evidence: "auto" joins all there is; "trace", "psi" or "counters" is used alone.

    Raises:
        ValueError: There is no such evidence.
    """
    _check(evidence)
    from pymemcg._detect import Detection

    begin = since_ns - _BEFORE_NS
    detection = Detection(source, evidence, replace(POLICY, reach_ns=until_ns - begin + POLICY.patience_ns), since_ns=begin)
    detection.reach(until_ns)
    return detection.moments(since_ns, until_ns)


def _check(evidence: str) -> None:
    if evidence not in EVIDENCE:
        raise ValueError(f"evidence={evidence!r}: expected one of {', '.join(EVIDENCE)}")


class Detector:
    """Finds stalls in channels as they grow: the same on recordings and live.

    Args:
        source: A `Recording` or a running `Sampler`.
        evidence: "auto" joins all there is; "trace", "psi" or "counters" is used alone.
        policy: What counts as a stall.

    Raises:
        ValueError: There is no such evidence.

    Not thread-safe: one thread at a time.
    """

    def __init__(self, source: Channels, *, evidence: str = "auto", policy: Policy = POLICY) -> None:
        _check(evidence)
        from pymemcg._detect import Detection

        self._detection = Detection(source, evidence, policy)

    @property
    def lost(self) -> dict[str, int]:
        """Channel to rows that were overwritten before they were read."""
        return self._detection.lost

    @property
    def final_until_ns(self) -> int:
        """Nothing more will be told of the time before."""
        return self._detection.final_until_ns

    def advance(self) -> list[Stall]:
        """What became known since the last call: each stall "open" once and then "closed", harmless episodes every 10 s."""
        return self._detection.advance()

    def finish(self) -> list[Stall]:
        """The rest: no more rows will come."""
        return self._detection.finish()

    def moments(self, since_ns: int, until_ns: int) -> Moments:
        """The moments that overlap [since_ns, until_ns), as far as they are known and remembered (`Policy.reach_ns`)."""
        return self._detection.moments(since_ns, until_ns)
