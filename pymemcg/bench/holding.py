# SPDX-License-Identifier: Apache-2.0
"""The memory that sampling holds, by its own account and by the kernel's. The functions run in a worker."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from typing import Any

from pymemcg._ffi import VALUE, check, ffi, lib, read_source
from pymemcg.cgroup import resolve
from pymemcg.errors import MemcgError
from pymemcg.plan import NativeConfig, make_plan
from pymemcg.ring import Ring, create
from pymemcg.sampler import Sampler

_PR_SET_THP_DISABLE = 41
_running: list[Sampler] = []


def usage_bytes() -> int:
    """What the group is charged for."""
    own = resolve("self").levels[0]
    return read_source(f"{own.directory}/{own.files['usage']}", VALUE)[""]


def wait_for_hits(*, seconds: float) -> None:
    """Wait until the group has begun to hit its limit.

    Raises:
        MemcgError: It has not after so many seconds.
    """
    with Sampler() as sampler:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            rows = sampler.usage.window()
            for name in ("limit_hits", "memsw_hits"):
                if name in rows and len(rows) and rows[name][-1] > rows[name][0]:
                    return
            time.sleep(0.05)
    raise MemcgError("the group did not come to its limit")


def start() -> dict[str, Any]:
    """Start a default sampler and keep it.

    Returns:
        held_bytes: by its own account; charged_bytes: how much more the group is charged for since then; role.
    """
    before = usage_bytes()
    sampler = Sampler().start()
    time.sleep(0.2)
    _running.append(sampler)
    return {"held_bytes": sampler.stats()["held_bytes"], "charged_bytes": usage_bytes() - before, "role": sampler.role}


def stop() -> None:
    """Stop it."""
    _running.pop().stop()


def anonymous_bytes() -> int:
    """Of this process, by smaps_rollup."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as rollup:
        for line in rollup:
            # Anonymous:          1420 kB
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) * 1024
    raise MemcgError("smaps_rollup does not tell of anonymous memory")


def tick(*, ticks: int) -> dict[str, Any]:
    """Tick without sleeping, while another thread looks on.

    Returns:
        growth_bytes: of this process's anonymous memory from 1/10 to 9/10 of the ticks; ns: of CPU time, a tick.
    """
    plan = make_plan(resolve("self"), rate_hz=1000, stat_rate_hz=10, history_s=60, adaptive=True)
    # PSI is left to whoever samples this group for use.
    plan.feeds = [feed for feed in plan.feeds if feed.channel != "pressure"]
    ring_fd = os.memfd_create("pymemcg-bench", os.MFD_CLOEXEC)
    # Where huge pages are always on, the kernel makes one of a region of which some pages are used: that is no growth.
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    try:
        create(ring_fd, plan.channels, plan.info(), align=os.sysconf("SC_PAGESIZE"), reserve=True)
        config = NativeConfig(plan, ring_fd=ring_fd, lock_fd=-1, attached=False)
        ring, cpu_ns = Ring(ring_fd, "memfd:pymemcg-bench"), ffi.new("uint64_t *")
        state = ring.header.state  # lies in the ring's mapping, which must outlive it
        statuses: list[int] = []
        ticker = threading.Thread(target=lambda: statuses.append(lib.memcg_bench_ticks(config.struct, ticks, cpu_ns)))
        ticker.start()
        held = []
        for mark in (ticks // 10, ticks * 9 // 10):
            while state.ticks < mark and ticker.is_alive():
                time.sleep(0.01)
            held.append(anonymous_bytes())
        ticker.join()
        del state
    finally:
        libc.prctl(_PR_SET_THP_DISABLE, 0, 0, 0, 0)
        os.close(ring_fd)
    check(statuses[0], "a file of this group")
    return {"growth_bytes": held[1] - held[0], "ns": cpu_ns[0] / ticks}
