# SPDX-License-Identifier: Apache-2.0
"""A memory group made for a while: for a demo, a test or a benchmark that must not touch anybody else's.

On a hybrid host it has a twin in cgroup2, so that its PSI is its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from typing import TYPE_CHECKING

from pymemcg._scope import Scope, systemd_manages, systemd_runs
from pymemcg.cgroup import resolve
from pymemcg.errors import MemcgError, NotSupported, SourceError
from pymemcg.mounts import read_text
from pymemcg.places import Place, View, locate, members

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

PREFIX = "pymemcg-"
_PATIENCE_S = 10.0
"""A killed process first gives its memory back, and one that is in the middle of reclaim finishes that first."""


class ChildGroup:
    """A group below this process's own, removed again by `close` or at the end of a `with` block.

    Processes are started by whoever uses the group and handed over with `add`, before they use memory: what was charged
    elsewhere before stays there. `close` kills those that were handed over and what these started, by pid, and nobody
    else: whoever was moved in by others is moved to this process's own group.

    Where memory is on cgroup v2, a group may not hold both processes and groups with limits, so the new one is made elsewhere:
    below the nearest ancestor that hands the memory controller down and may be written to; or, where that is one of systemd's
    own or there is none, in a transient scope that systemd is asked for, in the same slice. Limits of this process's own group
    then do not hold in the new one.

    Args:
        name: The last part of its name, `pymemcg-<pid>-<name>`.
        parent: A directory of the memory hierarchy to make it below; None = as said above.
        limit_bytes: memory.max, or memory.limit_in_bytes on v1; None = no limit.

    Attributes:
        directory: In the memory hierarchy.
        cgroup2_directory: Where its PSI and cpu.stat are: the same on v2, the twin's on a hybrid host (below this
            process's own cgroup2 group, or the twin of the group that it is nested in), None without cgroup2.
        spec: For `pymemcg.resolve` and `Sampler`: `cgroup:/path`. On a hybrid host it is by its processes that a group's PSI
            is found, so add one first.

    Raises:
        NotSupported: No group can be made here; the message says why.

    Not thread-safe.
    """

    _scope: Scope | None = None
    """The one that was asked for to make this group in, and which is closed with it; nested groups have only a `_way_in`."""

    def __init__(self, name: str, *, parent: str | os.PathLike[str] | None = None, limit_bytes: int | None = None) -> None:
        view = View()
        if parent is not None:
            place = view.group_in(os.fspath(parent))
        else:
            place, self._scope = _default_parent(view, _own_name(name))
        twin = _own_cgroup2(view) if view.version == 1 else None
        self._make(name, view.version, (place.directory, twin), limit_bytes, self._scope)

    def _make(
        self, name: str, version: int, parents: tuple[str, str | None], limit_bytes: int | None, way_in: Scope | None
    ) -> None:
        parent, twin = parents
        self._version = version
        self._way_in = way_in
        self._made: list[str] = []
        self._handed: set[int] = set()
        self._nested: list[ChildGroup] = []
        self._enabled: str | None = None
        own_name = _own_name(name)
        try:
            if version == 2:
                self._hand_down(parent)
            self.directory = self._mkdir(f"{parent}/{own_name}")
            self.cgroup2_directory = self.directory if version == 2 else None
            if twin is not None:
                self.cgroup2_directory = self._mkdir(f"{twin}/{own_name}")
            if limit_bytes is not None:
                limit = "memory.max" if version == 2 else "memory.limit_in_bytes"
                _write(f"{self.directory}/{limit}", str(limit_bytes))
            self.spec = f"cgroup:{resolve(self.directory).levels[0].name}"
        except BaseException:
            self.close()
            raise

    def _hand_down(self, parent: str) -> None:
        """Let groups below have the memory controller."""
        file = f"{parent}/cgroup.subtree_control"
        if "memory" not in read_text(file).split():
            _write(file, "+memory")
            self._enabled = file

    def _mkdir(self, directory: str) -> str:
        try:
            os.mkdir(directory)
        except OSError as error:
            raise _refused(error, directory) from error
        self._made.append(directory)
        return directory

    @staticmethod
    def possible(parent: str | os.PathLike[str] | None = None) -> str | None:
        """Try whether a group can be made here; it is removed at once.

        Returns:
            None where it can, else the reason.
        """
        try:
            ChildGroup("probe", parent=parent, limit_bytes=1 << 30).close()
        except MemcgError as error:
            return str(error)
        return None

    def child(self, name: str, *, limit_bytes: int | None = None) -> ChildGroup:
        """A group inside of this one, which then may hold no processes of its own on v2. It is closed with this one.

        Raises:
            NotSupported: It cannot be made.
        """
        inner = ChildGroup.__new__(ChildGroup)
        twin = self.cgroup2_directory if self._version == 1 else None
        inner._make(name, self._version, (self.directory, twin), limit_bytes, self._way_in)
        self._nested.append(inner)
        return inner

    def add(self, pid: int) -> None:
        """Hand a process over, with all its threads; it will be killed when the group is closed.

        Raises:
            ValueError: It is this very process, which then could not close the group.
            NotSupported: It may not be moved.
            SourceError: There is no such process.
        """
        if pid == os.getpid():
            raise ValueError("a process cannot end itself and then remove its group: hand over one that it started")
        for directory in self._made:
            try:
                _write(f"{directory}/cgroup.procs", str(pid))
            except NotSupported:
                if self._way_in is None:
                    raise
                self._way_in.admit(pid)
                _write(f"{directory}/cgroup.procs", str(pid))
        self._handed.add(pid)

    def close(self) -> None:
        """Kill what was handed over and remove the group. Nothing to do the second time.

        Raises:
            SourceError: The group cannot be removed.
        """
        while self._nested:
            self._nested.pop().close()
        deadline = time.monotonic() + _PATIENCE_S
        for pid in self._descendants():
            _kill(pid)
        while self._made:
            if _rmdir(self._made[-1], last=time.monotonic() > deadline):
                self._made.pop()
            else:
                self._expel()
                time.sleep(0.01)
        if self._scope is not None:
            self._scope.close()
        elif self._enabled is not None and not any(
            name.startswith(PREFIX) for name in os.listdir(os.path.dirname(self._enabled))
        ):
            _write(self._enabled, "-memory")
        self._scope = self._enabled = None

    def _descendants(self) -> Iterator[int]:
        """Who was handed over and is still here (its number may be another's by now), and then what these started."""
        here = {pid: _parent_of(pid) for directory in self._made for pid in members(directory)}
        found = self._handed & here.keys()
        while found:
            yield from found
            found = {pid for pid, above in here.items() if above in found}

    def _expel(self) -> None:
        """Move whoever is here and is not ours to end to where this process is."""
        view = View()
        homes = (view.group_of(view.process).directory, _own_cgroup2(view))
        for directory, home in zip(self._made, homes, strict=False):
            for pid in members(directory) - self._handed:
                with contextlib.suppress(MemcgError):  # it is exiting
                    try:
                        _write(f"{home}/cgroup.procs", str(pid))
                    except NotSupported:  # from a scope there is no way back into a login session
                        if self._way_in is not None:
                            _write(f"{self._way_in.directory}/cgroup.procs", str(pid))

    def __enter__(self) -> ChildGroup:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _own_name(name: str) -> str:
    return f"{PREFIX}{os.getpid()}-{name}"


def _default_parent(view: View, name: str) -> tuple[Place, Scope | None]:
    """Where a new group is made, and the scope that this is in, if systemd was asked for one."""
    own = view.group_of(view.process)
    if view.version == 1:
        return own, None
    delegated = next((place for place in own.upwards() if _takes_groups(place)), None)
    refusal = None
    if delegated is None or systemd_manages(delegated):
        try:
            if systemd_runs():
                scope = Scope(name, view, own)
                return scope.place, scope
        except NotSupported as error:
            refusal = str(error)
    if delegated is not None:
        return delegated, None
    raise NotSupported(
        "no group can be made here: on cgroup v2 a group with processes may have none with limits below it, no group above "
        f"hands the memory controller down to us, and {refusal or 'there is no systemd to ask for one'}",
        path=own.directory,
        hint=_what_helps(own),
    )


def _takes_groups(place: Place) -> bool:
    """Whether groups with limits can be made below it, and processes of our own group moved there."""
    # For that one must be allowed to write to the nearest group above both the old and the new one.
    if "memory" in read_text(f"{place.directory}/cgroup.subtree_control").split():
        return os.access(place.directory, os.W_OK) and os.access(f"{place.directory}/cgroup.procs", os.W_OK)
    # The true root may hold both processes and groups with limits.
    return not os.path.exists(f"{place.directory}/cgroup.events") and os.access(place.directory, os.W_OK)


def _what_helps(own: Place) -> str:
    outside = "set a limit from outside, as with `docker run --memory`"
    if os.statvfs(own.directory).f_flag & os.ST_RDONLY:
        return f"the hierarchy is mounted read-only, as in most containers: {outside}"
    if os.geteuid() == 0:
        return f"move this process into a group below the present one first, or {outside}"
    return (
        "run as root, or have systemd run a manager for this user, as by `loginctl enable-linger`, or start this in a group "
        "below one that is delegated to this user"
    )


def _own_cgroup2(view: View) -> str | None:
    """The directory of this process's cgroup2 group beside v1, or None."""
    if "" not in view.process.groups:
        return None
    path = view.process.groups[""]
    return next((at.directory for at in locate(path, view.unified, path, view.process.member, [])), None)


def _refused(error: OSError, path: str) -> NotSupported:
    hint = {
        errno.EROFS: "the hierarchy is mounted read-only, as in most containers",
        errno.EACCES: "run as root, or where the group is delegated to this user",
        errno.EPERM: "run as root, or where the group is delegated to this user",
        errno.EBUSY: "on cgroup v2 a group may not hold both processes and groups with limits",
        errno.ENOENT: "the group above is gone, or the controller is not enabled there",
        errno.EAGAIN: "cgroup.max.descendants or cgroup.max.depth of a group above is reached",
    }.get(error.errno or 0)
    return NotSupported(f"cannot be made or written: {error.strerror}", path=path, hint=hint)


def _write(path: str, text: str) -> None:
    try:
        with open(path, "wb", buffering=0) as file:
            file.write(text.encode())
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise SourceError(f"there is no process {text}", path=path, errno=errno.ESRCH) from error
        raise _refused(error, path) from error


def _rmdir(directory: str, *, last: bool) -> bool:
    """Whether it is gone; `last` = not to be is an error."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.EBUSY and not last:
            return False
        raise SourceError(f"cannot be removed: {error.strerror}", path=directory, errno=error.errno) from error
    return True


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _parent_of(pid: int) -> int | None:
    try:
        return int(read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
    except SourceError:
        return None
