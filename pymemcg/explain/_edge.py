# SPDX-License-Identifier: Apache-2.0
"""How far it is to the edge: each limit from the group to the root, which bites first, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pymemcg._words import number, share, size, span
from pymemcg.explain._makeup import at_once, is_v1_root

if TYPE_CHECKING:
    from pymemcg.explain._snapshot import Group, Snapshot

_NEAR_BYTES: Final = 1 << 20
"""Less room than this is none: CPUs charge up to 64 pages each in advance, and reclaim takes at least 32 pages at a time."""
_NEAR_RATIO: Final = 0.02

_DOES: Final = {
    "max": "reclaim, then an OOM kill",
    "memsw": "memory and swap together: reclaim without swap, then an OOM kill",
    "high": "reclaim, and threads are put to sleep; no kill",
    "swap": "no more swap",
    "soft": "reclaimed first when the machine runs short; no promise",
    "min": "not reclaimed from outside below it",
    "low": "not reclaimed from outside below it, if others have any",
}
"""By the kind of a limit, what happens there (Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/memory.rst)."""
_STOPS: Final = {"max", "memsw"}
_BITES: Final = _STOPS | {"high"}


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit, or a protection.

    Attributes:
        group: Of which group of the hierarchy.
        kind: As in `Group.limits`.
        limit_bytes: Where it is.
        used_bytes: What counts against it: usage; for "swap" the swap, for "memsw" both.
        left_bytes: How much room there is; for a protection how far usage is above it is not told.
        reclaimable_bytes: What of that group's memory reclaim could take at once.
        seconds: Until it is reached at the growth that was measured; None without growth, or for an ancestor where others
            may grow.
        does: What happens there.
    """

    group: str
    kind: str
    limit_bytes: int
    used_bytes: int | None
    left_bytes: int | None
    reclaimable_bytes: int | None
    seconds: float | None
    does: str


@dataclass(frozen=True, slots=True)
class Sharer:
    """A group that uses up an ancestor's limit together with others.

    Attributes:
        group: Its path.
        usage_bytes: What it uses of that limit.
        own: Whether it is the target, or has it below it.
    """

    group: str
    usage_bytes: int
    own: bool


@dataclass(frozen=True, slots=True)
class Edge:
    """How far it is to the edge.

    Attributes:
        limits: All that are set, from the group to the root.
        first: The one that bites first: hard ones, and memory.high; None where nothing limits.
        sharers: Where that is an ancestor's: the groups right below it that can be seen, the largest first.
        near: Whether there is as good as no room below it.
        growth_bytes_per_s: Of the group's usage; None where it was not measured.
        unreclaimable_ratio: Of the first limit, the share that reclaim cannot take at once: at 1 the killer comes.
        seconds_to_kill: Until memory that cannot be reclaimed at once fills the first hard limit, at the growth of anonymous
            memory and shmem; None where that does not grow, or was not measured.
        says: In sentences.
    """

    limits: tuple[Limit, ...]
    first: Limit | None
    sharers: tuple[Sharer, ...]
    near: bool
    growth_bytes_per_s: float | None
    unreclaimable_ratio: float | None
    seconds_to_kill: float | None
    says: tuple[str, ...]


def edge(snapshot: Snapshot) -> Edge:
    """Look at each limit.

    The one that bites first has the least ``limit - usage`` of all levels' hard limits and memory.high: a charge must fit
    every level up to the root (`try_charge_memcg`, mm/memcontrol.c).
    """
    meanwhile = snapshot.meanwhile
    growth = meanwhile.growth_bytes_per_s if meanwhile else None
    limits = tuple(limit for group in snapshot.levels for limit in _limits(group, growth if group is snapshot.group else None))
    biting = [limit for limit in limits if limit.kind in _BITES and limit.left_bytes is not None]
    first = min(biting, key=lambda limit: limit.left_bytes or 0, default=None)
    near = first is not None and is_near(first)
    ratio = None
    if first is not None and first.used_bytes is not None and first.reclaimable_bytes is not None and first.limit_bytes:
        ratio = max(0, first.used_bytes - first.reclaimable_bytes) / first.limit_bytes
    told = Edge(limits, first, _sharers(snapshot, first), near, growth, ratio, _seconds_to_kill(snapshot, limits), says=())
    return replace(told, says=tuple(_says(snapshot, told)))


def _sharers(snapshot: Snapshot, first: Limit | None) -> tuple[Sharer, ...]:
    names = [group.name for group in snapshot.levels]
    if first is None or first.group == snapshot.group.name or first.group not in names:
        return ()
    below = snapshot.levels[names.index(first.group) - 1]
    top = first.group.rstrip("/")
    others = [one.group for one in snapshot.neighbours if one.group.name.rpartition("/")[0] == top]
    known = [(group, group.usage_bytes) for group in (below, *others)]
    found = [Sharer(group.name, usage, group is below) for group, usage in known if usage is not None]
    return tuple(sorted(found, key=lambda one: one.usage_bytes, reverse=True))


