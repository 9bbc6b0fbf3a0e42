# SPDX-License-Identifier: Apache-2.0
"""One reading of a group's counters, without a sampler, threads, rings or numpy: what still works in a container that is full.

PSI is not read: a read ends the window over which the kernel weighs the group's CPUs against each other, and may lose the
group a jiffy of its stall time (concepts: pressure). Only the sampler, which waits until a read is harmless, does.
"""

from __future__ import annotations

import time
from typing import Any

from pymemcg import _ffi
from pymemcg.cgroup import Level, Target
from pymemcg.errors import SourceError
from pymemcg.plan import Plan, make_plan

PRESSURE_UNREAD = (
    "not read: a single reading says nothing, and costs the group up to a jiffy of its stall time; use the sampler"
)

# Of memory.stat under the common names, with the unit in the name.
STAT_NAMES = {
    "anon": "anon_bytes",
    "file": "file_bytes",
    "shmem": "shmem_bytes",
    "inactive_file": "inactive_file_bytes",
    "file_dirty": "file_dirty_bytes",
    "slab_reclaimable": "slab_reclaimable_bytes",
    "swap": "swap_bytes",
    "pgfault": "faults",
    "pgmajfault": "major_faults",
}


def default_plan(target: Target) -> Plan:
    """What a `Sampler` with its default options would sample.

    Raises:
        SourceError: A file that a sampler cannot do without cannot be read.
    """
    return make_plan(target, rate_hz=1000, stat_rate_hz=10, history_s=60, adaptive=True)


def _read_value(level: Level, role: str) -> int | None:
    """A limit or the usage of a level; None where there is none, or it cannot be read (any more)."""
    if role not in level.files:
        return None
    try:
        value = _ffi.read_source(f"{level.directory}/{level.files[role]}", _ffi.VALUE)[""]
    except SourceError:
        return None
    return None if value == _ffi.NONE else value


def read_levels(target: Target) -> list[dict[str, Any]]:
    """Limits and usage of the group itself and of each visible ancestor.

    Returns:
        name, usage_bytes, limit_bytes and high_bytes of each; None = not there, or no limit.
    """
    return [
        {"name": level.name} | {f"{role}_bytes": _read_value(level, role) for role in ("usage", "limit", "high")}
        for level in target.levels
    ]


def read_limits(target: Target) -> dict[str, Any]:
    """The effective limit, which is the least of all levels, and what is left below the nearest.

    Returns:
        limit_bytes, limit_level, headroom_bytes, headroom_level; None where nothing limits. They may speak of two levels: an
        ancestor with a larger limit may have less room left. memory.high, which slows down instead of stopping, is none.
    """
    levels = [level for level in read_levels(target) if level["limit_bytes"] is not None]
    least = min(levels, key=lambda level: level["limit_bytes"], default={})
    room = [
        (max(0, level["limit_bytes"] - level["usage_bytes"]), level["name"])
        for level in levels
        if level["usage_bytes"] is not None
    ]
    headroom, nearest = min(room, key=lambda pair: pair[0], default=(None, None))
    return {
        "limit_bytes": least.get("limit_bytes"),
        "limit_level": least.get("name"),
        "headroom_bytes": headroom,
        "headroom_level": nearest,
    }


def absent_limit(limits: dict[str, Any]) -> dict[str, str]:
    """What `read_limits` found, or why it found nothing, as an entry of `absent`."""
    return {} if limits["limit_bytes"] is not None else {"limit": "no group that can be seen from here has one"}


def read_once(target: Target) -> dict[str, Any]:
    """Read the counters once.

    Returns:
        t_ns (CLOCK_MONOTONIC) and realtime_ns; group (its directory) and cgroup_version; usage_bytes, the hits and oom_kills
        as in the `usage` channel; what `read_limits` returns; working_set_bytes as the kubelet counts it; some of memory.stat
        (`STAT_NAMES`); absent: what is not here, and why. What is absent has no key or is None, and is never 0.

    Raises:
        SourceError: A file of the group cannot be read.
    """
    plan = default_plan(target)
    reading: dict[str, Any] = {
        "t_ns": time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        "realtime_ns": time.time_ns(),
        "group": target.directory,
        "cgroup_version": target.version,
    }
    stat: dict[str, int] = {}
    for feed in plan.feeds:
        if feed.channel in ("usage", "stat") and feed.form != _ffi.STATM:
            values = _ffi.read_source(feed.path, feed.form)
            into = reading if feed.channel == "usage" else stat
            into.update((column, values[key]) for key, column in feed.fields.items() if key in values)
    reading.update(read_limits(target))
    if "usage_bytes" in reading and "inactive_file" in stat:
        reading["working_set_bytes"] = max(0, reading["usage_bytes"] - stat["inactive_file"])
    reading.update((name, stat[key]) for key, name in STAT_NAMES.items() if key in stat)
    reading["absent"] = {"pressure": PRESSURE_UNREAD} | plan.absent | absent_limit(reading)
    return reading
