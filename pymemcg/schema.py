# SPDX-License-Identifier: Apache-2.0
"""Names and units of every column, and how the two cgroup versions' names map onto them.

Kernel names stay kernel names. Where cgroup v1 and v2 call one thing by two names, the column has v2's, so that
everything after this module need not know the version; `raw_name` gives the kernel's own back.

Pure data and pure functions: no numpy, no extension, safe to use from any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Field:
    """One value of a kernel file and the column it becomes.

    Attributes:
        key: The key in the kernel's file; "" where the file is a single value.
        name: The column's name.
        unit: "bytes", "ns", "us", "pages", "events", or "" where the value has none or it is not known.
    """

    key: str
    name: str
    unit: str


# ---- The channels --------------------------------------------------------------------------------------------------

# A file may lack some of these (v1 has no high, v2 no memsw): then the column is absent, not 0.
USAGE_UNITS: Final[dict[str, str]] = {
    "t_ns": "ns",
    "late_ns": "ns",
    "usage_bytes": "bytes",
    "limit_hits": "events",
    "memsw_hits": "events",
    "high_hits": "events",
    "oom_kills": "events",
    "rss_bytes": "bytes",
    "shared_bytes": "bytes",
}
# Followed by the columns of `stat_fields`.
STAT_UNITS: Final[dict[str, str]] = {"t_ns": "ns"}
PRESSURE_UNITS: Final[dict[str, str]] = {
    "t_ns": "ns",
    "since_ns": "ns",
    "some_us": "us",
    "full_us": "us",
    "cpu_us": "us",
    "cpu_wait_us": "us",
}
LIMITS_UNITS: Final[dict[str, str]] = {
    "t_ns": "ns",
    "level": "",
    "limit_bytes": "bytes",
    "high_bytes": "bytes",
    "usage_bytes": "bytes",
    "hits": "events",
}
# Followed by the columns of `node_fields`.
NODE_UNITS: Final[dict[str, str]] = {"t_ns": "ns"}
PROCESSES_UNITS: Final[dict[str, str]] = {
    "t_ns": "ns",
    "pid": "",
    "rss_bytes": "bytes",
    "shared_bytes": "bytes",
    "virtual_bytes": "bytes",
}
RECLAIM_UNITS: Final[dict[str, str]] = {
    "start_ns": "ns",
    "end_ns": "ns",
    "pid": "",
    "tid": "",
    "kind": "",
    "reclaimed_pages": "pages",
    "cpu_wait_ns": "ns",
}
RECLAIM_KINDS: Final[dict[int, str]] = {1: "memcg", 2: "direct", 3: "compaction", 4: "throttled", 5: "high"}
"""What the numbers in `kind` mean: reclaim at a group's limit, or of the whole node; direct compaction; a wait inside one of
the first two; and a thread that was seen asleep at memory.high, which is a moment and no interval (end_ns = start_ns)."""
SPANS_UNITS: Final[dict[str, str]] = {
    "start_ns": "ns",
    "end_ns": "ns",
    "tid": "",
    "name_id": "",
    "ref_id": "",
    "attribution": "",
    "ran_start_ns": "ns",
    "ran_end_ns": "ns",
}
SPAN_ATTRIBUTIONS: Final[dict[int, str]] = {1: "thread", 2: "pool", 3: "loop"}
"""What the numbers in `attribution` mean: `tid` did all the work; it did it from `ran_start_ns` to `ran_end_ns` for another
thread that waited; or it did other work, too, while this one waited."""
CLOCK_UNITS: Final[dict[str, str]] = {"t_ns": "ns", "realtime_ns": "ns"}
EVENTS_UNITS: Final[dict[str, str]] = {"t_ns": "ns", "since_ns": "ns", "kind": "", "value": ""}

CHANNELS: Final[dict[str, dict[str, str]]] = {
    "usage": USAGE_UNITS,
    "stat": STAT_UNITS,
    "pressure": PRESSURE_UNITS,
    "limits": LIMITS_UNITS,
    "node": NODE_UNITS,
    "processes": PROCESSES_UNITS,
    "reclaim": RECLAIM_UNITS,
    "spans": SPANS_UNITS,
    "clock": CLOCK_UNITS,
    "events": EVENTS_UNITS,
}
"""Channel to its columns and their units; those of `stat_fields` and `node_fields` come on top."""

# ---- memory.stat ---------------------------------------------------------------------------------------------------

# v1 says each figure twice: for the group alone, and with this prefix for its subtree, which is what v2's always mean.
_SUBTREE: Final = "total_"

# These pairs are the same counter of the kernel under two names. In particular v1's cache, like v2's file, includes
# shmem and tmpfs; and v1's rss, like v2's anon, is anonymous memory only, unlike the RSS of a process, which counts
# mapped files.
_V1_TO_COMMON: Final[dict[str, str]] = {
    "rss": "anon",
    "cache": "file",
    "rss_huge": "anon_thp",
    "mapped_file": "file_mapped",
    "dirty": "file_dirty",
    "writeback": "file_writeback",
}
_COMMON_TO_V1: Final[dict[str, str]] = {common: v1 for v1, common in _V1_TO_COMMON.items()}

# All other v1 names are v2's as well, or have no partner there and keep their own name:
# - swap: v2 keeps it in memory.swap.current, not in memory.stat.
# - pgpgin, pgpgout: charges to and uncharges from the group, one for each folio whatever its size. They are not the
#   pgpgin and pgpgout of /proc/vmstat, which are KiB moved from and to disks.
# v1 has no figure for what v2 calls kernel, slab, sock, percpu, pgscan and pgsteal. Usage differs there too: TCP
# buffers are part of v2's memory.current, whereas v1 keeps them apart, in memory.kmem.tcp.usage_in_bytes.

# Limits of the ancestors, folded into memory.stat by v1; the `limits` channel has them level by level.
_V1_LIMITS: Final[frozenset[str]] = frozenset({"hierarchical_memory_limit", "hierarchical_memsw_limit"})

_STAT_BYTES: Final[frozenset[str]] = frozenset(
    {
        "anon",
        "file",
        "kernel",
        "kernel_stack",
        "pagetables",
        "sec_pagetables",
        "percpu",
        "sock",
        "vmalloc",
        "shmem",
        "zswap",
        "zswapped",
        "zswap_incomp",
        "file_mapped",
        "file_dirty",
        "file_writeback",
        "swapcached",
        "anon_thp",
        "file_thp",
        "shmem_thp",
        "inactive_anon",
        "active_anon",
        "inactive_file",
        "active_file",
        "unevictable",
        "slab_reclaimable",
        "slab_unreclaimable",
        "slab",
        "hugetlb",
        "swap",
    }
)
# Counted once for each occurrence, whatever the number of pages in it.
_EVENTS: Final[frozenset[str]] = frozenset(
    {
        "pgfault",
        "pgmajfault",
        "pgpgin",
        "pgpgout",
        "workingset_nodereclaim",
        "numa_hint_faults",
        "oom_kill",
        "compact_stall",
    }
)
_EVENT_PREFIXES: Final = ("thp_", "allocstall")
# Cumulative counts of base pages. `pagetables` and `percpu` do not start with these.
_PAGE_PREFIXES: Final = ("pg", "workingset_", "zswp", "pswp", "swpin_", "swpout_", "numa_")


def _kernel_unit(name: str) -> str:
    if name in _STAT_BYTES:
        return "bytes"
    if name in _EVENTS or name.startswith(_EVENT_PREFIXES):
        return "events"
    if name.startswith(_PAGE_PREFIXES):
        return "pages"
    return ""  # a key of a kernel newer than this list, or a debugging one: its values pass, its unit is not guessed


def stat_fields(keys: Iterable[str], version: int) -> list[Field]:
    """Say which keys of memory.stat become columns of the `stat` channel, and under which names.

    Of v1 the subtree's half is taken (`total_rss` becomes `anon`), the group's own only where a key has no subtree's
    half; its hierarchical limits are left out. Of v2 every key is taken as it is. Unknown keys pass.

    Args:
        keys: The keys of memory.stat, in the file's order.
        version: The memory controller's cgroup version, 1 or 2.

    Returns:
        The fields in the file's order; no two have the same name.

    Raises:
        ValueError: If the version is neither 1 nor 2.
    """
    _check_version(version)
    ordered = list(dict.fromkeys(keys))
    if version == 2:
        return [Field(key, key, _kernel_unit(key)) for key in ordered]
    present = frozenset(ordered)
    fields: dict[str, Field] = {}
    for key in ordered:
        if key in _V1_LIMITS or _SUBTREE + key in present:
            continue
        stem = key.removeprefix(_SUBTREE)
        name = _V1_TO_COMMON.get(stem, stem)
        fields.setdefault(name, Field(key, name, _kernel_unit(name)))
    return list(fields.values())


# ---- /proc/vmstat --------------------------------------------------------------------------------------------------

# Global direct reclaim is told by allocstall_* alone: a group's reclaim at its own limit does not count there, nor in
# pgscan_direct. compact_stall is the other wait of the page allocator that memory pressure (PSI) includes. Older
# kernels (5.8) count refaults as one number.
_NODE_KEYS: Final[frozenset[str]] = frozenset(
    {
        "pswpin",
        "pswpout",
        "pgmajfault",
        "pgscan_direct",
        "pgscan_kswapd",
        "pgsteal_direct",
        "pgsteal_kswapd",
        "oom_kill",
        "compact_stall",
        "workingset_refault",
        "workingset_refault_anon",
        "workingset_refault_file",
    }
)


def node_fields(keys: Iterable[str]) -> list[Field]:
    """Say which keys of /proc/vmstat become columns of the `node` channel.

    Few of its some 150 keys do: what tells reclaim, swapping and kills of the whole machine. Global direct reclaim is
    counted for each zone (`allocstall_normal`, `allocstall_movable`, …; one plain `allocstall` on old kernels), a
    column each.

    Args:
        keys: The keys of /proc/vmstat, in the file's order.

    Returns:
        The fields in the file's order, at most 20.
    """
    return [
        Field(key, key, _kernel_unit(key))
        for key in dict.fromkeys(keys)
        if key in _NODE_KEYS or key == "allocstall" or key.startswith("allocstall_")
    ]


# ---- Names and units by column -------------------------------------------------------------------------------------

RAW_NAMES: Final[dict[int, dict[str, str]]] = {
    1: {
        "usage_bytes": "memory.usage_in_bytes",
        "limit_hits": "memory.failcnt",
        "memsw_hits": "memory.memsw.failcnt",
        "oom_kills": "memory.oom_control:oom_kill",
        "limit_bytes": "memory.limit_in_bytes",
        "hits": "memory.failcnt",
    },
    2: {
        "usage_bytes": "memory.current",
        "limit_hits": "memory.events:max",
        "high_hits": "memory.events:high",
        "oom_kills": "memory.events:oom_kill",
        "limit_bytes": "memory.max",
        "high_bytes": "memory.high",
        "hits": "memory.events:max",
    },
}
"""By cgroup version, "file" or "file:key" of the columns that do not come from memory.stat.

