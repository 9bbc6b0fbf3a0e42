# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fakecgroup import KERNELS
from hypothesis import given
from hypothesis import strategies as st

from pymemcg import schema

DATA = Path(__file__).parents[1] / "data"
V1, V2 = (f"sys/fs/cgroup/{hierarchy}pmc-parent/pmc-child/memory.stat" for hierarchy in ("memory/", ""))
STAT = {kernel: V2 if kernel.endswith("v2") else V1 for kernel in KERNELS}
SUFFIXES = {"_ns": "ns", "_us": "us", "_bytes": "bytes", "_pages": "pages", "_hits": "events", "_kills": "events"}
# What the ring's tables hold.
RING_COLUMNS, RING_NAME_BYTES, RING_UNIT_BYTES = 128, 47, 15


def keys_of(kernel, path):
    return [line.split()[0] for line in (DATA / kernel / path).read_text().splitlines()]


def by_name(fields):
    return {field.name: field for field in fields}


def test_channels_carry_the_unit_in_the_name():
    for columns in schema.CHANNELS.values():
        assert next(iter(columns)) in ("t_ns", "start_ns")  # a moment, or an interval
        for column, unit in columns.items():
            for suffix, said in SUFFIXES.items():
                if column.endswith(suffix):
                    assert unit == said, column


def test_a_column_of_several_channels_has_one_unit():
    for columns in schema.CHANNELS.values():
        assert {column: schema.unit_of(column) for column in columns} == columns


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel.endswith("v2")])
def test_v2_stat_is_taken_whole_in_the_files_order(kernel):
    keys = keys_of(kernel, STAT[kernel])
    fields = schema.stat_fields(keys, 2)
    assert [field.key for field in fields] == keys
    assert [field.name for field in fields] == keys


@pytest.mark.parametrize("kernel", STAT)
def test_every_captured_stat_key_has_a_unit_and_fits_the_ring(kernel):
    fields = schema.stat_fields(keys_of(kernel, STAT[kernel]), 2 if kernel.endswith("v2") else 1)
    assert len(fields) < RING_COLUMNS
    for field in fields:
        assert field.unit in {"bytes", "pages", "events"}, field
        assert field.unit == schema.unit_of(field.name)
        assert len(field.name) <= RING_NAME_BYTES
        assert len(field.unit) <= RING_UNIT_BYTES


@pytest.mark.parametrize(("kernel", "lacking"), [("6.1-v1", {"swapcached"}), ("6.18-hybrid", set())])
def test_captured_v1_stat_gets_the_names_of_v2(kernel, lacking):
    fields = schema.stat_fields(keys_of(kernel, STAT[kernel]), 1)
    names = {
        "file": "total_cache",
        "anon": "total_rss",
        "anon_thp": "total_rss_huge",
        "shmem": "total_shmem",
        "file_mapped": "total_mapped_file",
        "file_dirty": "total_dirty",
        "file_writeback": "total_writeback",
        "workingset_refault_anon": "total_workingset_refault_anon",
        "workingset_refault_file": "total_workingset_refault_file",
        "swap": "total_swap",
        "swapcached": "total_swapcached",
        "pgpgin": "total_pgpgin",
        "pgpgout": "total_pgpgout",
        "pgfault": "total_pgfault",
        "pgmajfault": "total_pgmajfault",
        "inactive_anon": "total_inactive_anon",
        "active_anon": "total_active_anon",
        "inactive_file": "total_inactive_file",
        "active_file": "total_active_file",
        "unevictable": "total_unevictable",
    }
    assert {field.name: field.key for field in fields} == {name: key for name, key in names.items() if name not in lacking}
    for field in fields:
        assert schema.raw_name(field.name, 1) == field.key


def test_v1_names_that_v2_has_too_mean_the_same_unit():
    v1 = by_name(schema.stat_fields(keys_of("6.18-hybrid", STAT["6.18-hybrid"]), 1))
    v2 = by_name(schema.stat_fields(keys_of("6.12-v2", STAT["6.12-v2"]), 2))
    shared = v1.keys() & v2.keys()
    assert v1.keys() - shared == {"swap", "pgpgin", "pgpgout"}
    assert {name: v1[name].unit for name in shared} == {name: v2[name].unit for name in shared}


