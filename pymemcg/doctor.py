# SPDX-License-Identifier: Apache-2.0
"""What can be measured here, for which group, and what each missing thing would need: facts, for people and for programs.

Nothing is started, changed or left behind, and PSI is not read (on kernels before 5.8 once: they have its file even where it is
off, and nothing but a read tells).
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from typing import Any

from pymemcg import _ffi, sharing
from pymemcg._version import __version__
from pymemcg.cgroup import Target, resolve
from pymemcg.errors import MemcgError, TargetError
from pymemcg.once import default_plan, read_levels, read_limits
from pymemcg.plan import Plan
from pymemcg.ring import Ring, create
from pymemcg.surroundings import Check, State, check_surroundings, memlock_bytes

BUDGET_BYTES = 8 << 20
"""What the default sampler may hold in all; the service's own limit pays for it."""

# Of the sampler's buffers beside its ring: a keyed file's two readings, its keys and its text; any other file's one page; what
# its two threads touch of their stacks. Upper bounds, as a live test sees to.
_KEYED_BYTES, _OTHER_BYTES, _STACKS_BYTES = 96 << 10, 4 << 10, 96 << 10

# What the two versions of cgroups do not have in common is no lack, and goes without saying.
_OTHER_VERSION = {1: (), 2: ("memsw_limit", "memsw_hits")}
_NEEDS = {
    "high": "cgroup v2 (boot with systemd.unified_cgroup_hierarchy=1)",
    "limit_hits": "a limit on memory and swap (memsw) above that on memory",
    "memsw_hits": "a kernel before Linux 6.15, with memory on cgroup v1",
    "oom_kills": "kernel 4.13 or later",
    "pressure": "kernel 4.20 or later with PSI on, and a cgroup2 group of the service's own",
    "cpu": "a cgroup2 group of the service's own",
    "usage": "a group below the root",
}


def examine(spec: str = "self", *, root: str = "/") -> dict[str, Any]:
    """Look at everything.

    Args:
        spec: The target; see `pymemcg.resolve`.
        root: Where the group's machine has its `/`; another one than "/" in tests.

    Returns:
        pymemcg, python, kernel, machine, page_bytes; group: None where there is none, else spec, layout, cgroup_version,
        directory, cgroup2_directory, pressure_file, pressure_scope, own, what `read_limits` returns, and levels; checks: a
        list of `Check`. The same for text and for JSON.

    Raises:
        TargetError: There is no such target.
    """
    report: dict[str, Any] = {
        "pymemcg": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "page_bytes": os.sysconf("SC_PAGESIZE"),
        "group": None,
    }
    checks: list[Check] = []
    try:
        target = resolve(spec, root=root)
        plan = default_plan(target)
    except TargetError:
        raise
    except MemcgError as error:
        checks.append(Check("group", "no", str(error), error.hint))
    else:
        report["group"] = _group(target)
        checks += _check_channels(plan)
        checks += _check_absent(plan)
        checks += _check_sampler(plan)
    report["checks"] = checks + list(check_surroundings())
    return report


def _group(target: Target) -> dict[str, Any]:
    said = {name: getattr(target, name) for name in ("spec", "layout", "directory", "cgroup2_directory")}
    said |= {name: getattr(target, name) for name in ("pressure_file", "pressure_scope", "own")}
    return said | {"cgroup_version": target.version} | read_limits(target) | {"levels": read_levels(target)}


def _check_channels(plan: Plan) -> Iterator[Check]:
    columns = {spec.name: [name for name in spec.columns if not name.endswith("_ns")] for spec in plan.channels}
    usage = columns["usage"]
    if "usage_bytes" in usage:
        yield Check("usage", "yes", f"1,000 rows a second: {' '.join(usage)}", facts={"columns": usage})
    if "stat" in columns:
        says = f"10 rows a second: {len(columns['stat'])} figures of memory.stat"
        if plan.target.version == 1:
            says += " (cgroup v1's has no pgscan and no pgsteal)"
        yield Check("stat", "yes", says, facts={"columns": columns["stat"]})
    if "pressure" in columns:
        yield _check_pressure(plan)
    if "node" in columns:
        yield Check(
            "node",
            "yes",
            f"10 rows a second: {len(columns['node'])} figures of /proc/vmstat",
            facts={"columns": columns["node"]},
        )
    levels = len(plan.target.levels)
    says = f"limits and hits of {levels} level{'s' * (levels != 1)}, a row a change; 10 rows a second for each process"
    yield Check("limits, processes", "yes", says)


