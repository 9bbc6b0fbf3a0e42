# SPDX-License-Identifier: Apache-2.0
"""Finds the kills in the lines of a kernel log, whatever else is in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from pymemcg.oom._build import KillLine, build, kill_line, known_figures
from pymemcg.oom._kill import Kill
from pymemcg.oom._report import ROWS, Report, begun

_MOST_OPEN: Final = 8
"""Reports of several CPUs may come at once; more than these are not kept open."""
_PATIENCE: Final = 1000
"""Lines without one of its own after which a report is taken as ended: other lines of the log come in between."""
_PATIENCE_AFTER: Final = 20
"""So many after a kill: others of its group may follow."""
_HELD_LINES: Final = 5
"""For so many lines a kill waits for the one that says that its whole group goes: others may come in between."""
_LONGEST: Final = 8192
"""A line, in characters: the rest is left out. The kernel's own have 1,024 at most, memory.stat's 4,096."""

_GROUP: Final = "memory.oom.group set"
_KILLED: Final = r"oom_score_adj:-?\d|sacrifice child|sharing same memory|(?:file|shmem)-rss:\d+kB\s*$"
_LINE_END = re.compile(r"#012|\\x0a")
_CALLER = re.compile(r"\[\s*([TC]\d+)\]|,caller=([TC]\d+);")  # CONFIG_PRINTK_CALLER
_BEGINS = re.compile(r"^\s*(?:\d+[:\s]\s*)?(?:<\d+>)?\[\s*\d+\.\d+\]|^\s*\d+,\d+,\d+,|\bkernel:|^\S*\d\d:\d\d:\d\d")
# What lines of a report that may have been broken have, and what of their end they have when they are whole.
_BREAKABLE: Final = {
    " invoked": re.compile(r"order=-?\d.*oom_score_adj=-?\d|invoked (?!oom-killer:)\S"),
    "oom-kill:constraint=": re.compile(r",pid=\d+,uid=\d"),
    "ill process ": re.compile(_KILLED),
    "illed process ": re.compile(_KILLED),
    "Tasks in ": re.compile(_GROUP),
}
_STARTS: Final = (*_BREAKABLE, "Memory cgroup ", "oom_reaper: ", "CPU: ")
_CUT = re.compile(r"ut of memory: Kill(?:ed)?(?: process)?$")
_WITHIN: Final = ("Memory cgroup stats for ", " oom_score_adj name")
_SIGNS: Final = (*_BREAKABLE, *_WITHIN, "Manual OOM execution")


class Reader:
    """Reads a kernel log line by line.

    Not thread-safe. Memory does not grow with the log: a few reports are open at a time, and each keeps 2,000 rows at most.

    Attributes:
        lines: How many were read.
    """

    def __init__(self) -> None:
        self.lines = 0
        self._open: list[Report] = []
        self._joining = ""
        self._by_hand = 0  # the line that says so
        # A kill that is not told yet: that all of its group are killed is said in a line after it.
        self._held: tuple[Report, KillLine, int, str] | None = None
        self._held_lines = 0
        self._only: Report | None = None  # the open one, where there is one that is not complete

    def feed(self, line: bytes | str) -> list[Kill]:
        """Read a line.

        Args:
            line: With or without its end; whatever stands before the kernel's own text is left alone.

        Returns:
            The kills that are known in full with it; mostly none.
        """
        self.lines += 1
        text = (line if isinstance(line, str) else line.decode("utf-8", "replace")).rstrip()
        report = self._only
        if report is not None and report.take_common(text):  # nine lines of ten, where a log has nothing but kills
            report.lines = 0
            return []
        if not (self._open or self._joining) and not _may_begin(text):
            return []
        held = self._held
        told = self._feed(text[:_LONGEST].replace("\xa0", " "))
        if held is not None and self._held is held:
            self._held_lines += 1
            if told or held[0].group_kill or self._held_lines > _HELD_LINES:
                told = self._release() + told
        waiting = len(self._open) == 1 and not self._joining and not self._open[0].complete
        self._only = self._open[0] if waiting else None
        return told

    def _release(self) -> list[Kill]:
        held, self._held = self._held, None
        return [build(*held)] if held is not None else []

    def _feed(self, text: str) -> list[Kill]:
        if text.startswith('{"'):
            text = _unwrapped(text)
        if self._joining:
            return self._join(text)
        if self._open and ("#012" in text or "\\x0a" in text):  # rsyslog's and /dev/kmsg's way to write the end of a line
            return [kill for part in _LINE_END.split(text) for kill in self._take(part)]
        return self._take(text)

    def close(self) -> list[Kill]:
        """Say what is not yet told: kills whose last line is missing."""
        line, self._joining = self._joining, ""
        told = self._take_whole(line) if line else []
        told += self._release()
        while self._open:
            told += self._give_up(self._open[0])
        self._only = None
        return told

    # ---- One line --------------------------------------------------------------------------------------------------

    def _take(self, text: str) -> list[Kill]:
        for sign, whole in _BREAKABLE.items():
            if sign in text:
                if whole.search(text) is None:  # it may go on in the next line
                    self._joining = text
                    return []
                return self._take_whole(text)
        if "ut of memory: Kill" in text and _CUT.search(text):
            self._joining = text
            return []
        if "Manual OOM execution" in text:
            self._by_hand = self.lines
        if not self._open and any(sign in text for sign in _WITHIN):
            self._open.append(Report("", caller=_caller(text), first=text))  # its beginning is lost
        self._pass_on(text)
        return self._forget()

    def _take_whole(self, text: str) -> list[Kill]:
        if "oom-killer:" in text:
            return self._begin(text)
        if "oom-kill:" in text:
            self._constrain(text)
            return []
        if _GROUP in text:
            for report in self._open[-1:]:
                report.group_kill = True
            return []
        line = kill_line(text)
        return self._kill(line, text) if line is not None else []

    def _join(self, text: str) -> list[Kill]:
        """A mailer, a pager or a terminal broke a line: it goes on in the next one, if that does not begin as the log's do."""
        line, self._joining = self._joining, ""
        if _BEGINS.search(text) or any(sign in text for sign in _STARTS) or len(line) > _LONGEST:
            return self._take_whole(line) + (self._take(text) if text else [])
        text = text.strip()
        # Names were cut anywhere, figures mostly between words.
        joined = line + text if "oom-kill:" in line else max(f"{line} {text}", line + text, key=known_figures)
        return self._take(joined)

    def _begin(self, text: str) -> list[Kill]:
        told = self._release()
        told += [kill for report in list(self._open) if report.killed for kill in self._give_up(report)]
        while len(self._open) >= _MOST_OPEN:
            told += self._give_up(self._open[0])
        report = begun(text)
        report.by_hand = bool(self._by_hand) and self.lines - self._by_hand < _PATIENCE_AFTER
        self._by_hand = 0
        report.caller = _caller(text)
        self._open.append(report)
        return told

    def _constrain(self, text: str) -> None:
        caller = _caller(text)
        waiting = [one for one in self._open if one.constraint is None and not one.killed]
        by_caller = [one for one in waiting if caller is not None and one.caller == caller]
        report = next(iter(by_caller or waiting), None)
        if report is None:
            report = Report("", caller=caller, first=text)
            self._open.append(report)
        report.constrain(text, self.lines)
        report.lines = 0

    def _pass_on(self, text: str) -> None:
        """Give a line to the report that it is of: by the caller that some kernels print, else to the first that wants it."""
        for report in self._open if len(self._open) == 1 else self._wanting(text):
            if not report.complete and report.take(text):
                report.lines = 0
                return

    def _wanting(self, text: str) -> list[Report]:
        """The open reports that may have this line: of a section that an older one has, the next one's."""
        caller, wanting = _caller(text), self._open
        if mine := [one for one in self._open if caller is not None and one.caller == caller]:
            return mine
        tables = [one for one in self._open if one.columns is not None]
        if "omm: " in text:
            wanting = [one for one in self._open if one.pid is None and f"omm: {one.name}" in text]
        elif ": usage " in text:
            kind = text.partition(": usage ")[0].rpartition(" ")[2]
            wanting = [one for one in self._open if kind not in one.usage]
        elif "killed as a result" in text:
            wanting = [one for one in self._open if one.oom_memcg is None]
        elif "Memory cgroup stats for" in text:
            own = [one for one in self._open if one.oom_memcg is not None and f" for {one.oom_memcg}" in text]
            wanting = own or [one for one in self._open if one.columns is None]
        elif " oom_score_adj name" in text:
            wanting = [one for one in self._open if one.columns is None]
        elif tables:
            for one in tables if len(tables) > 1 else ():
                one.mixed = True  # nobody can tell whose rows these are
            wanting = [tables[-1], *(one for one in self._open if one is not tables[-1])]
        return wanting

    # ---- A kill ----------------------------------------------------------------------------------------------------

    def _kill(self, line: KillLine, text: str) -> list[Kill]:
        report = self._of(line, text)
        if report is None:
            if not line.done:  # its table and constraint are lost; "Killed" may follow
                report = Report("", victim=line.pid, victim_name=line.name, caller=_caller(text), first=text)
                report.chosen_line = self.lines
                self._open.append(report)
                return self._chosen(report, line)
            return [build(Report(""), line, self.lines, text)]
        if not line.done:
            return self._chosen(report, line)
        if line.pid in report.killed:
            return []
        told = self._release()
        first = not report.killed
        if len(report.killed) >= ROWS:  # nor does what has many thousands need them all
            report.killed.pop()
        report.killed.add(line.pid)
        report.complete, report.lines = True, 0
        of_group = line.of_group if line.of_group is not None else report.says_group
        line = replace(line, of_group=of_group)
        if first and of_group:
            self._held, self._held_lines = (report, line, self.lines, text), 0
            return told
        return [*told, build(report, line, self.lines, text)]

    def _chosen(self, report: Report, line: KillLine) -> list[Kill]:
        report.victim, report.victim_name = line.pid, line.name
        report.says_group = line.of_group
        report.chosen_line = self.lines
        report.lines = 0
        return []

    def _of(self, line: KillLine, text: str) -> Report | None:
        """The report that a kill ends."""
        caller = _caller(text)
        open_ones = [one for one in self._open if line.of_group is None or not one.known or one.of_group == line.of_group]
        waiting = [one for one in open_ones if not one.killed]
        named = [one for one in (open_ones if line.done else waiting) if line.pid == one.victim]
        called = [one for one in waiting if caller is not None and caller == one.caller]
        # Until 5.2 "Kill process" may name a thread, which no table lists, and "Killed process" its process or a child of it.
        asked = [one for one in waiting if one.victim is None and one.pid == line.pid]
        chosen = [one for one in waiting if one.victim is not None and line.done and line.of_group is None]
        alike = [one for one in chosen if one.victim_name == line.name]
        listed = [one for one in waiting if any(row.pid == line.pid for row in one.rows)]
        together = [one for one in open_ones if one.group_kill]
        # What nothing ties to a report is a kill whose own report is lost, as one between a head and its table. But "Kill
        # process" follows the table; or the head, where somebody kept only lines with "kill".
        ended = [one for one in waiting if one.known or one.rows or one.pid is None]
        nameless = [one for one in ended if one.victim is None and not line.done]
        return next((ones[0] for ones in (named, called, asked, alike, listed, together, chosen, nameless) if ones), None)

    def _forget(self) -> list[Kill]:
        told: list[Kill] = []
        for report in self._open[:]:
            report.lines += 1
            if report.lines > (_PATIENCE_AFTER if report.killed and not report.group_kill else _PATIENCE):
                told += self._give_up(report)
        return told

    def _give_up(self, report: Report) -> list[Kill]:
        """Close a report. Where it names who is to die, but the line that says so is missing, it has died all the same."""
        self._open.remove(report)
        if report.killed or report.victim is None:
            return []
        line = KillLine(
            done=False,
            pid=report.victim,
            name=report.victim_name or "",
            uid=report.victim_uid,
            of_group=report.says_group,
            figures={},
            adj=None,
        )
        return [build(report, line, report.chosen_line or self.lines, report.first)]


def _may_begin(text: str) -> bool:
    """Whether anything of a kill may begin with this line; the kernel's log has few others with these letters."""
    some = "oom" in text or "ill" in text or "OOM" in text or " invoked" in text or "cgroup stats" in text
    return some and (any(sign in text for sign in _SIGNS) or _CUT.search(text) is not None)


def _unwrapped(text: str) -> str:
    """What a container's runtime, or journald, wrapped into JSON."""
    try:
        record = json.loads(text)
        said = next((record[name] for name in ("log", "MESSAGE") if name in record), text)
        return f"{record.get('time', '')} {said}".rstrip()
    except (ValueError, RecursionError, AttributeError):
        return text


def _caller(text: str) -> str | None:
    found = _CALLER.search(text)
    return (found[1] or found[2]) if found else None


def kills(lines: Iterable[bytes | str]) -> Iterator[Kill]:
    """Find the kills in a kernel log.

    Args:
        lines: Its lines, as of an opened file; of any format that people have them in.

    Yields:
        Each kill once its report is complete.
    """
    reader = Reader()
    for line in lines:
        if told := reader.feed(line):
            yield from told
    yield from reader.close()
