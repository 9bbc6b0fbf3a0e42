# SPDX-License-Identifier: Apache-2.0
"""What /proc says about cgroup hierarchies: who is a member of what, and what is mounted where.

The kernel prints every cgroup path, in `/proc/<pid>/cgroup` and as the root of a mount in `/proc/<pid>/mountinfo`, as
seen from the cgroup namespace of whoever *reads* the file. So the paths of all processes and mounts are in one
coordinate system, and what lies outside of the reader's namespace begins with `/..`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import accumulate

from pymemcg.errors import SourceError, TargetError

IN_MEMORY = frozenset({"tmpfs", "ramfs"})
"""File systems whose files live in memory."""

_ESCAPE = re.compile(r"\\([0-7]{3})")


def read_text(path: str) -> str:
    """Read a pseudo-file whole; bytes that are no UTF-8 survive as in `os.fsdecode`.

    Raises:
        SourceError: It cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return os.fsdecode(file.read())
    except OSError as error:
        reason = error.strerror or str(error)
        raise SourceError(f"cannot be read: {reason}", path=path, errno=error.errno) from error


@dataclass(frozen=True, slots=True)
class CgroupPath:
    """A group's path as a cgroup namespace shows it: so many levels up from the namespace's root, then names down."""

    up: int
    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> CgroupPath:
        """Parse `/a/b` or `/../../c`.

        Raises:
            TargetError: It does not begin with `/`, or goes up behind a name.
        """
        parts = [part for part in text.split("/") if part not in ("", ".")]
        up = next((i for i, part in enumerate(parts) if part != ".."), len(parts))
        if not text.startswith("/") or ".." in parts[up:]:
            raise TargetError(f"{text!r} is no path of a group: expected /name/name")
        return cls(up, tuple(parts[up:]))

    def __str__(self) -> str:
        return "/" + "/".join((*[".."] * self.up, *self.names))

    @property
    def depth(self) -> int:
        """Levels below the namespace's root; negative above it."""
        return len(self.names) - self.up

    def common(self, other: CgroupPath) -> CgroupPath:
        """The deepest group that holds both."""
        if self.up != other.up:
            return CgroupPath(max(self.up, other.up), ())
        pairs = zip(self.names, other.names, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.names), len(other.names)))
        return CgroupPath(self.up, self.names[:same])

    def below(self, top: CgroupPath) -> tuple[int, tuple[str, ...]] | None:
        """The way down from `top`: how many levels have names that the namespace hides, and the names after them.

        Returns:
            None where this group does not lie below `top`.
        """
        if self.common(top) != top:
            return None
        if self.up == top.up:
            return 0, self.names[len(top.names) :]
        return top.up - self.up, self.names


@dataclass(frozen=True, slots=True)
class Mount:
    """A cgroup hierarchy, or a part of it, mounted where its directories can be reached."""

    version: int
    options: frozenset[str]
    root: CgroupPath
    directory: str


def parse_memberships(text: str, *, path: str = "/proc/self/cgroup") -> dict[str, CgroupPath]:
    """Parse `/proc/<pid>/cgroup`.

    Sample (the last line is cgroup2, whose controllers are not listed)::

        4:memory:/docker/9cc6fa5f
        2:cpu,cpuacct:/
        0::/user.slice

    Returns:
        Controller to path; cgroup2 under the name "".

    Raises:
        SourceError: A line has another form.
    """
    found = {}
    for line in text.split("\n"):
        if not line:
            continue
        fields = line.split(":", 2)
        if len(fields) != 3 or not fields[0].isdigit() or not fields[2].startswith("/"):
            raise SourceError(f"{line!r} is not of the form ID:CONTROLLERS:/PATH", path=path)
        for controller in fields[1].split(","):
            found[controller] = CgroupPath.parse(fields[2])
    return found


def _unescape(text: str) -> str:
    r"""Undo the octal escapes (space is \040) with which mountinfo keeps its fields apart."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a mountinfo file.

    Attributes:
        number: Of the mount.
        parent: The number of the one that it is mounted on.
        device: Of its files, as MAJOR:MINOR.
        root: What of the file system is mounted.
        point: Where.
        kind: Of the file system.
        source: What the file system is of.
        options: Of the file system.
    """

    number: str
    parent: str
    device: str
    root: str
    point: str
    kind: str
    source: str
    options: str


def _parse_entry(line: str, path: str) -> Entry:
    head, found, tail = line.partition(" - ")
    fields, rest = head.split(" "), tail.split(" ")
    if not found or len(fields) < 6 or len(rest) < 3:
        raise SourceError(f"{line!r} is no line of a mountinfo file", path=path)
    number, parent, device, root, point = fields[:5]
    return Entry(number, parent, device, _unescape(root), _unescape(point), rest[0], _unescape(rest[1]), rest[2])


def parse_entries(text: str, *, path: str = "/proc/self/mountinfo") -> list[Entry]:
    """Parse all of a mountinfo file; see `parse_mounts`.

    Raises:
        SourceError: A line has another form.
    """
    return [_parse_entry(line, path) for line in text.split("\n") if line]


def file_system(path: str) -> str:
    """The kind of the file system on which a file or folder lies, such as `tmpfs` or `ext4`.

    By what the path leads to: a mount may be hidden under another, and the path may be a link.

    Returns:
        "" where no mount has its device number (btrfs numbers its parts anew).

    Raises:
        OSError: There is no such file.
        SourceError: The mounts cannot be read.
    """
    number = os.stat(path).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    entries = parse_entries(read_text("/proc/self/mountinfo"))
    return next((entry.kind for entry in entries if entry.device == device), "")


def _shown(entries: list[Entry]) -> list[Entry]:
    """Those of cgroups that a path look-up reaches; another mount may lie over them, or over a directory above."""
    numbers = {entry.number for entry in entries}
    # The root's parent, and what lies outside of a chroot, are not listed.
    over = {(e.parent if e.parent in numbers and e.parent != e.number else "", e.point): e.number for e in entries}

    def reached(point: str) -> str:
        at = ""
        for prefix in accumulate(point.rstrip("/").split("/"), lambda above, name: f"{above}/{name}"):
            while (at, prefix or "/") in over:
                at = over[at, prefix or "/"]
        return at

    cgroups = [entry for entry in entries if entry.kind in ("cgroup", "cgroup2")]
    return [entry for entry in cgroups if reached(entry.point) == entry.number]


def parse_mounts(text: str, *, prefix: str = "", path: str = "/proc/self/mountinfo") -> list[Mount]:
    r"""Parse `/proc/<pid>/mountinfo` for the cgroup hierarchies that can be reached, the widest view first.

    Sample (octal escapes in the paths; the fourth field is the part of the hierarchy that is mounted)::

        31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
        35 31 0:32 /docker/9cc6 /sys/fs/cgroup/memory ro,nosuid master:17 - cgroup cgroup rw,memory
        41 31 0:38 / /mnt/with\040space rw,relatime - cgroup2 cgroup2 rw,nsdelegate

    Args:
        text: The file's content.
        prefix: Where the root directory of that mount namespace can be reached.
        path: The file, for messages.

    Raises:
        SourceError: A line has another form.
    """
    mounts = []
    for entry in _shown(parse_entries(text, path=path)):
        version = 2 if entry.kind == "cgroup2" else 1
        root = CgroupPath.parse(entry.root)
        mounts.append(Mount(version, frozenset(entry.options.split(",")), root, (prefix + entry.point).rstrip("/")))
    return sorted(mounts, key=lambda mount: mount.root.depth)
