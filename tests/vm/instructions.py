# SPDX-License-Identifier: Apache-2.0
"""Instructions of sampling and of bare preads of the same files, for tests/vm/budget: where the clock counts them, they are ns.

Prints, as JSON, the figures of ours and of bare preads, name by name:

- `sample`   the files of a full sample, read and turned into numbers
- `pressure` the group's PSI, read and turned into numbers; by itself, since reading it so fast destroys what it says
- `tick`     a tick of the sampler at its full rate: what it reads at each, with the row that it writes and all that it decides
- `sampler`  a second of sampling at 1 kHz, both threads, beside a bare loop that sleeps and preads the same files as often
"""

from __future__ import annotations

import json
import os

from pymemcg._ffi import PSI, Source, check, ffi, lib
from pymemcg.bench import ticking
from pymemcg.bench.reading import sample_files
from pymemcg.cgroup import resolve
from pymemcg.plan import NativeConfig, make_plan
from pymemcg.ring import create

GROUP = "/sys/fs/cgroup/pymemcg-budget"
ROUNDS, CHURN_BYTES = 300, 1 << 18
TICKS = 2_000
RATE_HZ, SECONDS = 1000, 1.0


def read_figures(files: list[tuple[str, int]]) -> list[float]:
    """Of a round over these files, as sources and as bare preads."""
    sources = [Source(path, form) for path, form in files]
    array = ffi.new("struct memcg_source *[]", [source._source for source in sources])
    ours, bare, changed = ffi.new("uint64_t *"), ffi.new("uint64_t *"), ffi.new("uint32_t *")
    for _ in range(2):  # the first time is to warm up
        check(lib.memcg_bench_read(array, len(sources), ROUNDS, CHURN_BYTES, ours, bare, changed), "a file of this group")
    return [ours[0] / ROUNDS, bare[0] / ROUNDS]


def tick_figures() -> list[float]:
    """Of a tick of this process's group, and of bare preads of the files of its usage channel."""
    plan = make_plan(resolve("self"), rate_hz=RATE_HZ, stat_rate_hz=10, history_s=2 * TICKS / RATE_HZ, adaptive=False)
    fd = os.memfd_create("pymemcg-budget", os.MFD_CLOEXEC)
    create(fd, plan.channels, plan.info(), align=os.sysconf("SC_PAGESIZE"), reserve=True)
    plan.feeds = [feed for feed in plan.feeds if feed.channel != "pressure"]  # read so fast, it would be destroyed
    config = NativeConfig(plan, ring_fd=fd, lock_fd=-1, attached=False)
    spent = ffi.new("uint64_t *")
    check(lib.memcg_bench_ticks(config.struct, TICKS, spent), "this group")
    os.close(fd)
    files = [(feed.path, feed.form) for feed in plan.feeds if feed.channel == "usage"]
    return [spent[0] / TICKS, read_figures(files)[1]]


def sampler_figures() -> list[float]:
    """Of a second of sampling, and of the bare loop: the least of some, since what else the guest does only adds."""
    ours, bare = [], []
    for _ in range(4):  # the first time is to warm up
        bare.append(ticking.bare(rate_hz=RATE_HZ, seconds=SECONDS)["cpu_ratio"])
        ours.append(ticking.sampled(rate_hz=RATE_HZ, seconds=SECONDS, adaptive=False)["cpu_ratio"])
    return [min(ours[1:]) * 1e9, min(bare[1:]) * 1e9]


def main() -> None:
    """Measure in a group below the root, whose own group has no counters."""
    os.mkdir(GROUP)
    with open(f"{GROUP}/cgroup.procs", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    figures = {
        "sample": read_figures(sample_files(pressure=False)),
        "pressure": read_figures([(f"{GROUP}/memory.pressure", PSI)]),
        "tick": tick_figures(),
        "sampler": sampler_figures(),
    }
    print(json.dumps({"release": os.uname().release, "figures": figures}))


if __name__ == "__main__":
    main()
