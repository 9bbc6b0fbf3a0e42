# SPDX-License-Identifier: Apache-2.0
"""What to do about a verdict, what it costs, and what better not to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pymemcg._words import size

if TYPE_CHECKING:
    from pymemcg.explain._edge import Edge
    from pymemcg.explain._snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Advice:
    """Something to do.

    Attributes:
        do: What.
        costs: The trade-off.
        danger: Whether it is rather what not to do; then `costs` says why.
    """

    do: str
    costs: str
    danger: bool = False


def advice(verdict: str, snapshot: Snapshot, edge: Edge) -> tuple[Advice, ...]:
    """What fits a verdict here."""
    return tuple(_ALL[name](snapshot, edge) for name in _FOR[verdict])


_Make = Callable[["Snapshot", "Edge"], Advice]


def _plain(do: str, costs: str, *, danger: bool = False) -> _Make:
    said = Advice(do, costs, danger)
    return lambda _snapshot, _edge: said


_LIMIT_FILES: Final = {
    (1, "max"): "memory.limit_in_bytes",
    (1, "memsw"): "memory.memsw.limit_in_bytes",
    (2, "max"): "memory.max",
    (1, "high"): "memory.high",
    (2, "high"): "memory.high",
}


def _room(snapshot: Snapshot, edge: Edge) -> Advice:
    first = edge.first
    if first is None:
        return Advice(
            "Give it more memory: a larger machine, or fewer neighbours. And give it a limit (memory.max; `docker run "
            "--memory`; "
            "Kubernetes: resources.limits.memory).",
            "With a limit it is ended itself, and not whoever the machine's OOM killer finds largest.",
        )
    whose = "the limit" if first.group == snapshot.group.name else f"the limit of {first.group}"
    file = _LIMIT_FILES[snapshot.version, first.kind]
    both = snapshot.group.limits.get("memsw")
    if snapshot.version == 1 and first.kind == "max" and both is not None and both <= first.limit_bytes:
        file = f"memory.memsw.limit_in_bytes, and then {file}"
    docker = "" if first.kind == "high" else "; `docker update --memory`, with --memory-swap"
    return Advice(
        f"Raise {whose}, now {size(first.limit_bytes)} ({file} of {first.group}{docker}; Kubernetes: "
        "resources.limits.memory, and "
        "requests).",
        "The node has less for others, and page cache grows into whatever it is given. Where the request stays behind "
        "the limit, "
        "the node can be promised more than once.",
    )


def _high(snapshot: Snapshot, edge: Edge) -> Advice:
    del edge
    if snapshot.version == 1:
        return Advice(
            "With cgroup v2, memory.high a tenth below the limit would have growth slowed down before it is killed.",
            "v1 has no such thing: its soft limit stops nobody.",
        )
    limit = snapshot.group.limit_bytes
    at = f" at some {size(limit * 0.9)}" if limit else ""
    return Advice(
        f"Set memory.high{at}: reclaim begins earlier, and what grows is slowed down instead of killed.",
        "Its threads are put to sleep there, for up to 2 s at a time: latency instead of a kill. No help where nothing can be "
        "reclaimed and the growth does not end: it then crawls for ever, where a kill would have had it restarted.",
    )


def _reclaim(snapshot: Snapshot, edge: Edge) -> Advice:
    del edge
    directory = snapshot.group.directory
    if snapshot.version == 1:
        how = f"`echo 0 > {directory}/memory.force_empty`, which takes all that it can"
    else:
        how = f"`echo 64M > {directory}/memory.reclaim` (Linux 5.19 and later)"
    return Advice(
        f"To get memory back once: {how}; `sync` before it, so that pages are clean.",
        "Whoever writes there does the work, not the service; what is needed again is read again. Where there is swap, memory "
        "without a file is swapped out, too. `sync` writes what the whole host has.",
    )


def _swap(snapshot: Snapshot, edge: Edge) -> Advice:
    del edge
    kubernetes = "Kubernetes: swapBehavior LimitedSwap"
    where = f"memory.swap.max; {kubernetes}" if snapshot.version == 2 else f"memory.memsw.limit_in_bytes; {kubernetes}"
    return Advice(
        f"Allow some swap, or more of it ({where}; `docker run --memory-swap`): what is idle leaves.",
        "Whoever comes back to swapped memory waits for it: on zram some 10 µs a page, on a disk milliseconds. A leak "
        "fills swap, "
        "too.",
    )


def _overcommit(snapshot: Snapshot, edge: Edge) -> Advice:
    del edge
    mode = snapshot.node.settings.get("overcommit_memory")
    now = "" if mode is None else f" (now {mode})"
    return Advice(
        f"vm.overcommit_memory{now} decides when malloc fails: 1 never, 2 when all promises exceed a limit, 0 only the absurd.",
        "Kubernetes sets 1: a pod's limit and the OOM killer decide, and fork never fails. A database that handles "
        "ENOMEM, such as "
        "Greenplum or PostgreSQL, wants 2 on a machine of its own: a failed statement instead of a killed server. It is "
        "a setting "
        "of the whole machine, and no group's limit makes malloc fail.",
    )


_ALL: Final[dict[str, _Make]] = {
    "fine": _plain("Nothing.", "`pymemcg watch` shows it live, and tells when that changes."),
    "nothing": _plain("Nothing.", "Page cache that fills a limit is memory that does something until somebody needs it."),
    "alert": _plain(
        "Alert on the working set against the limit, or on stalls and memory pressure (PSI), not on usage.",
        "The working set also has active cache and tmpfs, so it can be high without danger; usage is high always.",
    ),
    "room": _room,
    "high": _high,
    "reclaim": _reclaim,
    "overcommit": _overcommit,
    "stream": _plain(
        "Have whoever reads or writes large files once give their pages back: `posix_fadvise(fd, 0, 0, "
        "POSIX_FADV_DONTNEED)`, or "
        "O_DIRECT (backups, log shippers, batch jobs).",
        "A later reader reads from the disk. Dirty pages must be written first (`fdatasync`).",
    ),
    "split": _plain(
        "Move what fills the cache (a batch job, a sidecar, a log shipper) into a group of its own with a limit of its own.",
        "It then stalls at that limit itself, which is what is wanted.",
    ),
    "review": _plain(
        "Find what holds it: a heap profile (tracemalloc, memray, jemalloc's), caches without a bound, queues that "
        "nobody empties.",
        "Raising the limit of something that leaks only moves the hour.",
    ),
    "trim": _plain(
        "If the heap has much that was freed: `malloc_trim(0)` (glibc), or MALLOC_ARENA_MAX=2 where there are many threads.",
        "The pages are faulted in again when they are needed; fewer arenas mean more waiting for a lock.",
    ),
    "swap": _swap,
    "less_swap": _plain(
        "Give it the memory that it works with: raise the limit, or do less at once. Less swap (memory.swap.max) ends "
        "the waiting "
        "with a kill instead.",
        "Without swap an OOM kill comes sooner, and is over sooner.",
    ),
    "adj": _plain(
        "Say by oom_score_adj who is to die first: a worker (positive) rather than the process that starts them (negative).",
        "Somebody dies. Of a group's processes only; -1000 for all of them leaves the kernel nobody.",
    ),
    "killer_off": _plain(
        "Do not turn the OOM killer off (oom_kill_disable, `docker run --oom-kill-disable`).",
        "Its tasks then hang in the kernel, also those that hold locks, until memory is freed; nothing restarts them.",
        danger=True,
    ),
    "killer_on": _plain(
        "Raise the limit a little to let the tasks go on, then turn the OOM killer on again: `echo 0 > memory.oom_control`.",
        "One of them is killed, and the others live.",
    ),
    "drop_caches": _plain(
        "Do not write to /proc/sys/vm/drop_caches.",
        "It empties the cache of all of the node's containers, which then all read from disks at once.",
        danger=True,
    ),
    "siblings": _plain(
        "Find which of the groups below that limit uses most beyond its request, and limit that one; or raise the "
        "parent's limit to "
        "the sum of what its groups may use.",
        "Whoever hits it next is stalled or killed, not whoever filled it.",
    ),
    "protect": _plain(
        "Protect what must not be slow: memory.min or memory.low (v2), in Kubernetes a request equal to the limit.",
        "What is protected is taken from others, who then stall instead.",
    ),
    "node": _plain(
        "Move something to another node, or limit what has no limit; raise vm.watermark_scale_factor so that kswapd "
        "begins sooner.",
        "More is kept free, and so is not used.",
    ),
    "evict": _plain(
        "In Kubernetes, have requests say what pods really use: the kubelet then evicts the right one, before the kernel "
        "has to kill.",
        "Fewer pods fit on the node.",
    ),
    "tmpfs": _plain(
        "Look for large files in tmpfs: `df -h -t tmpfs`, `du -xsh /dev/shm /tmp /run`, emptyDir volumes with medium "
        "Memory, and "
        "shared memory of ended processes (`ipcs -m`). Deleting them frees memory at once.",
        "A file that somebody still has open is freed when that one closes it.",
    ),
    "tmpfs_size": _plain(
        "Bound tmpfs (mount option size=, emptyDir.sizeLimit), or put files on a disk.",
        "Writers get ENOSPC instead of the container an OOM kill.",
    ),
    "dirty": _plain(
        "Have whoever writes much call `fdatasync` (or sync_file_range) every few MiB, so that pages are clean when they "
        "must go.",
        "It waits for the disk then, in a place of its own choosing.",
    ),
    "dirty_host": _plain(
        "Lower vm.dirty_background_bytes on the host, so that writing begins earlier.",
        "For the whole host; bursts that would have been written once are written twice.",
    ),
    "kernel": _plain(
        "Look at what the kernel keeps: many open or stat'ed files (slab: dentries, inodes), threads (16 KiB of stack "
        "each), page "
        "tables of large sparse mappings, sockets whose readers are slow (sock).",
        "Reclaimable slab goes by itself when memory is short; the others only when their owner lets go.",
    ),
}

_FOR: Final[dict[str, tuple[str, ...]]] = {
    "killed": ("review", "room", "swap", "adj", "killer_off"),
    "swappable": ("room", "review", "less_swap"),
    "hung": ("killer_on", "room", "review", "killer_off"),
    "growth": ("review", "trim", "room", "high", "swap", "adj", "killer_off"),
    "full": ("review", "room", "trim", "swap", "adj", "overcommit", "killer_off"),
    "parent-squeezed": ("siblings", "room", "protect", "killer_off"),
    "node-squeezed": ("node", "protect", "evict", "overcommit", "drop_caches"),
    "swap-storm": ("less_swap", "room", "review"),
    "throttled": ("room", "review", "stream", "high"),
    "tmpfs-leak": ("tmpfs", "tmpfs_size", "room", "swap"),
    "dirty-backlog": ("dirty", "dirty_host", "room", "drop_caches"),
    "kernel-memory": ("kernel", "room", "reclaim"),
    "thrash": ("room", "split", "stream", "protect"),
    "cache-pressure": ("stream", "split", "room", "reclaim", "alert", "drop_caches"),
    "healthy-cache": ("nothing", "alert", "reclaim", "drop_caches"),
    "healthy": ("fine",),
    "unknown": ("alert",),
}
