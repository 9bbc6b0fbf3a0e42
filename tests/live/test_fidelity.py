# SPDX-License-Identifier: Apache-2.0
"""The fidelity benchmark on this machine: that it measures, and cleans up after itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pymemcg import resolve
from pymemcg.bench.fidelity import measure
from pymemcg.bench.loads import LOADS
from pymemcg.bench.swap import ZramSwap
from pymemcg.bench.tracefs import TRACEFS, Trace
from pymemcg.child import ChildGroup
from pymemcg.errors import NotSupported

pytestmark = pytest.mark.live


@pytest.fixture(autouse=True)
def _possible() -> None:
    if reason := ChildGroup.possible():
        pytest.skip(reason)
    with ChildGroup("probe") as group:
        if group.cgroup2_directory is None or not os.path.exists(f"{group.cgroup2_directory}/memory.pressure"):
            pytest.skip("a group made here has no PSI of its own")
    try:
        Trace(1).close()
        ZramSwap(1 << 20).close()
    except NotSupported as error:
        pytest.skip(str(error))


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
