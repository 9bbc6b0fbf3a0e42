# SPDX-License-Identifier: Apache-2.0
"""What a target is and where its files are: cgroup v1, v2 and hybrid hosts, containers, namespaces.

Nothing is kept open here and nothing is written. What a place does not have is left out, and `Target.absent` says why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pymemcg.errors import SourceError, TargetError
from pymemcg.mounts import read_text
from pymemcg.places import Place, Process, View, locate
from pymemcg.pressure import find_pressure, is_root

_V1_FILES = {
    "usage": ("memory.usage_in_bytes",),
    "limit": ("memory.limit_in_bytes",),
    "hits": ("memory.failcnt",),
    "memsw_limit": ("memory.memsw.limit_in_bytes",),
    "memsw_hits": ("memory.memsw.failcnt",),
}
_V2_FILES = {
    "usage": ("memory.current",),
    "limit": ("memory.max",),
    "high": ("memory.high",),
    "hits": ("memory.events",),
}
# An ancestor's memory.events counts what happens below it too, in groups that are none of ours. 4.19 has nothing else.
_V2_ANCESTOR_FILES = _V2_FILES | {"hits": ("memory.events.local", "memory.events")}

# v1 prints "no limit" as the most pages that it can count: 2^63 bytes less at most one page, of whatever size.
_V1_UNLIMITED = (1 << 63) - (1 << 20)


@dataclass(frozen=True, slots=True)
class Level:
    """One group of the memory hierarchy.

    Attributes:
        name: The path relative to the hierarchy's visible root, "/" for that root.
        directory: Its directory.
        files: Role to the name of the file that exists there. Roles: `usage`, `limit`, `high`, `hits`, `memsw_limit`,
            `memsw_hits`.
    """

    name: str
    directory: str
    files: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Target:
    """A memory group to sample, and where its files are.

    Attributes:
        spec: What was asked for.
        layout: "v1" (no cgroup2 to be seen), "v2", or "hybrid" (memory on v1, beside a cgroup2 mount).
        version: Of the memory controller, 1 or 2.
        directory: The memory group's directory.
        levels: The group itself, then each ancestor whose limit applies, up to the hierarchy's visible root.
        cgroup2_directory: Where its PSI and cpu.stat are, or None.
        pressure_file: The group's memory.pressure; /proc/pressure/memory where the cgroup2 path is the root; or None.
        pressure_scope: "group", or "host" where PSI speaks of the whole host; None without PSI.
        pid: In /proc, of the process whose own memory is meant (`self`, `pid:N`), or None.
        own: Whether this very process lives in the group or below it.
        absent: What is not there, by role (those of `Level.files`, `stat`, `pressure`, `cpu`, `ancestors`, `group`), and
            why.
    """

    spec: str
    layout: str
    version: int
    directory: str
    levels: tuple[Level, ...]
    cgroup2_directory: str | None
    pressure_file: str | None
    pressure_scope: str | None
    pid: int | None
    own: bool
    absent: Mapping[str, str] = field(hash=False)

    def limit(self) -> tuple[int | None, Level | None]:
        """Read the effective limit: the least of all visible levels, the nearest level first among equals.

        memory.high, which slows down instead of stopping, is none of them.

        Returns:
            The limit in bytes and the level that sets it; (None, None) where nothing limits.

        Raises:
            SourceError: A limit cannot be read, or is no number.
        """
        limits = [(_read_limit(level), level) for level in self.levels if "limit" in level.files]
        set_ones = [(limit, level) for limit, level in limits if limit is not None]
        return min(set_ones, key=lambda pair: pair[0], default=(None, None))

    def describe(self) -> dict[str, Any]:
        """All attributes as plain values, as for JSON."""
        return asdict(self)


def _read_limit(level: Level) -> int | None:
    path = f"{level.directory}/{level.files['limit']}"
    text = read_text(path).strip()
    if text == "max":
        return None
    if not (text.isascii() and text.isdigit()):
        raise SourceError(f"{text!r} is no limit: expected bytes, or max", path=path)
    limit = int(text)
    return None if limit >= _V1_UNLIMITED else limit


def resolve(spec: str | os.PathLike[str] = "self", *, root: str = "/") -> Target:
    """Find a target's files.

    Args:
        spec: `self`; `pid:N`; `cgroup:/path`, relative to the memory hierarchy, as in `/proc/<pid>/cgroup`; an absolute
            directory of that hierarchy; or `container:ID`, with an id of any runtime or the beginning of one.
        root: Where the machine's `/` is; another one than "/" in tests.

    Raises:
        TargetError: There is no such target, or it cannot be seen from here.
        NotSupported: This place has no memory cgroups.
        SourceError: A file under /proc cannot be read or parsed.
    """
    text = os.fspath(spec)
    kind, _, rest = text.partition(":")
    view = View(root)
    process = None
    if text == "self":
        process = view.process
        place = view.group_of(process)
    elif kind == "pid" and rest.isascii() and rest.isdigit():
        process = view.find_process(int(rest))
        place = view.group_of(process)
    elif kind == "cgroup" and rest:
        place = view.group_at(rest)
    elif kind == "container" and rest:
        place = view.group_of_container(rest)
    elif text.startswith("/"):
        place = view.group_in(text)
    else:
        raise TargetError(
            f"{text!r} is no target", hint="expected self, pid:N, cgroup:/path, an absolute directory or container:ID"
        )
    return _describe(text, view, place, process)


def _describe(spec: str, view: View, place: Place, process: Process | None) -> Target:
    absent: dict[str, str] = {}
    if view.version == 2:
        place = _charged(place, absent)
    levels = _levels(view, place, absent)
    _explain_files(view, levels[0], absent)
    pressure = find_pressure(view, place, process)
    layout = "v2" if view.version == 2 else "hybrid" if view.unified else "v1"
    return Target(
        spec=spec,
        layout=layout,
        version=view.version,
        directory=place.directory,
        levels=levels,
        cgroup2_directory=pressure.directory,
        pressure_file=pressure.file,
        pressure_scope=pressure.scope,
        pid=process.number if process else None,
        own=(process is not None and process.number == view.process.number) or _is_own(view, place),
        absent=absent | pressure.absent,
    )


def _charged(place: Place, absent: dict[str, str]) -> Place:
    """The group that pays for this one's memory: where the controller is not enabled, the nearest ancestor with it."""
    for above in place.upwards():
        if os.path.exists(f"{above.directory}/memory.current"):
            if above != place:
                absent["group"] = (
                    f"the memory controller is not enabled for {place.name}: its memory is charged to {above.name}, "
                    "which is sampled"
                )
            return above
    return place


