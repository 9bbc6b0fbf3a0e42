# SPDX-License-Identifier: Apache-2.0
"""A kill, made of its line and of the report that it ends."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from pymemcg import schema
from pymemcg.oom._cause import cause, entrypoint
from pymemcg.oom._kill import Candidate, Kill
from pymemcg.oom._report import ROWS, UNLIMITED, Report, Row

_KILL = re.compile(r"Kill(ed)? process (\d{1,19})(?:, UID (\d{1,19}),)? \((.*)\)(?=[,\s]|$)(.*)")
# A program may say "Killed process 7 (x)", too, but not what stands before it, or follows.
_BEFORE_KILL: Final = ("ut of memory: ", "_task): ")
_AFTER_KILL = re.compile(r"\(.*\),? (?:UID|total-vm:|score \d)")
_FIGURE = re.compile(r"(total-vm|anon-rss|file-rss|shmem-rss|pgtables):\s*(\d{1,19})\s*kB")
_UID = re.compile(r"UID[: ](\d{1,19})")
_ADJ = re.compile(r"oom_score_adj:(-?\d{1,19})")
_SHARING = "sharing same memory"  # another process with the victim's memory: no kill of its own

_SECONDS = re.compile(r"\[\s*(\d{1,19}\.\d{1,19})\]")
_OF_KMSG = re.compile(r"^\s*\d+,\d+,(\d{1,19}),[^;]*;")
_WHEN = re.compile(
    r"(?P<iso>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?)"
    r"|\[(?P<ctime>\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4})\]"
    r"|\b(?P<syslog>(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ \d]\d \d\d:\d\d:\d\d)"
)
_PAGES: Final = (4096, 16384, 65536)
_MOST: Final = (1 << 63) - 1  # PAGE_COUNTER_MAX is so much in whole pages, from Linux 3.19 on
_IN_PAGES: Final = {"total-vm", "anon-rss", "file-rss", "shmem-rss", "anon", "file", "shmem", "cache", "rss"} | {
    f"{state}_{kind}" for state in ("active", "inactive") for kind in ("anon", "file")
}
_ENOUGH: Final = 4  # one number in sixteen of 4 KiB is one of 64 KiB, four hardly ever are
_NEVER: Final = -1000  # OOM_SCORE_ADJ_MIN
_TABLES: Final = ("nr_ptes", "nr_pmds", "nr_puds")  # before Linux 4.15, in pages
_IN_TABLE: Final = ("total_vm", "rss", "swapents", "rss_anon", "rss_file", "rss_shmem")


@dataclass(slots=True)
class KillLine:
    """A line that says who dies.

    Attributes:
        done: "Killed", and not only "Kill" (before Linux 5.3, whose victim may still be a child).
        pid: Who.
        name: Its name.
        uid: Its user, where that is told.
        of_group: By its message; None where it has none.
        figures: In bytes, by the kernel's names.
        adj: Its oom_score_adj, likewise.
    """

    done: bool
    pid: int
    name: str
    uid: int | None
    of_group: bool | None
    figures: dict[str, int]
    adj: int | None


def kill_line(text: str) -> KillLine | None:
    """Read such a line; None where it is none."""
    found = _KILL.search(text)
    if found is None or _SHARING in text:
        return None
    rest, before = found[5], text[: found.start()]
    if not before.endswith(_BEFORE_KILL) and _AFTER_KILL.search(text, found.start()) is None:
        return None
    uid, adj = _UID.search(rest), _ADJ.search(rest)
    number = found[3] or (uid[1] if uid else None)
    of_group = True if "emory cgroup out of memory" in before else False if "ut of memory" in before else None
    figures = {name: int(kib) << 10 for name, kib in _FIGURE.findall(rest)}
    return KillLine(
        done=found[1] is not None,
        pid=int(found[2]),
        name=found[4],
        uid=int(number) if number is not None else None,
        of_group=of_group,
        figures=figures,
        adj=int(adj[1]) if adj else None,
    )


def known_figures(text: str) -> int:
    """How much of such a line can be read."""
    return len(_FIGURE.findall(text)) + (_KILL.search(text) is not None) + (_ADJ.search(text) is not None)


def build(report: Report, line: KillLine, number: int, text: str) -> Kill:
    """All that both say."""
    page = _page(report, line)
    first = report.first or text
    why = cause(report, page, of_group=line.of_group)
    usage, limit, failcnt = report.usage.get("memory", (None, None, None))
    kind = next((name for name in ("memory+swap", "swap") if name in report.usage), None)
    swap_usage, swap_limit = report.usage[kind][:2] if kind else (None, None)
    total = _total(report, page)
    first_of_all = report.killed <= {line.pid}
    found = sorted(
        (_candidate(report, row, page, total) for row in (report.rows if first_of_all else ())),
        key=lambda one: (one.badness_bytes is not None, one.badness_bytes or 0, one.rss_bytes or 0),
        reverse=True,
    )
    victim = next((one for one in found if one.pid == line.pid), None)
    uid = line.uid
    if uid is None:
        uid = report.victim_uid if report.victim == line.pid else victim.uid if victim else None
    adj = line.adj if line.adj is not None or victim is None else victim.oom_score_adj
    root = report.oom_memcg if report.of_group or line.of_group else None
    is_first, is_first_why = entrypoint(report, line.pid, why[0])
    return Kill(
        cause=why[0],
        why=why[1],
        pid=line.pid,
        name=line.name,
        uid=uid,
        order=report.order,
        asker=report.asker,
        constraint=report.constraint,
        oom_memcg=root or (next(iter(report.groups)) if len(report.groups) == 1 else None),
        task_memcg=report.task_memcg,
        group_kill=report.group_kill,
        chosen_pid=report.victim if _died_for_another(report, line) else None,
        entrypoint=is_first,
        entrypoint_why=is_first_why,
        total_vm_bytes=line.figures.get("total-vm"),
        anon_rss_bytes=line.figures.get("anon-rss"),
        file_rss_bytes=line.figures.get("file-rss"),
        shmem_rss_bytes=line.figures.get("shmem-rss"),
        pgtables_bytes=line.figures.get("pgtables"),
        oom_score_adj=adj,
        usage_bytes=usage,
        limit_bytes=_limit(limit),
        failcnt=failcnt,
        swap_usage_bytes=swap_usage,
        swap_limit_bytes=_limit(swap_limit),
        swap_kind=kind,
        memory=_memory(report, page),
        zones=report.as_zones(page),
        ram_bytes=(report.ram_pages - report.reserved_pages) * page if report.ram_pages else None,
        total_swap_bytes=report.swap.get("Total"),
        free_swap_bytes=report.swap.get("Free"),
        candidates=tuple(found[:ROWS]),
        candidates_left_out=report.rows_left_out + len(found[ROWS:]) if first_of_all else 0,
        page_bytes=page,
        seconds=_seconds(first),
        when=_when(first),
        line=number,
    )


def _died_for_another(report: Report, line: KillLine) -> bool:
    """Whether a process was chosen and a child of it killed; one that is not in the table is a thread of the victim's."""
    return report.victim != line.pid and not report.group_kill and any(row.pid == report.victim for row in report.rows)


