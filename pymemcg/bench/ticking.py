# SPDX-License-Identifier: Apache-2.0
"""What sampling costs and how punctual it is, beside a bare loop that sleeps and preads the same files at the same rates.

The functions run where the sampler is, in a worker.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from pymemcg._ffi import NONE, VALUE, check, ffi, lib, read_source
from pymemcg.bench.reading import PythonReader
from pymemcg.cgroup import resolve
from pymemcg.errors import MemcgError, NotSupported
from pymemcg.plan import make_plan
from pymemcg.sampler import Sampler

_SETTLE_S = 0.05
_LOOK_HZ, _ROUND_HZ = 100, 10
"""How often the sampler looks at ancestors, and at all that is slow."""


def refuse_coarse_clock() -> None:
    """Benchmarks of a millisecond need a kernel that counts CPU time as it passes.

    Raises:
        NotSupported: It counts whole ticks of its timer, as user-mode Linux does.
    """
    if len({time.thread_time_ns() for _ in range(1000)}) < 100:
        raise NotSupported("this kernel counts CPU time in ticks of its timer: too coarse to tell what sampling costs")


def sampler_files(rate_hz: int) -> list[tuple[str, int]]:
    """What a sampler of this process's group reads, and every how many ticks; PSI, which is read when the gate says, not."""
    plan = make_plan(resolve("self"), rate_hz=rate_hz, stat_rate_hz=_ROUND_HZ, history_s=1, adaptive=False)
    look, slow = max(1, rate_hz // _LOOK_HZ), max(1, rate_hz // _ROUND_HZ)
    every = {"usage": 1, "stat": slow, "node": slow}
    files = [(feed.path, every[feed.channel]) for feed in plan.feeds if feed.channel in every]
    for i, level in enumerate(plan.target.levels):
        paths = {role: f"{level.directory}/{name}" for role, name in level.files.items()}
        files += [(paths[role], slow) for role in ("limit", "high", "hits") if role in paths]
        if i > 0:
            limited = "limit" in paths and read_source(paths["limit"], VALUE)[""] != NONE
            files += [(paths[role], look) for role in ("usage", "hits") if role in paths and limited]
    if plan.target.cgroup2_directory is not None:
        files.append((f"{plan.target.cgroup2_directory}/cpu.stat", slow))
    files.append((f"{plan.target.directory}/cgroup.procs", slow))
    return [*files, (f"/proc/{os.getpid()}/statm", slow)]


def bare(*, rate_hz: int, seconds: float) -> dict[str, Any]:
    """Run the bare loop.

    Returns:
        cpu_ratio: of a core; kept_ratio: ticks that came within a period; late_p99_ns.
    """
    files = sampler_files(rate_hz)
    fds = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path, _ in files]
    # v1 lists a group's processes when the file is opened, so the list must be opened anew to be new.
    anew = [ffi.new("char[]", os.fsencode(path)) if path.endswith("/cgroup.procs") else ffi.NULL for path, _ in files]
    rows = ffi.new("struct memcg_bench_file[]", [(fds[i], every, anew[i]) for i, (_, every) in enumerate(files)])
    late = np.empty(round(seconds * rate_hz), dtype=np.int64)
    cpu_ns, period_ns = ffi.new("uint64_t *"), round(1e9 / rate_hz)
    rc = lib.memcg_bench_loop(rows, len(files), period_ns, late.size, ffi.from_buffer("int64_t[]", late), cpu_ns)
    for fd in fds:
        os.close(fd)
    check(rc, "a file of this group")
    ticked = late[late >= 0]
    return {
        "cpu_ratio": cpu_ns[0] / (late.size * period_ns),
        "kept_ratio": float((ticked < period_ns).sum() / late.size),
        "late_p99_ns": float(np.percentile(ticked, 99)),
    }


def sampled(*, rate_hz: int, seconds: float, adaptive: bool, target: str = "self") -> dict[str, Any]:
    """Run a sampler.

    Returns:
        As `bare`, with the CPU time of both threads, and rate: ticks a second.

    Raises:
        MemcgError: The machine was too busy for a single tick.
    """
    with Sampler(target, rate_hz=rate_hz, history_s=seconds + 1, adaptive=adaptive) as sampler:
        time.sleep(_SETTLE_S)
        before, cursor, cpu_ns, begun = sampler.stats(), sampler.usage.head, threads_cpu_ns(), time.monotonic_ns()
        time.sleep(seconds)
        after, used_ns, elapsed_ns = sampler.stats(), threads_cpu_ns() - cpu_ns, time.monotonic_ns() - begun
        late = sampler.usage.read(cursor)[0]["late_ns"]
    if late.size == 0:
        raise MemcgError(f"no tick came within {seconds:g} s: too busy a machine to measure on")
    missed = after["missed"] - before["missed"]
    return {
        "cpu_ratio": used_ns / elapsed_ns,
        "kept_ratio": float((late < 1e9 / rate_hz).sum() / (late.size + missed)),
        "late_p99_ns": float(np.percentile(late, 99)),
        "rate": late.size / elapsed_ns * 1e9,
    }


def threads_cpu_ns() -> int:
    """CPU time of the sampler's threads of this process, by the scheduler."""
    total = 0
    for tid in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{tid}/comm", encoding="ascii") as comm:
            if not comm.read().startswith("pymemcg-"):
                continue
        with open(f"/proc/self/task/{tid}/schedstat", encoding="ascii") as schedstat:
            total += int(schedstat.read().split()[0])
    return total


def plain_python(*, rate_hz: int, seconds: float) -> dict[str, Any]:
    """Do in a Python thread what the sampler does, as one would write it; cpu_ratio as above."""
    files = [(PythonReader(path), every) for path, every in sampler_files(rate_hz)]
    cpu_ns = time.thread_time_ns()
    start = time.monotonic()
    ticks = round(seconds * rate_hz)
    for tick in range(ticks):
        time.sleep(max(0.0, start + (tick + 1) / rate_hz - time.monotonic()))
        for reader, every in files:
            if tick % every == 0:
                reader.read()
    used_ns, elapsed_s = time.thread_time_ns() - cpu_ns, time.monotonic() - start
    for reader, _ in files:
        reader.close()
    return {"cpu_ratio": used_ns / 1e9 / elapsed_s}


def with_psutil(*, rate_hz: int, seconds: float) -> dict[str, Any]:
    """Read statm alone with psutil at that rate; cpu_ratio as above."""
    import psutil

    process = psutil.Process()
    cpu_ns = time.thread_time_ns()
    start = time.monotonic()
    for tick in range(round(seconds * rate_hz)):
        time.sleep(max(0.0, start + (tick + 1) / rate_hz - time.monotonic()))
        process.memory_info()
    return {"cpu_ratio": (time.thread_time_ns() - cpu_ns) / 1e9 / (time.monotonic() - start)}