def _levels(view: View, place: Place, absent: dict[str, str]) -> tuple[Level, ...]:
    levels: list[Level] = []
    for here in place.upwards():
        if levels and view.version == 1 and not _passes_on(here):
            absent["ancestors"] = f"limits from {here.name} upwards do not apply: memory.use_hierarchy is 0 in {here.directory}"
            break
        roles = _V1_FILES if view.version == 1 else _V2_ANCESTOR_FILES if levels else _V2_FILES
        files = {}
        for role, names in roles.items():
            for name in names:
                if os.path.exists(f"{here.directory}/{name}"):
                    files[role] = name
                    break
        levels.append(Level(here.name, here.directory, files))
    return tuple(levels)


def _passes_on(place: Place) -> bool:
    """Whether a v1 group is charged for its children too; always so from 5.11 on."""
    try:
        return read_text(f"{place.directory}/memory.use_hierarchy").strip() != "0"
    except SourceError:
        return True


def _explain_files(view: View, level: Level, absent: dict[str, str]) -> None:
    """Say why the group's own files are not there."""
    at_root = view.version == 2 and is_root(level.directory)
    wanted = (_V2_FILES | _V1_FILES) if view.version == 1 else (_V1_FILES | _V2_FILES)
    names = {role: files[0] for role, files in wanted.items()} | {"stat": "memory.stat"}
    for role, name in names.items():
        if role in level.files or os.path.exists(f"{level.directory}/{name}"):
            continue
        if role == "high" and view.version == 1:
            reason = "cgroup v1 has no memory.high"
        elif role.startswith("memsw") and view.version == 2:
            reason = "cgroup v2 has no limit on memory and swap together"
        elif role.startswith("memsw"):
            reason = f"there is no {name}: the kernel does not account swap (boot with swapaccount=1)"
        elif at_root:
            reason = f"the root of cgroup v2 has no {name}: name a group below it"
        else:
            reason = f"there is no {name}: the memory controller is not enabled here (cgroup.subtree_control above)"
        absent[role] = reason


def _is_own(view: View, place: Place) -> bool:
    """Whether this process lives in the group or below it, looked for below the mount that the group was found by."""
    own = view.process
    path = own.groups[view.controller]
    homes = locate(path, [place.mount], path, own.member, [])
    return any(f"{home.directory}/".startswith(f"{place.directory}/") for home in homes)
