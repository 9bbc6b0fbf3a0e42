# SPDX-License-Identifier: Apache-2.0
"""The whole machine: watermarks, reclaim, swap, overcommit, fragmentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pymemcg._words import number, share, size

if TYPE_CHECKING:
    from pymemcg.explain._snapshot import Meanwhile, Node, Snapshot, Zone

_HUGE_ORDER: Final = 9  # 2 MiB on x86-64 and with 4 KiB pages on arm64: a transparent huge page
_COSTLY_ORDER: Final = 3
"""PAGE_ALLOC_COSTLY_ORDER: up to it the kernel reclaims until it succeeds, which is where fragmentation ends in an OOM kill."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Whether an allocation of address space would be granted.

    Attributes:
        asked_bytes: For how much.
        granted: Whether.
    """

    asked_bytes: int
    granted: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """The node. None = not known.

    Attributes:
        total_bytes: Memory that the kernel hands out.
        available_bytes: What could be had without swapping (MemAvailable, an estimate of the kernel's).
        free_bytes: Of all zones.
        min_bytes: Watermark of all zones; likewise the next two.
        low_bytes: Below it kswapd works.
        high_bytes: Up to it kswapd works.
        kswapd: Whether kswapd scanned pages in the seconds before; None where nobody watched.
        direct_reclaims: How often somebody had to reclaim for the whole machine in those seconds (`allocstall_*`).
        swap_total_bytes: Swap.
        swap_free_bytes: Of that free.
        overcommit: vm.overcommit_memory: 0, 1 or 2.
        commit_limit_bytes: CommitLimit, which holds in mode 2.
        committed_bytes: Committed_AS: all that was promised.
        largest_grant_bytes: The largest single allocation that would be granted; None = any.
        grants: For some sizes.
        largest_order: The largest order of which there is a free block.
        huge_ratio: Share of free memory that is in blocks of a huge page's size or larger.
        says: In sentences.
    """

    total_bytes: int | None
    available_bytes: int | None
    free_bytes: int | None
    min_bytes: int | None
    low_bytes: int | None
    high_bytes: int | None
    kswapd: bool | None
    direct_reclaims: int | None
    swap_total_bytes: int | None
    swap_free_bytes: int | None
    overcommit: int | None
    commit_limit_bytes: int | None
    committed_bytes: int | None
    largest_grant_bytes: int | None
    grants: tuple[Grant, ...]
    largest_order: int | None
    huge_ratio: float | None
    says: tuple[str, ...]


def machine(snapshot: Snapshot) -> Machine:
    """Look at the node."""
    node, info, meanwhile = snapshot.node, snapshot.node.meminfo, snapshot.meanwhile
    sums = [sum(getattr(zone, name) for zone in node.zones) for name in ("free_bytes", "min_bytes", "low_bytes", "high_bytes")]
    free, least, low, high = sums if node.zones else [None] * 4
    order, huge = _blocks(node)
    total = info.get("MemTotal")
    asked = [1 << 30, *((total // 2, total, 2 * total) if total is not None else ())]
    told = {
        "total_bytes": total,
        "available_bytes": info.get("MemAvailable"),
        "free_bytes": free,
        "min_bytes": least,
        "low_bytes": low,
        "high_bytes": high,
        "kswapd": None
        if meanwhile is None
        else any(meanwhile.vmstat.get(name) for name in ("pgscan_kswapd", "pgsteal_kswapd")),
        "direct_reclaims": None if meanwhile is None else _direct(meanwhile),
        "swap_total_bytes": info.get("SwapTotal"),
        "swap_free_bytes": info.get("SwapFree"),
        "overcommit": node.settings.get("overcommit_memory"),
        "commit_limit_bytes": info.get("CommitLimit"),
        "committed_bytes": info.get("Committed_AS"),
        "largest_grant_bytes": largest_grant(node),
        "grants": tuple(Grant(count, granted) for count in asked if (granted := is_granted(node, count)) is not None),
        "largest_order": order,
        "huge_ratio": huge,
    }
    draft = Machine(**told, says=())  # type: ignore[arg-type]
    return Machine(**told, says=tuple(_says(snapshot, draft)))  # type: ignore[arg-type]


def _direct(meanwhile: Meanwhile) -> int:
    """Global direct reclaim: `allocstall_*` of /proc/vmstat, which does not count reclaim at a group's own limit."""
    return sum(count for name, count in meanwhile.vmstat.items() if name.startswith("allocstall"))


def largest_grant(node: Node) -> int | None:
    """The most address space that one call would get, by `__vm_enough_memory` (mm/util.c).

    Mode 0 refuses what is more than all memory and swap together. Mode 1 refuses nothing. Mode 2 refuses what would take
    Committed_AS above CommitLimit less vm.admin_reserve_kbytes (from who is not root), and less the smaller of a 32nd of the
    caller's own memory and vm.user_reserve_kbytes, which is left out here: it depends on who asks.

    Returns:
        Bytes; None where nothing is refused, or it cannot be told.
    """
    info, mode = node.meminfo, node.settings.get("overcommit_memory")
    if mode == 0 and "MemTotal" in info and "SwapTotal" in info:
        return info["MemTotal"] + info["SwapTotal"]
    if mode == 2 and "CommitLimit" in info and "Committed_AS" in info:
        reserve = node.settings.get("admin_reserve_kbytes", 0) << 10
        return max(0, info["CommitLimit"] - reserve - info["Committed_AS"])
    return None


def is_granted(node: Node, count: int) -> bool | None:
    """Whether so much address space would be granted; None where the mode is not known."""
    mode, most = node.settings.get("overcommit_memory"), largest_grant(node)
    if mode is None or (mode != 1 and most is None):
        return None
    return most is None or count <= most


def _blocks(node: Node) -> tuple[int | None, float | None]:
    """The largest order with a free block, and the share of free memory in blocks of a huge page's size or larger."""
    known = [zone.free_blocks for zone in node.zones if zone.free_blocks is not None]
    if not known:
        return None, None
    pages = [sum(blocks[i] << i for blocks in known if i < len(blocks)) for i in range(max(map(len, known)))]
    largest = max((i for i, count in enumerate(pages) if count), default=None)
    return largest, sum(pages[_HUGE_ORDER:]) / sum(pages) if sum(pages) else None


# ---- In words ------------------------------------------------------------------------------------------------------


def _says(snapshot: Snapshot, told: Machine) -> Iterator[str]:
    if told.total_bytes is not None:
        could = f", and {size(told.available_bytes)} could be had without swapping" if told.available_bytes is not None else ""
        yield f"The machine has {size(told.total_bytes)}: {size(told.free_bytes)} are free{could}."
    yield from _reclaim(snapshot, told)
    yield _swap(told)
    yield from _overcommit(told)
    yield from _fragmentation(told, snapshot.node)


def _reclaim(snapshot: Snapshot, told: Machine) -> Iterator[str]:
    if told.free_bytes is not None and told.low_bytes is not None:
        above = "above" if told.free_bytes >= told.low_bytes else "BELOW"
        yield (
            f"Free memory is {above} the low watermark ({size(told.low_bytes)}), below which kswapd, a thread of the "
            f"kernel, frees some in the background; below the min watermark ({size(told.min_bytes)}) whoever allocates has to."
        )
    below = [zone for zone in snapshot.node.zones if zone.free_bytes < zone.low_bytes]
    if below and (told.low_bytes is None or told.free_bytes is None or told.free_bytes >= told.low_bytes):
        yield f"Below their own low watermark: {', '.join(map(_zone, below))}."
    if told.direct_reclaims:
        yield (
            f"In the seconds before, somebody had to reclaim for the whole machine {number(told.direct_reclaims)} times "
            "(allocstall): the machine itself is short."
        )
    elif told.kswapd:
        yield "In the seconds before, kswapd reclaimed in the background, and nobody else had to."
    elif told.kswapd is not None:
        yield "In the seconds before, nothing was reclaimed for the machine as a whole: what is short, if anything, is a group."


def _zone(zone: Zone) -> str:
    return f"{zone.name} of node {zone.node} ({size(zone.free_bytes)} free, low {size(zone.low_bytes)})"


def _swap(told: Machine) -> str:
    if told.swap_total_bytes is None:
        return "Whether there is swap cannot be seen."
    if not told.swap_total_bytes:
        return "It has no swap: memory without a file can only be given back by who holds it."
    used = told.swap_total_bytes - (told.swap_free_bytes or 0)
    return f"Swap: {size(used)} of {size(told.swap_total_bytes)} is used."


def _overcommit(told: Machine) -> Iterator[str]:
    promised = f"{size(told.committed_bytes)} of address space were promised to all processes (Committed_AS)"
    if told.overcommit == 1:
        yield f"vm.overcommit_memory is 1: malloc, mmap and fork never fail for want of memory; {promised}."
    elif told.overcommit == 2:
        yield (
            f"vm.overcommit_memory is 2: {promised}, and beyond {size(told.commit_limit_bytes)} (CommitLimit) malloc fails: "
            f"{size(told.largest_grant_bytes)} more would be granted."
        )
    elif told.overcommit == 0:
        yield (
            f"vm.overcommit_memory is 0: a single allocation is refused above {size(told.largest_grant_bytes)} (all memory and "
            f"swap), any smaller one granted; {promised}."
        )
    if told.grants:
        asked = ", ".join(f"{size(grant.asked_bytes)} {'yes' if grant.granted else 'no'}" for grant in told.grants)
        yield f"A malloc would be granted: {asked}. That is a promise of addresses; a group's limit counts pages once touched."


def _fragmentation(told: Machine, node: Node) -> Iterator[str]:
    if told.largest_order is None:
        return
    block = size(node.page_bytes << told.largest_order)
    text = f"The largest free piece is {block} (order {told.largest_order}). "
    if told.largest_order < _COSTLY_ORDER:
        yield text + "That is fragmented: requests for several pages in a row must wait until the kernel has moved others."
    elif told.huge_ratio is not None:
        huge = size(node.page_bytes << _HUGE_ORDER)
        yield text + f"{share(told.huge_ratio)} of free memory is in pieces of {huge} or more, a huge page's size."
