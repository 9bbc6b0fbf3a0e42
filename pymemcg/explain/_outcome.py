# SPDX-License-Identifier: Apache-2.0
"""What happens at the edge: reclaim in whoever allocates, swap or not, an OOM kill or not, and of whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pymemcg._words import number, size, span

if TYPE_CHECKING:
    from pymemcg.explain._edge import Edge
    from pymemcg.explain._snapshot import Group, Process, Snapshot, StallsSeen

_NEVER: Final = -1000  # OOM_SCORE_ADJ_MIN


@dataclass(frozen=True, slots=True)
class Candidate:
    """A process that the OOM killer would choose among.

    Attributes:
        pid: Of the process.
        name: Its name.
        badness_bytes: What the kernel ranks by: the highest dies. None where it is never killed, or a figure is not known.
        never: Whether it is never killed (oom_score_adj -1000); None where that cannot be read.
        rss_bytes: Resident.
        swap_bytes: In swap; None where it cannot be read, like the next two.
        pgtables_bytes: Page tables.
        oom_score_adj: Thousandths of the limit that are added.
        first: Whether the container ends with it; None where that cannot be seen.
    """

    pid: int
    name: str
    badness_bytes: int | None
    never: bool | None
    rss_bytes: int
    swap_bytes: int | None
    pgtables_bytes: int | None
    oom_score_adj: int | None
    first: bool | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happens at the edge.

    Attributes:
        swap_left_bytes: How much may still go to swap: of the machine's, and of the group's and its ancestors' share. 0 with
            a limit and swappiness 0: reclaim at a group's limit then never swaps (`get_scan_count`, mm/vmscan.c).
        swappiness: Of the group on v1, else of the machine.
        kill: What ends it: "process", "group" (memory.oom.group), or "off": tasks hang instead (v1's oom_kill_disable).
        total_bytes: What `oom_score_adj` is a share of: the limit, and swap.
        candidates: The group's processes, the first to die first, without the one that looked.
        kills: How many the group has seen.
        says: In sentences.
    """

    swap_left_bytes: int | None
    swappiness: int | None
    kill: str
    total_bytes: int | None
    candidates: tuple[Candidate, ...]
    kills: int | None
    says: tuple[str, ...]


def outcome(snapshot: Snapshot, edge: Edge) -> Outcome:
    """Say what happens there."""
    first = edge.first
    owner = next((group for group in snapshot.levels if first and group.name == first.group), None)
    total = _total_bytes(snapshot, owner)
    ranked = sorted(
        (_candidate(one, total) for one in snapshot.processes if not (snapshot.own and one.pid == snapshot.own_pid)),
        key=lambda one: (one.badness_bytes is not None, one.badness_bytes or 0),
        reverse=True,
    )
    told = Outcome(
        swap_left_bytes=0 if first is not None and _swappiness(snapshot) == 0 else swap_left(snapshot),
        swappiness=_swappiness(snapshot),
        kill=_kill(snapshot, owner),
        total_bytes=total,
        candidates=tuple(ranked),
        kills=snapshot.group.events.get("oom_kill"),
        says=(),
    )
    return replace(told, says=tuple(_says(snapshot, edge, told)))


def swap_left(snapshot: Snapshot) -> int | None:
    """What may still be swapped: the least of the machine's free swap and what each level may have more of it.

    On v1 memory and swap together have a limit (memsw): what that leaves above the memory's own.
    """
    free = snapshot.node.meminfo.get("SwapFree")
    if free is None:
        return None
    for group in snapshot.levels:
        limit, used = group.limits.get("swap"), group.others.get("swap")
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used))
        both, used = group.limits.get("memsw"), group.others.get("memsw")
        if both is not None and used is not None and group.usage_bytes is not None:
            swapped = max(0, used - group.usage_bytes)
            free = min(free, max(0, both - (group.limit_bytes if group.limit_bytes is not None else 0) - swapped))
    return free


def _total_bytes(snapshot: Snapshot, owner: Group | None) -> int | None:
    """What the kernel takes thousandths of: `mem_cgroup_get_max`, or memory and swap of the machine."""
    info = snapshot.node.meminfo
    swap = info.get("SwapTotal")
    limit = owner.limit_bytes if owner else None
    if swap is None or owner is None or limit is None:
        return None if swap is None or "MemTotal" not in info else info["MemTotal"] + swap
    if _swappiness(snapshot) == 0:
        return limit
    both = owner.limits.get("memsw")
    more = owner.limits.get("swap") if snapshot.version == 2 else None if both is None else max(0, both - limit)
    return limit + (swap if more is None else min(more, swap))


def _swappiness(snapshot: Snapshot) -> int | None:
    return snapshot.group.others.get("swappiness", snapshot.node.settings.get("swappiness"))


def _candidate(one: Process, total: int | None) -> Candidate:
    """Badness by the kernel's `oom_badness` (mm/oom_kill.c).

    ``rss + swap + page tables + oom_score_adj × total / 1000``, with total as in `_total_bytes`; never where oom_score_adj is
    -1000. The 3 % less that root had is gone since 4.17. Where one of these is not known, neither is the badness.
    """
    swap, tables, adj = one.status.get("VmSwap"), one.status.get("VmPTE"), one.oom_score_adj
    shift = 0 if adj == 0 else None if adj is None or total is None else adj * total // 1000
    badness = None
    if adj != _NEVER and swap is not None and tables is not None and shift is not None:
        badness = one.rss_bytes + swap + tables + shift
    never = None if adj is None else adj == _NEVER
    return Candidate(one.pid, one.name, badness, never, one.rss_bytes, swap, tables, adj, one.first)