def _check_pressure(plan: Plan) -> Check:
    facts = {"scope": plan.target.pressure_scope, "file": plan.target.pressure_file}
    if plan.target.pressure_scope == "host":
        says = "PSI is there, but speaks of the whole host: in cgroup2 this group's processes are in the root"
        return Check("pressure", "partly", says, "a cgroup2 group of the service's own", facts)
    says = "PSI of this group, read only when that costs it next to nothing: seldom, and the more seldom the quieter it is"
    return Check("pressure", "yes", says, facts=facts)


def _check_absent(plan: Plan) -> Iterator[Check]:
    for name, reason in plan.absent.items():
        if name not in _OTHER_VERSION[plan.target.version]:
            state: State = "info" if name in ("group", "ancestors") else "no"
            yield Check(name, state, reason, _NEEDS.get(name))


def _check_sampler(plan: Plan) -> Iterator[Check]:
    ring, buffers = _held_bytes(plan)
    held = ring + buffers
    says = f"{held / 2**20:.1f} MiB while it samples: rings {ring / 2**20:.1f}, buffers and stacks up to {buffers / 2**20:.1f}"
    facts: dict[str, Any] = {"ring_bytes": ring, "buffers_bytes_at_most": buffers, "held_bytes_at_most": held}
    state: State = "yes" if held <= BUDGET_BYTES else "partly"
    yield Check(
        "sampler's memory", state, says, None if held <= BUDGET_BYTES else "fewer levels, or a shorter history_s", facts
    )
    most = memlock_bytes()
    facts = {"memlock_bytes": most, "ring_bytes": ring}
    if most is None or most >= ring:
        says = "as much as it wants" if most is None else f"{most / 2**20:.1f} MiB, enough"
        yield Check("locked memory", "yes", f"{says}: the sampler will never wait for its own memory", facts=facts)
    else:
        says = f"RLIMIT_MEMLOCK is {most // 2**10:,} KiB: the rings are touched beforehand but can be swapped out"
        yield Check("locked memory", "partly", says, f"ulimit -l {-(-held // 1024)}, or CAP_IPC_LOCK", facts)
    yield _check_sharing(plan, ring)


def _held_bytes(plan: Plan) -> tuple[int, int]:
    """What the ring would take, by laying it out where nothing is allocated; and the most of all else."""
    fd = os.memfd_create("pymemcg-doctor", os.MFD_CLOEXEC)
    try:
        create(fd, plan.channels, plan.info(), align=os.sysconf("SC_PAGESIZE"), reserve=False)
        ring = os.fstat(fd).st_size
    finally:
        os.close(fd)
    files = [feed.form == _ffi.KEYED for feed in plan.feeds] + [True]  # cpu.stat
    for level in plan.target.levels:  # usage, limit, high and hits, by each of two threads
        files += [False, False, False, level.files.get("hits", "").startswith("memory.events")] * 2
    return ring, _STACKS_BYTES + sum(_KEYED_BYTES if keyed else _OTHER_BYTES for keyed in files)


def _check_sharing(plan: Plan, ring_bytes: int) -> Check:
    directory = plan.target.directory
    path = sharing.ring_path(os.stat(directory), os.geteuid())
    shm = os.path.dirname(os.path.dirname(path))
    sampling, pid = _is_sampled(directory), _writer_of(path)
    facts: dict[str, Any] = {"ring": path, "sampled_now": sampling, "writer_pid": pid if sampling else None}
    try:
        room = os.statvfs(shm)
        free: int | None = room.f_bavail * room.f_frsize
    except OSError:
        free = None
    facts["free_bytes"] = free
    if sampling:
        who = f"pid {pid} samples this group now; others attach to its ring" if pid else "another user's process samples it now"
        needs = None if pid else "the same user as the one that samples; else PSI is left to it"
        return Check("shared rings", "yes" if pid else "partly", who, needs, facts)
    if free is None or free < ring_bytes or not os.access(shm, os.W_OK):
        says = f"each process would have a ring of its own: {shm} is absent, full or may not be written"
        needs = f"a tmpfs at {shm} with {ring_bytes / 2**20:.0f} MiB of room (docker run --shm-size)"
        return Check("shared rings", "partly", says, needs, facts)
    return Check(
        "shared rings", "yes", f"nobody samples this group now; the first to start shares its ring in {shm}", facts=facts
    )


def _is_sampled(directory: str) -> bool:
    """Whether somebody holds the group's lock. A shared one of our own, for a moment, makes a starter only try again."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _writer_of(path: str) -> int | None:
    try:
        fd = os.open(sharing.file_of(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        ring = Ring(fd, path)  # held: its header does not keep it mapped
        return int(ring.header.state.writer_pid) or None
    except MemcgError:
        return None
    finally:
        os.close(fd)
