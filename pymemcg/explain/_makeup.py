# SPDX-License-Identifier: Apache-2.0
"""What a group's memory is made of, and what of it reclaim can take.

The parts are the kernel's own figures (Documentation/admin-guide/cgroup-v2.rst, memory.stat), cut so that none counts twice:
`file` includes shmem and the swap cache, `slab`, stacks and page tables are in `kernel`. What is left over is told, too: pages
that each CPU has charged in advance, updates of memory.stat that are not yet added up, and on v1 whatever it does not count.

Usage of v1's root is no counter: `mem_cgroup_usage` (mm/memcontrol.c) adds up page cache and anonymous memory of all groups, so
that the kernel's memory is in that of every group but the root.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pymemcg._words import share, size

if TYPE_CHECKING:
    from pymemcg.explain._snapshot import Group, Snapshot

_BATCH_PAGES: Final = 64
"""MEMCG_CHARGE_BATCH of mm/memcontrol.c since 6.1 (32 before): pages that a CPU charges in advance, and updates that each may
have pending when memory.stat is read (64 × CPUs in all, from 5.16 on; before, a read adds everything up)."""
_STOCKS: Final = 7  # groups that a CPU holds pages of (NR_MEMCG_STOCK, 6.16; one before)

_KERNEL: Final = ("slab_reclaimable", "slab_unreclaimable", "kernel_stack", "pagetables", "sec_pagetables", "percpu", "vmalloc")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the usage.

    Attributes:
        name: Under the kernel's name, or "page cache", "kernel, other" and "the rest", which are differences.
        part_bytes: How much.
        means: What it is.
        within: The part that it is a part of; None for those that make up usage.
    """

    name: str
    part_bytes: int
    means: str
    within: str | None = None


@dataclass(frozen=True, slots=True)
class Makeup:
    """What it is made of. Bytes; None = cannot be told.

    Attributes:
        usage_bytes: In all.
        parts: Those without `within` add up to usage, the rest being what no other names.
        rest_bytes: Usage less all parts that the kernel names.
        batching_bytes: How far the rest may be from 0 by the kernel's batching alone.
        adds_up: Whether it is not further; None on v1 without kmem figures, where the rest is also the kernel's memory.
        swap_bytes: In swap, which is not in usage.
        at_once_bytes: Reclaim can take it at once: clean page cache and reclaimable slab.
        after_writeback_bytes: Only after it was written to its disk.
        to_swap_bytes: Only swap can take it: anonymous memory, shmem and tmpfs.
        unknown_bytes: The kernel's own memory where it does not tell how much of it is slab that could go: on v1, whose usage
            has it but for the root. Where v1 does not even tell it, the rest, which has it.
        never_bytes: Nothing can, but to end or to ask who holds it.
        says: In sentences.
    """

    usage_bytes: int | None
    parts: tuple[Part, ...]
    rest_bytes: int | None
    batching_bytes: int | None
    adds_up: bool | None
    swap_bytes: int | None
    at_once_bytes: int | None
    after_writeback_bytes: int | None
    to_swap_bytes: int | None
    unknown_bytes: int | None
    never_bytes: int | None
    says: tuple[str, ...]


def makeup(snapshot: Snapshot) -> Makeup:
    """Take it apart."""
    group, usage = snapshot.group, snapshot.group.usage_bytes
    parts = list(_parts(group, None if is_v1_root(snapshot) else _kernel_bytes(group)))
    rest = None if usage is None or not parts else usage - sum(part.part_bytes for part in parts if part.within is None)
    cpus = snapshot.node.cpus
    batching = None
    if cpus is not None:
        stocks = min(_STOCKS, 1 + (group.groups_below or 0))
        # Of the swap cache, what no process maps is in no other figure.
        batching = snapshot.node.page_bytes * _BATCH_PAGES * cpus * (1 + stocks) + group.stat.get("swapcached", 0)
    known_kernel = _kernel_bytes(group) is not None
    if rest is not None:
        parts.append(Part("the rest", rest, _REST if known_kernel else _REST_V1))
    stat = group.stat
    gone = (at_once(group), unwritten(stat), _to_swap(group), _unknown(snapshot, rest))
    taken = _sum(*gone)
    told = Makeup(
        usage_bytes=usage,
        parts=tuple(parts),
        rest_bytes=rest,
        batching_bytes=batching,
        adds_up=abs(rest) <= batching if known_kernel and rest is not None and batching is not None else None,
        swap_bytes=stat.get("swap") if snapshot.version == 1 else group.others.get("swap"),
        at_once_bytes=gone[0],
        after_writeback_bytes=gone[1],
        to_swap_bytes=gone[2],
        unknown_bytes=gone[3],
        never_bytes=None if usage is None or taken is None else max(0, usage - taken),
        says=(),
    )
    return replace(told, says=tuple(_says(told, snapshot)))