def _kill(snapshot: Snapshot, owner: Group | None) -> str:
    if any(group.others.get("oom_kill_disable") for group in snapshot.levels):
        return "off"
    # The kernel takes the highest group with memory.oom.group between the victim's and the one whose limit it is.
    below = snapshot.levels[: snapshot.levels.index(owner) + 1] if owner else snapshot.levels
    return "group" if any(group.others.get("oom_group") for group in below) else "process"


# ---- In words ------------------------------------------------------------------------------------------------------


def _says(snapshot: Snapshot, edge: Edge, told: Outcome) -> Iterator[str]:
    if edge.first is not None:
        yield (
            "At the limit, the thread that asks for memory has to free some itself, in the middle of what it does, and is held "
            "meanwhile: page cache first."
        )
        yield stalls_seen(snapshot)
    yield _swap(told)
    if told.kill == "off":
        yield (
            "The OOM killer is off for it (oom_kill_disable): where reclaim finds nothing, its tasks hang until memory is "
            "freed or the limit is raised. Nothing ends them, and nothing tells of it."
        )
    elif told.kill == "group":
        yield "Where that finds nothing, the kernel kills all processes of the group together (memory.oom.group)."
    else:
        yield "Where that finds nothing, the kernel kills one process: the largest, as oom_score_adj shifts it."
    yield from _victim(snapshot, edge, told)
    if told.kills:
        yield f"The group's counter says {number(told.kills)} OOM kill{'s' if told.kills > 1 else ''} so far.{_last(snapshot)}"


def _last(snapshot: Snapshot) -> str:
    if not snapshot.kills:
        return ""
    last = snapshot.kills[-1]
    whose = f" of {last.oom_memcg}" if last.oom_memcg else ""
    return f" The last in the kernel's log: {last.name} (pid {last.pid}), cause {last.cause}{whose}; `pymemcg oom` tells more."


def _swap(told: Outcome) -> str:
    if told.swap_left_bytes is None:
        return "Whether there is swap cannot be seen."
    if not told.swap_left_bytes:
        if told.swappiness == 0:
            return "swappiness is 0: at a group's limit nothing is swapped; anonymous memory and tmpfs cannot be reclaimed."
        return "There is no swap for it: anonymous memory and tmpfs cannot be reclaimed at all."
    return f"{size(told.swap_left_bytes)} may go to swap: that puts a kill off, and whoever comes back to it waits."


def _victim(snapshot: Snapshot, edge: Edge, told: Outcome) -> Iterator[str]:
    best = next((one for one in told.candidates if one.badness_bytes is not None), None)
    if best is None:
        if told.candidates:
            if all(one.never for one in told.candidates):
                yield "None of its processes may be killed (oom_score_adj -1000 throughout)."
            else:
                yield "Which one that would be cannot be told: figures that the kernel ranks by cannot be read here."
        return
    if told.kill == "off":
        return
    ends = ", and with it the container, whose first process it is" if best.first else ""
    yield f"Now that would be {best.name} (pid {best.pid}, badness {size(best.badness_bytes)}){ends}."
    if edge.first is not None and edge.first.group != snapshot.group.name:
        yield f"The limit is that of {edge.first.group}: processes of its other groups may die, too, and are not in this list."


def stalls_seen(snapshot: Snapshot) -> str:
    """What was seen of stalls in the seconds before, and by what."""
    meanwhile = snapshot.meanwhile
    if meanwhile is None:
        return "Whether that happens now was not watched."
    during = f"In {number(meanwhile.seconds)} s"
    hits = meanwhile.events.get(snapshot.group.name, {}).get("max")
    if meanwhile.stalls is not None:
        return f"{during} of watching, {_stalls(meanwhile.stalls)}."
    why = meanwhile.why_no_stalls or "no sampler ran"
    if hits is None:
        return f"{during}, neither stalls nor hits of the limit could be seen ({why})."
    if not hits:
        return f"{during}, the limit was not hit, so nothing was held for it."
    return f"{during}, the limit was hit {number(hits)} times; for how long that held threads is not known ({why})."


def _stalls(seen: StallsSeen) -> str:
    harmless = f"{span(seen.harmless_ns)} went into reclaim that held nobody for a millisecond" if seen.harmless_ns else ""
    if not seen.count and seen.unknown:
        return (
            f"reclaim at the limit was noticed {number(seen.unknown)} times; for how long that held threads cannot be seen here"
        )
    if not seen.count and seen.harmless_ns is None:
        return "no hit of a limit was seen; whether threads waited for memory in other ways could not be told"
    if not seen.count:
        return f"no thread was held for a millisecond or longer{f', and {harmless}' if harmless else ''}"
    causes = ", ".join(f"{cause} {number(count)}" for cause, count in seen.causes.items())
    lasted = (
        "of unknown length" if seen.stall_ns is None else f"{span(seen.stall_ns)} in all, the longest {span(seen.worst_ns)}"
    )
    return (
        f"{number(seen.count)} stall{'s' if seen.count > 1 else ''} ({causes}): {lasted} "
        f"(evidence: {', '.join(seen.evidence)}){f'; {harmless}' if harmless else ''}"
    )
