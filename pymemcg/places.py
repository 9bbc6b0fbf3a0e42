# SPDX-License-Identifier: Apache-2.0
"""Where a group's directory is: from a process, a path, a directory or a container's id.

A wrong directory is worse than none, so whatever was found for a process must list that process among its members.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pymemcg.errors import NotSupported, SourceError, TargetError
from pymemcg.mounts import CgroupPath, Mount, parse_memberships, parse_mounts, read_text

# Runtimes name a container's group by its id of 64 hex digits (some of 32), alone or behind their own name. Shorter
# runs of hex digits are parts of other names: a pod's UUID ends in 12.
_CONTAINER = re.compile(r"(?:.*[-:])?([0-9a-f]{32,})(?:\.scope)?")
_ROOT_OF = re.compile(r"/proc/([0-9]+)/root/")
_MOVES = 3  # a process is moved once or twice while it is started; more often is no start


@dataclass(frozen=True, slots=True)
class Place:
    """A group's directory, and the mount that it was found below."""

    mount: Mount
    directory: str

    @property
    def name(self) -> str:
        """The path relative to what is mounted, "/" for its top."""
        return self.directory[len(self.mount.directory) :] or "/"

    def upwards(self) -> Iterator[Place]:
        """This place, then each one above it, up to the top of the mount."""
        directory = self.directory
        while len(directory) > len(self.mount.directory):
            yield Place(self.mount, directory)
            directory = os.path.dirname(directory)
        yield Place(self.mount, self.mount.directory)


@dataclass(frozen=True, slots=True)
class Process:
    """A process as /proc shows it.

    Attributes:
        number: Its pid in /proc.
        member: Its pid as lists of members show it to us; None where /proc belongs to another pid namespace.
        groups: Controller to the group's path; cgroup2 under "".
        mounts: Where hierarchies can be reached: our own mounts, then, through its root directory, those that it sees.
    """

    number: int
    member: int | None
    groups: dict[str, CgroupPath]
    mounts: list[Mount]


def members(directory: str) -> set[int]:
    """The pids in a group and everything below it; 0 stands for those of other pid namespaces (cgroup2 alone tells)."""
    return {pid for top, _, _ in os.walk(directory) for pid in _processes(top)}


def _processes(directory: str) -> list[int]:
    try:
        return [int(pid) for pid in read_text(f"{directory}/cgroup.procs").split()]
    except SourceError:  # gone, or a threaded group: its processes are listed at the top of the threaded subtree
        return []


def holds(directory: str, pid: int) -> bool | None:
    """Whether a process, or a thread, is a member of this very group; None where nothing can be read."""
    known = None
    for name in ("cgroup.procs", "cgroup.threads", "tasks"):
        try:
            if str(pid) in read_text(f"{directory}/{name}").split():
                return True
        except SourceError:
            continue
        known = False
    return known


def _at_depth(directory: str, levels: int) -> Iterator[str]:
    if levels == 0:
        yield directory
        return
    for top, names, _ in os.walk(directory):
        for name in names:
            yield from _at_depth(os.path.join(top, name), levels - 1)
        break


def _above(directory: str, levels: int) -> str:
    for _ in range(levels):
        directory = os.path.dirname(directory)
    return directory


def _tops(mount: Mount, up: int, path: CgroupPath, member: int | None) -> list[str]:
    """Directories of the group `up` levels above the namespace's root, found from `path` below it, which has `member`.

    The mount's top lies still higher, and the namespace hides the names between: only membership tells the way.
    """
    way = path.below(mount.root)
    if way is None or path.up > up or member is None:
        return []
    candidates = (os.path.join(top, *way[1]) for top in _at_depth(mount.directory, way[0]))
    return [_above(found, path.depth + up) for found in candidates if holds(found, member)]


def locate(
    path: CgroupPath, mounts: Iterable[Mount], inside: CgroupPath, member: int | None, tried: list[str]
) -> Iterator[Place]:
    """Find the directories of a group.

    Args:
        path: The group.
        mounts: Where to look.
        inside: The group of a process that is known: from it the way is found where the namespace hides names.
        member: The pid of that process in lists of members, or None.
        tried: Where it was looked for in vain is added here, in words.
    """
    for mount in mounts:
        way = path.below(mount.root)
        if way is None:
            tried.append(f"{mount.directory} shows {mount.root} alone")
            continue
        hidden, names = way
        for top in _tops(mount, path.up, inside, member) if hidden else [mount.directory]:
            directory = os.path.join(top, *names)
            try:
                os.stat(directory)
            except OSError as error:
                tried.append(f"{directory}: {error.strerror}")
            else:
                yield Place(mount, directory)


