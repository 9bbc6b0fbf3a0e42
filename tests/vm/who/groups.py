# SPDX-License-Identifier: Apache-2.0
"""Memory groups made from outside for whoever is to run in them, on cgroup v1, v2 and both."""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PATIENCE_S = 20


@dataclass(frozen=True)
class Hierarchy:
    """A mounted hierarchy that has the memory controller, or PSI beside one that has."""

    version: int
    controllers: str
    point: str
    home: Path


def hierarchies() -> list[Hierarchy]:
    """Where memory is, and cgroup2 where that is another."""
    paths = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths[controllers] = path
    v1 = next((controllers for controllers in paths if "memory" in controllers.split(",")), None)
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        root, point = head.split()[3:5]
        kind, _, options = tail.split()[:3]
        is_v1 = kind == "cgroup" and v1 is not None and "memory" in options.split(",")
        controllers = v1 if is_v1 and v1 is not None else ""
        if (is_v1 or kind == "cgroup2") and root == "/" and controllers in paths:
            known = Hierarchy(1 if is_v1 else 2, controllers, point, Path(point + paths[controllers]))
            if all(other.version != known.version for other in found):
                found.append(known)
    if not found or (v1 is not None and found[0].version == 2 and len(found) == 1):
        raise SystemExit("tests/vm/as: the hierarchy with the memory controller is not mounted here, or not as a whole")
    return sorted(found, key=lambda hierarchy: hierarchy.version)


class Group:
    """A group in each of these hierarchies: the first is memory's."""

    def __init__(self, name: str, above: Group | None = None) -> None:
        self.hierarchies = hierarchies() if above is None else above.hierarchies
        parents = [_parent(at, len(self.hierarchies) == 1) for at in self.hierarchies] if above is None else above.directories
        self.directories: list[Path] = []
        try:
            for parent in parents:
                (parent / f"pymemcg-{name}").mkdir()
                self.directories.append(parent / f"pymemcg-{name}")
        except OSError:
            for directory in self.directories:
                directory.rmdir()
            raise

    @property
    def memory(self) -> Path:
        return self.directories[0]

    def limit(self, size: int) -> None:
        """Of memory; set by us, and not by those within."""
        (self.memory / ("memory.limit_in_bytes" if self.hierarchies[0].version == 1 else "memory.max")).write_text(str(size))

    def hand_down(self, *, on: bool = True) -> None:
        """Let groups below have limits.

        A thread that has been joined still keeps its group busy for a moment: the kernel wakes who waits for it in exit_mm(),
        takes it out of its group later in do_exit(), and does not move it with the others of its process meanwhile.
        """
        if self.hierarchies[0].version != 2:
            return
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                (self.memory / "cgroup.subtree_control").write_text("+memory" if on else "-memory")
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def delegate(self, uid: int) -> None:
        """Give it to a user, as systemd does: the group and the files that move processes, but not its limits."""
        for directory in self.directories:
            os.chown(directory, uid, uid)
            for name in ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"):
                if (directory / name).exists():
                    os.chown(directory / name, uid, uid)

    def add(self, pid: int) -> None:
        for directory in self.directories:
            (directory / "cgroup.procs").write_text(str(pid))

    def write(self, file: str, text: str) -> None:
        """To a file of its own, in the first hierarchy that has it."""
        if "/" in file:
            raise ValueError(f"{file} is not a file of the group's")
        path = next((directory / file for directory in self.directories if (directory / file).exists()), self.memory / file)
        descriptor = os.open(path, os.O_WRONLY)  # nothing is made where there is none
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """End all within, which nobody but us has started, and remove the group with all that was made below it."""
        deadline = time.monotonic() + _PATIENCE_S
        for top in self.directories:
            while top.exists():
                for directory, _, _ in os.walk(top, topdown=False):
                    _empty(Path(directory))
                if top.exists() and time.monotonic() > deadline:
                    raise SystemExit(f"tests/vm/as: {top} cannot be removed")
                time.sleep(0.01)


def remove_left_behind() -> None:
    """Groups of a tests/vm/as that was killed. Only empty ones: a process that is still there may be anybody's.

    That a number is nobody's may only mean that it is of another pid namespace; then its group is empty only while it is made.
    """
    found = hierarchies()
    for at in found:
        for top in _parent(at, len(found) == 1).glob("pymemcg-*-as-*"):
            number = re.fullmatch(r"pymemcg-(\d+)-as-[a-z]+", top.name)
            if number and not Path("/proc", number[1]).exists() and _is_left_behind(top):
                for directory, _, _ in os.walk(top, topdown=False):
                    with suppress(OSError):
                        os.rmdir(directory)


def _is_left_behind(top: Path) -> bool:
    try:
        if time.time() - top.stat().st_mtime < _PATIENCE_S:
            return False
        return not any(Path(directory, "cgroup.procs").read_text() for directory, _, _ in os.walk(top))
    except OSError:  # it is going
        return False


def _empty(directory: Path) -> None:
    try:
        pids = (directory / "cgroup.procs").read_text().split()
        for pid in map(int, pids):
            if pid != 0:
                os.kill(pid, signal.SIGKILL)
        directory.rmdir()
    except (FileNotFoundError, ProcessLookupError):
        return
    except OSError:  # still busy
        return


def _parent(at: Hierarchy, alone: bool) -> Path:
    """Below this process's own group; where memory is on v2, below the nearest one above that hands it down."""
    if not alone or at.version == 1:
        return at.home
    for directory in (at.home, *at.home.parents):
        if "memory" in (directory / "cgroup.subtree_control").read_text().split():
            return directory
        if str(directory) == at.point:
            break
    raise SystemExit(f"tests/vm/as: no group from {at.home} upwards hands the memory controller down")
