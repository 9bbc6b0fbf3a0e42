# SPDX-License-Identifier: Apache-2.0
"""What the kernel's log says of OOM kills in a group."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from pymemcg.errors import MemcgError, NotSupported
from pymemcg.explain._snapshot import LoggedKill
from pymemcg.mounts import CgroupPath, parse_mounts, read_text

if TYPE_CHECKING:
    from pymemcg.cgroup import Target

_KEPT = 10
_FIRST_NAMESPACE: Final = 0xEFFFFFFB  # PROC_CGROUP_INIT_INO of include/linux/proc_ns.h
_NAMESPACES: Final = "/proc/self/ns"
_ELSEWHERE: Final = "from inside of a cgroup namespace a group's path is not the one in the log: run `pymemcg oom` on the host"
_EVERYBODY: Final = "every kill is one below the root group: run `pymemcg oom`"


def logged_kills(path: str | None) -> tuple[tuple[LoggedKill, ...], str | None]:
    """The last kills of processes in a group, or below it, by this machine's own log.

    Args:
        path: The group's path as `host_path` has it; the log knows no other.

    Returns:
        The kills, the newest last; and why the log was not searched, or could not be read.
    """
    from pymemcg.oom import kills
    from pymemcg.oom._logs import kernel_lines

    if path is None or not path.startswith("/") or ".." in path.split("/") or not _in_first_namespace():
        return (), _ELSEWHERE
    top = path.rstrip("/") + "/"
    if top == "/":
        return (), _EVERYBODY
    found = []
    try:
        for kill in kills(kernel_lines()):
            if f"{kill.task_memcg or ''}/".startswith(top):
                found.append(LoggedKill(kill.cause, kill.pid, kill.name, kill.oom_memcg, kill.task_memcg, kill.seconds))
                del found[:-_KEPT]
    except NotSupported as error:
        return (), str(error)
    return tuple(found), None


def host_path(target: Target) -> str | None:
    """A group's path in its whole hierarchy, as this cgroup namespace has it; None where no mount of ours tells.

    What is mounted may be a part of the hierarchy: in a container on v1 its own group is often the top, and a group "/web"
    below it is not the host's "/web".
    """
    level = target.levels[0]
    top = level.directory if level.name == "/" else level.directory.removesuffix(level.name)
    try:
        mounts = parse_mounts(read_text("/proc/self/mountinfo"))
    except MemcgError:
        return None
    for mount in mounts:
        if mount.directory == top:
            names = [name for name in level.name.split("/") if name]
            return str(CgroupPath(mount.root.up, (*mount.root.names, *names)))
    return None


def _in_first_namespace() -> bool:
    """Whether paths here are those of the whole machine; before 4.6 there were no others."""
    try:
        return os.stat(f"{_NAMESPACES}/cgroup").st_ino == _FIRST_NAMESPACE
    except OSError:
        return os.path.lexists(f"{_NAMESPACES}/mnt") and not os.path.lexists(f"{_NAMESPACES}/cgroup")
