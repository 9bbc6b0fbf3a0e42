# SPDX-License-Identifier: Apache-2.0
"""The fidelity benchmark on this machine: that it measures, and cleans up after itself."""

from __future__ import annotations

import os
from pathlib import Path

import facts
import pytest

from pymemcg import resolve
from pymemcg.bench.fidelity import measure
from pymemcg.bench.loads import LOADS
from pymemcg.bench.swap import ZramSwap
from pymemcg.bench.tracefs import TRACEFS
from pymemcg.child import ChildGroup

pytestmark = pytest.mark.live


@pytest.fixture(autouse=True)
def _possible(own_groups: None, tracing: None, zram: None) -> None:
    with ChildGroup("probe") as group:
        if why := facts.no_psi(group.directory, group.cgroup2_directory):
            pytest.skip(why)


def left_behind() -> list[str]:
    swaps = [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:] if "zram" in line]
    instances = [str(path) for path in Path(TRACEFS, "instances").glob(f"pymemcg-{os.getpid()}*")]
    return swaps + instances + [str(path) for path in Path(resolve().directory).glob(f"pymemcg-{os.getpid()}-*")]


def test_psi_beside_the_truth():
    before = left_behind()
    load = next(load for load in LOADS if load.name == "bursts")
    with ZramSwap(256 << 20):
        run = measure(load, 2, "adaptive", 2)
    assert run.intervals > 0
    # Stalls of one CPU at a time: what PSI shows is some part of the truth, never far more.
    assert 0 < run.psi_us < 2 * run.truth_us
    assert 0 < run.parent_us < 2 * run.truth_us
    assert run.stats["role"] == "sampling"
    assert run.reads >= 1
    assert left_behind() == before


def test_a_load_that_fails_leaves_nothing():
    before = left_behind()
    load = next(load for load in LOADS if load.name == "light")
    with pytest.raises(TypeError), ZramSwap(256 << 20):
        measure(load, 1, "adaptive", "long")  # type: ignore[arg-type]
    assert left_behind() == before