_REST: Final = "charged in advance by each CPU, and figures not yet added up"
_REST_V1: Final = "the kernel's own memory for it, which v1 does not tell apart here, and pages charged in advance"


def at_once(group: Group) -> int | None:
    """Clean page cache and reclaimable slab: what reclaim takes without waiting for a disk.

    ``inactive_file + active_file - file_dirty - file_writeback + slab_reclaimable``; v1 does not tell slab. Mapped pages are
    in it: they are unmapped first, and faulted in again if they are used. Pages of tmpfs are on the lists of anonymous memory.
    """
    stat = group.stat
    lists = _sum(stat.get("inactive_file"), stat.get("active_file"))
    if lists is None:
        return None
    return max(0, lists - stat.get("file_dirty", 0) - stat.get("file_writeback", 0)) + stat.get("slab_reclaimable", 0)


def unwritten(stat: Mapping[str, int]) -> int | None:
    """What has to be written to a disk before it can go: dirty pages, and those that are being written."""
    return _sum(stat.get("file_dirty"), stat.get("file_writeback"))


def _to_swap(group: Group) -> int | None:
    """``inactive_anon + active_anon``: anonymous memory, shmem and tmpfs that are not locked."""
    return _sum(group.stat.get("inactive_anon"), group.stat.get("active_anon"))


def is_v1_root(snapshot: Snapshot) -> bool:
    """Whether it is the root of a v1 hierarchy, and not of a namespace or a mount that shows a group as "/".

    The root has no limit. Nor may the other have one, but its usage has the kernel's memory in it beside page cache and
    anonymous memory, and the root's does not: it is the one that its figures are nearer to.
    """
    group = snapshot.group
    pages = _sum(group.stat.get("anon"), group.stat.get("file"))
    kernel = _kernel_bytes(group)
    if snapshot.version != 1 or group.name != "/" or group.limit_bytes is not None:
        return False
    return (
        group.usage_bytes is not None and pages is not None and bool(kernel) and group.usage_bytes - pages < (kernel or 0) / 2
    )


def _unknown(snapshot: Snapshot, rest: int | None) -> int | None:
    """The kernel's memory in usage of which nothing says how much is reclaimable slab."""
    group = snapshot.group
    if "slab_reclaimable" in group.stat or is_v1_root(snapshot):
        return 0
    kernel = _kernel_bytes(group)
    if kernel is not None or rest is None:
        return kernel
    return max(0, rest)


def _kernel_bytes(group: Group) -> int | None:
    """`kernel` of v2 (5.18), the sum of its parts before, kmem.usage_in_bytes of v1."""
    if "kernel" in group.stat:
        return group.stat["kernel"]
    if "slab" in group.stat or "slab_reclaimable" in group.stat:
        return sum(group.stat.get(name, 0) for name in _KERNEL)
    return group.others.get("kmem")