class View:
    """The cgroup hierarchies as this process sees them.

    Args:
        root: Where the machine's `/` is; another one than "/" in tests.

    Attributes:
        proc: Where /proc is.
        version: Of the memory controller, 1 or 2.
        process: This process.
        unified: The cgroup2 mounts.
        counts_alike: Whether a pid in /proc is also the one in lists of members.

    Raises:
        NotSupported: There is no memory controller, or its hierarchy is not mounted here.
        SourceError: /proc cannot be read.
    """

    def __init__(self, root: str = "/") -> None:
        self._prefix = os.path.abspath(root).rstrip("/")
        self.proc = f"{self._prefix}/proc"
        try:
            own = int(os.readlink(f"{self.proc}/self"))
            groups = parse_memberships(read_text(f"{self.proc}/self/cgroup"))
            mounts = parse_mounts(read_text(f"{self.proc}/self/mountinfo"), prefix=self._prefix)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            raise NotSupported(
                "is not there", path=error.filename, hint="/proc must be mounted, and the kernel must have cgroups"
            ) from error
        # In a pid namespace with another one's /proc, its numbers mean nothing in lists of members.
        self.counts_alike = bool(self._prefix) or own == os.getpid()
        self.process = Process(own, own if self.counts_alike else os.getpid(), groups, mounts)
        self.version = 1 if "memory" in groups else 2
        self.unified = [mount for mount in mounts if mount.version == 2]
        if self.controller not in groups:
            raise NotSupported(
                f"names neither the memory controller nor cgroup2, but {', '.join(groups) or 'nothing'}",
                path=f"{self.proc}/self/cgroup",
                hint="the kernel may have been booted with cgroup_disable=memory; some sandboxes have no cgroups",
            )
        if not self.memory_mounts(self.process):
            raise NotSupported(
                f"{'the v1 memory hierarchy' if self.version == 1 else 'cgroup2'} is not mounted here",
                path=f"{self.proc}/self/mountinfo",
                hint="mount it: read-only is enough",
            )

    @property
    def controller(self) -> str:
        """Under which name `Process.groups` has the memory group."""
        return "memory" if self.version == 1 else ""

    def memory_mounts(self, process: Process) -> list[Mount]:
        """Those of a process's mounts that show the memory controller's hierarchy."""
        return [mount for mount in process.mounts if self._shows_memory(mount)]

    def _shows_memory(self, mount: Mount) -> bool:
        return mount.version == self.version and (mount.version == 2 or "memory" in mount.options)

    def find_process(self, number: int) -> Process:
        """Look a process up.

        Raises:
            TargetError: There is none, or it has ended.
        """
        base = f"{self.proc}/{number}"
        try:
            groups = parse_memberships(read_text(f"{base}/cgroup"), path=f"{base}/cgroup")
            state = read_text(f"{base}/stat").rpartition(")")[2].split()[0]
        except SourceError as error:
            if error.errno not in (errno.ENOENT, errno.ESRCH):
                raise
            raise TargetError(
                f"there is no process {number} here",
                path=base,
                hint="pids are those of this pid namespace; a /proc mounted with hidepid hides other users' processes",
            ) from error
        if state in "ZX":
            raise TargetError(f"process {number} has ended and is no member of any group any more", path=base)
        mounts = list(self.process.mounts)
        try:
            theirs = read_text(f"{base}/mountinfo")
        except SourceError:  # of another user, behind hidepid: our own mounts may do
            theirs = ""
        mounts += parse_mounts(theirs, prefix=f"{base}/root", path=f"{base}/mountinfo")
        return Process(number, number if self.counts_alike else None, groups, mounts)

    def group_of(self, process: Process) -> Place:
        """The memory group of a process.

        Raises:
            TargetError: It is not to be seen from here.
        """
        tried: list[str] = []
        for _ in range(_MOVES):
            path = process.groups[self.controller]
            for place in locate(path, self.memory_mounts(process), path, process.member, tried):
                if process.member is None or holds(place.directory, process.member) is not False:
                    return place
                tried.append(f"{place.directory} does not hold it")
            file = f"{self.proc}/{process.number}/cgroup"
            process = replace(process, groups=parse_memberships(read_text(file), path=file))
            if process.groups[self.controller] == path:  # it was not moved meanwhile
                break
        raise TargetError(
            f"the memory group {path} of process {process.number} cannot be found ({'; '.join(dict.fromkeys(tried))})",
            path=f"{self.proc}/{process.number}/cgroup",
            hint=self._help_for(process, tried),
        )

    def _help_for(self, process: Process, tried: list[str]) -> str:
        if any(os.strerror(errno.EACCES) in text for text in tried):
            with contextlib.suppress(OSError):  # it may have ended
                uid = os.stat(f"{self.proc}/{process.number}").st_uid
                return (
                    f"the process belongs to uid {uid}: run as that user, or with CAP_SYS_PTRACE, "
                    "to look through its root directory"
                )
        return "run in the host's cgroup namespace, or where a mount shows that group"

    def group_at(self, text: str) -> Place:
        """The memory group of a path: as `/proc/<pid>/cgroup` shows it, or else relative to what is mounted.

        Raises:
            TargetError: There is no such group.
        """
        path, own, tried = CgroupPath.parse(text), self.process, list[str]()
        mounts = self.memory_mounts(own)
        for place in locate(path, mounts, own.groups[self.controller], own.member, tried):
            return place
        for mount in mounts:
            directory = os.path.join(mount.directory, *path.names)
            if not path.up and os.path.isdir(directory):
                return Place(mount, directory)
            tried.append(f"{directory} is no directory")
        raise TargetError(
            f"there is no memory group {path} ({'; '.join(dict.fromkeys(tried))})",
            hint=f"/proc/<pid>/cgroup shows paths as expected here; this process is in {own.groups[self.controller]}",
        )

    def group_in(self, directory: str) -> Place:
        """The memory group of a directory.

        Raises:
            TargetError: It is none of the memory hierarchy.
        """
        directory = "/" + os.path.normpath(directory).lstrip("/")
        if not directory.startswith(f"{self._prefix}/"):
            directory = self._prefix + directory
        mounts = self.process.mounts
        try:
            if inside := _ROOT_OF.match(directory.removeprefix(self._prefix)):
                mounts = self.find_process(int(inside[1])).mounts
            # Some links of /proc lead elsewhere than their text says; only a path to the same place may stand for it.
            elif os.path.samestat(os.stat(directory), os.stat(resolved := os.path.realpath(directory))):
                directory = resolved
        except OSError as error:
            raise TargetError(f"cannot be looked at: {error.strerror}", path=directory) from error
        if not os.path.exists(f"{directory}/cgroup.procs"):
            raise TargetError("is no cgroup: it has no cgroup.procs", path=directory, hint=self._mounted())
        above = [mount for mount in mounts if f"{directory}/".startswith(f"{mount.directory}/")]
        mount = max(above, key=lambda mount: len(mount.directory), default=None)
        if mount is None or not self._shows_memory(mount):
            raise TargetError("is not in the memory controller's hierarchy", path=directory, hint=self._mounted())
        return Place(mount, directory)

    def _mounted(self) -> str:
        return "that is at " + ", ".join(mount.directory for mount in self.memory_mounts(self.process))

    def group_of_container(self, wanted: str) -> Place:
        """The memory group of a container, by its id, the beginning of its id, or, under LXC and nspawn, its name.

        Raises:
            TargetError: There is none, or several would do.
        """
        ident = wanted.rpartition("://")[2]  # Kubernetes writes containerd://ID
        named = {ident, f"lxc.payload.{ident}", f"machine-{ident}.scope", f"systemd-nspawn@{ident}.service"}
        for mount in self.memory_mounts(self.process) if ident else ():
            found = []
            for top, names, _ in os.walk(mount.directory):
                here = [name for name in names if name in named or _is_container(name, ident)]
                found += [os.path.join(top, name) for name in here]
                names[:] = [name for name in names if name not in here]  # what lies below is of the same container
            if len(found) > 1:
                raise TargetError(
                    f"{wanted!r} names {len(found)} containers: {', '.join(sorted(found))}", hint="give more of the id"
                )
            if found:
                return Place(mount, found[0])
        raise TargetError(
            f"no group is named by the container {wanted!r} below {self._mounted().removeprefix('that is at ')}",
            hint="the host's groups show in its cgroup namespace alone; from inside of the container, ask for self",
        )


def _is_container(name: str, ident: str) -> bool:
    """Whether a group is named by a container's id that begins so; that of its monitor, conmon, is not the container's."""
    match = _CONTAINER.fullmatch(name)
    return match is not None and match[1].startswith(ident) and "conmon" not in name
