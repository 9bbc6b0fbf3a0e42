# SPDX-License-Identifier: Apache-2.0
"""Which of five causes a kill had, what that rests on, and whether it ended a group, as a container."""

from __future__ import annotations

from typing import Final

from pymemcg._words import size
from pymemcg.oom._report import UNLIMITED, Report

_DIGITS: Final = 12  # of a range of nodes


def cause(report: Report, page: int, *, of_group: bool | None) -> tuple[str, str]:
    """The cause and why.

    A kill is of a group where an `oom_memcg` is named, whatever the constraint: Linux 5.0 to 5.2 print CONSTRAINT_NONE for
    these, too. Otherwise by the kernel's own `constrained_alloc` (mm/oom_kill.c): a nodemask or a cpuset that leaves nodes out.

    Args:
        report: All that was told.
        page: Bytes in a page there.
        of_group: What the message of the kill says; None where it has none.
    """
    if report.of_group or of_group:
        return _of_group(report)
    if of_group is None and report.constraint is None and not report.zones:
        return "unknown", "the log has the kill alone, without what it was for"
    return _of_machine(report, page)


def _of_group(report: Report) -> tuple[str, str]:
    limit = report.usage.get("memory")
    of = f" of {size(limit[1])}" if limit and limit[1] < UNLIMITED else ""
    owner, task = report.oom_memcg, report.task_memcg
    if owner is None and len(report.groups) == 1:
        owner = next(iter(report.groups))
    if owner is None:
        return "group-limit", f"a group was at its limit{of}; the log does not name it"
    if task is None:
        return "group-limit", f"{owner} was at its limit{of}; the log does not say which group below it the process was in"
    if task == owner:
        return "own-limit", f"{owner}, the process's own group, was at its limit{of}"
    if task.startswith(f"{owner.rstrip('/')}/"):
        return "parent-limit", f"{owner}, above the process's group, was at its limit{of}"
    return "group-limit", f"{owner} was at its limit{of}; the process was in {task} by then"


def _of_machine(report: Report, page: int) -> tuple[str, str]:
    if report.constraint in ("CPUSET", "MEMORY_POLICY"):
        what = "cpuset" if report.constraint == "CPUSET" else "memory policy"
        nodes = report.nodemask if report.nodemask not in (None, "(null)") else report.mems_allowed
        return "node", f"the {what} allows only nodes {nodes or 'of its own'}, and these had no memory left"
    if report.constraint is None and (allowed := _some_nodes(report)):  # before Linux 5.0, or the line was left out
        return "node", f"only nodes {allowed} were allowed, and these had no memory left"
    if report.order and report.order > 0 and (told := _in_pieces(report, page)):
        return "fragmentation", told
    return "machine", _why_machine(report)


def _why_machine(report: Report) -> str:
    free = sum(sizes[0] for sizes in report.zones.values())
    left = f": {size(free)} were free" if report.zones else ""
    if report.order == -1 or report.by_hand:
        return "an administrator asked for a kill (SysRq-f)"
    if report.constraint is None and not report.gfp_mask:
        return "no group is named; what was allowed is not in the log, so it may be some nodes alone"
    if report.gfp_mask.startswith("0x0"):
        return f"a page fault got no memory, and the kernel does not say why (pagefault_out_of_memory){left}"
    return f"the whole machine was out of memory{left}"


def _some_nodes(report: Report) -> str | None:
    """The nodes that were allowed, where there are others; Linux 4.9 and 4.10 print a nodemask also where all are."""
    there = {node for node, _ in report.zones} | report.nodes
    if report.mems_allowed is not None and report.cpuset == "/":
        there |= _numbers(report.mems_allowed)
    for allowed in (report.nodemask, report.mems_allowed):
        if allowed not in (None, "(null)") and there - _numbers(allowed):
            return allowed
    return None


def _in_pieces(report: Report, page: int) -> str | None:
    """Where there was memory, but not in one piece: a zone that would have served single pages, by `__zone_watermark_ok`."""
    wanted = page << (report.order or 0)
    zones = [
        zone
        for zone in report.as_zones(page)
        if report.may_use(zone.name)
        and zone.free_bytes - wanted > zone.min_bytes + zone.reserved_bytes
        and (zone.largest_free_bytes is None or zone.largest_free_bytes < wanted)
    ]
    if not zones:
        return None
    zone = max(zones, key=lambda zone: zone.free_bytes)
    piece = "" if zone.largest_free_bytes is None else f", the largest piece {size(zone.largest_free_bytes)}"
    above = f"above its watermark of {size(zone.min_bytes)}"
    return f"{size(wanted)} were wanted in one piece; zone {zone.name} had {size(zone.free_bytes)} free, {above}{piece}"


def _numbers(ranges: str) -> set[int]:
    """Of "0-1,3": {0, 1, 3}."""
    numbers: set[int] = set()
    for part in ranges.strip(",").split(","):
        first, _, last = part.partition("-")
        if len(part) < _DIGITS and first.isdecimal() and (not last or last.isdecimal()):
            numbers.update(range(int(first), min(int(last or first), int(first) + 1024) + 1))
    return numbers


def entrypoint(report: Report, pid: int, of: str) -> tuple[str, str]:
    """Whether the victim was the first process of its group, as a container's is pid 1 of its pid namespace, and why.

    The log has the host's pids alone. But the table lists all processes below the group that was at its limit, and pids rise
    until they begin again at 300: the first process of a container has the least, nearly always.
    """
    others = [row.pid for row in report.rows if row.pid != pid]
    if report.group_kill:
        told = "yes", "all processes of its group were killed with it (memory.oom.group)"
    elif not report.rows or report.mixed:
        told = "unknown", "the log has no table of tasks" if not report.rows else "tables of two reports are mixed in the log"
    elif of != "own-limit":
        told = "unknown", "the table of tasks is of more than its group"
    elif len(others) == len(report.rows):
        told = "unknown", "the table of tasks does not have it"
    elif report.rows_left_out:
        told = "unknown", "the table of tasks is too long to keep"
    elif not others:
        told = "yes", "it was the only process of its group"
    elif pid < min(others):
        told = "likely", f"its pid is the least of {len(others) + 1} in its group"
    else:
        told = "unlikely", f"{min(others)} was in its group before it"
    return told
