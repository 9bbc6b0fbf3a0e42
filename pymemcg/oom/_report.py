# SPDX-License-Identifier: Apache-2.0
"""A report of the OOM killer under way: what each of its lines says, in the formats of Linux 2.6.32 to 7.x.

Nothing here relies on how a line begins: dmesg, journald, syslog, container runtimes, editors and people each put something
else there. What the kernel printed is looked for wherever it stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from pymemcg.oom._kill import Asker, Zone

UNLIMITED: Final = 1 << 60
"""Kernels print "no limit" as the most pages that they can count, in kB: 9007199254740988 with pages of 4 KiB."""
ROWS: Final = 1000
"""So many rows of a table are kept, the worst; all are there in the meantime, up to twice as many. And so many groups and
zones: a report that does not end must not take all memory."""
_KEYS: Final = 200
"""Likewise of one group's memory.stat. Linux 6.18 has 60 lines of it."""
_DIGITS: Final = 20
_NAME: Final = 64  # of a kernel's thread; all others have 15 at most
_COMM: Final = 15  # TASK_COMM_LEN is 16, with its end

_BEFORE_NAME = re.compile(r'.*(?:\] |: |> |;|"|\d\d(?::\d\d|Z) )')
_DETAILS = re.compile(r"gfp_mask=(0x[0-9a-f]+(?:\([^)]*\))?)")
_ORDER = re.compile(r"order=(-?\d{1,2})(?!\d)")
_ADJ = re.compile(r"oom_score_adj=(-?\d{1,19})")
_NODEMASK = re.compile(r"nodemask=(\(null\)|[\d,-]*\d)")
_ASKER = re.compile(r"\b[Pp][Ii][Dd]: (\d{1,19}),? [Cc]omm: ")
_CPUSET = re.compile(r"cpuset=(\S+) mems_allowed=([\d,-]+)")
_ALLOWED = re.compile(r"mems_allowed=([\d,-]*\d)")
_TASK_IN = re.compile(r"Task in (.*?) killed as a result of limit of (.*)")
_USAGE = re.compile(r"(memory\+swap|memory|swap): usage (\d{1,19})kB, limit (\d{1,19})kB, failcnt (\d{1,19})")
_STATS = re.compile(r"Memory cgroup stats for (.*?):(?=\s*$|\s*\w+\s*:\d+KB)(.*)")
_PAIR = re.compile(r"(\w+)\s*:(\d{1,19})KB")
_TABLE = re.compile(r"\[\s*pid\s*\]\s+(uid\s.*\bname)\s*$")
_ROW = re.compile(r"\[\s*(\d{1,19})\]\s+((?:-?\d{1,19}\s+){5,})(.*)$")
_STACK = re.compile(r"\+0x[0-9a-f]{1,8}/0x[0-9a-f]")
_REGISTERS = re.compile(r": 00[0-9a-f]{2}(?::|[0-9a-f]{12}\b)")  # of x86: of the process that asked
_ZONE = re.compile(
    r"(?:Node (\d{1,19}) )?(\w{1,16}) free:(\d{1,19})kB (?:boost:\d+kB )?min:(\d{1,19})kB low:(\d{1,19})kB high:(\d{1,19})kB"
)  # not of NUMA: no node
_RESERVE = re.compile(r"lowmem_reserve\[\]:((?: \d{1,19})+)")
_BUDDY = re.compile(r"(?:Node (\d{1,19}) )?(\w{1,16}): ((?:\d+\*\d+kB (?:\(\w*\) )?)+)=")
_BLOCKS = re.compile(r"(\d{1,19})\*(\d{1,19})kB(?: \((\w*)\))?")
_COUNTERS = re.compile(
    r"\b((?:in)?active_anon|(?:in)?active_file|unevictable|dirty|writeback|slab_(?:un)?reclaimable|mapped|shmem|pagetables"
    r"|sec_pagetables|free):(\d{1,19})\b"
)
_NODE = re.compile(r"Node (\d{1,4}) hugepages_total=")
_PAGES = re.compile(r"(\d{1,19}) (pages (?:of )?RAM|pages reserved|reserved pages)\b")
_SWAP = re.compile(r"(Free|Total) swap\s*=\s*(\d{1,19})kB")
_CONSTRAINT = re.compile(r"constraint=CONSTRAINT_(\w+)")
_OOM_MEMCG = re.compile(r"oom_memcg=(.*?),task_memcg=")
_TASK_MEMCG = re.compile(r"task_memcg=(.*?),task=")
_VICTIM = re.compile(r",task=(.*),pid=(\d{1,19})(?:,uid=(\d{1,19}))?")

