# SPDX-License-Identifier: Apache-2.0
"""Files → snapshot. Everything is read by way of a `Tree`, so that what was read can be handed on."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from pymemcg.cgroup import Level, Target, resolve
from pymemcg.errors import RecordingError
from pymemcg.explain._logged import host_path, logged_kills
from pymemcg.explain._neighbours import neighbours
from pymemcg.explain._snapshot import Group, LoggedKill, Meanwhile, Node, Process, Snapshot, StallsSeen, Zone
from pymemcg.explain._tree import whole
from pymemcg.schema import stat_fields

if TYPE_CHECKING:
    from pymemcg.explain._tree import Tree

_LIMITS: Final = {
    1: {"max": "memory.limit_in_bytes", "soft": "memory.soft_limit_in_bytes", "memsw": "memory.memsw.limit_in_bytes"},
    2: {"max": "memory.max", "swap": "memory.swap.max"},
}
_BOTH_LIMITS: Final = {name: f"memory.{name}" for name in ("high", "low", "min")}  # Alibaba's kernel has them on v1, too
_OTHERS: Final = {
    1: {
        "memsw": "memory.memsw.usage_in_bytes",
        "kmem": "memory.kmem.usage_in_bytes",
        "tcp": "memory.kmem.tcp.usage_in_bytes",
        "swappiness": "memory.swappiness",
    },
    2: {"swap": "memory.swap.current", "zswap": "memory.zswap.current", "oom_group": "memory.oom.group"},
}
# Reclaim by a kernel thread before the limit is reached, in Alibaba's kernel (Cloud Linux 2 and 3).
_WATERMARKS: Final = {f"wmark_{name}": f"memory.wmark_{name}" for name in ("ratio", "high", "low", "scale_factor", "min_adj")}
# v1 prints "no limit" as the most pages that it can count, less at most one page of whatever size.
_UNLIMITED: Final = (1 << 63) - (1 << 20)
_SETTINGS: Final = [
    "swappiness",
    "min_free_kbytes",
    "watermark_scale_factor",
    "overcommit_memory",
    "overcommit_ratio",
    "overcommit_kbytes",
    "admin_reserve_kbytes",
    "user_reserve_kbytes",
    "dirty_ratio",
    "dirty_bytes",
    "dirty_background_ratio",
    "dirty_background_bytes",
    "dirty_expire_centisecs",
    "panic_on_oom",
    "oom_kill_allocating_task",
    "vfs_cache_pressure",
    "zone_reclaim_mode",
]
_TOLD_ABSENT: Final = {
    "ancestors",
    "pressure",
    "/proc/buddyinfo",
    "/proc/zoneinfo",
    "/proc/meminfo",
    "/proc/vmstat",
    "/proc/pressure/memory",
}
_PAGES: Final = (4 << 10, 16 << 10, 64 << 10)
_MOUNT: Final = re.compile(r" - (cgroup2?|tmpfs) ")  # names of other mounts are nobody's business
_AVERAGE: Final = re.compile(r"avg(?:10|60|300)=([0-9]{1,3}\.[0-9]{1,6})\b")
_ZONE: Final = re.compile(r"Node ([0-9]{1,6}), zone +(\S+)")
_KIB_OF_STATUS: Final = re.compile(r"(?:Vm|Rss)\w+$")


def take(tree: Tree, spec: str | None = None, *, pss: bool = False, meanwhile: Meanwhile | None = None) -> Snapshot:
    """Read all that is known of a target.

    Args:
        tree: Where from.
        spec: The target; None = the one that the collection was made of, or else `self`.
        pss: Also read each process's smaps_rollup, for which the kernel walks its page tables: 5 µs for a small process,
            seconds for a huge one.
        meanwhile: What was seen in the seconds before; None = what the collection says of it.

    Raises:
        TargetError: There is no such target.
        NotSupported: This place has no memory cgroups.
        SourceError: What no explanation can do without cannot be read.
    """
    spec = spec or tree.notes.get("target", "self")
    target = _resolved(tree, spec)
    _remember_ways(tree, target)
    page = _page_bytes(tree, target)
    levels = tuple(_group(tree, level, target.version) for level in target.levels)
    pids, below = _members(tree, target.directory)
    levels = (dataclasses.replace(levels[0], groups_below=below), *levels[1:])
    found = [_process(tree, pid, page, pss=pss) for pid in pids if pid]
    processes = sorted(filter(None, found), key=lambda one: one.rss_bytes, reverse=True)
    # Kernel threads and zombies have no memory of their own: their statm reads as zeros.
    without = sum(
        (tree.text(f"/proc/{pid}/statm") or "").startswith("0 ") for pid in {*pids} - {0, *(one.pid for one in processes)}
    )
    path = _cgroup_path(tree, target)
    kills, unread = tuple(LoggedKill(**noted) for noted in tree.notes.get("kills", ())), None
    if tree.here and levels[0].events.get("oom_kill"):
        kills, unread = logged_kills(host_path(target) or (path if target.pid is not None else None))
    scope = target.pressure_scope == "group" and target.pressure_file
    told = neighbours(tree, target, lambda level: _group(tree, level, target.version))
    return Snapshot(
        target=spec,
        version=target.version,
        levels=levels,
        charged_elsewhere=target.absent.get("group"),
        own=target.own and bool(tree.here or tree.notes.get("own")),
        own_pid=tree.own_pid,
        processes=tuple(processes),
        hidden_processes=len(pids) - len(processes) - without,
        node=_node(tree, page),
        pressure=_pressure(tree.text(target.pressure_file)) if scope and target.pressure_file else {},
        neighbours=tuple(told),
        cgroup_path=path,
        meanwhile=meanwhile or _noted_meanwhile(tree.notes.get("meanwhile")),
        kills=kills,
        taken_realtime_ns=time.time_ns() if tree.here else tree.notes.get("taken_realtime_ns"),
        absent=({"the kernel's log": unread} if unread else {})
        | {what: why for what, why in {**target.absent, **tree.absent}.items() if what in _TOLD_ABSENT},
    )


def _resolved(tree: Tree, spec: str) -> Target:
    try:
        return resolve(spec, root=tree.root)
    except (ValueError, LookupError) as error:
        if tree.here:
            raise
        raise RecordingError(f"the collection's files are none that a kernel wrote: {error}") from error


def notes(snapshot: Snapshot) -> dict[str, Any]:
    """What a collection says of itself beside its files."""
    return {
        "target": snapshot.target,
        "own": snapshot.own,
        "taken_realtime_ns": snapshot.taken_realtime_ns,
        "page_bytes": snapshot.node.page_bytes,
        "kills": [dataclasses.asdict(kill) for kill in snapshot.kills],
        "meanwhile": dataclasses.asdict(snapshot.meanwhile) if snapshot.meanwhile else None,
    }


def _noted_meanwhile(noted: Mapping[str, Any] | None) -> Meanwhile | None:
    if noted is None:
        return None
    stalls = noted["stalls"]
    return Meanwhile(**(dict(noted) | {"stalls": StallsSeen(**stalls) if stalls else None}))


def _remember_ways(tree: Tree, target: Target) -> None:
    """Read what `resolve` found the target by, so that it is found again in a collection."""
    for process in {tree.own_pid, target.pid or tree.own_pid}:
        tree.text(f"/proc/{process}/cgroup")
        tree.text(f"/proc/{process}/stat")
        tree.texts(f"/proc/{process}/mountinfo", _MOUNT)
    if target.cgroup2_directory is not None:
        for name in ("cgroup.procs", "cgroup.events"):
            tree.text(f"{target.cgroup2_directory}/{name}")


def _cgroup_path(tree: Tree, target: Target) -> str:
    """A namespace may hide from the directory's name what a process's own file says."""
    if target.pid is not None:
        for line in (tree.text(f"/proc/{target.pid}/cgroup") or "").splitlines():
            controllers, _, path = line.partition(":")[2].partition(":")
            if controllers == "" if target.version == 2 else "memory" in controllers.split(","):
                return path
    return target.levels[0].name


# ---- Groups --------------------------------------------------------------------------------------------------------


def read_usage(tree: Tree, at: str, version: int) -> int | None:
    """The usage of the group in a directory."""
    return tree.number(f"{at}/{'memory.usage_in_bytes' if version == 1 else 'memory.current'}")


def read_limit(tree: Tree, at: str, version: int, kind: str = "max") -> int | None:
    """Its limit; None where it has none."""
    limit = tree.number(f"{at}/{(_LIMITS[version] | _BOTH_LIMITS)[kind]}")
    return None if limit is None or limit >= _UNLIMITED else limit


def read_events(tree: Tree, at: str, version: int) -> dict[str, int]:
    """How often what happened, under v2's names."""
    if version == 2:
        return tree.keyed(f"{at}/memory.events")
    hits, kills = tree.number(f"{at}/memory.failcnt"), tree.keyed(f"{at}/memory.oom_control").get("oom_kill")
    return {name: count for name, count in (("max", hits), ("oom_kill", kills)) if count is not None}


