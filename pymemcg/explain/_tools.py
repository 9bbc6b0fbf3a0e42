# SPDX-License-Identifier: Apache-2.0
"""Who says what: the figure that each tool would show of a group right now, and why they differ.

Whose the formulas are:

- cAdvisor, and with it Prometheus' `container_memory_*`: `setMemoryStats` in container/libcontainer/handler.go.
- kubelet and `kubectl top`: cAdvisor's working set, or the runtime's by the same formula (containerd's `getWorkingSet` and
  `getWorkingSetV2`), by which the kubelet also evicts.
- `docker stats`: the Docker CLI's `calculateMemUsageUnixNoCache` in cli/command/container/stats_helpers.go, as it is from
  20.10 on, and as it was before.
- `top`, `ps`: procps, of /proc/PID/statm and status, which `task_mem` and `task_statm` of
  fs/proc/task_mmu.c fill. On older kernels RES may lag: up to 6.1 by up to 64 faults of each thread, from 6.2 to 6.14 by what
  each CPU has not yet added up.
- PSS: /proc/PID/smaps_rollup (Documentation/filesystems/proc.rst).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pymemcg._words import number, size

if TYPE_CHECKING:
    from pymemcg.explain._snapshot import Group, Process, Snapshot


@dataclass(frozen=True, slots=True)
class Shown:
    """A figure of a tool.

    Attributes:
        tool: Who shows it.
        figure: Under which name.
        shown_bytes: What it would show now; None where it cannot be told here.
        formula: Of which figures of the kernel.
    """

    tool: str
    figure: str
    shown_bytes: int | None
    formula: str


@dataclass(frozen=True, slots=True)
class Tools:
    """Who says what.

    Attributes:
        shown: A row for each figure.
        says: Why they differ.
    """

    shown: tuple[Shown, ...]
    says: tuple[str, ...]


def tools(snapshot: Snapshot) -> Tools:
    """Compute each tool's figure."""
    shown = (*_of_group(snapshot.group, snapshot.version), *_of_processes(snapshot))
    return Tools(shown, tuple(_differences(snapshot)))


# ---- Of the group --------------------------------------------------------------------------------------------------


def working_set(group: Group) -> int | None:
    """``max(0, usage - inactive_file)``; of v1 the subtree's inactive_file."""
    inactive = group.stat.get("inactive_file")
    return None if group.usage_bytes is None or inactive is None else max(0, group.usage_bytes - inactive)


def docker_usage(group: Group, version: int) -> int | None:
    """``usage - inactive_file`` where that is more than nothing; else, of v1, by the group's own inactive_file; else usage."""
    usage = group.usage_bytes
    if usage is None or "inactive_file" not in group.stat:
        return None
    tried = [group.stat["inactive_file"]] + ([group.own_stat.get("inactive_file", usage)] if version == 1 else [])
    return next((usage - inactive for inactive in tried if inactive < usage), usage)


def _of_group(group: Group, version: int) -> Iterator[Shown]:
    usage, rss, cache = ("usage_in_bytes", "total_rss", "total_cache") if version == 1 else ("current", "anon", "file")
    inactive = "total_inactive_file" if version == 1 else "inactive_file"
    set_bytes = working_set(group)
    set_formula = f"memory.{usage} − {inactive}, 0 at least"
    yield Shown("cAdvisor, Prometheus", "container_memory_usage_bytes", group.usage_bytes, f"memory.{usage}")
    yield Shown("cAdvisor, Prometheus", "container_memory_working_set_bytes", set_bytes, set_formula)
    yield Shown("cAdvisor, Prometheus", "container_memory_rss", group.stat.get("anon"), f"{rss} of memory.stat")
    yield Shown("cAdvisor, Prometheus", "container_memory_cache", group.stat.get("file"), f"{cache} of memory.stat")
    yield Shown("kubelet, kubectl top", "memory", set_bytes, "the working set")
    less = f"memory.{usage} − {inactive}; all of it where that is not more than 0"
    yield Shown("docker stats", "MEM USAGE, from 20.10", docker_usage(group, version), less)
    if version == 1:  # older ones know no v2
        old, own = None, group.own_stat.get("cache")
        if group.usage_bytes is not None and own is not None:
            old = group.usage_bytes - own
        yield Shown("docker stats", "MEM USAGE, to 19.03", old, f"memory.{usage} − cache")


