# SPDX-License-Identifier: Apache-2.0
"""What it costs to sample and to look at samples; `pymemcg bench overhead` has the promises, as ratios of interleaved pairs."""

from __future__ import annotations

import os

import numpy as np
import pytest

from pymemcg._ffi import Source, check, ffi, lib
from pymemcg.bench.reading import PythonReader, sample_files
from pymemcg.cgroup import resolve
from pymemcg.channel import Channel
from pymemcg.plan import NativeConfig, make_plan
from pymemcg.ring import Ring, create

ROWS = 1_000_000


@pytest.fixture(scope="module")
def usage():
    """A channel with more than ROWS rows, which real ticks have filled."""
    plan = make_plan(resolve("self"), rate_hz=20_000, stat_rate_hz=10, history_s=ROWS / 20_000, adaptive=True)
    fd = os.memfd_create("pymemcg-bench", os.MFD_CLOEXEC)
    create(fd, plan.channels, plan.info(), align=os.sysconf("SC_PAGESIZE"), reserve=True)
    plan.feeds = [feed for feed in plan.feeds if feed.channel != "pressure"]  # read so fast, it would be destroyed
    config = NativeConfig(plan, ring_fd=fd, lock_fd=-1, attached=False)
    check(lib.memcg_bench_ticks(config.struct, ROWS + ROWS // 10, ffi.new("uint64_t *")), "this group")
    ring = Ring(fd, "memfd:pymemcg-bench")
    os.close(fd)
    return Channel("usage", ring, ring.tables["usage"])


def test_window_of_a_million_rows(benchmark, usage):
    """Promised: no copy, and less than 20 us."""
    column = benchmark(lambda: usage.window(rows=ROWS)["usage_bytes"])
    assert len(column) == ROWS
    assert np.shares_memory(column, usage.window()["usage_bytes"])


@pytest.fixture(params=["usage", "memory.stat", "statm"])
def file(request):
    """Path and form of one file of a full sample."""
    names = {"usage": ("memory.usage_in_bytes", "memory.current")}.get(request.param, (request.param,))
    for path, form in sample_files(pressure=False):
        if os.path.basename(path) in names:
            return path, form
    pytest.skip(f"this group has no {request.param}")


def test_read_a_file(benchmark, file):
    source = Source(*file)._source  # noqa: SLF001 - what the sampler reads, without a call through Python around it
    assert benchmark(lib.memcg_source_read, source) == 0


def test_read_a_file_in_plain_python(benchmark, file):
    reader = PythonReader(file[0])
    assert benchmark(reader.read)
    reader.close()
