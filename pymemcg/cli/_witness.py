# SPDX-License-Identifier: Apache-2.0
"""What `run` sees of its command, as a report: stalls and OOM kills of the group that it runs in."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pymemcg._tally import Tally
from pymemcg._words import number, size, span
from pymemcg.cgroup import resolve
from pymemcg.cli._stalls import StallLines, figure, figures, realtime_of, table, thread_name
from pymemcg.cli._text import has_colours, terminal_width
from pymemcg.errors import MemcgError, RecordingError
from pymemcg.once import read_limits, read_once
from pymemcg.places import members

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymemcg.cgroup import Target
    from pymemcg.child import ChildGroup
    from pymemcg.detecting import Stall
    from pymemcg.sampler import Sampler

_NAMES: Final = 1000  # of threads, before those that nobody will ask for are forgotten
_WRITE_S: Final = 5.0  # the rings hold a minute


class Witness:
    """Looks at the group of a command, from outside of it or inside, and reports.

    Args:
        evidence: As of `Sampler`.
        output: Where to record the samples; None = nowhere.

    Attributes:
        required: Whether the command must not begin unless all that was asked for can be had. Sampling that is switched off
            must never keep a service from running.
    """

    def __init__(self, evidence: str, output: str | None) -> None:
        self._evidence, self._output = evidence, output
        self.required = (evidence != "auto" or output is not None) and os.environ.get("PYMEMCG_DISABLE") != "1"
        self._group: ChildGroup | None = None
        self._target: Target | None = None
        self._sampler: Sampler | None = None
        self._writer: _Writer | None = None
        self._tally = Tally()
        self._names: dict[int, str] = {}
        self._began_ns = self._ended_ns = time.monotonic_ns()
        self._kills: int | None = None
        self._limit: int | None = None
        self._left = 0

    def look_at(self, group: ChildGroup | None) -> None:
        """Begin to sample a group, or the present one.

        Raises:
            MemcgError: It cannot be done, at least not all of it.
        """
        from pymemcg.cli._live import sampler_of

        self._group = group
        spec = group.spec if group else "self"
        self._target = resolve(spec)
        self._limit = read_limits(self._target)["limit_bytes"]
        self._kills = self._count_kills()
        sampler = sampler_of(spec, evidence=self._evidence, on_stall=self._saw)
        self._sampler = sampler.start()
        if self._output:
            self._writer = _Writer(sampler, self._output)
        self._began_ns = time.monotonic_ns()

    def _saw(self, stall: Stall) -> None:
        if stall.end_ns is not None and stall.end_ns < self._began_ns:
            return
        self._tally.add(stall)
        if not stall.harmless:  # the threads will be gone when all this is told
            self._names.update((tid, name) for tid in stall.tids if (name := thread_name(tid, stall.end_ns)))
        if len(self._names) > _NAMES:
            told = {tid for stall in self._tally.worst() for tid in stall.tids}
            self._names = {tid: name for tid, name in self._names.items() if tid in told}

    def _count_kills(self) -> int | None:
        if self._target is None:
            return None
        with suppress(MemcgError):
            kills: int | None = read_once(self._target).get("oom_kills")
            return kills
        return None

    def command_began(self) -> None:
        """It was let go: now there is something to record."""
        if self._writer:
            self._writer.start()

    def command_ended(self) -> None:
        """It has been waited for; others that it started may still be there."""
        self._ended_ns = time.monotonic_ns()
        before, self._kills = self._kills, self._count_kills()
        if self._kills is not None:
            self._kills = self._kills - before if before is not None else None
        if self._group:
            self._left = len(members(self._group.directory))

    def close(self) -> None:
        """End sampling and recording."""
        if self._writer:
            self._writer.close()
        if self._sampler:
            self._sampler.stop()  # it tells the rest

    # ---- The report ----

    def report(self, command: str, status: int) -> Iterator[str]:
        """What was seen, for stderr, once all is closed.

        Args:
            command: Its name.
            status: As `Command.wait` returns it.
        """
        width, colours = terminal_width(sys.stderr), has_colours(sys.stderr)
        for title, text in self._figures(command, status):
            yield f"pymemcg: {text}" if not title else "\n".join(figure(title, text, width, colours=colours))
        if self._sampler is None:
            return
        evidence = self._sampler.evidence if self._evidence == "auto" else {self._evidence: None}
        yield from figures(self._tally, evidence, width, colours=colours)
        lines = StallLines(
            realtime_of(self._sampler), width, colours, os.sysconf("SC_PAGESIZE"), lambda tid, _: self._names.get(tid)
        )
        if self._tally.count:
            yield ""
        yield from table(self._tally, lines)

    def _figures(self, command: str, status: int) -> Iterator[tuple[str, str]]:
        kills = self._kills or 0
        lasted = span(self._ended_ns - self._began_ns)
        if status < 0:
            # The kernel counts those whom it kills, and does not say whom; others may send this signal, too.
            likely = ", most likely by the OOM killer" if status == -signal.SIGKILL and kills else ""
            yield "", f"{command} was killed by {_signal(-status)} after {lasted}{likely}"
        else:
            yield "", f"{command} ended with exit status {status} after {lasted}"
        if self._target:
            limit = f", limit {size(self._limit)}" if self._limit is not None else ""
            yield "group", f"{self._target.directory}{limit}"
        if kills:
            yield "OOM kills", f"{number(kills)} in the group meanwhile"
        if self._left:
            yield "left", f"{number(self._left)} processes that it started go on, without the limit"
        if self._writer:
            yield "recorded", self._writer.says()


def _signal(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:  # a real-time one
        return f"signal {number}"


class _Writer:
    """Records from a thread of its own: the main one waits for signals."""

    def __init__(self, sampler: Sampler, path: str) -> None:
        from pymemcg.recorder import Recorder

        self._recorder = Recorder(sampler, path)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="pymemcg-record", daemon=True)
        self._failure: MemcgError | None = None

    def start(self) -> None:
        self._thread.start()

    def _work(self) -> None:
        try:
            with self._recorder:
                while not self._end.wait(_WRITE_S):
                    self._recorder.write()
        except MemcgError as error:
            self._failure = error

    def close(self) -> None:
        """Make the recording whole; or leave what was there before, if the command did not begin."""
        if self._thread.ident is not None:
            self._end.set()
            self._thread.join()
            return
        with suppress(RecordingError), self._recorder:
            raise RecordingError("nothing ran")
        os.unlink(f"{self._recorder.path}.part")

    def says(self) -> str:
        """What became of it."""
        if self._failure:
            return f"not, or not whole: {self._failure}"
        lost = self._recorder.lost
        missing = f", {number(lost)} rows were overwritten before they were written out" if lost else ""
        return f"{self._recorder.path}{missing}"
