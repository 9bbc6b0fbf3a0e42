# SPDX-License-Identifier: Apache-2.0
"""Whether the kernel would grant address space: what malloc, mmap and fork ask for before any page is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pymemcg._words import size

if TYPE_CHECKING:
    from pymemcg.explain._snapshot import Node

# Defaults of vm.admin_reserve_kbytes and vm.user_reserve_kbytes, of machines with more than some 4 GiB free at boot
# (init_admin_reserve, init_user_reserve); those of smaller ones are 3 % of what was free.
_ADMIN_KIB: Final = 8 << 10
_USER_KIB: Final = 128 << 10
_SIMPLE_SINCE: Final = (5, 2)
"""From then on mode 0 looks at nothing but memory and swap (8c7829b04c52); before, at what was free or could be freed."""


def commit_verdict(node: Node, count: int, virtual_bytes: int | None = None) -> tuple[bool | None, str]:
    """Whether so much would be granted, to a process without CAP_SYS_ADMIN.

    `__vm_enough_memory` (mm/util.c) is asked once for each private writable mapping, of its size alone: in mode 0 many that
    are granted may add up to any sum. fork asks again for each of the parent's. MAP_NORESERVE, which stacks and some heaps
    have, is not asked for in modes 0 and 1. A group's limit has no part in it.

    Args:
        node: The machine.
        count: Bytes.
        virtual_bytes: What the process has already, of which mode 2 keeps a 32nd free; None = as much as it ever keeps.

    Returns:
        Whether, None where it cannot be told; and why.
    """
    mode = node.settings.get("overcommit_memory")
    if mode == 1:
        return True, "mode 1 grants everything"
    most = largest_commit(node, virtual_bytes)
    if most is None:
        return None, "vm.overcommit_memory cannot be read" if mode is None else f"what mode {mode} goes by cannot be read"
    granted = count <= most
    than = "no more than" if granted else "more than"
    if mode == 2:
        return granted, f"{than} the {size(most)} that mode 2 has left of CommitLimit"
    if _is_simple(node):
        return granted, f"{than} all memory and swap, {size(most)}"
    return granted, f"{than} what is free or could be freed, about {size(most)}, which mode 0 goes by before Linux 5.2"


def largest_commit(node: Node, virtual_bytes: int | None = None) -> int | None:
    """The most that would be granted at once.

    Mode 0: ``MemTotal + SwapTotal``. Before 5.2 free memory, page cache without shmem, free swap and reclaimable slab, less
    the watermarks (of which the reserves for lower zones are not known here) and vm.admin_reserve_kbytes.
    Mode 2: what keeps Committed_AS below CommitLimit less vm.admin_reserve_kbytes, and less the smaller of a 32nd of the
    process and vm.user_reserve_kbytes.

    Args:
        node: The machine.
        virtual_bytes: As `commit_verdict`'s.

    Returns:
        Bytes, in whole pages; None where nothing is refused, or it cannot be told.
    """
    info, mode = node.meminfo, node.settings.get("overcommit_memory")
    admin = node.settings.get("admin_reserve_kbytes", _ADMIN_KIB) << 10
    if mode == 0 and _is_simple(node):
        return _sum(info.get("MemTotal"), info.get("SwapTotal"))
    if mode == 0:
        names = ("MemFree", "Cached", "Buffers", "SwapFree", "SReclaimable")
        could = _sum(*(info.get(name) for name in names))
        kept = sum(zone.high_bytes for zone in node.zones) + admin + info.get("Shmem", 0)
        return None if could is None else max(0, could + info.get("SwapCached", 0) - kept)
    if mode == 2 and "CommitLimit" in info and "Committed_AS" in info:
        user = node.settings.get("user_reserve_kbytes", _USER_KIB) << 10
        kept = admin + (user if virtual_bytes is None else min(virtual_bytes // 32, user))
        left = (info["CommitLimit"] - kept - info["Committed_AS"]) // node.page_bytes * node.page_bytes
        return max(0, left - node.page_bytes)  # the kernel asks for less than the limit, not for as much
    return None


def _is_simple(node: Node) -> bool:
    numbers = (node.kernel or "").split("-")[0].split(".")[:2]
    return len(numbers) < 2 or not all(word.isdecimal() for word in numbers) or tuple(map(int, numbers)) >= _SIMPLE_SINCE


def _sum(*values: int | None) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
