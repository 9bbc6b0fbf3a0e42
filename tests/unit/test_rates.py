# SPDX-License-Identifier: Apache-2.0
"""metrics: how fast things happen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rows import (
    LATE,
    V2,
    S,
    captured,
    floats,
    windows,
)

from pymemcg import metrics


def test_rate_is_per_second_and_not_known_in_the_first_row():
    assert np.array_equal(
        metrics.rate([0, S, 3 * S, 3 * S + S // 1000], [0, 10, 50, 51]),
        floats(np.nan, 10, 20, 1000),
        equal_nan=True,
    )


@pytest.mark.parametrize(
    ("counter", "rates"),
    [
        (np.array([5, 8, 2, 3], dtype=np.uint64), floats(np.nan, 3, np.nan, 1)),  # reset by somebody
        (np.array([2**63 - 1, 0], dtype=np.uint64), floats(np.nan, np.nan)),
        (floats(1, np.nan, 3, 4), floats(np.nan, np.nan, np.nan, 1)),
    ],
)
def test_rate_across_a_reset_or_a_gap_is_not_known(counter, rates):
    t_ns = LATE + np.arange(counter.size, dtype=np.int64) * S
    assert np.array_equal(metrics.rate(t_ns, counter), rates, equal_nan=True)


def test_rate_where_time_stands_still_or_runs_back_is_not_known():
    assert np.array_equal(metrics.rate([5, 5, 4, 4 + S], [1, 2, 3, 4]), floats(np.nan, np.nan, np.nan, 1), equal_nan=True)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_rate_is_exact_late_after_boot_and_for_large_counters(dtype):
    t_ns = np.array([LATE, LATE + 1000], dtype=dtype)
    assert metrics.rate(t_ns, np.array([LATE, LATE + 3], dtype=dtype))[1] == pytest.approx(3e6)


PAIRS = (
    metrics.rate,
    metrics.refault_rate,
    metrics.scan_rate,
    metrics.steal_rate,
    metrics.uncharge_rate_v1,
    metrics.reclaim_efficiency,
    metrics.pressure_ratio,
)


@pytest.mark.parametrize("formula", PAIRS)
def test_formulas_over_rows_take_none_and_one(formula):
    assert formula([], []).shape == (0,)
    assert np.isnan(formula([1], [1])).tolist() == [True]


@pytest.mark.parametrize("formula", [*PAIRS, metrics.growth])
@pytest.mark.parametrize(("first", "second"), [([1, 2], [1]), ([[1, 2]], [[1, 2]]), (1, 2)])
def test_formulas_over_rows_refuse_other_shapes(formula, first, second):
    with pytest.raises(ValueError, match="1-D"):
        formula(first, second)


@given(t_ns=windows(), data=st.data())
def test_rates_add_up_to_the_whole_increase(t_ns, data):
    steps = data.draw(hnp.arrays(np.int64, t_ns.shape, elements=st.integers(0, 2**30)))
    counter = np.cumsum(steps)
    rates = metrics.rate(t_ns, counter)
    assert rates.shape == t_ns.shape
    if t_ns.size > 1:
        assert np.sum(rates[1:] * np.diff(t_ns) / S) == pytest.approx(counter[-1] - counter[0], rel=1e-9, abs=1e-9)


@given(t_ns=windows(min_rows=2), counter=st.data())
def test_a_rate_is_never_negative(t_ns, counter):
    values = counter.draw(hnp.arrays(np.uint64, t_ns.shape, elements=st.integers(0, 2**64 - 1)))
    rates = metrics.rate(t_ns, values)
    assert np.all((rates >= 0) | np.isnan(rates))


def test_refault_rate_adds_anonymous_and_file_pages():
    assert metrics.refault_rate([0, S], [1, 4], [10, 30])[1] == 23.0
    assert np.isnan(metrics.refault_rate([0, S], [1, 4], [10, 9])[1])
    with pytest.raises(TypeError, match="counter"):
        metrics.refault_rate([0, S])


def test_reclaim_rate_is_in_bytes_of_the_sampled_machine():
    assert metrics.reclaim_rate([0, S], [0, 10], 65536)[1] == 655_360.0
    assert metrics.steal_rate([0, S], [0, 10])[1] == 10.0


def test_reclaim_efficiency():
    efficiency = metrics.reclaim_efficiency([0, 100, 100, 300, 200, 300], [0, 80, 80, 80, 80, 130])
    assert np.array_equal(efficiency, floats(np.nan, 0.8, np.nan, 0.0, np.nan, 0.5), equal_nan=True)


@pytest.mark.parametrize(("kernel", "efficiency"), [("6.1-v2", 1.0), ("6.12-v2", 67_402 / 86_029)])
def test_reclaim_efficiency_of_the_captured_groups(kernel, efficiency):
    stat, _ = captured(kernel, V2)
    assert metrics.reclaim_efficiency([0, stat["pgscan"]], [0, stat["pgsteal"]])[1] == efficiency


def test_pressure_ratio():
    # 10 ms stalled in 20 ms, then 1 s in 1 s, then a total that fell.
    t_ns = LATE + np.array([0, 20_000_000, 1_020_000_000, 2_020_000_000])
    ratio = metrics.pressure_ratio(t_ns, [0, 10_000, 1_010_000, 0])
    assert np.allclose(ratio, floats(np.nan, 0.5, 1.0, np.nan), rtol=1e-12, equal_nan=True)
