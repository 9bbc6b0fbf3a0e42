# SPDX-License-Identifier: Apache-2.0
"""The truth about reclaim: intervals per thread, from a tracefs instance of our own.

It is here to judge the sampler, and so shares no code with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pymemcg.bench.tracepages import Record, parse_page, read_layout
from pymemcg.errors import NotSupported

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

TRACEFS = "/sys/kernel/tracing"
EVENTS = tuple(f"mm_vmscan_{kind}_reclaim_{end}" for kind in ("memcg", "direct") for end in ("begin", "end"))
_RECLAIM: Mapping[str, Sequence[str]] = {f"vmscan/{event}": () for event in EVENTS}
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"
_SUBBUFFER_BYTES = os.sysconf("SC_PAGESIZE")
"""What the kernel hands out at a time, unless somebody wrote to the instance's buffer_subbuf_size_kb."""
_BUFFER_KIB_PER_S = 2048
"""A CPU's: 50,000 events of 40 bytes, several times what one CPU that does nothing but drop pages fires."""

# The name may hold anything, a tracepoint's line of text ends it with the thread's number and the CPU in brackets.
_LINE = re.compile(r"^ *(?P<comm>.*)-(?P<tid>\d+) +\[\d+\] \S+ +(?P<s>\d+)\.(?P<us>\d{6}): (?P<event>\w+):")


@dataclass(slots=True)
class Reclaim:
    """What threads spent in reclaim.

    Attributes:
        total_us: Of all threads together.
        intervals: How many there were.
        lost: Events that did not fit into the buffer: with any, the total is too small.
        longest_us: The longest interval.
        threads_us: By thread id.
    """

    total_us: int = 0
    intervals: int = 0
    lost: int = 0
    longest_us: int = 0
    threads_us: dict[int, int] = field(default_factory=dict)


def parse(lines: Iterable[str]) -> Reclaim:
    """Pair begins with ends, thread by thread.

    Sample::

        # tracer: nop
                 python3-4711    [001] .....  2950.100004: mm_vmscan_memcg_reclaim_begin: order=0 gfp_flags=GFP_KERNEL
                 python3-4711    [001] .....  2950.100130: mm_vmscan_memcg_reclaim_end: nr_reclaimed=34

    An end without its begin (it lies before the trace) and a begin without its end count for nothing.
    """
    found, begun = Reclaim(), dict[int, int]()
    for line in lines:
        match = _LINE.match(line)
        if match is None or match["event"] not in EVENTS:
            continue
        tid, at_us = int(match["tid"]), int(match["s"]) * 1_000_000 + int(match["us"])
        if match["event"].endswith("_begin"):
            begun[tid] = at_us
        elif (since_us := begun.pop(tid, None)) is not None:
            took_us = at_us - since_us
            found.total_us += took_us
            found.intervals += 1
            found.longest_us = max(found.longest_us, took_us)
            found.threads_us[tid] = found.threads_us.get(tid, 0) + took_us
    return found


class Trace:
    """An instance that traces the reclaim of some processes and all that they start, from `start` to `stop`.

    Args:
        seconds: For how long at most, which decides how large its buffer is.
        events: `system/event` to the fields that `records` gives of it, in the order in which its format has them.
        name: Of the instance, beside this process's number: for more than one at a time.

    Raises:
        NotSupported: It cannot be made here.
    """

    def __init__(self, seconds: float, events: Mapping[str, Sequence[str]] = _RECLAIM, name: str = "truth") -> None:
        if os.readlink("/proc/self/ns/pid") != _INITIAL_PID_NAMESPACE:
            raise NotSupported("tracefs knows threads by their numbers in the host's pid namespace, which this is not")
        self._events = events
        self._mounted = _mount()
        self._instance = f"{TRACEFS}/instances/pymemcg-{os.getpid()}-{name}"
        try:
            os.mkdir(self._instance)
        except OSError as error:
            self._unmount()
            raise NotSupported(f"cannot be made: {error.strerror}", path=self._instance, hint="run as root") from error
        try:
            self._write("tracing_on", "0")
            self._write("trace_clock", "mono")
            self._write("buffer_size_kb", str(round(_BUFFER_KIB_PER_S * seconds)))
            self._write("options/event-fork", "1")  # threads and processes that the traced ones start are traced too
            for event in events:
                self._write(f"events/{event}/enable", "1")
        except OSError as error:
            self.close()
            raise NotSupported(f"cannot be written: {error.strerror}", path=error.filename) from error

    def _write(self, name: str, text: str) -> None:
        with open(f"{self._instance}/{name}", "w", encoding="ascii") as file:
            file.write(text)

    def start(self, pids: Iterable[int]) -> None:
        """Trace these processes, with all threads that they have and will have."""
        tids = {int(tid) for pid in pids for tid in os.listdir(f"/proc/{pid}/task")}
        self._write("set_event_pid", " ".join(map(str, sorted(tids))))
        self._write("trace", "")
        self._write("tracing_on", "1")

    def stop(self) -> Reclaim:
        """End tracing and read what there was."""
        self._write("tracing_on", "0")
        with open(f"{self._instance}/trace", encoding="utf-8", errors="replace") as file:
            found = parse(file)
        found.lost = self.lost()
        return found

    def records(self) -> list[Record]:
        """End tracing and read what there was, to the nanosecond, in the order of time; what was read is gone."""
        self._write("tracing_on", "0")
        layouts = {}
        for event, fields in self._events.items():
            with open(f"{self._instance}/events/{event}/format", encoding="ascii") as file:
                layout = read_layout(file.read(), fields)
            layouts[layout.number] = layout
        found: list[Record] = []
        for cpu in os.listdir(f"{self._instance}/per_cpu"):
            for page in _pages(f"{self._instance}/per_cpu/{cpu}/trace_pipe_raw"):
                found.extend(parse_page(page, layouts))
        found.sort(key=lambda record: record.t_ns)  # a CPU's are sorted, and stay as they are where times are equal
        return found

    def lost(self) -> int:
        """Events that did not fit into the buffer."""
        lost = 0
        for cpu in os.listdir(f"{self._instance}/per_cpu"):
            with open(f"{self._instance}/per_cpu/{cpu}/stats", encoding="ascii") as stats:
                counts = dict(line.split(":")[:2] for line in stats)
            lost += int(counts["overrun"]) + int(counts["dropped events"])
        return lost

    def close(self) -> None:
        """Remove the instance."""
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self._instance)
        self._unmount()

    def _unmount(self) -> None:
        if self._mounted:
            ctypes.CDLL(None).umount2(TRACEFS.encode(), 0)  # somebody else may use it by now: then it stays
        self._mounted = False

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _pages(path: str) -> Iterator[bytes]:
    """All that is in a CPU's buffer; the last page is a page too, however little of it is used."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            while page := os.read(file, _SUBBUFFER_BYTES):
                yield page
    finally:
        os.close(file)


def _mount() -> bool:
    """Mount tracefs where it belongs; whether that was needed."""
    if os.path.isdir(f"{TRACEFS}/instances"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tracefs", TRACEFS.encode(), b"tracefs", 0, None) != 0:
        raise NotSupported(f"cannot be mounted: {os.strerror(ctypes.get_errno())}", path=TRACEFS, hint="run as root")
    return True
