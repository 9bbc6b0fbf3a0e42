# SPDX-License-Identifier: Apache-2.0
"""The whole machine: watermarks, reclaim, swap, overcommit, fragmentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pymemcg._words import number, share, size
from pymemcg.explain._commit import commit_verdict, largest_commit
from pymemcg.explain._zones import COSTLY_ORDER, ZoneState, huge_order, zone_states

if TYPE_CHECKING:
    from pymemcg.explain._snapshot import Node, Snapshot, Zone

_MUCH: Final = 0.01  # of the machine's memory: smaller zones, such as DMA, say nothing of what is to be had
_POOR: Final = 0.5
_ALL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Grant:
    """Whether an allocation of address space would be granted.

    Attributes:
        asked_bytes: For how much.
        granted: Whether.
        why: By which rule.
    """

    asked_bytes: int
    granted: bool
    why: str


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What the whole machine reclaimed, not what groups did at limits of their own. None = this kernel does not tell.

    Attributes:
        kswapd_scanned_bytes: What kswapd, a thread of the kernel, looked at.
        kswapd_bytes: What it freed.
        direct_times: How often somebody who allocated had to reclaim (`allocstall_*`).
        direct_bytes: What these freed.
        swapped_in_bytes: Came back from swap; this and the next two also for groups at their limits.
        swapped_out_bytes: Went there.
        oom_kills: Processes that the kernel killed for want of memory.
    """

    kswapd_scanned_bytes: int | None
    kswapd_bytes: int | None
    direct_times: int | None
    direct_bytes: int | None
    swapped_in_bytes: int | None
    swapped_out_bytes: int | None
    oom_kills: int | None