def is_near(limit: Limit) -> bool:
    """Whether usage is at a limit, as near as it stays while reclaim holds it there."""
    left = limit.left_bytes
    return left is not None and left <= max(_NEAR_BYTES, _NEAR_RATIO * limit.limit_bytes)


def _limits(group: Group, growth: float | None) -> Iterator[Limit]:
    used = {"memsw": group.others.get("memsw"), "swap": group.others.get("swap")}
    for kind, limit in group.limits.items():
        # 0 is the default of a protection, and says that there is none.
        if limit is None or (kind in ("min", "low") and not limit):
            continue
        count = used.get(kind, group.usage_bytes)
        left = None if count is None else max(0, limit - count)
        seconds = left / growth if left is not None and growth is not None and growth > 0 and kind in _BITES else None
        yield Limit(group.name, kind, limit, count, left, at_once(group), seconds, _DOES[kind])


def _seconds_to_kill(snapshot: Snapshot, limits: tuple[Limit, ...]) -> float | None:
    meanwhile = snapshot.meanwhile
    if meanwhile is None or not meanwhile.anon_grows or not meanwhile.anon_growth_bytes_per_s:
        return None
    room: list[int] = [
        limit.limit_bytes - (limit.used_bytes - limit.reclaimable_bytes)
        for limit in limits
        if limit.kind in _STOPS and limit.used_bytes is not None and limit.reclaimable_bytes is not None
    ]
    if not room and not any(limit.kind in _STOPS for limit in limits):  # then the machine is the limit
        info = snapshot.node.meminfo
        room = [info["MemAvailable"] + info.get("SwapFree", 0)] if "MemAvailable" in info else []
    return max(0, min(room)) / meanwhile.anon_growth_bytes_per_s if room else None


# ---- In words ------------------------------------------------------------------------------------------------------


def _says(snapshot: Snapshot, told: Edge) -> Iterator[str]:
    first = told.first
    if first is None:
        root = is_v1_root(snapshot) or (
            snapshot.version == 2 and snapshot.group.usage_bytes is None
        )  # v2's has no memory.current
        hidden = ", or one of a group above, which this namespace hides" if snapshot.group.name == "/" and not root else ""
        yield f"No limit of a group can be seen from here: the memory of the whole machine is the limit{hidden}."
    else:
        whose = "its own" if first.group == snapshot.group.name else f"that of {first.group}, which it shares with others,"
        kind = "memory.high" if first.kind == "high" else "hard limit"
        could = f", and {size(first.reclaimable_bytes)} of what is used could be reclaimed" if first.reclaimable_bytes else ""
        yield f"The {kind} that it meets first is {whose} of {size(first.limit_bytes)}: {size(first.left_bytes)} left{could}."
    if len(told.sharers) > 1 and told.sharers[0].usage_bytes:
        largest = told.sharers[0]
        which = "this very group" if largest.own else largest.group
        yield f"Of the {number(len(told.sharers))} groups below that limit, {which} uses most: {size(largest.usage_bytes)}."
    if told.unreclaimable_ratio is not None:
        ratio = share(told.unreclaimable_ratio)
        yield f"{ratio} of that limit is memory that reclaim cannot take at once; at 100 % nothing but swap is left."
    yield from _growth(told)
    for limit in told.limits:
        if limit.kind == "soft":
            yield f"The soft limit of {limit.group} ({size(limit.limit_bytes)}) stops nobody: {limit.does}."


def _growth(told: Edge) -> Iterator[str]:
    growth, first = told.growth_bytes_per_s, told.first
    if growth is None:
        yield "How fast it grows was not measured."
        return
    if told.near:
        yield f"Usage moved by {size(growth, sign=True)}/s: at its limit it cannot grow, whatever the group asks for."
    elif first is None or first.seconds is None:
        yield f"Usage moved by {size(growth, sign=True)}/s in the seconds before."
    else:
        yield (
            f"Usage grew by {size(growth)}/s: at that pace the limit is reached in {span(first.seconds * 1e9)}, which is no "
            "forecast but a straight line."
        )
    if told.seconds_to_kill is not None:
        fills = "the machine" if told.first is None else "the limit"
        ahead = span(told.seconds_to_kill * 1e9)
        yield (
            f"Memory without a file (heaps, tmpfs) grew, too: at that pace it fills {fills} in {ahead}. A few seconds cannot "
            "tell a leak from a start or a wave."
        )