def _parts(group: Group, kernel: int | None) -> Iterator[Part]:
    stat = group.stat
    if "anon" not in stat or "file" not in stat:
        return
    shmem, twice = stat.get("shmem", 0), stat.get("swapcached", 0)
    yield Part("anon", stat["anon"], "heaps, stacks, private mappings: only swap or an end frees it")
    yield from _inner(stat, "anon", {"anon_thp": "in huge pages"})
    yield Part("shmem", shmem, "tmpfs, /dev/shm, shared memory: files without a disk; they stay until deleted")
    yield Part("page cache", stat["file"] - shmem - twice, "contents of files on disks")
    told = {
        "active_file": "used more than once",
        "inactive_file": "used once, or not lately: goes first",
        "file_dirty": "to be written to a disk first",
        "file_writeback": "being written",
        "file_mapped": "in some process's page tables; tmpfs with it",
    }
    yield from _inner(stat, "page cache", told)
    if kernel is not None:
        yield Part("kernel", kernel, "what the kernel keeps for the group")
        told = {
            "slab_reclaimable": "dentries and inodes: mostly goes when asked",
            "slab_unreclaimable": "objects in use",
            "kernel_stack": "16 KiB a thread",
            "pagetables": "of its processes",
            "sec_pagetables": "of virtual machines and IOMMUs",
            "percpu": "counters of each CPU",
            "vmalloc": "large buffers",
            "zswap": "swap that is kept in memory, compressed",
        }
        yield from _inner(stat, "kernel", told)
    if "sock" in stat:
        yield Part("sock", stat["sock"], "buffers of sockets: what readers do not take off their connections")
    if "hugetlb" in stat:
        yield Part("hugetlb", stat["hugetlb"], "huge pages that were set aside")


def _inner(stat: Mapping[str, int], within: str, means: dict[str, str]) -> Iterator[Part]:
    for name, text in means.items():
        if stat.get(name):
            yield Part(name, stat[name], text, within)


def _sum(*values: int | None) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


# ---- In words ------------------------------------------------------------------------------------------------------


def _says(told: Makeup, snapshot: Snapshot) -> Iterator[str]:
    usage = told.usage_bytes
    if usage and told.at_once_bytes is not None:
        yield (
            f"Reclaim can take {size(told.at_once_bytes)} ({share(told.at_once_bytes / usage)}) at once: clean page cache"
            + (" and reclaimable slab." if "slab_reclaimable" in snapshot.group.stat else ".")
        )
    if told.after_writeback_bytes:
        yield f"{size(told.after_writeback_bytes)} must be written to a disk first. {_dirty_rule(snapshot)}"
    if told.to_swap_bytes:
        yield f"{size(told.to_swap_bytes)} is memory without a file: only swap can take it, or whoever holds it gives it back."
    if told.unknown_bytes:
        what = (
            "is the kernel's own memory for it"
            if _kernel_bytes(snapshot.group) is not None
            else "is mostly the kernel's own memory"
        )
        yield (
            f"{size(told.unknown_bytes)} {what}: v1 does not tell how much of that is slab (dentries, inodes) that could go."
        )
    if told.never_bytes:
        kernels = "" if told.unknown_bytes or snapshot.version == 1 else "the kernel's own memory, "
        yield f"{size(told.never_bytes)} nothing can take: {kernels}locked pages, and what no list of pages to reclaim has."
    if is_v1_root(snapshot):
        yield (
            f"The kernel's own memory for the groups below ({size(_kernel_bytes(snapshot.group))}) is not in it: usage of v1's "
            "root is page cache and anonymous memory alone."
        )
    if told.swap_bytes:
        yield f"{size(told.swap_bytes)} more are in swap, which is not in usage."
    if told.adds_up is False:
        yield (
            f"The parts miss usage by {size(told.rest_bytes, sign=True)}, more than the kernel's batching explains "
            f"({size(told.batching_bytes)}): it moved while it was read."
        )


def _dirty_rule(snapshot: Snapshot) -> str:
    node = snapshot.node
    begin, stop = (node.vmstat.get(f"nr_dirty_{name}threshold") for name in ("background_", ""))
    if begin is None or stop is None:
        return "When that happens is a rule of the whole host (vm.dirty_background_ratio)."
    whose = (
        "On cgroup v1 no group's limit makes that sooner: reclaim at the limit waits for the disk, or ends in an OOM kill."
        if snapshot.version == 1
        else "Where the file system knows cgroups (ext4, btrfs, xfs), the same shares hold of the group's own memory."
    )
    return (
        f"The kernel begins to write when {size(begin * node.page_bytes)} are dirty on the host (vm.dirty_background_ratio) "
        f"or pages are old (vm.dirty_expire_centisecs); from {size(stop * node.page_bytes)} on (vm.dirty_ratio) whoever "
        f"writes must wait. {whose}"
    )