_ZONES: Final = ("DMA", "DMA32", "Normal", "HighMem", "Movable", "Device")
_KINDS_OF_ZONES: Final = 16  # more than any kernel has
_GFP_DMA, _GFP_HIGHMEM, _GFP_DMA32, _GFP_MOVABLE = 0x1, 0x2, 0x4, 0x8  # the same from Linux 2.6.24 on
_KEPT: Final = frozenset("CHI")
"""Free blocks of which nobody gets any: of CMA (for movable pages alone), for atomic allocations, isolated."""

# Mem-Info has some names of its own.
_MEM_INFO: Final = {"mapped": "file_mapped", "dirty": "file_dirty", "writeback": "file_writeback"}


@dataclass(slots=True)
class Row:
    """A line of the table of tasks, as printed: `numbers` are the columns between pid and name."""

    pid: int
    numbers: str
    name: str


@dataclass(slots=True)
class Report:
    """What a report has told so far; lines come to `take`."""

    name: str
    gfp_mask: str = ""
    order: int | None = None
    adj: int | None = None
    nodemask: str | None = None
    caller: str | None = None
    pid: int | None = None
    cpuset: str | None = None
    mems_allowed: str | None = None
    constraint: str | None = None
    oom_memcg: str | None = None
    task_memcg: str | None = None
    victim: int | None = None
    victim_name: str | None = None
    victim_uid: int | None = None
    usage: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    groups: dict[str, dict[str, int]] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    zones: dict[tuple[int, str], tuple[int, int, int, int]] = field(default_factory=dict)
    reserves: dict[tuple[int, str], list[int]] = field(default_factory=dict)
    nodes: set[int] = field(default_factory=set)
    free_blocks: dict[tuple[int, str], int] = field(default_factory=dict)
    ram_pages: int = 0
    reserved_pages: int = 0
    swap: dict[str, int] = field(default_factory=dict)
    columns: list[str] | None = None
    rows: list[Row] = field(default_factory=list)
    rows_left_out: int = 0
    smallest_block: int | None = None
    killed: set[int] = field(default_factory=set)
    group_kill: bool = False
    stats: dict[str, int] | None = None  # of the group whose lines come now
    lines: int = 0  # since the last one that was of it
    by_hand: bool = False  # SysRq-f
    first: str = ""  # its first line, for the time
    mixed: bool = False  # its table may have rows of another report's
    complete: bool = False  # nothing more of it is to come but kills
    chosen_line: int = 0  # where it names who is to die
    says_group: bool | None = None  # by "Kill process", before "Killed process" says no more of it

    @property
    def of_group(self) -> bool:
        """Whether it is of a group's limit, by what was told so far."""
        return bool(self.usage or self.groups or self.oom_memcg is not None or self.constraint == "MEMCG")

    @property
    def known(self) -> bool:
        """Whether what was told so far says if it is of a group's limit."""
        return self.of_group or self.constraint is not None or bool(self.zones)

    @property
    def asker(self) -> Asker | None:
        """Who asked, where its first line is there."""
        return Asker(self.name, self.pid, self.gfp_mask, self.adj) if self.gfp_mask else None

    def take(self, text: str) -> bool:
        """Use a line of the report; False where it is none."""
        return self.take_common(text) or self._take_other(text)

    def take_common(self, text: str) -> bool:
        """Likewise, a line of those that a report has most of: of the stack, of memory.stat, and of the table of tasks."""
        if self.stats is not None:
            before, _, number = text.rpartition(" ")
            if number.isdecimal() and len(number) < _DIGITS:
                name = before[before.rfind(" ") + 1 :]
                if ";" in name:  # of /dev/kmsg's records
                    name = name.rpartition(";")[2]
                if name.isidentifier() and name.islower() and len(self.stats) < _KEYS:
                    self.stats[name] = int(number)
                    return True
        if ("+0x" in text and _STACK.search(text)) or (": 00" in text and _REGISTERS.search(text)):
            return True
        if text.startswith("{"):
            return False  # wrapped into JSON: its end is not the line's
        if self.columns is not None and (found := _ROW.search(text)) is not None:
            self._take_row(found)
            return True
        return False

    def _take_other(self, text: str) -> bool:
        if ": usage " in text and (found := _USAGE.search(text)):
            self.usage[found[1]] = (int(found[2]) << 10, int(found[3]) << 10, int(found[4]))
        elif "Memory cgroup stats for " in text and (found := _STATS.search(text)):
            group = self.groups.setdefault(whole(found[1]), {}) if len(self.groups) < ROWS else {}
            group.update({name: int(number) << 10 for name, number in _PAIR.findall(found[2])[: _KEYS - len(group)]})
            self.stats = None if group else group
        elif "pid" in text and (found := _TABLE.search(text)):
            self.columns, self.stats = found[1].split(), None
        elif "omm: " in text and (found := _ASKER.search(text)):
            self.pid = self.pid or int(found[1])
        elif "killed as a result of limit of" in text and (found := _TASK_IN.search(text)):
            self.task_memcg, self.oom_memcg = whole(found[1]), whole(found[2])
        elif "mems_allowed=" in text and (found := _CPUSET.search(text)):
            self.cpuset, self.mems_allowed = found[1], found[2]
        else:
            return not self.of_group and self._take_machine(text)
        return True

    def _take_machine(self, text: str) -> bool:
        if " free:" in text and (found := _ZONE.search(text)):
            if len(self.zones) < ROWS:
                free, least, low, high = (int(found[i]) << 10 for i in range(3, 7))
                self.zones[int(found[1] or 0), found[2]] = free, least, low, high
        elif "lowmem_reserve[]" in text and (found := _RESERVE.search(text)) and self.zones:
            self.reserves[next(reversed(self.zones))] = list(map(int, found[1].split()[:_KINDS_OF_ZONES]))
        elif "*" in text and (found := _BUDDY.search(text)):
            blocks = [(int(count), int(kib) << 10, set(kinds)) for count, kib, kinds in _BLOCKS.findall(found[3])]
            self.smallest_block = blocks[0][1]
            sizes = (size for count, size, kinds in blocks if count and not (kinds and kinds <= _KEPT))
            if len(self.free_blocks) < ROWS:
                self.free_blocks[int(found[1] or 0), found[2]] = max(sizes, default=0)
        elif "active_anon:" in text or self.counters:
            return self._take_counters(text)
        else:
            return False
        return True

    def _take_counters(self, text: str) -> bool:
        if found := _PAGES.search(text):
            if "RAM" in found[2]:
                self.ram_pages = int(found[1])
            else:
                self.reserved_pages = int(found[1])
        elif found := _SWAP.search(text):
            self.swap[found[1]] = int(found[2]) << 10
        elif found := _NODE.search(text):  # all nodes have this line; the others are of the allowed ones alone
            self.nodes.add(int(found[1]))
        elif "kB" in text:
            return False  # of a node
        else:
            pairs = _COUNTERS.findall(text)
            self.counters |= {_MEM_INFO.get(name, name): int(number) for name, number in pairs}
            return bool(pairs)
        return True

    def _take_row(self, found: re.Match[str]) -> None:
        self.rows.append(Row(int(found[1]), found[2], found[3].rstrip()[:_NAME]))
        if len(self.rows) >= 2 * ROWS:
            self.rows.sort(key=self._weight, reverse=True)
            self.rows_left_out += len(self.rows) - ROWS
            del self.rows[ROWS:]

    def _weight(self, row: Row) -> tuple[bool, int]:
        numbers = self.numbers(row)
        return row.pid == self.victim, numbers.get("rss", 0) + numbers.get("swapents", 0)

    def numbers(self, row: Row) -> dict[str, int]:
        """What a row says, by the table's columns: which there are depends on the kernel, and the line may be cut."""
        return dict(zip(self.columns or (), map(int, row.numbers.split()), strict=False))

    def constrain(self, text: str, number: int) -> None:
        """Use the line that says what limited the allocation, and who is to die."""
        text = whole(text)
        if found := _CONSTRAINT.search(text):
            self.constraint = found[1]
        if found := _OOM_MEMCG.search(text):
            self.oom_memcg = found[1]
        if found := _TASK_MEMCG.search(text):
            self.task_memcg = found[1]
        if found := _NODEMASK.search(text):
            self.nodemask = found[1]
        if found := _ALLOWED.search(text):
            self.mems_allowed = found[1]
        if found := _VICTIM.search(text):
            self.victim_name, self.victim = found[1], int(found[2])
            self.victim_uid = int(found[3]) if found[3] else None
        self.complete, self.chosen_line = True, number

    def as_zones(self, page: int) -> tuple[Zone, ...]:
        """The zones."""
        return tuple(
            Zone(node, name, *sizes, self._reserved(node, name) * page, self.free_blocks.get((node, name)))
            for (node, name), sizes in self.zones.items()
        )

    def may_use(self, zone: str) -> bool:
        """Whether the request may be served by a zone of this name."""
        return _rank(zone) <= _rank(self._highest())

    def _highest(self) -> str:
        """The highest zone that the request may have, by `gfp_zone` (include/linux/gfp.h)."""
        mask = int(self.gfp_mask.partition("(")[0] or "0", 16)
        if mask & _GFP_HIGHMEM:
            return "Movable" if mask & _GFP_MOVABLE else "HighMem"
        return "DMA32" if mask & _GFP_DMA32 else "DMA" if mask & _GFP_DMA else "Normal"

    def _reserved(self, node: int, name: str) -> int:
        """Pages of a zone that are kept from this request: `lowmem_reserve` at the highest zone that it may have.

        Which index that is depends on how the kernel was built. But the numbers rise with each zone above that has memory, by
        `setup_per_zone_lowmem_reserve` (mm/page_alloc.c), and these are the node's that have lines of their own.
        """
        rank = _rank(name)
        above = sum(one == node and rank < _rank(other) and self.may_use(other) for one, other in self.zones)
        steps = sorted({0, *self.reserves.get((node, name), [])})
        return steps[min(above, len(steps) - 1)]


def _rank(zone: str) -> int:
    """Higher zones' requests may be served by lower ones."""
    return _ZONES.index(zone) if zone in _ZONES else -1


def begun(text: str) -> Report:
    """The report that a line begins: `NAME invoked oom-killer: …`."""
    before, _, after = text.partition(" invoked oom-killer:")
    report = Report(_comm(before), first=text)
    if found := _DETAILS.search(after):
        report.gfp_mask = found[1]
    if found := _ORDER.search(after):
        report.order = int(found[1])
    if found := _ADJ.search(after):
        report.adj = int(found[1])
    if found := _NODEMASK.search(after):
        report.nodemask = found[1]
    return report


def _comm(before: str) -> str:
    """The name that ends a text. It may have blanks; what stands before it ends in one of these."""
    return _BEFORE_NAME.sub("", before[-_COMM - 2 :])[-_COMM:].strip()


def whole(text: str) -> str:
    """A text without the gaps that a pager or an editor made in it; a name may have two blanks in a row, and hardly three."""
    return re.sub(r"\s{3,}", "", text.strip())
