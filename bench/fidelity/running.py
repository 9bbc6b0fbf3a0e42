# SPDX-License-Identifier: Apache-2.0
"""One workload in one environment: sampled and recorded, with the truth beside it. All that is made is removed again."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench.fidelity import truth, work
from bench.fidelity.truth import Episode
from bench.fidelity.workloads import FAR_BYTES, PROCESS_BYTES, Workload
from pymemcg.bench.loads import MIB, make_file
from pymemcg.bench.worker import Worker
from pymemcg.child import ChildGroup
from pymemcg.errors import MemcgError, NotSupported
from pymemcg.recorder import Recorder
from pymemcg.recording import Recording
from pymemcg.sampler import Sampler

_SETTLE_S = 1.0
"""What starting costs belongs to no load, and PSI's averages and the sampler's pace then are what they will be."""
_QUIET_S = 0.4
"""Before the first touch and after the last one: what is under way ends, and PSI may be read once more."""
_MARGIN_S = 6.0
_PSI_PATIENCE_S, _COMPUTE_S = 3.0, 0.1
_WRITE_EVERY_S = 0.5
_ADMINISTRATOR_S = 0.5


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a workload runs.

    Attributes:
        processes: How many in the group.
        inside: Whether each has a sampler, as a service's workers do, or one process outside of the group has.
    """

    processes: int
    inside: bool

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.processes}, {'inside' if self.inside else 'outside'}"


@dataclass(slots=True)
class Run:
    """What a run left behind.

    Attributes:
        recording: Of the sampled group.
        truth: Of its threads.
        touches: (tid, start_ns, end_ns) where the load notes them.
        begin_ns: When the load began.
        end_ns: When it ended.
        stats: Of the sampler.
        evidence: What works here, to None, or why not.
    """

    recording: Recording
    truth: truth.Truth
    touches: list[tuple[int, int, int]]
    begin_ns: int
    end_ns: int
    stats: dict[str, Any]
    evidence: dict[str, str | None]

    def episodes(self, *, touches: bool = True) -> list[Episode]:
        """The stalls that there truly were, by tracepoints and, unless they are left out, by touches."""
        moments = truth.of_intervals(self.truth)
        return truth.episodes([*moments, *truth.held(self.touches, self.truth.waits)] if touches else moments)


def run(workload: Workload, environment: Environment, seconds: float, path: str) -> Run:
    """Run it.

    Args:
        workload: Which.
        environment: Where.
        seconds: How long it works.
        path: Of the recording.

    Raises:
        NotSupported: It cannot be run here.
        MemcgError: The truth is not whole, or the load failed.
    """
    slowness = work.slowness() if workload.touch_ns else 1.0
    with ExitStack() as stack:
        trace = stack.enter_context(truth.tracing(seconds + 2 * _QUIET_S + _MARGIN_S))
        group, beside = _groups(workload, environment, stack)
        workers = [stack.enter_context(Worker(group)) for _ in range(environment.processes)]
        company = stack.enter_context(Worker(beside)) if beside else None
        _prepare(workload, group, workers, stack)
        if company and workload.beside:
            company.call("bench.fidelity.work.prepare", kind=workload.beside.kind, size=2 * workload.beside.limit_bytes)
        sampler = _start_sampling(group, workers, environment, stack)
        time.sleep(_SETTLE_S)
        if workload.high:
            _write(f"{group.directory}/memory.high", _read(f"{group.directory}/memory.current"))
        touches: list[tuple[int, int, int]] = []
        with Recorder(sampler, path) as recorder:
            since_ns = time.monotonic_ns()
            trace.start(worker.pid for worker in workers)
            begin_ns = time.monotonic_ns() + round(_QUIET_S * 1e9)
            end_ns = begin_ns + round(seconds * 1e9)
            _begin(workload, workers, begin_ns, end_ns, slowness)
            if company:
                company.begin("bench.fidelity.work.run", begin_ns=begin_ns, end_ns=end_ns, turns=[[[0, seconds * 1000]]], cpu=1)
            with _administrator(workload, group, begin_ns, end_ns):
                _record_until(recorder, end_ns)
            for worker in workers:
                noted = worker.end()
                if isinstance(noted, dict):
                    touches += [(int(tid), start, end) for tid, pairs in noted.items() for start, end in pairs]
            if company:
                company.end()
            _record_until(recorder, time.monotonic_ns() + round(_QUIET_S * 1e9))
            _await_psi(recorder, sampler, workers[0])
            records, lost, until_ns = trace.records(), trace.lost(), time.monotonic_ns()
        stats = workers[0].call("bench.fidelity.work.stats") if environment.inside else sampler.stats()
        evidence = getattr(sampler, "evidence", {})
    found = truth.read(records)
    found.lost, found.since_ns, found.until_ns = lost, since_ns, until_ns
    if lost:
        raise MemcgError(f"the trace lost {lost} events: its buffer is too small for this machine")
    return Run(Recording(path), found, touches, begin_ns, end_ns, stats, dict(evidence))