def read_stat(tree: Tree, at: str, version: int) -> dict[str, int]:
    """Its memory.stat with that of all groups below, under the common names."""
    raw = tree.keyed(f"{at}/memory.stat")
    return {field.name: raw[field.key] for field in stat_fields(raw, version)}


def _group(tree: Tree, level: Level, version: int) -> Group:
    at = level.directory
    names = _LIMITS[version] | (_BOTH_LIMITS if version == 2 or "high" in level.files else {})
    limits = {}
    for name, file in names.items():
        if tree.text(f"{at}/{file}") is not None:
            limits[name] = read_limit(tree, at, version, name)
    raw = tree.keyed(f"{at}/memory.stat")
    others = {name: tree.number(f"{at}/{file}") for name, file in (_OTHERS[version] | _watermarks(tree, at)).items()}
    if version == 1:
        control = tree.keyed(f"{at}/memory.oom_control")
        others |= {name: control.get(name) for name in ("oom_kill_disable", "under_oom")}
        tree.text(f"{at}/memory.use_hierarchy")
    else:
        tree.text(f"{at}/cgroup.events")  # the root alone has none
    return Group(
        name=level.name,
        directory=tree.inside(at),
        usage_bytes=read_usage(tree, at, version),
        peak_bytes=tree.number(f"{at}/{'memory.max_usage_in_bytes' if version == 1 else 'memory.peak'}"),
        limits=limits,
        others={name: value for name, value in others.items() if value is not None},
        events=read_events(tree, at, version),
        stat=read_stat(tree, at, version),
        own_stat={key: value for key, value in raw.items() if not key.startswith("total_")} if version == 1 else {},
        controlled=bool(level.files),
        groups_below=None,
    )