@dataclass(frozen=True, slots=True)
class Machine:
    """The node. None = not known.

    Attributes:
        total_bytes: Memory that the kernel hands out.
        available_bytes: What could be had without swapping (MemAvailable, an estimate of the kernel's).
        managed_bytes: Of that in zones: less than all where a hypervisor keeps some back until it is needed.
        free_bytes: Of all zones.
        min_bytes: Watermark of all zones; likewise the next two.
        low_bytes: Below it kswapd works.
        high_bytes: Up to it kswapd works.
        zones: Each zone that has memory.
        lately: What was reclaimed in the seconds before; None where nobody watched.
        boot: What was reclaimed since boot; None where it cannot be read.
        swap_total_bytes: Swap.
        swap_free_bytes: Of that free.
        overcommit: vm.overcommit_memory: 0, 1 or 2.
        commit_limit_bytes: CommitLimit, which holds in mode 2.
        committed_bytes: Committed_AS: all that was promised.
        largest_grant_bytes: The largest single allocation that would be granted to the group's largest process; None = any.
        grants: For some sizes.
        largest_order: The largest order of which there is a free block.
        huge_ratio: Share of free memory that is in blocks of a huge page's size or larger.
        says: In sentences.
    """

    total_bytes: int | None
    available_bytes: int | None
    managed_bytes: int | None
    free_bytes: int | None
    min_bytes: int | None
    low_bytes: int | None
    high_bytes: int | None
    zones: tuple[ZoneState, ...]
    lately: Reclaimed | None
    boot: Reclaimed | None
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
    asked = sorted({1 << 30, *((total // 2, total, 2 * total) if total is not None else ())})
    virtual = snapshot.processes[0].virtual_bytes if snapshot.processes else None
    verdicts = [(count, commit_verdict(node, count, virtual)) for count in asked]
    told = {
        "total_bytes": total,
        "available_bytes": info.get("MemAvailable"),
        "managed_bytes": sum(zone.managed_bytes for zone in node.zones) if node.zones else None,
        "free_bytes": free,
        "min_bytes": least,
        "low_bytes": low,
        "high_bytes": high,
        "zones": zone_states(node),
        "lately": None if meanwhile is None else _reclaimed(node, meanwhile.vmstat),
        "boot": _reclaimed(node, node.vmstat) if node.vmstat else None,
        "swap_total_bytes": info.get("SwapTotal"),
        "swap_free_bytes": info.get("SwapFree"),
        "overcommit": node.settings.get("overcommit_memory"),
        "commit_limit_bytes": info.get("CommitLimit"),
        "committed_bytes": info.get("Committed_AS"),
        "largest_grant_bytes": largest_commit(node, virtual),
        "grants": tuple(Grant(count, granted, why) for count, (granted, why) in verdicts if granted is not None),
        "largest_order": order,
        "huge_ratio": huge,
    }
    draft = Machine(**told, says=())  # type: ignore[arg-type]
    return Machine(**told, says=tuple(_says(snapshot, draft)))  # type: ignore[arg-type]


def _reclaimed(node: Node, counts: Mapping[str, int]) -> Reclaimed:
    """Counters of /proc/vmstat; of what moved only those that did are there, so that others of this kernel stood still.

    Neither allocstall nor pgscan_direct and the like count reclaim at a group's own limit (`cgroup_reclaim`, mm/vmscan.c).
    """
    stalls = [name for name in node.vmstat if name.startswith("allocstall")]  # one for each zone; before 4.10 one in all

    def pages(name: str) -> int | None:
        return counts.get(name, 0) * node.page_bytes if name in node.vmstat else None

    return Reclaimed(
        kswapd_scanned_bytes=pages("pgscan_kswapd"),
        kswapd_bytes=pages("pgsteal_kswapd"),
        direct_times=sum(counts.get(name, 0) for name in stalls) if stalls else None,
        direct_bytes=pages("pgsteal_direct"),
        swapped_in_bytes=pages("pswpin"),
        swapped_out_bytes=pages("pswpout"),
        oom_kills=counts.get("oom_kill", 0) if "oom_kill" in node.vmstat else None,
    )


def _blocks(node: Node) -> tuple[int | None, float | None]:
    """The largest order with a free block, and the share of free memory in blocks of a huge page's size or larger."""
    known = [zone.free_blocks for zone in node.zones if zone.free_blocks is not None]
    if not known:
        return None, None
    pages = [sum(blocks[i] << i for blocks in known if i < len(blocks)) for i in range(max(map(len, known)))]
    largest = max((i for i, count in enumerate(pages) if count), default=None)
    huge = huge_order(node.page_bytes)
    return largest, sum(pages[huge:]) / sum(pages) if sum(pages) else None


# ---- In words ------------------------------------------------------------------------------------------------------


def _says(snapshot: Snapshot, told: Machine) -> Iterator[str]:
    if told.total_bytes is not None:
        could = f", and {size(told.available_bytes)} could be had without swapping" if told.available_bytes is not None else ""
        yield f"The machine has {size(told.total_bytes)}: {size(told.free_bytes)} are free{could}."
    if told.total_bytes and told.managed_bytes is not None and told.managed_bytes < _ALL * told.total_bytes:
        yield (
            f"Only {size(told.managed_bytes)} of that are in zones, from which memory is handed out now; the rest seems to be "
            "kept back until it is needed, as some hypervisors do."
        )
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
    if told.lately is not None:
        yield _lately(told.lately)
    elif told.boot is not None:
        yield from _since_boot(told.boot)


def _lately(seen: Reclaimed) -> str:
    if seen.direct_times:
        return (
            f"In the seconds before, somebody had to reclaim for the whole machine {number(seen.direct_times)} times "
            "(allocstall): the machine itself is short."
        )
    if seen.kswapd_scanned_bytes or seen.kswapd_bytes:
        return "In the seconds before, kswapd reclaimed in the background, and nobody else had to."
    if seen.kswapd_scanned_bytes is None and seen.direct_times is None:
        return "Whether the machine as a whole reclaimed in the seconds before cannot be seen."
    return "In the seconds before, nothing was reclaimed for the machine as a whole: what is short, if anything, is a group."


def _since_boot(seen: Reclaimed) -> Iterator[str]:
    """Totals, which tell what has ever been, and not when."""
    if seen.direct_times is None or seen.kswapd_bytes is None:
        return
    if not seen.direct_times and not seen.kswapd_bytes:
        yield "Since it was booted, nothing has been reclaimed for the machine as a whole: it has never been short."
    else:
        yield (
            f"Since it was booted, kswapd has freed {size(seen.kswapd_bytes)}, and whoever allocates had to "
            f"{number(seen.direct_times)} times; how much of that is of late is not known."
        )


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
    committed, limit = told.committed_bytes, told.commit_limit_bytes
    promised = (
        f"{size(committed)} of address space were promised to all processes (Committed_AS)" if committed is not None else ""
    )
    if told.overcommit == 1:
        and_promised = f"; {promised}" if promised else ""
        yield f"vm.overcommit_memory is 1: malloc, mmap and fork never fail for want of memory{and_promised}."
    elif told.overcommit == 2:
        beyond = "CommitLimit" if limit is None else f"{size(limit)} (CommitLimit)"
        most = told.largest_grant_bytes
        more = f": {size(most)} more would be granted at once" if most is not None else ""
        before = f"{promised}, and " if promised else ""
        yield f"vm.overcommit_memory is 2: {before}beyond {beyond} malloc, mmap and fork fail{more}."
    elif told.overcommit == 0:
        most = told.largest_grant_bytes
        simple = most == (told.total_bytes or 0) + (told.swap_total_bytes or 0)
        what = "all memory and swap" if simple else "about what is free or could be freed, as before Linux 5.2"
        refused = "" if most is None else f"a single allocation is refused above {size(most)} ({what}), any smaller one granted"
        if refused or promised:
            yield f"vm.overcommit_memory is 0: {'; '.join(filter(None, (refused, promised)))}."
    if told.grants:
        asked = ", ".join(f"{size(grant.asked_bytes)} {'yes' if grant.granted else 'no'}" for grant in told.grants)
        yield f"A malloc would be granted: {asked}. That is a promise of addresses; a group's limit counts pages once touched."


def _fragmentation(told: Machine, node: Node) -> Iterator[str]:
    if told.largest_order is None:
        return
    block = size(node.page_bytes << told.largest_order)
    text = f"The largest free piece is {block} (order {told.largest_order}). "
    huge = huge_order(node.page_bytes)
    if told.largest_order < COSTLY_ORDER:
        yield text + "That is fragmented: requests for several pages in a row must wait until the kernel has moved others."
    elif told.huge_ratio is not None:
        piece = size(node.page_bytes << huge)
        yield (
            text
            + f"{share(told.huge_ratio)} of free memory is in pieces of {piece} or more, a huge page's size (order {huge})."
        )
    managed = sum(zone.managed_bytes for zone in node.zones)
    for zone, state in zip(node.zones, told.zones, strict=True):
        if zone.managed_bytes >= _MUCH * managed and state.usable and state.usable[COSTLY_ORDER] < _POOR:
            piece = size(node.page_bytes << COSTLY_ORDER)
            yield (
                f"{zone.name} of node {zone.node} is fragmented: only {share(state.usable[COSTLY_ORDER])} of its free memory "
                f"is in pieces of {piece} or more (order {COSTLY_ORDER}); for larger ones pages have to be moved first."
            )
