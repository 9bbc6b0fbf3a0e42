# SPDX-License-Identifier: Apache-2.0
"""Zones of memory: how free, and how fragmented."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pymemcg.explain._snapshot import Node, Zone

COSTLY_ORDER: Final = 3
"""PAGE_ALLOC_COSTLY_ORDER: up to it the kernel reclaims until it succeeds, which is where fragmentation ends in an OOM kill."""


@dataclass(frozen=True, slots=True)
class ZoneState:
    """A zone.

    Attributes:
        node: Its number.
        name: "DMA", "DMA32", "Normal", "Movable", …
        level: "above high", "above low", "below low" (kswapd works) or "below min" (whoever allocates has to reclaim).
        largest_order: Of its free blocks of 2**order pages; None where there is none, or it is not known.
        usable: By order, the share of its free memory that is in blocks of that order or larger; empty where it is not known.
    """

    node: int
    name: str
    level: str
    largest_order: int | None
    usable: Mapping[int, float]


def zone_states(node: Node) -> tuple[ZoneState, ...]:
    """Each zone that has memory."""
    return tuple(_state(zone, (2, COSTLY_ORDER, huge_order(node.page_bytes))) for zone in node.zones)


def huge_order(page_bytes: int) -> int:
    """Of a transparent huge page: as many pages as a page has pointers of 8 bytes, so 9 (2 MiB) with 4 KiB, 13 with 64 KiB."""
    return (page_bytes // 8).bit_length() - 1


def _state(zone: Zone, orders: tuple[int, ...]) -> ZoneState:
    free = zone.free_bytes
    marks = (("below min", zone.min_bytes), ("below low", zone.low_bytes), ("above low", zone.high_bytes))
    level = next((name for name, mark in marks if free < mark), "above high")
    blocks = zone.free_blocks or ()
    largest = max((order for order, count in enumerate(blocks) if count), default=None)
    return ZoneState(zone.node, zone.name, level, largest, {order: usable(blocks, order) for order in orders if blocks})


def usable(blocks: tuple[int, ...], order: int) -> float:
    """The share of free memory that an allocation of that order could have without moving pages.

    One less the kernel's unusable free space index (`unusable_free_index`, mm/vmstat.c):
    ``(free pages - pages in blocks of that order or larger) / free pages``, 1 where nothing is free.

    Args:
        blocks: How many free blocks of 2**i pages there are, by i.
        order: Of the allocation.
    """
    pages = [count << i for i, count in enumerate(blocks)]
    return sum(pages[order:]) / sum(pages) if sum(pages) else 0.0