def _watermarks(tree: Tree, at: str) -> dict[str, str]:
    return _WATERMARKS if tree.text(f"{at}/memory.wmark_ratio") is not None else {}


def _members(tree: Tree, directory: str) -> tuple[list[int], int]:
    """The pids in a group and below, 0 for each of another pid namespace; and how many groups are below."""
    pids: list[int] = []
    waiting, below = [directory], -1
    while waiting:
        at = waiting.pop()
        below += 1
        pids += _counts((tree.text(f"{at}/cgroup.procs") or "").split())
        waiting += [f"{at}/{name}" for name in tree.folders(at)]
    return sorted(pids), below


# ---- Processes -----------------------------------------------------------------------------------------------------


def _process(tree: Tree, pid: int, page: int, *, pss: bool) -> Process | None:
    """One of them; None where it has ended, or may not be looked at."""
    at = f"/proc/{pid}"
    statm = _counts((tree.text(f"{at}/statm") or "").split())
    lines = dict(line.split(":", 1) for line in (tree.text(f"{at}/status") or "").splitlines() if ":" in line)
    tree.text(f"{at}/cgroup")
    if len(statm) < 3 or not statm[0]:  # a zombie has none, and its statm reads as zeros
        return None
    inner = lines.get("NSpid", "").split()
    uid = lines.get("Uid", "").split()[:1]
    share = tree.keyed(f"{at}/smaps_rollup", ":").get("Pss") if pss else None
    return Process(
        pid=pid,
        name=lines.get("Name", "").strip(),
        uid=whole(uid[0]) if uid else None,
        first=inner[-1] == "1" if inner else None,
        virtual_bytes=statm[0] * page,
        rss_bytes=statm[1] * page,
        shared_bytes=statm[2] * page,
        status={key: kib << 10 for key, kib in tree.keyed(f"{at}/status", ":").items() if _KIB_OF_STATUS.match(key)},
        pss_bytes=share << 10 if share is not None else None,
        oom_score_adj=tree.number(f"{at}/oom_score_adj"),
        oom_score=tree.number(f"{at}/oom_score"),
    )


