# SPDX-License-Identifier: Apache-2.0
"""What an explanation knows: the files of one moment as numbers, and what moved in the seconds before.

None, or a key that is missing, is what could not be read; it is never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Group:
    """A group of the memory hierarchy.

    Attributes:
        name: Its path relative to the hierarchy's visible root, "/" for that root.
        directory: As the machine has it.
        usage_bytes: memory.current, or memory.usage_in_bytes.
        peak_bytes: The most it has been (memory.peak from 5.19 on, or memory.max_usage_in_bytes).
        limits: In bytes, None = no limit; a limit that this kernel does not have is no key. "max", and on v2 "high", "low",
            "min", "swap" (memory.swap.max), on v1 "soft" and "memsw" (memory and swap together).
        others: Figures beside usage, in bytes: "swap", on v1 "memsw", "kmem", "tcp", "kmem_tcp"; and settings as they are:
            "oom_group", "oom_kill_disable", "under_oom", "swappiness", "wmark_ratio" and what else Alibaba's kernel has.
        events: How often: "max", "high", "oom", "oom_kill" and what else memory.events has; v1's failcnt is "max" there.
        stat: memory.stat of the group and all below it, under the common names.
        own_stat: v1: of the group alone, under v1's names.
        controlled: Whether the memory controller is enabled for it.
        groups_below: How many groups are below it, where that was counted.
    """

    name: str
    directory: str
    usage_bytes: int | None
    peak_bytes: int | None
    limits: Mapping[str, int | None]
    others: Mapping[str, int]
    events: Mapping[str, int]
    stat: Mapping[str, int]
    own_stat: Mapping[str, int]
    controlled: bool
    groups_below: int | None

    @property
    def limit_bytes(self) -> int | None:
        """Its hard limit; None where it has none."""
        return self.limits.get("max")


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the group, or of a group below it.

    Attributes:
        pid: As this pid namespace counts.
        name: Its name (`comm`).
        uid: Its user.
        first: Whether it is pid 1 of its pid namespace: with it a container ends. None where that cannot be seen.
        virtual_bytes: VIRT of top, VSZ of ps: statm's first.
        rss_bytes: RES of top, RSS of ps: statm's second.
        shared_bytes: SHR of top: statm's third.
        status: The Vm and Rss lines of its status, in bytes: VmRSS, RssAnon, RssFile, RssShmem, VmSwap, VmPTE, VmLck, …
        pss_bytes: Its fair share of all that it maps; None unless asked for.
        oom_score_adj: -1000 (never killed) to 1000.
        oom_score: What /proc/PID/oom_score says.
    """

    pid: int
    name: str
    uid: int | None
    first: bool | None
    virtual_bytes: int
    rss_bytes: int
    shared_bytes: int
    status: Mapping[str, int]
    pss_bytes: int | None
    oom_score_adj: int | None
    oom_score: int | None


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone of a node's memory, of /proc/zoneinfo and /proc/buddyinfo.

    Attributes:
        node: Its number.
        name: "DMA", "DMA32", "Normal", "Movable", …
        free_bytes: Free.
        min_bytes: Watermark: below it only the kernel's own needs are served.
        low_bytes: Watermark: below it kswapd begins to reclaim.
        high_bytes: Watermark: above it kswapd ends.
        managed_bytes: What of it the page allocator hands out.
        free_blocks: How many free blocks of 2**i pages there are, by i; None where /proc/buddyinfo cannot be read.
    """

    node: int
    name: str
    free_bytes: int
    min_bytes: int
    low_bytes: int
    high_bytes: int
    managed_bytes: int
    free_blocks: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Node:
    """The whole machine.

    Attributes:
        kernel: Its release; None where it cannot be read.
        meminfo: /proc/meminfo in bytes.
        vmstat: /proc/vmstat as it is.
        zones: Each that has memory.
        settings: Of /proc/sys/vm, by name: "swappiness", "overcommit_memory", "dirty_ratio", …
        cpus: How many processors the page allocator knows.
        page_bytes: A page.
        pressure: "some" and "full" to the share of the last 10, 60 and 300 s, of /proc/pressure/memory.
    """

    kernel: str | None
    meminfo: Mapping[str, int]
    vmstat: Mapping[str, int]
    zones: tuple[Zone, ...]
    settings: Mapping[str, int]
    cpus: int | None
    page_bytes: int
    pressure: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A group beside the target, or one of the groups that it is in: a container or a pod, on a Kubernetes node.

    Attributes:
        group: Its figures.
        pod: The name of the pod's group it is in or is; None outside of Kubernetes.
        oom_score_adj: Of its first process that can be seen.
    """

    group: Group
    pod: str | None
    oom_score_adj: int | None