# ---- Of its processes ----------------------------------------------------------------------------------------------

_OF_STATUS: Final = {
    "VmRSS": "RssAnon + RssFile + RssShmem",
    "VmHWM": "the most that was resident",
    "VmSize": "mapped, touched or not",
    "VmPeak": "the most that was mapped",
    "VmLck": "locked: cannot be reclaimed",
    "VmSwap": "in swap, anonymous only",
}


def _of_processes(snapshot: Snapshot) -> Iterator[Shown]:
    every = snapshot.processes
    if not every:
        return
    summed = "of its one process" if len(every) == 1 else f"summed over {number(len(every))} processes"
    yield Shown("top, ps", "RES, RSS", sum(one.rss_bytes for one in every), f"{summed}: resident, statm's second")
    yield Shown("top, ps", "VIRT, VSZ", sum(one.virtual_bytes for one in every), f"{summed}: mapped, statm's first")
    yield Shown("top", "SHR", sum(one.shared_bytes for one in every), f"{summed}: of files or shared, statm's third")
    for name, means in _OF_STATUS.items():
        yield Shown("/proc/PID/status", name, _total(every, _of(name)), means)
    pss = _total(every, lambda one: one.pss_bytes)
    yield Shown("smem, PSS", "PSS", pss, "each page shared out among those who map it")


def _of(name: str) -> Callable[[Process], int | None]:
    return lambda one: one.status.get(name)


def _total(every: tuple[Process, ...], of: Callable[[Process], int | None]) -> int | None:
    """The sum; None where one of them is not known."""
    values = [of(one) for one in every]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


# ---- Why -----------------------------------------------------------------------------------------------------------


def _differences(snapshot: Snapshot) -> Iterator[str]:
    group = snapshot.group
    usage, inactive, file = group.usage_bytes, group.stat.get("inactive_file"), group.stat.get("file")
    if usage is not None and inactive is not None and file is not None:
        yield (
            f"Usage ({size(usage)}) counts all memory that is charged to the group, with {size(file)} of page cache and tmpfs. "
            f"The working set and docker stats leave out {size(inactive)} of it, the files that nobody has used again lately; "
            f"{size(max(0, file - inactive))} of cache and tmpfs stay in them."
        )
    anon, processes = group.stat.get("anon"), snapshot.processes
    resident = sum(one.rss_bytes for one in processes)
    if anon is not None and processes:
        named = "`rss` of v1's memory.stat" if snapshot.version == 1 else "`anon` of memory.stat"
        yield (
            f"container_memory_rss ({size(anon)}) is {named}: anonymous memory alone. The RSS of processes also "
            f"counts the files and the shared memory that they map ({size(resident)} over all of them)."
        )
    yield from _shared(snapshot, resident)
    if snapshot.hidden_processes:
        yield (
            f"{number(snapshot.hidden_processes)} of its processes cannot be seen from here (another pid namespace, or user): "
            "the sums over processes lack them."
        )
    if not processes:
        yield "No process of the group can be seen, so there is nothing for top and ps to show."


def _shared(snapshot: Snapshot, resident: int) -> Iterator[str]:
    processes = snapshot.processes
    if len(processes) < 2:
        return
    fair = _total(processes, lambda one: one.pss_bytes)
    text = (
        f"RES summed over {number(len(processes))} processes ({size(resident)}) counts a shared page once for each "
        "process that maps "
        "it: libraries, shared memory, and what a fork would copy only on writing. "
    )
    if fair is not None:
        yield (text + f"By fair shares (PSS) they hold {size(fair)}: {size(max(0, resident - fair))} were counted again.")
    else:
        yield text + "--pss tells the fair sum, and has the kernel walk their page tables for it."