def _page_bytes(tree: Tree, target: Target) -> int:
    """A page there: as noted, or as two files tell the same memory in pages and in kB."""
    if tree.here:
        return os.sysconf("SC_PAGE_SIZE")
    if isinstance(noted := tree.notes.get("page_bytes"), int):
        return noted
    at = f"/proc/{target.pid or tree.own_pid}"
    pages = whole((tree.text(f"{at}/statm") or "").partition(" ")[0])
    kib = tree.keyed(f"{at}/status", ":").get("VmSize")
    page = round((kib << 10) / pages) if kib and pages and pages > 0 else 4096
    return page if page in _PAGES else 4096


def _counts(words: list[str]) -> list[int]:
    """Those of them up to the first that is none."""
    counts = []
    for word in words:
        if (count := whole(word)) is None or count < 0:
            break
        counts.append(count)
    return counts


# ---- The machine ---------------------------------------------------------------------------------------------------


def _node(tree: Tree, page: int) -> Node:
    version = (tree.text("/proc/version") or "").split()
    tree.text("/proc/swaps")
    text = tree.text("/proc/zoneinfo") or ""
    settings = {name: tree.number(f"/proc/sys/vm/{name}") for name in _SETTINGS}
    cpus = {line for line in text.splitlines() if line.startswith("    cpu: ")}
    return Node(
        kernel=version[2] if len(version) > 2 else None,
        meminfo={key: value << 10 for key, value in tree.keyed("/proc/meminfo", ":").items()},
        vmstat=tree.keyed("/proc/vmstat"),
        zones=tuple(_zones(text, tree.text("/proc/buddyinfo") or "", page)),
        settings={name: value for name, value in settings.items() if value is not None},
        cpus=len(cpus) or None,
        page_bytes=page,
        pressure=_pressure(tree.text("/proc/pressure/memory")),
    )


def _zones(zoneinfo: str, buddyinfo: str, page: int) -> Iterator[Zone]:
    r"""Parse /proc/zoneinfo, with the free blocks of /proc/buddyinfo.

    Samples (of many lines, and in pages)::

        Node 0, zone   Normal
          pages free     3776
                min      85
                managed  3840

        Node 0, zone   Normal   4791   3351   2301   1601   1108    758    559    382    241    146    344
    """
    blocks = {}
    for line in buddyinfo.splitlines():
        if found := _ZONE.match(line):
            blocks[found[1], found[2]] = tuple(_counts(line[found.end() :].split()))
    for part in re.split(r"^(?=Node \d+, zone)", zoneinfo, flags=re.MULTILINE):
        if not (found := _ZONE.match(part)):
            continue
        counts: dict[str, int] = {}
        for line in part.partition("  pages free")[2].splitlines():
            words = line.split()
            count = whole(words[-1]) if words else None
            if count is None or count < 0:
                continue
            if len(words) == 1 and not counts:
                counts["free"] = count
            elif len(words) == 2:
                counts.setdefault(words[0], count)
        if not counts.get("managed") or not {"free", "min", "low", "high"} <= counts.keys():
            continue
        free, least, low, high, managed = (counts[name] * page for name in ("free", "min", "low", "high", "managed"))
        yield Zone(int(found[1]), found[2], free, least, low, high, managed, blocks.get((found[1], found[2])))


def _pressure(text: str | None) -> dict[str, tuple[float, float, float]]:
    """Parse a PSI file; its shares are in percent. `some avg10=4.52 avg60=1.13 avg300=0.25 total=821830`."""
    told = {}
    for line in (text or "").splitlines():
        shares = [float(share) / 100 for share in _AVERAGE.findall(line)]
        if len(shares) == 3:
            told[line.partition(" ")[0]] = (shares[0], shares[1], shares[2])
    return told
