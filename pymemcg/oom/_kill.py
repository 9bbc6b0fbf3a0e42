# SPDX-License-Identifier: Apache-2.0
"""What the kernel's log tells of one OOM kill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NamedTuple

CAUSES: Final = ("own-limit", "parent-limit", "group-limit", "machine", "node", "fragmentation", "unknown")


@dataclass(frozen=True, slots=True)
class Asker:
    """Whose allocation found no memory.

    Attributes:
        name: Its name (`comm`, 15 characters at most).
        pid: Its thread id, or None where the log does not have that line.
        gfp_mask: As printed, with the flags' names where the kernel has them.
        oom_score_adj: Its own.
    """

    name: str
    pid: int | None
    gfp_mask: str
    oom_score_adj: int | None


class Candidate(NamedTuple):  # a log may have a million, and this is made in half the time
    """A process that the kernel could have killed, as its table has it.

    What the table does not tell is None, as the rest of a line that was cut, whose `name` is empty.

    Attributes:
        pid: Of the process (`tgid`), as the host counts.
        uid: Its user.
        name: Its name.
        virtual_bytes: `total_vm`.
        rss_bytes: Resident: anonymous, of files and shared together.
        anon_rss_bytes: The anonymous part; None before Linux 6.9, whose table is the first to have it.
        file_rss_bytes: Of files; likewise.
        shmem_rss_bytes: Shared memory and tmpfs; likewise.
        pgtables_bytes: Its page tables; None where the table counts them in another way (before Linux 4.15).
        swap_bytes: In swap.
        oom_score_adj: -1000 = never killed.
        badness_bytes: What the kernel ranks by; None where `oom_score_adj` is not 0 and the log does not say what it is a
            share of, or the process could not be killed, or a figure is not known.
    """

    pid: int
    uid: int | None
    name: str
    virtual_bytes: int | None
    rss_bytes: int | None
    anon_rss_bytes: int | None
    file_rss_bytes: int | None
    shmem_rss_bytes: int | None
    pgtables_bytes: int | None
    swap_bytes: int | None
    oom_score_adj: int | None
    badness_bytes: int | None


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone of a node's memory, as `Mem-Info` has it.

    Attributes:
        node: Its number.
        name: "DMA", "DMA32", "Normal", "HighMem", "Movable".
        free_bytes: Free.
        min_bytes: Below this watermark only the kernel's own needs are served.
        low_bytes: Below this one kswapd begins to reclaim.
        high_bytes: Above this one it ends.
        reserved_bytes: Of this zone, kept from this request since a higher zone could serve it, too (`lowmem_reserve`).
        largest_free_bytes: The largest block in one piece; None where the log does not say.
    """

    node: int
    name: str
    free_bytes: int
    min_bytes: int
    low_bytes: int
    high_bytes: int
    reserved_bytes: int
    largest_free_bytes: int | None


@dataclass(frozen=True, slots=True)
class Kill:
    """One process that the OOM killer ended. What the log does not say is None, or empty.

    Attributes:
        cause: `own-limit`: the limit of the victim's own group; `parent-limit`: that of a group above it; `group-limit`: a
            group's, the log does not say whose; `machine`: the whole machine was out of memory; `node`: only the nodes that a
            cpuset or a memory policy allows were; `fragmentation`: there was memory, but not so much of it in one piece;
            `unknown`: the log has too little of it.
        why: What that rests on, in words.
        pid: The victim's, as the host counts.
        name: Its name.
        uid: Its user.
        order: Pages that were asked for in one piece, as a power of two; -1: an administrator asked (SysRq-f).
        asker: Whose allocation found no memory.
        constraint: As printed: "NONE", "MEMCG", "CPUSET", "MEMORY_POLICY".
        oom_memcg: The group whose limit was reached.
        task_memcg: The victim's group.
        group_kill: All processes of the group were killed with it (memory.oom.group).
        chosen_pid: Which process was chosen, where a child of it died in its place (before Linux 5.3).
        entrypoint: Whether the victim was the first process of its group, so that a container, if it is one's, ended with it:
            "yes", "likely", "unlikely", "unknown".
        entrypoint_why: What that rests on.
        total_vm_bytes: Its virtual memory.
        anon_rss_bytes: Its resident anonymous memory.
        file_rss_bytes: Its resident pages of files.
        shmem_rss_bytes: Its resident shared memory.
        pgtables_bytes: Its page tables.
        oom_score_adj: Its own.
        usage_bytes: The group's memory then.
        limit_bytes: Its limit; None where it has none.
        failcnt: How often that limit had been reached.
        swap_usage_bytes: The group's swap (v2) or memory and swap (v1).
        swap_limit_bytes: The limit of that; None where it has none.
        swap_kind: "swap" or "memory+swap".
        memory: What the memory was, in bytes, under the common names (`anon`, `file`, `shmem`, …): of the group, or of the
            machine. Before Linux 5.3 sums of all groups that the log has a line of.
        zones: The machine's, where all of it was out of memory.
        ram_bytes: Memory of the machine that the kernel hands out; likewise.
        total_swap_bytes: Its swap.
        free_swap_bytes: Of that free.
        candidates: Processes that could have been killed, the worst first, 1,000 at most; of a whole group, with the first.
        candidates_left_out: How many more the table has.
        page_bytes: A page there, by which the table was read.
        seconds: Since boot.
        when: The time of day as printed.
        line: Number of the line of the log that says it was killed, from 1.
    """

    cause: str
    why: str
    pid: int
    name: str
    uid: int | None
    order: int | None
    asker: Asker | None
    constraint: str | None
    oom_memcg: str | None
    task_memcg: str | None
    group_kill: bool
    chosen_pid: int | None
    entrypoint: str
    entrypoint_why: str
    total_vm_bytes: int | None
    anon_rss_bytes: int | None
    file_rss_bytes: int | None
    shmem_rss_bytes: int | None
    pgtables_bytes: int | None
    oom_score_adj: int | None
    usage_bytes: int | None
    limit_bytes: int | None
    failcnt: int | None
    swap_usage_bytes: int | None
    swap_limit_bytes: int | None
    swap_kind: str | None
    memory: Mapping[str, int]
    zones: tuple[Zone, ...]
    ram_bytes: int | None
    total_swap_bytes: int | None
    free_swap_bytes: int | None
    candidates: tuple[Candidate, ...]
    candidates_left_out: int
    page_bytes: int
    seconds: float | None
    when: str | None
    line: int

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, as for JSON."""
        return asdict(replace(self, candidates=())) | {"candidates": [one._asdict() for one in self.candidates]}
