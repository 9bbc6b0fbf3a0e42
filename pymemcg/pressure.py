# SPDX-License-Identifier: Apache-2.0
"""Where a group's PSI is, and whether it is the group's own.

On a hybrid host the counters follow the path in the v1 memory hierarchy and PSI follows the path in cgroup2, and the two
may differ. A memory group's twin in cgroup2 is the deepest group that holds all of its processes; only when that holds
no other process is its PSI the group's.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

from pymemcg.errors import SourceError
from pymemcg.mounts import CgroupPath, parse_memberships, read_text
from pymemcg.places import Place, Process, View, locate, members


@dataclass(frozen=True, slots=True)
class Pressure:
    """What of a group's cgroup2 side there is; the attributes as in `pymemcg.cgroup.Target`."""

    directory: str | None
    file: str | None
    scope: str | None
    absent: dict[str, str]


def find_pressure(view: View, place: Place, process: Process | None) -> Pressure:
    """Find the cgroup2 side of a memory group.

    Args:
        view: The hierarchies.
        place: The memory group.
        process: The member that was asked for, if one was.
    """
    if view.version == 2:
        return _measure(view, place.directory)
    if "" not in view.process.groups:  # cgroup2 was never mounted: everybody is in its root
        return _measure(view, None)
    twin, reason = _find_twin(view, place, process)
    if twin is None:
        return Pressure(None, None, None, {"pressure": reason, "cpu": reason})
    return _measure(view, twin)


def is_root(directory: str) -> bool:
    """Whether this cgroup2 group is the hierarchy's true root, not only the top of a namespace."""
    return not os.path.exists(f"{directory}/cgroup.events")


def _find_twin(view: View, place: Place, process: Process | None) -> tuple[str | None, str]:
    """The twin's directory, or why there is none."""
    mounts = [mount for mount in (process or view.process).mounts if mount.version == 2]
    if not mounts:
        return None, "no cgroup2 hierarchy is mounted here, and the v1 memory hierarchy has no PSI"
    paths = _unified_paths(view, members(place.directory), process)
    if paths:
        twin = reduce(CgroupPath.common, paths.values())
        number, inside = next(iter(paths.items()))
        name = str(twin)
        directory = next((at.directory for at in locate(twin, mounts, inside, number, [])), None)
    else:
        name = place.name
        same = [mount.directory + name.rstrip("/") for mount in mounts]
        directory = next((path for path in same if os.path.isdir(path)), None)
    if directory is None:
        whose = "the cgroup2 group of its processes" if paths else "the group holds no process, and the cgroup2 group"
        return None, f"{whose}, {name}, cannot be found here"
    if not is_root(directory) and (others := _others(directory, place.directory)):
        return None, (
            f"the cgroup2 group {name} also holds processes of other memory groups ({others}), so its PSI is not this "
            "group's: give the group a cgroup2 group of its own"
        )
    return directory, ""


def _unified_paths(view: View, pids: Iterable[int], process: Process | None) -> dict[int | None, CgroupPath]:
    """The cgroup2 paths of a group's processes, by their pid in lists of members."""
    paths: dict[int | None, CgroupPath] = {}
    if process is not None:
        paths[process.member] = process.groups[""]
    if view.counts_alike:
        for pid in pids:
            try:
                paths[pid] = parse_memberships(read_text(f"{view.proc}/{pid}/cgroup"))[""]
            except SourceError:  # it has ended, or is hidden
                continue
    return paths


def _others(twin: str, group: str) -> str:
    """Name some processes in a cgroup2 group that are not in a memory group; who comes or goes meanwhile is none."""
    others = members(twin)
    others -= members(group)
    if others:
        others &= members(twin)
    named = [f"pid {pid}" if pid else "of another pid namespace" for pid in sorted(others)]
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")


def _measure(view: View, directory: str | None) -> Pressure:
    """What there is in a cgroup2 group; without a directory, in the root of a hierarchy that is not mounted."""
    absent = {}
    if directory is None or not os.path.exists(f"{directory}/cpu.stat"):
        absent["cpu"] = f"{directory or 'cgroup2'} has no cpu.stat"
    whole_host = directory is None or is_root(directory)
    file = f"{view.proc}/pressure/memory" if whole_host else f"{directory}/memory.pressure"
    try:
        _try_pressure(view, file)
    except SourceError as error:
        absent["pressure"] = _why_no_pressure(view, directory, error)
        return Pressure(directory, None, None, absent)
    return Pressure(directory, file, "host" if whole_host else "group", absent)


def _try_pressure(view: View, file: str) -> None:
    """Open the group's PSI, and do not read it: a read may cost the group the stall time of the last jiffy.

    Raises:
        SourceError: It is not there, or may not be opened; or PSI is off.
    """
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise SourceError(f"cannot be opened: {error.strerror}", path=file, errno=error.errno) from error
    version = re.match(r"Linux version (\d+)\.(\d+)", read_text(f"{view.proc}/version"))
    if version and (int(version[1]), int(version[2])) < (5, 8):
        read_text(file)  # these have the file although PSI is off, and tell so only when it is read


def _why_no_pressure(view: View, directory: str | None, error: SourceError) -> str:
    if error.errno == errno.ENOENT and os.path.exists(f"{view.proc}/pressure/memory"):
        try:
            if read_text(f"{directory}/cgroup.pressure").strip() == "0":
                return f"PSI is switched off for this group: write 1 to {directory}/cgroup.pressure"
        except SourceError:
            pass
        return f"{error}"
    if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
        return "the kernel has no PSI, or it is off: boot with psi=1 (4.20 or later with CONFIG_PSI)"
    return f"{error}"