def _limit(limit: int | None) -> int | None:
    return None if limit is None or limit >= UNLIMITED else limit


def _page(report: Report, line: KillLine) -> int:
    """A page there.

    The smallest block of a free list, or what "no limit" is printed as, or virtual memory in kB beside that in pages; or what
    all figures are multiples of; else 4 KiB.
    """
    if report.smallest_block in _PAGES:
        return report.smallest_block
    limits = {limit for _, limit, _ in report.usage.values()}
    if said := [page for page in _PAGES if _MOST // page * page in limits]:
        return said[0]
    virtual = line.figures.get("total-vm")
    row = next((row for row in report.rows if row.pid == line.pid), None)
    pages = report.numbers(row).get("total_vm") if row else None
    if virtual and pages:
        return min(_PAGES, key=lambda size: abs(virtual - pages * size))
    told = [line.figures, *report.groups.values()]
    figures = {some[name] for some in told for name in _IN_PAGES & some.keys()} - {0}
    alike = [page for page in _PAGES if not any(figure % page for figure in figures)]
    return alike[-1] if alike and len(figures) >= _ENOUGH else _PAGES[0]


def _memory(report: Report, page: int) -> dict[str, int]:
    """What there was, under the common names."""
    if not (report.usage or report.groups):
        found = {name: pages * page for name, pages in report.counters.items()}
        shmem = found.get("shmem", 0)  # on the lists of anonymous memory, but page cache
        lists = [found.get(f"{state}_{kind}") for kind in ("anon", "file") for state in ("active", "inactive")]
        if None not in lists:
            active_anon, inactive_anon, active_file, inactive_file = (count or 0 for count in lists)
            found["anon"] = max(0, active_anon + inactive_anon - shmem)
            found["file"] = active_file + inactive_file + shmem
        return found
    groups = report.groups
    if report.oom_memcg in groups and "kernel_stack" in groups[report.oom_memcg]:
        groups = {report.oom_memcg: groups[report.oom_memcg]}
    total: dict[str, int] = {}
    for stats in groups.values():
        for name, key in _names(tuple(stats)):
            total[name] = total.get(name, 0) + stats[key]
    return total


@lru_cache(16)
def _names(keys: tuple[str, ...]) -> list[tuple[str, str]]:
    """Common and own name of those that are of bytes; all groups of a log have the same."""
    version = 1 if "cache" in keys else 2
    return [(field.name, field.key) for field in schema.stat_fields(keys, version) if field.unit == "bytes"]


def _total(report: Report, page: int) -> int | None:
    """Pages that oom_score_adj is thousandths of: RAM and swap, or the limit of a group that may not swap; None = not told."""
    if not (report.of_group):
        swap = report.swap.get("Total")
        return report.ram_pages - report.reserved_pages + swap // page if report.ram_pages and swap is not None else None
    limit = _limit(report.usage["memory"][1]) if "memory" in report.usage else None
    if limit is None:
        return None
    swap = report.usage.get("swap", (0, 0, 0))[1]
    if "memory+swap" in report.usage:
        swap = max(report.usage["memory+swap"][1] - limit, 0)
    return limit // page if swap == 0 else None  # else it is the machine's swap, if that is less, which is not told


def _candidate(report: Report, row: Row, page: int, total: int | None) -> Candidate:
    """One of the table.

    Badness is by the kernel's `oom_badness` (mm/oom_kill.c): rss + swap + page tables in pages, and oom_score_adj thousandths
    of what there is. (Before Linux 4.17 root's processes had 3 % less.) The last column is oom_score_adj: where that is known,
    the line is whole.
    """
    numbers = report.numbers(row)
    adj, tables = numbers.get("oom_score_adj"), numbers.get("pgtables_bytes")
    points = None
    if adj is not None and "swapents" in numbers and adj != _NEVER and (adj == 0 or total is not None):
        table_pages = sum(numbers.get(name, 0) for name in _TABLES) if tables is None else tables // page
        points = numbers.get("rss", 0) + numbers["swapents"] + table_pages + adj * ((total or 0) // 1000)
    virtual, rss, swap, anon, file, shmem = [numbers[name] * page if name in numbers else None for name in _IN_TABLE]
    return Candidate(
        pid=row.pid,
        uid=numbers.get("uid"),
        name=row.name if adj is not None else "",  # of a cut line that is a number
        virtual_bytes=virtual,
        rss_bytes=rss,
        anon_rss_bytes=anon,
        file_rss_bytes=file,
        shmem_rss_bytes=shmem,
        pgtables_bytes=tables,
        swap_bytes=swap,
        oom_score_adj=adj,
        badness_bytes=None if points is None else max(points, 1) * page,
    )


# ---- When ----------------------------------------------------------------------------------------------------------


def _seconds(text: str) -> float | None:
    if found := _SECONDS.search(text):
        return float(found[1])
    found = _OF_KMSG.search(text)
    return int(found[1]) / 1e6 if found else None


def _when(text: str) -> str | None:
    found = _WHEN.search(text)
    return next(filter(None, found.groups()), None) if found else None
