# SPDX-License-Identifier: Apache-2.0
"""`pymemcg bench overhead`, in small: it measures what it says. No time is asserted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import facts
import pytest
from actor import ended, until

pytest.importorskip("scipy")
pytest.importorskip("psutil")

from pymemcg.bench.overhead import Budget, run
from pymemcg.bench.ticking import refuse_coarse_clock
from pymemcg.bench.worker import Worker
from pymemcg.cgroup import resolve
from pymemcg.child import ChildGroup
from pymemcg.errors import MemcgError, NotSupported

SMALL = Budget(
    reading=4, cpu=2, adaptive=2, kept=2, late=2, victim=2, held=2, ticks=20_000, slice_s=0.1, kept_s=0.1, serve_s=0.1
)

pytestmark = pytest.mark.live


@pytest.fixture
def fine_clock():
    try:
        refuse_coarse_clock()
    except NotSupported as error:
        pytest.skip(str(error))


@pytest.fixture
def worker(group):
    with Worker(group) as worker:
        yield worker


def test_worker_is_in_the_group_from_its_first_page_on(group, worker):
    with open(f"{group.directory}/cgroup.procs", encoding="ascii") as procs:
        assert worker.pid in map(int, procs.read().split())
    assert worker.call("holding.usage_bytes") > 1 << 20


def test_worker_says_what_failed_in_it(worker):
    with pytest.raises(MemcgError, match=r"holding\.wait_for_hits: MemcgError: the group did not come to its limit"):
        worker.call("holding.wait_for_hits", seconds=0.1)
    assert worker.call("holding.anonymous_bytes") > 0  # and goes on


def test_worker_ends_with_who_started_it():
    text = """
import os, signal
from pymemcg.bench.worker import Worker
worker = Worker()
worker.call("holding.anonymous_bytes")
worker.begin("serving.serve", seconds=60, sampled=False)
print(worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, timeout=facts.PATIENCE_S, check=False
    )
    until(lambda: ended(int(done.stdout)))


def test_worker_leaves_ctrl_c_to_who_started_it(worker):
    worker.call("holding.anonymous_bytes")  # once it answers it is past its beginning
    os.kill(worker.pid, signal.SIGINT)
    assert worker.call("holding.anonymous_bytes") > 0


def test_bare_loop_reads_the_files_that_a_sampler_reads(worker):
    files = {path for path, _ in worker.call("ticking.sampler_files", rate_hz=1000)}
    found = worker.call("reading.compare", pairs=2, pressure=True)
    assert {"memory.stat", "statm"} <= set(found["files"])
    assert {"memory.stat", "statm", "vmstat", "cgroup.procs"} <= {path.rpartition("/")[2] for path in files}
    assert found["changed_ratio"] > 0.9


@pytest.mark.usefixtures("fine_clock")
def test_bare_loop_counts_what_it_passes_over(worker):
    found = worker.call("ticking.bare", rate_hz=1000, seconds=0.2)
    assert 0 < found["kept_ratio"] <= 1
    assert found["cpu_ratio"] > 0


def test_ticks_do_not_grow_the_process(worker):
    assert worker.call("holding.tick", ticks=200_000)["growth_bytes"] == 0


def test_held_bytes_are_about_what_the_kernel_charges(worker):
    worker.call("holding.start")
    worker.call("holding.stop")
    found = [worker.call("holding.start")]
    worker.call("holding.stop")
    # The kernel keeps up to 64 pages a CPU in stock, and charges page tables and files too.
    assert found[0]["charged_bytes"] == pytest.approx(found[0]["held_bytes"], abs=2 << 20)


@pytest.mark.usefixtures("fine_clock")
def test_whole_benchmark(own_groups, group):
    steps = []
    found = run(budget=SMALL, progress=steps.append)
    described = json.loads(json.dumps(found.describe()))
    assert described["cpu_over_bare_loop_ratio"]["pairs"] == 2
    assert described["rows"][0]["setting"] == "far from the limit"
    assert len(described["rows"]) + len(described["left_out"]) == 3
    assert len(steps) > 8
    assert found.to_markdown()
    assert found.to_text()


@pytest.mark.usefixtures("fine_clock")
def test_without_groups_it_measures_its_own(monkeypatch):
    own = resolve("self").directory
    monkeypatch.setattr(ChildGroup, "possible", staticmethod(lambda parent=None: "they are forbidden"))
    if own == "/sys/fs/cgroup":  # the root of cgroup v2
        with pytest.raises(NotSupported, match=r"root of cgroup v2 has no memory.current.*they are forbidden"):
            run(budget=SMALL)
        return
    found = run(budget=SMALL).describe()
    assert "they are forbidden" in found["left_out"]["groups of its own"]
    assert any(name.startswith("at the limit") for name in found["left_out"])
    assert "memory.pressure" not in found["sample_over_pread_ratio"]["on"]
    assert [row["setting"] for row in found["rows"]] == [f"{workers} in this process's group, as it is" for workers in (1, 8)]
    assert own == resolve("self").directory
