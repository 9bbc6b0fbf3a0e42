# SPDX-License-Identifier: Apache-2.0
"""What is the cause, from what rose meanwhile."""

from __future__ import annotations

import numpy as np
import pytest

from pymemcg import _causes
from pymemcg._moments import HIGH_SLEEP

KINDS = np.zeros((1, HIGH_SLEEP + 1), np.int64)


def rises(**rose):
    before = dict.fromkeys((*_causes._COUNTERS, *(f"{name}_hits_lately" for name in ("limit", "memsw", "high"))), 0)
    before["above_lately"] = 0
    return _causes.Rises(
        {name: np.array([value]) for name, value in before.items()},
        {name: np.array([rose.get(name, 0)]) for name in before},
    )


@pytest.mark.parametrize("counter", ["limit_hits", "memsw_hits"])
@pytest.mark.parametrize(
    ("also", "cause"),
    [({}, "limit"), ({"workingset_refault_file": 3}, "thrash"), ({"pswpin": 1}, "swap"), ({"oom_kills": 1}, "oom_wait")],
)
def test_what_tracepoints_leave_is_the_limits_only_where_nothing_else_rose(counter, also, cause):
    """As where a thread that reclaims waits for a CPU: PSI counts that, and tracepoints tell it apart."""
    assert _causes.by_rises(KINDS, rises(**{counter: 2}, **also), np.array([True])) == [cause]


@pytest.mark.parametrize("traced", [False, True])
def test_nothing_that_rose_is_unknown(traced):
    assert _causes.by_rises(KINDS, rises(), np.array([traced])) == ["unknown"]