def test_v1_without_a_subtree_half_falls_back_to_the_groups_own():
    fields = schema.stat_fields(["cache", "rss", "anon_cost", "total_rss", "hierarchical_memory_limit"], 1)
    assert fields == [
        schema.Field("cache", "file", "bytes"),
        schema.Field("anon_cost", "anon_cost", ""),
        schema.Field("total_rss", "anon", "bytes"),
    ]


def test_unknown_keys_pass_and_their_unit_is_not_guessed():
    assert schema.stat_fields(["anon", "brand_new"], 2)[1] == schema.Field("brand_new", "brand_new", "")


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        ("anon", "bytes"),
        ("pagetables", "bytes"),  # starts like the page counts
        ("percpu", "bytes"),
        ("zswap", "bytes"),
        ("zswpin", "pages"),
        ("pgscan", "pages"),
        ("pgsteal_proactive", "pages"),
        ("workingset_refault_file", "pages"),
        ("workingset_nodereclaim", "events"),
        ("pgfault", "events"),
        ("thp_fault_alloc", "events"),
        ("allocstall_normal", "events"),
        ("usage_bytes", "bytes"),
        ("late_ns", "ns"),
        ("level", ""),
    ],
)
def test_unit_of(column, unit):
    assert schema.unit_of(column) == unit


@pytest.mark.parametrize("kernel", STAT)
def test_node_takes_few_keys_of_vmstat(kernel):
    keys = keys_of(kernel, "proc/vmstat")
    fields = schema.node_fields(keys)
    names = [field.name for field in fields]
    assert names == [field.key for field in fields] == [key for key in keys if key in names]
    assert len(fields) <= 20
    assert {
        *(key for key in keys if key.startswith("allocstall_")),  # of the zones that there are
        "allocstall_normal",
        "allocstall_movable",
        "pswpin",
        "pswpout",
        "pgscan_direct",
        "pgscan_kswapd",
        "pgsteal_direct",
        "pgsteal_kswapd",
        "pgmajfault",
        "oom_kill",
        "compact_stall",
        "workingset_refault_anon",
        "workingset_refault_file",
    } <= set(names)
    assert "nr_free_pages" not in names
    for field in fields:
        assert field.unit in {"pages", "events"}, field


def test_node_takes_the_keys_of_old_kernels():
    fields = schema.node_fields(["allocstall", "workingset_refault", "allocstalled"])
    assert fields == [
        schema.Field("allocstall", "allocstall", "events"),
        schema.Field("workingset_refault", "workingset_refault", "pages"),
    ]


@pytest.mark.parametrize(
    ("column", "version", "raw"),
    [
        ("anon", 1, "total_rss"),
        ("anon", 2, "anon"),
        ("inactive_file", 1, "total_inactive_file"),
        ("usage_bytes", 1, "memory.usage_in_bytes"),
        ("usage_bytes", 2, "memory.current"),
        ("limit_hits", 1, "memory.failcnt"),
        ("limit_hits", 2, "memory.events:max"),
    ],
)
def test_raw_name(column, version, raw):
    assert schema.raw_name(column, version) == raw


@pytest.mark.parametrize(("column", "version"), [("high_hits", 1), ("memsw_hits", 2), ("t_ns", 1), ("rss_bytes", 2)])
def test_raw_name_of_what_a_version_does_not_have(column, version):
    with pytest.raises(KeyError, match=column):
        schema.raw_name(column, version)


@pytest.mark.parametrize("version", [0, 3])
def test_there_are_two_cgroup_versions(version):
    with pytest.raises(ValueError, match="cgroup version"):
        schema.stat_fields(["anon"], version)
    with pytest.raises(ValueError, match="cgroup version"):
        schema.raw_name("anon", version)


STEMS = st.sampled_from(["rss", "cache", "anon", "file", "dirty", "swap", "pgfault", "new"])
KEYS = st.lists(st.one_of(STEMS, STEMS.map("total_{}".format), st.just("hierarchical_memory_limit")))


@given(keys=KEYS, version=st.sampled_from([1, 2]))
def test_column_names_are_unique_and_nothing_is_made_up(keys, version):
    fields = schema.stat_fields(keys, version)
    names = [field.name for field in fields]
    assert len(set(names)) == len(names)
    assert {field.key for field in fields} <= set(keys)


def test_needs_neither_numpy_nor_the_extension():
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('schema', {schema.__file__!r})\n"
        "module = sys.modules['schema'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert module.stat_fields(['total_rss'], 1)[0].name == 'anon'\n"
        "print([name for name in sys.modules if name.startswith(('numpy', 'cffi', '_cffi', 'pymemcg'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