What a version does not have is not listed. The hits differ in what they count: v1's failcnt only charges that failed at the
group's own limit, v2's events also those at the limits of its descendants. `hits` of an ancestor on v2 are `max` and `high`
of its memory.events.local, where there is one (5.2).
"""

_STATIC_UNITS: Final[dict[str, str]] = {column: unit for units in CHANNELS.values() for column, unit in units.items()}


def raw_name(column: str, version: int) -> str:
    """Give the kernel's own name of a column.

    Args:
        column: A column's name, such as `usage_bytes` or `anon`.
        version: The memory controller's cgroup version, 1 or 2.

    Returns:
        A key of memory.stat (`total_rss`), or for the other columns the file (`memory.failcnt`) or "file:key"
        (`memory.events:max`).

    Raises:
        ValueError: If the version is neither 1 nor 2.
        KeyError: If that version has no file for the column, or it comes from no cgroup file at all.
    """
    _check_version(version)
    raw = RAW_NAMES[version].get(column)
    if raw is not None:
        return raw
    if column in _STATIC_UNITS:
        raise KeyError(f"{column}: cgroup v{version} has no file for it")
    if version == 2:
        return column
    return _SUBTREE + _COMMON_TO_V1.get(column, column)


def unit_of(column: str) -> str:
    """Give the unit of a column of any channel.

    Args:
        column: A column's name.

    Returns:
        "bytes", "ns", "us", "pages" or "events"; "" where there is none or it is not known.
    """
    unit = _STATIC_UNITS.get(column)
    return _kernel_unit(column) if unit is None else unit


def _check_version(version: int) -> None:
    if version not in (1, 2):
        raise ValueError(f"cgroup version {version!r}: there are 1 and 2")