def _groups(workload: Workload, environment: Environment, stack: ExitStack) -> tuple[ChildGroup, ChildGroup | None]:
    limit_bytes = workload.limit_bytes + environment.processes * PROCESS_BYTES
    far = workload.above or workload.high
    outer = stack.enter_context(ChildGroup("truth", limit_bytes=limit_bytes if workload.above else None))
    group = outer.child("load", limit_bytes=FAR_BYTES if far else limit_bytes)
    if workload.high and not os.path.exists(f"{group.directory}/memory.high"):
        raise NotSupported("no group has a memory.high here", hint="cgroup v2")
    beside = outer.child("beside", limit_bytes=workload.beside.limit_bytes + PROCESS_BYTES) if workload.beside else None
    if not workload.swap:
        v1 = f"{group.directory}/memory.swappiness"
        _write(v1 if os.path.exists(v1) else f"{group.directory}/memory.swap.max", "0")
    return group, beside


def _prepare(workload: Workload, group: ChildGroup, workers: list[Worker], stack: ExitStack) -> None:
    total = round(workload.over * min(workload.limit_bytes, FAR_BYTES))
    path = None
    if workload.file:
        file = stack.enter_context(make_file(workload.limit_bytes))
        path = file.name
        if workload.file == "data":
            os.truncate(path, 0)
            for _ in range(total // MIB):
                file.write(os.urandom(MIB))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that the group is charged for what it reads
    share = total // len(workers)
    for number, worker in enumerate(workers):
        if workload.kind == "none":
            worker.call("bench.fidelity.work.hold", size=share if workload.limit_bytes < FAR_BYTES else MIB)
        if workload.high:
            worker.call("bench.fidelity.work.hold", size=workload.limit_bytes // len(workers))
        first = number * share if workload.kind == "cache" else 0
        size = total if workload.file else share
        worker.call(
            "bench.fidelity.work.prepare", kind=workload.kind, size=size, threads=workload.threads, path=path, first=first
        )


def _start_sampling(group: ChildGroup, workers: list[Worker], environment: Environment, stack: ExitStack) -> Sampler:
    """Where it is inside, ours attaches to it, so that writing the recording is no work of the group's."""
    if environment.inside:
        for worker in workers:
            worker.call("bench.fidelity.work.sample")
    sampler = stack.enter_context(Sampler(group.spec))
    wanted = "attached" if environment.inside else "sampling"
    if sampler.role != wanted:
        raise MemcgError(f"the sampler of the benchmark is {sampler.role!r}, not {wanted!r}")
    return sampler


def _begin(workload: Workload, workers: list[Worker], begin_ns: int, end_ns: int, slowness: float) -> None:
    for number, worker in enumerate(workers):
        if workload.storm is not None:
            worker.begin("bench.fidelity.work.fork_storm", begin_ns=begin_ns, end_ns=end_ns, pause_ms=workload.storm)
            continue
        turns = [
            workload.turns((end_ns - begin_ns) / 1e9, number * workload.threads + thread) for thread in range(workload.threads)
        ]
        worker.begin(
            "bench.fidelity.work.run",
            begin_ns=begin_ns,
            end_ns=end_ns,
            turns=turns,
            long_ns=workload.touch_ns and round(workload.touch_ns * slowness),
            spinners=workload.spinners,
            wander=workload.wander,
            cpu=number * workload.threads,
        )


def _record_until(recorder: Recorder, end_ns: int) -> None:
    while (left_s := (end_ns - time.monotonic_ns()) / 1e9) > 0:
        time.sleep(min(left_s, _WRITE_EVERY_S))
        recorder.write()


def _await_psi(recorder: Recorder, sampler: Sampler, worker: Worker) -> None:
    """Until PSI was read once more: a service goes on working, and only groups that work may be asked for their PSI."""
    begun_ns = time.monotonic_ns()
    deadline_ns = begun_ns + round(_PSI_PATIENCE_S * 1e9)
    while sampler.pressure.names and time.monotonic_ns() < deadline_ns:
        rows = sampler.pressure.window(rows=1)
        if len(rows) and rows["t_ns"][-1] > begun_ns:
            return
        end_ns = time.monotonic_ns() + round(_COMPUTE_S * 1e9)
        worker.begin("bench.fidelity.work.spin", begin_ns=0, end_ns=end_ns, cpu=0)
        _record_until(recorder, end_ns)
        worker.end()


@contextlib.contextmanager
def _administrator(workload: Workload, group: ChildGroup, begin_ns: int, end_ns: int) -> Iterator[None]:
    """What somebody outside of the group does to it, twice a second, in a thread of this process."""
    acts: dict[str, Callable[[], None]] = {
        "lower the limit": lambda: _lower(group, workload),
        "force_empty": lambda: _write(_file(group, "memory.force_empty", "memory.reclaim"), str(workload.limit_bytes)),
    }
    if workload.outside is None:
        yield
        return
    act, failed = acts[workload.outside], list[OSError]()

    def work() -> None:
        time.sleep(max(0.0, (begin_ns - time.monotonic_ns()) / 1e9))
        while time.monotonic_ns() < end_ns:
            try:
                act()
            except OSError as error:
                failed.append(error)
                return
            time.sleep(_ADMINISTRATOR_S)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failed:
        raise MemcgError(f"{workload.outside}: {failed[0]}")


def _lower(group: ChildGroup, workload: Workload) -> None:
    """To half, and back again at once."""
    path = _file(group, "memory.limit_in_bytes", "memory.max")
    before = _read(path)
    try:
        _write(path, str(workload.limit_bytes // 2))
    except OSError as error:
        if error.errno != errno.EBUSY:  # it could not be lowered so far, and was tried
            raise
    finally:
        _write(path, before)


def _file(group: ChildGroup, *names: str) -> str:
    """The one of these that there is."""
    return next((path for path in (f"{group.directory}/{name}" for name in names) if os.path.exists(path)), "")


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def _write(path: str, text: str) -> None:
    # EAGAIN: not as much as was asked for. Text is written when the file is closed.
    with contextlib.suppress(BlockingIOError), open(path, "w", encoding="ascii") as file:
        file.write(text)


def rises(recording: Recording) -> list[int]:
    """When a counter of hits had risen: the times of the ticks that saw it."""
    rows = recording.usage.read()[0]
    times = rows["t_ns"] if len(rows) else ()
    found: set[int] = set()
    for name in ("limit_hits", "memsw_hits", "high_hits"):
        if name in rows:
            values = rows[name]
            found.update(int(at) for at in times[1:][values[1:] > values[:-1]])
    limits = recording.limits.read()[0]  # those of groups above
    found.update(int(at) for at in limits["t_ns"])
    return sorted(found)