@dataclass(frozen=True, slots=True)
class StallsSeen:
    """Stalls of the group in the seconds before.

    Attributes:
        count: How many were 1 ms or longer.
        stall_ns: Their time in all, ns; None where no evidence tells durations.
        worst_ns: The longest, ns; likewise.
        causes: Cause to how many.
        unknown: Records that say only that reclaim happened, not for how long; not in `count`.
        evidence: What told them: "trace", "psi" where it could be read meanwhile, "counters".
        harmless_ns: Time in reclaim that held nobody for a millisecond, ns; None where no evidence tells durations.
    """

    count: int
    stall_ns: int | None
    worst_ns: int | None
    causes: Mapping[str, int]
    unknown: int
    evidence: tuple[str, ...]
    harmless_ns: int | None


@dataclass(frozen=True, slots=True)
class Meanwhile:
    """What moved in the seconds before the snapshot.

    Attributes:
        seconds: How long they were.
        growth_bytes_per_s: Trend of the group's usage (Theil-Sen: the median slope of all pairs of readings).
        anon_growth_bytes_per_s: Likewise of its anonymous memory and shmem.
        anon_grows: Whether these grew all the time, and did not only breathe; None where there were too few readings.
        most_bytes: The most that usage was.
        most_dirty_bytes: The most of it that was still to be written to a disk.
        events: Level's name to how often each event of it happened: "max", "high", "oom_kill".
        stat: By how much counters of memory.stat rose, those that did, under the common names.
        vmstat: Likewise of /proc/vmstat.
        stalls: Those of the group, where a sampler could run.
        why_no_stalls: Why none could.
    """

    seconds: float
    growth_bytes_per_s: float | None
    anon_growth_bytes_per_s: float | None
    anon_grows: bool | None
    most_bytes: int | None
    most_dirty_bytes: int | None
    events: Mapping[str, Mapping[str, int]]
    stat: Mapping[str, int]
    vmstat: Mapping[str, int]
    stalls: StallsSeen | None
    why_no_stalls: str | None


@dataclass(frozen=True, slots=True)
class LoggedKill:
    """An OOM kill in the group, by the kernel's log; `pymemcg oom` tells all of it.

    Attributes:
        cause: As in `pymemcg.oom`.
        pid: The victim's, as the host counts.
        name: Its name.
        oom_memcg: The group whose limit it was.
        task_memcg: The victim's group.
        seconds: When, since boot.
    """

    cause: str
    pid: int
    name: str
    oom_memcg: str | None
    task_memcg: str | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of it.

    Attributes:
        target: What was asked for.
        version: Of the memory controller, 1 or 2.
        levels: The group itself, then each ancestor that can be seen and whose limit applies, up to the root.
        charged_elsewhere: Where the group has no memory controller of its own: why its figures are those of one above it.
        own: Whether whoever looked lives in the group.
        own_pid: Of the process that looked.
        processes: Those of the group and below it, the largest first.
        hidden_processes: How many of them could not be read: of other pid namespaces, or other users'.
        node: The machine.
        pressure: Of the group, as `Node.pressure`; empty where there is none, or it speaks of the host.
        neighbours: Groups beside each level, where they can be seen.
        cgroup_path: The group's path as /proc/PID/cgroup has it, where a process was asked for; else its name.
        meanwhile: The seconds before, or None where nobody waited.
        kills: OOM kills in the group that the kernel's log has, the newest last; looked for only where its counter says so.
        taken_realtime_ns: When, ns since the epoch; None in a tree that does not say.
        absent: What could not be read, and why.
    """

    target: str
    version: int
    levels: tuple[Group, ...]
    charged_elsewhere: str | None
    own: bool
    own_pid: int | None
    processes: tuple[Process, ...]
    hidden_processes: int
    node: Node
    pressure: Mapping[str, tuple[float, float, float]]
    neighbours: tuple[Neighbour, ...]
    cgroup_path: str
    meanwhile: Meanwhile | None
    kills: tuple[LoggedKill, ...]
    taken_realtime_ns: int | None
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def group(self) -> Group:
        """The group itself."""
        return self.levels[0]
