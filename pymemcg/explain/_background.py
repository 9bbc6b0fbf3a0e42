# SPDX-License-Identifier: Apache-2.0
"""Background reclaim of a group: what Alibaba's kernel (Cloud Linux 2 and 3) adds to cgroup v1 and v2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pymemcg._words import number, size

if TYPE_CHECKING:
    from pymemcg.explain._snapshot import Group


@dataclass(frozen=True, slots=True)
class Background:
    """Its knobs: a kernel thread reclaims between two watermarks of the group, before a limit holds anyone up.

    The marks are shares of the limit, or of memory.high where that is lower (Alibaba Cloud Linux, "Memcg backend asynchronous
    reclaim").

    Attributes:
        ratio_percent: memory.wmark_ratio: where it begins, of the limit; 0 = off.
        high_bytes: memory.wmark_high: from there on it reclaims; None where it is off or cannot be read.
        low_bytes: memory.wmark_low: down to there.
        reclaiming: Whether usage is above its beginning now.
    """

    ratio_percent: int
    high_bytes: int | None
    low_bytes: int | None
    reclaiming: bool | None


def background(group: Group) -> Background | None:
    """What a group has of it; None where the kernel has none."""
    ratio = group.others.get("wmark_ratio")
    if ratio is None:
        return None
    high, low = (group.others.get(f"wmark_{name}") if ratio else None for name in ("high", "low"))
    above = None if high is None or group.usage_bytes is None else group.usage_bytes > high
    return Background(ratio, high, low, above)


def background_says(told: Background, group: Group) -> str:
    """It in a sentence."""
    if not told.ratio_percent:
        limit = group.limit_bytes
        example = f": 95 would begin at {size(limit * 0.95)}" if limit else ""
        return (
            "This is Alibaba's kernel, which could reclaim in the background before the limit is reached and threads are held "
            f"up, but memory.wmark_ratio is 0, so it does not{example}."
        )
    marks = f"from {size(told.high_bytes)} down to {size(told.low_bytes)}" if told.high_bytes is not None else ""
    now = {True: "usage is above, so it works now", False: "usage is below, so it rests", None: ""}[told.reclaiming]
    return (
        f"Alibaba's kernel reclaims for this group in the background (memory.wmark_ratio {number(told.ratio_percent)} %"
        f"{f', {marks}' if marks else ''}){f': {now}' if now else ''}."
    )
