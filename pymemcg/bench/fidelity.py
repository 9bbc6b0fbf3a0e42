# SPDX-License-Identifier: Apache-2.0
"""Is PSI left undisturbed? The sampler runs where users have it, inside the group, while the group reclaims at its limit.

Two things can go wrong, and each has its figure.

- Reading PSI ends the window over which the kernel weighs CPUs, and stall time is dropped. An unread group above, which holds
  nothing but the sampled one, sees the same stalls: `psi_over_parent` = Δtotal of the sampled group ÷ Δtotal of that one.
- The sampler's own running adds weight to CPUs that do not stall: `psi_over_truth` = Δtotal of the sampled group ÷ the reclaim
  time that tracepoints tell of, relative to the same load without a sampler.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pymemcg.bench import machine
from pymemcg.bench.fidelity_table import Result, Row, Run
from pymemcg.bench.loads import LOADS, MIB, Load, Part, make_file
from pymemcg.bench.swap import ZramSwap
from pymemcg.bench.tracefs import Trace
from pymemcg.child import ChildGroup
from pymemcg.errors import MemcgError, NotSupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Observer = Literal["adaptive", "fixed", "naive"]
_OBSERVERS: dict[Observer | None, str] = {
    "adaptive": "with a sampler",
    None: "without",
    "fixed": "with a sampler at a fixed rate",
    "naive": "read every millisecond",
}

PROCESSES = (1, 8)
_LIMIT_BYTES = 64 * MIB
_PROCESS_BYTES = 12 * MIB
"""More of the limit for each process, or eight interpreters would be what is squeezed."""
_SWAP_BYTES = 1024 * MIB
_NAIVE_S = 0.001
_SETTLE_S = 2.5
"""What starting costs belongs to no load: past are then PSI's window and what the sampler's averages remember."""


def run(
    full: bool = False,
    *,
    loads: Sequence[Load] = LOADS,
    processes: Sequence[int] = PROCESSES,
    seconds: float | None = None,
    repetitions: int | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Result:
    """Measure.

    Args:
        full: Three repetitions of 60 s each (two hours for all loads) instead of two of 20 s (half an hour).
        loads: Which.
        processes: How many share the load, each with a sampler.
        seconds: Of a run.
        repetitions: With and without a sampler, in turn.
        progress: Is told what comes next.

    Raises:
        NotSupported: It cannot be measured here: it takes groups, swap and tracepoints, and so root.
    """
    seconds = seconds if seconds is not None else 60.0 if full else 20.0
    repetitions = repetitions if repetitions is not None else 3 if full else 2
    steal = machine.Steal()
    with ZramSwap(_SWAP_BYTES):
        rows = tuple(
            _row(load, count, seconds, repetitions, progress, beside=count == min(processes))
            for load in loads
            for count in processes
        )
    return Result(rows, seconds, repetitions, steal.ratio())


def _row(load: Load, processes: int, seconds: float, repetitions: int, progress: Callable[[str], None], *, beside: bool) -> Row:
    title = f"{load.name}, {processes} process{'es' if processes > 1 else ''}"
    runs: dict[Observer | None, list[Run]] = {"adaptive": [], None: [], "fixed": [], "naive": []}
    order: list[Observer | None] = []
    for i in range(repetitions):
        order += ["adaptive", None] if i % 2 else [None, "adaptive"]
    for observer in order + (["fixed", "naive"] if beside else []):
        progress(f"{title}: {_OBSERVERS[observer]}")
        runs[observer].append(measure(load, processes, observer, seconds))
    return Row(load, processes, tuple(runs["adaptive"]), tuple(runs[None]), tuple(runs["fixed"]), tuple(runs["naive"]))


def measure(load: Load, processes: int, observer: Observer | None, seconds: float, *, naive_s: float = _NAIVE_S) -> Run:
    """Run a load in a group of its own.

    Args:
        load: Which.
        processes: How many share it.
        observer: Who watches; None = nobody.
        seconds: How long.
        naive_s: How often the naive observer reads.

    Raises:
        NotSupported: There is no group to be had, or it has no PSI.
    """
    limit_bytes = _LIMIT_BYTES + processes * _PROCESS_BYTES
    with ExitStack() as stack:
        outer = stack.enter_context(ChildGroup("fidelity"))
        group = outer.child("load", limit_bytes=limit_bytes)
        parent_file, file = _pressure_file(outer), _pressure_file(group)
        path = stack.enter_context(make_file(limit_bytes)).name if load.kind == "cache" else None
        trace = stack.enter_context(Trace(seconds + 2))
        members = []
        sampler = observer if observer != "naive" else None
        for i in range(processes):
            part = Part(load.shared_by(processes), i, processes, limit_bytes, seconds, sampler, path)
            members.append(stack.enter_context(_member(part)))
        for member in members:
            member.expect("ready")
            group.add(member.pid)
            member.tell("")
        for member in members:
            member.expect("warm")
        time.sleep(_SETTLE_S)
        trace.start(member.pid for member in members)
        # In a quiet moment: the parent is read here and at the end, and at no other time.
        parent_us, psi_us, cpu_us = _some_us(parent_file), _some_us(file), _cpu_us(group)
        begin_ns = time.monotonic_ns() + 100_000_000
        for member in members:
            member.tell(str(begin_ns))
        with _naive_reader(file, naive_s) if observer == "naive" else _nobody() as reads:
            for member in members:
                member.expect("done")
        parent_us, psi_us, cpu_us = _some_us(parent_file) - parent_us, _some_us(file) - psi_us, _cpu_us(group) - cpu_us
        truth = trace.stop()
        if truth.lost:
            raise MemcgError(f"the trace lost {truth.lost} events: its buffer is too small for this machine")
        for member in members:
            member.tell("")
        stats: list[dict[str, Any]] = [json.loads(member.line()) for member in members]
    sampling: dict[str, Any] = next((found for found in stats if found.get("role") == "sampling"), {})
    read = reads[0] if observer == "naive" else int(sampling.get("psi_reads", 0))
    return Run(seconds, psi_us, parent_us, truth.total_us, truth.intervals, read, sampling, cpu_us)


class _Member:
    """A process of the load, and the conversation with it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def tell(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise MemcgError(f"a process of the load ended with status {self._process.wait()}")
        return line.strip()

    def expect(self, text: str) -> None:
        if (line := self.line()) != text:
            raise MemcgError(f"a process of the load said {line!r}, not {text!r}")


@contextmanager
def _member(part: Part) -> Iterator[_Member]:
    command = [sys.executable, "-m", "pymemcg.bench.loads", part.to_json()]
    with subprocess.Popen(  # noqa: S603 - this interpreter, and arguments of our own
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield _Member(process)
        except BaseException:
            process.kill()
            raise


@contextmanager
def _nobody() -> Iterator[list[int]]:
    yield [0]


@contextmanager
def _naive_reader(path: str, every_s: float) -> Iterator[list[int]]:
    """Somebody who reads PSI again and again, outside of the group; yields how often, by the end."""
    reads, over = [0], threading.Event()

    def read() -> None:
        file = os.open(path, os.O_RDONLY)
        while not over.wait(every_s):
            os.pread(file, 256, 0)
            reads[0] += 1
        os.close(file)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield reads
    finally:
        over.set()
        reader.join()


def _pressure_file(group: ChildGroup) -> str:
    path = f"{group.cgroup2_directory}/memory.pressure"
    if group.cgroup2_directory is None or not os.path.exists(path):
        raise NotSupported("the group has no PSI of its own", path=group.directory, hint="see `pymemcg doctor`")
    return path


def _some_us(path: str) -> int:
    with open(path, encoding="ascii") as file:
        # some avg10=0.00 avg60=0.00 avg300=0.00 total=20934
        return int(file.readline().rpartition("total=")[2])


def _cpu_us(group: ChildGroup) -> int:
    with open(f"{group.cgroup2_directory}/cpu.stat", encoding="ascii") as file:
        return int(file.readline().split()[1])  # usage_usec 1234
