# SPDX-License-Identifier: Apache-2.0
"""metrics: how much is in use, how much is left, and two channels on one clock."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fakecgroup import KERNELS
from hypothesis import assume, given
from hypothesis import strategies as st
from rows import (
    LATE,
    MIB,
    RING_NONE,
    SIZES,
    V1,
    V1_NONE,
    V2,
    V2_NONE,
    S,
    captured,
    floats,
    number,
    sizes,
    windows,
)

from pymemcg import metrics

# ---- How much is in use --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "group", "usage_file", "inactive_file"),
    [
        ("6.1-v2", V2, "memory.current", 15_138_816),
        ("6.12-v2", V2, "memory.current", 21_667_840),
        ("6.18-hybrid", V1, "memory.usage_in_bytes", 14_680_064),
    ],
)
def test_working_set_and_docker_usage_of_the_captured_groups(kernel, group, usage_file, inactive_file):
    stat, raw = captured(kernel, group)
    usage = number(kernel, f"{group}/{usage_file}")
    assert metrics.working_set(usage, stat["inactive_file"]) == usage - inactive_file
    assert metrics.docker_usage(usage, stat["inactive_file"]) == usage - inactive_file
    assert metrics.docker_usage(usage, stat["inactive_file"], raw["inactive_file"]) == usage - inactive_file


@pytest.mark.parametrize("unsigned", [np.uint64, np.uint32, np.uint8])
def test_differences_of_unsigned_arrays_do_not_wrap(unsigned):
    small, large = np.array([1, 2], dtype=unsigned), np.array([2, 200], dtype=unsigned)
    assert metrics.working_set(small, large).tolist() == [0, 0]
    assert metrics.non_reclaimable(small, large, large).tolist() == [0, 0]
    assert metrics.non_reclaimable_v1(small, large).tolist() == [0, 0]
    assert metrics.anon_file_split(small, small, large).file_backed_bytes.tolist() == [0, 0]
    assert metrics.headroom(large, small).tolist() == [0.0, 0.0]
    assert metrics.docker_usage(small, large).tolist() == [1, 2]


def test_integers_stay_exact_also_between_signed_and_unsigned():
    usage = np.array([2**60 + 1], dtype=np.uint64)
    working_set = metrics.working_set(usage, np.array([1], dtype=np.int64))
    assert working_set.dtype == np.int64
    assert working_set.tolist() == [2**60]


def test_plain_numbers_give_plain_numbers():
    assert metrics.working_set(10, 4) == 6
    assert metrics.docker_usage(10, 4) == 6
    assert metrics.non_reclaimable(10, 4, 1) == 5
    assert metrics.non_reclaimable_v1(10, 4) == 6
    assert metrics.anon_file_split(3, 7, 2) == (5, 5)
    assert metrics.headroom(10, 40) == 30.0
    assert np.isscalar(metrics.docker_usage(10, 4))
    assert np.isscalar(metrics.headroom(10, None))
    assert np.isscalar(metrics.time_to_limit(1.0, 1.0))


@pytest.mark.parametrize("wrong", ["10", [True], None, [2**70]])
def test_what_is_not_numeric_is_refused(wrong):
    with pytest.raises(TypeError, match="numbers are wanted"):
        metrics.working_set(wrong, 1)


def test_nan_is_not_known_and_stays():
    unknown = floats(np.nan, 4)
    usage = np.array([10, 10], dtype=np.uint64)
    for figure in (
        metrics.working_set(usage, unknown),
        metrics.docker_usage(usage, unknown),
        metrics.docker_usage(unknown, usage),
        metrics.docker_usage(usage, unknown, usage),
        metrics.non_reclaimable(usage, unknown, 0),
        metrics.non_reclaimable_v1(usage, unknown),
        metrics.anon_file_split(unknown, usage, 0).swap_backed_bytes,
        metrics.headroom(unknown, 20),
        metrics.headroom(unknown, None),
        metrics.headroom(5, 20, [(unknown, 30)]),
        metrics.time_to_limit(unknown, 1.0),
        metrics.time_to_limit(4.0, unknown),
    ):
        assert np.isnan(figure).tolist() == [True, False]


@given(usage=sizes(), inactive=SIZES)
def test_working_set_is_between_nothing_and_usage(usage, inactive):
    before = usage.copy()
    working_set = metrics.working_set(usage, inactive)
    assert np.all(working_set >= 0)
    assert np.all(working_set <= usage)
    assert np.all((working_set + np.int64(inactive) == usage) | (working_set == 0))
    assert np.array_equal(usage, before)


@given(usage=SIZES, inactive=SIZES)
def test_docker_and_kubelet_differ_only_where_usage_is_not_larger(usage, inactive):
    docker = metrics.docker_usage(usage, inactive)
    if inactive < usage:
        assert docker == metrics.working_set(usage, inactive) == usage - inactive
    else:
        assert docker == usage
        assert metrics.working_set(usage, inactive) == 0


@pytest.mark.parametrize(
    ("usage", "total", "local", "shown"),
    [
        (500, 400, 100, 100),  # the subtree's figure wins
        (500, 600, 100, 400),  # too large: the group's own is tried
        (500, 500, 100, 400),  # equal is too large
        (500, 600, 500, 500),  # both too large: nothing is subtracted
    ],
)
def test_docker_usage_tries_the_groups_own_half_on_v1(usage, total, local, shown):
    assert metrics.docker_usage(usage, total, local) == shown


@pytest.mark.parametrize(("kernel", "expected"), [("6.1-v2", 9_433_456), ("6.12-v2", 3_032_016)])
def test_non_reclaimable_is_the_anonymous_and_kernel_memory_of_the_captured_groups(kernel, expected):
    stat, _ = captured(kernel, V2)
    usage = number(kernel, f"{V2}/memory.current")
    assert metrics.non_reclaimable(usage, stat["file"], stat["slab_reclaimable"]) == expected
    assert expected == stat["anon"] + stat["kernel"] - stat["slab_reclaimable"]


def test_non_reclaimable_of_the_captured_v1_group():
    stat, _ = captured("6.18-hybrid", V1)
    usage = number("6.18-hybrid", f"{V1}/memory.usage_in_bytes")
    assert metrics.non_reclaimable_v1(usage, stat["file"]) == 66_588_672 - 56_766_464


@pytest.mark.parametrize(("kernel", "group"), [(kernel, V2 if kernel.endswith("v2") else V1) for kernel in KERNELS])
def test_anon_file_split_agrees_with_the_captured_lru_lists(kernel, group):
    stat, _ = captured(kernel, group)
    split = metrics.anon_file_split(stat["anon"], stat["file"], stat["shmem"])
    # Pages that a CPU has yet to put onto their list are on none: some tens, in one of the captures.
    moving = 0 if kernel.endswith("v2") else 64 * 4096
    assert 0 <= split.swap_backed_bytes - stat["inactive_anon"] - stat["active_anon"] <= moving
    assert 0 <= split.file_backed_bytes - stat["inactive_file"] - stat["active_file"] <= moving


# ---- How much is left ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("none", [None, V2_NONE, V1_NONE, RING_NONE, 2**63 - 65536])
def test_no_limit_leaves_endless_headroom(none):
    assert metrics.headroom(np.array([0, MIB], dtype=np.uint64), none).tolist() == [math.inf, math.inf]
    assert metrics.headroom(MIB, none, [(2 * MIB, 10 * MIB)]) == 8 * MIB


def test_headroom_is_that_of_the_nearest_level():
    usage = np.array([10, 20, 120])
    parent = np.array([50, 70, 130])
    headroom = metrics.headroom(usage, 100, [(parent, 80), (1000, None)])
    assert headroom.tolist() == [30.0, 10.0, 0.0]


def test_headroom_where_a_limit_comes_and_goes():
    limits = np.array([100, V2_NONE, 30], dtype=np.uint64)
    assert metrics.headroom(np.array([40, 40, 40], dtype=np.uint64), limits).tolist() == [60.0, math.inf, 0.0]


def test_headroom_of_the_captured_group():
    usage, limit = (number("6.12-v2", f"{V2}/memory.{name}") for name in ("current", "max"))
    assert metrics.headroom(usage, limit) == 98_304


@given(levels=st.lists(st.tuples(SIZES, st.one_of(st.none(), SIZES, st.just(V2_NONE))), min_size=1, max_size=5))
def test_headroom_never_exceeds_that_of_any_level(levels):
    (usage, limit), *ancestors = levels
    headroom = metrics.headroom(usage, limit, ancestors)
    each = [math.inf if most is None or most >= 2**62 else max(0, most - used) for used, most in levels]
    assert headroom == min(each)


@given(t_ns=windows(min_rows=2, min_step=S // 10_000), slope=st.integers(-1000, 1000), start=st.integers(0, 2**40))
def test_growth_finds_a_straight_line(t_ns, slope, start):
    usage = start + slope * ((t_ns - t_ns[0]) / S) * MIB
    assert metrics.growth(t_ns, usage) == pytest.approx(slope * MIB, rel=1e-6, abs=1.0)


@pytest.mark.parametrize("rows", [40, 1000])
def test_growth_is_not_moved_by_spikes(rows):
    t_ns = LATE + np.arange(rows, dtype=np.int64) * S
    usage = 100 * MIB + np.arange(rows) * 4096
    usage[rows // 8 : rows // 4] += 50 * MIB
    assert metrics.growth(t_ns, usage) == pytest.approx(4096, rel=0.25)
    assert np.polyfit(np.arange(rows), usage, 1)[0] < -4096 * 4  # a plain fit would say that it shrinks


def test_growth_counts_time_not_ticks():
    # 9 s of growth at 10 ms a tick, then 1 s of rest at 1 ms: as many ticks.
    t_ns = np.concatenate([np.arange(0, 9 * S, S // 100), np.arange(9 * S, 10 * S, S // 1000)])
    usage = np.minimum(t_ns, 9 * S) // 1000
    assert metrics.growth(t_ns, usage) == pytest.approx(1e6, rel=0.05)


@pytest.mark.parametrize(
    ("t_ns", "usage"),
    [([], []), ([5], [1]), ([5, 5], [1, 2]), ([5, 6], [1.0, np.nan]), ([5, 6], [np.nan, np.nan])],
)
def test_growth_needs_two_moments(t_ns, usage):
    assert math.isnan(metrics.growth(t_ns, usage))


def test_growth_leaves_out_what_is_not_known():
    assert metrics.growth([0, S, 2 * S], [100.0, np.nan, 300.0]) == 100.0


@pytest.mark.parametrize(
    ("headroom", "growth", "seconds"),
    [
        (100.0, 10.0, 10.0),
        (100, 10, 10.0),
        (100.0, 0.0, math.inf),
        (100.0, -5.0, math.inf),
        (math.inf, 10.0, math.inf),
        (0.0, 10.0, 0.0),
        (0.0, 0.0, 0.0),  # at the limit reclaim keeps usage from growing
        (0.0, math.nan, 0.0),
        (100.0, math.nan, math.nan),
        (math.nan, 10.0, math.nan),
    ],
)
def test_time_to_limit(headroom, growth, seconds):
    assert metrics.time_to_limit(headroom, growth) == pytest.approx(seconds, nan_ok=True)


def test_time_to_limit_over_rows():
    assert metrics.time_to_limit(floats(10, 0, 30), 10.0).tolist() == [1.0, 0.0, 3.0]
    assert metrics.time_to_limit(floats(), 10.0).size == 0


# ---- Two channels on one clock -------------------------------------------------------------------------------------


def test_align_takes_the_last_value_at_or_before_and_tells_its_age():
    values, age_ns = metrics.align([5, 10, 15, 20, 99], [10, 20], np.array([1, 2], dtype=np.uint64))
    assert np.array_equal(values, floats(np.nan, 1, 1, 2, 2), equal_nan=True)
    assert np.array_equal(age_ns, floats(np.nan, 0, 5, 0, 79), equal_nan=True)


def test_align_takes_a_plain_number_and_an_empty_source():
    assert metrics.align(15, [10, 20], [7, 8]) == (7.0, 5.0)
    assert np.isnan(metrics.align([1, 2], [], []).values).tolist() == [True, True]
    assert metrics.align([], [1], [2]).values.shape == (0,)


@pytest.mark.parametrize("wanted", [np.int64, np.uint64])
@pytest.mark.parametrize("source", [np.int64, np.uint64])
def test_align_is_exact_late_after_boot_whatever_the_types(wanted, source):
    source_t_ns = np.array([LATE, LATE + 2], dtype=source)
    values, age_ns = metrics.align(np.array([LATE, LATE + 1, LATE + 2], dtype=wanted), source_t_ns, [1, 2])
    assert values.tolist() == [1.0, 1.0, 2.0]
    assert age_ns.tolist() == [0.0, 1.0, 0.0]


def test_align_refuses_a_source_of_two_lengths():
    with pytest.raises(ValueError, match="1-D"):
        metrics.align([1], [1, 2], [1])


@given(t_ns=windows(), source_t_ns=windows())
def test_align_agrees_with_looking_it_up_one_by_one(t_ns, source_t_ns):
    values = np.arange(source_t_ns.size)
    aligned = metrics.align(t_ns, source_t_ns, values)
    for t, value, age in zip(t_ns.tolist(), *(column.tolist() for column in aligned), strict=True):
        before = [i for i, source in enumerate(source_t_ns.tolist()) if source <= t]
        if before:
            assert value == before[-1]
            assert age == float(t - source_t_ns.tolist()[before[-1]])
        else:
            assert math.isnan(value)
            assert math.isnan(age)


@given(usage=sizes(), stale=sizes())
def test_a_working_set_over_aligned_rows(usage, stale):
    assume(stale.size > 0)
    t_ns = np.arange(usage.size) * S // 1000
    inactive, _ = metrics.align(t_ns, np.arange(stale.size) * S // 10 + S // 20, stale)
    working_set = metrics.working_set(usage, inactive)
    assert np.array_equal(np.isnan(working_set), t_ns < S // 20)
    assert np.all((working_set >= 0) | np.isnan(working_set))
