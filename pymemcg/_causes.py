# SPDX-License-Identifier: Apache-2.0
"""Why somebody was held: from what rose meanwhile. docs/stalls.md says how each cause is recognised, and how surely."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from pymemcg._breath import breathe
from pymemcg._ffi import NONE
from pymemcg._moments import COMPACTION, DIRECT, HIGH_SLEEP, MEMCG, THROTTLED

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints: TypeAlias = npt.NDArray[np.int64]
    Bools: TypeAlias = npt.NDArray[np.bool_]
    Facts: TypeAlias = dict[str, Ints]

OUTSIDE: Final = "outside"
"""No cause of a stall: an administrator's reclaim."""


_COUNTERS: Final = (
    *("limit_hits", "memsw_hits", "high_hits", "above", "oom_kills", "falls", "allocstall", "pswpin"),
    *("workingset_refault_anon", "workingset_refault_file", "workingset_refault"),
)


class Rises:
    """What rose between the beginning and the end of each group; 0 where it did not or nobody knows.

    Attributes:
        own_lately, high_lately, above_lately: From some time before the beginning on (`Looking.lately`).
    """

    def __init__(self, before: Facts, after: Facts) -> None:
        breathe()
        first, last = (np.array([facts[name] for name in _COUNTERS]) for facts in (before, after))
        known = (first != NONE) & (last != NONE)
        rise = dict(zip(_COUNTERS, _rise(first, last), strict=True))
        self.own: Ints = rise["limit_hits"] + rise["memsw_hits"]
        self.high, self.above, self.kills, self.falls = (rise[name] for name in ("high_hits", "above", "oom_kills", "falls"))
        self.allocstall, self.pswpin = rise["allocstall"], rise["pswpin"]
        self.refault_anon = rise["workingset_refault_anon"]
        self.refault_file: Ints = rise["workingset_refault_file"] + rise["workingset_refault"]
        self.counted: Bools = known[0] | known[1]
        lately = {
            name: _rise(before[f"{name}_lately"], after[name]) for name in ("limit_hits", "memsw_hits", "high_hits", "above")
        }
        self.own_lately: Ints = lately["limit_hits"] + lately["memsw_hits"]
        self.high_lately, self.above_lately = lately["high_hits"], lately["above"]


def _rise(first: Ints, last: Ints) -> Ints:
    known = (first != NONE) & (last != NONE)
    return np.where(known, np.maximum(last - np.where(known, first, 0), 0), 0)


def by_kind(kinds: Ints, rises: Rises) -> list[str]:
    """Causes of what tracepoints saw.

    Args:
        kinds: Shape (groups, kinds): how long each kind held somebody in each group.
        rises: What rose meanwhile.
    """
    main = _main(kinds)
    memcg = np.select(
        [
            *(rises.own > 0, rises.high > 0, rises.above > 0, rises.falls > 0),
            *(rises.own_lately > 0, rises.high_lately > 0, rises.above_lately > 0),
        ],
        ["limit", "high", "ancestor", OUTSIDE, "limit", "high", "ancestor"],
        "unknown",
    )
    node = np.isin(main, [DIRECT, COMPACTION])
    cause = np.where(node, "global", np.where(main == HIGH_SLEEP, "high", memcg))
    return _killed(cause, rises)


def _main(kinds: Ints) -> Ints:
    """What held the longest. Throttling does not count: it nests in reclaim of either kind (reclaim_throttle in vmscan.c)."""
    told = kinds[:, : HIGH_SLEEP + 1].copy()
    told[:, THROTTLED] = 0
    main: Ints = np.argmax(told, axis=1)
    return main


def by_rises(kinds: Ints, rises: Rises, traced: Bools) -> list[str]:
    """Causes of what PSI and counters saw.

    Args:
        kinds: As for `by_kind`, as far as counters tell them.
        rises: What rose meanwhile.
        traced: Groups of which tracepoints have explained all that limits and the node did.
    """
    limits = ~traced
    asleep = kinds[:, HIGH_SLEEP] > 0
    cause = np.select(
        [
            limits & (rises.own > 0),
            (rises.high > 0) | (rises.high_lately > 0),
            asleep & (rises.above_lately > 0),
            asleep,
            limits & (rises.above > 0),
            rises.refault_anon > rises.refault_file,
            rises.refault_file > 0,
            limits & (rises.allocstall > 0),
            rises.pswpin > 0,
            rises.above_lately > 0,
            (kinds[:, MEMCG] > 0) | (rises.own > 0),
        ],
        ["limit", "high", "ancestor", "high", "ancestor", "swap", "thrash", "global", "swap", "ancestor", "limit"],
        "unknown",
    )
    return _killed(cause, rises)


def hits_of(causes: list[str], rises: Rises) -> Ints:
    """Hits of the limit that is the cause."""
    cause = np.asarray(causes, dtype=str)
    own, high, above = (
        np.where(now > 0, now, lately)
        for now, lately in ((rises.own, rises.own_lately), (rises.high, rises.high_lately), (rises.above, rises.above_lately))
    )
    hits: Ints = np.select([cause == "high", cause == "ancestor", cause == "limit"], [high, above, own], rises.own)
    known = rises.counted | (hits > 0)
    return np.where(known, hits, NONE)


def needs_looking(kinds: Ints, rises: Rises) -> Bools:
    """Groups of which only the next look at limits and ancestors can say why: reclaim without a hit of the own limits."""
    unexplained: Bools = (_main(kinds) == MEMCG) & (rises.own == 0) & (rises.high == 0)
    return unexplained


def _killed(cause: npt.NDArray[np.str_], rises: Rises) -> list[str]:
    waited = np.isin(cause, ["limit", "ancestor"]) & (rises.kills > 0)
    return list(np.where(waited, "oom_wait", cause).tolist())
