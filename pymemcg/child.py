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
    from types import TracebackType

PREFIX = "pymemcg-"
_PATIENCE_S = 10.0
"""A killed process first gives its memory back, and one that is in the middle of reclaim finishes that first."""
_HALT_S = 1.0
"""Likewise before it is stopped, from when the last one was found. Who waits for a child of vfork(2) never is."""


class ChildGroup:
    """A group below this process's own, removed again by `close` or at the end of a `with` block.

    Processes are started by whoever uses the group and handed over with `add`, before they use memory: what was charged
    elsewhere before stays there. `close` kills those that were handed over and what these started, by pid, and nobody
    else: whoever was moved in by others is moved to this process's own group.

    Where memory is on cgroup v2, a group may not hold both processes and groups with limits, so the new one is made elsewhere:
    below the nearest ancestor that hands the memory controller down and may be written to; or, where that is one of systemd's
    own or there is none, in a transient scope that systemd is asked for, in the same slice, and nowhere if it gives none.
    Limits of this process's own group then do not hold in the new one.

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

    def forbid_swap(self) -> None:
        """Keep its memory out of swap, where there is any: so it is the limit that ends growth, and soon.

        On v1 by its swappiness: a limit on memory and swap together would silence memory's own counter of hits on some kernels.

        Raises:
            NotSupported: It may not be written.
        """
        name = "memory.swap.max" if self._version == 2 else "memory.swappiness"
        if os.path.exists(f"{self.directory}/{name}"):  # not in a kernel without swap
            _write(f"{self.directory}/{name}", "0")

    def add(self, pid: int) -> None:
        """Hand a process over, with all its threads; it will be killed when the group is closed.

        Raises:
            ValueError: It is this very process, which then could not close the group, or no number of a process.
            NotSupported: It may not be moved.
            SourceError: There is no such process.
        """
        if pid <= 0:  # to the kernel, 0 is whoever writes it, and to kill(2) a whole process group
            raise ValueError(f"{pid} is no process")
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
            SourceError: The group cannot be removed. It can be tried again.
        """
        with contextlib.ExitStack() as stack:  # whatever fails, all the rest is done
            stack.callback(self._give_back)
            stack.callback(self._remove)
            for inner in self._nested:
                stack.callback(inner.close)
        self._nested.clear()

    def _remove(self) -> None:
        ours = self._halt()
        deadline = time.monotonic() + _PATIENCE_S
        while self._made:
            for pid in ours:
                _signal(pid, signal.SIGKILL)
            if _rmdir(self._made[-1], last=time.monotonic() > deadline):
                self._made.pop()
            else:
                self._expel(ours)
                time.sleep(0.01)
                ours = self._descendants(ours)

    def _give_back(self) -> None:
        """Undo what was done for the group elsewhere."""
        if self._scope is not None:
            scope, self._scope = self._scope, None
            scope.close()
        if self._enabled is not None and not self._made:
            with contextlib.suppress(OSError, MemcgError):  # it is gone, or not ours any more
                if not _has_groups(os.path.dirname(self._enabled)):  # they would lose their limits
                    _write(self._enabled, "-memory")
            self._enabled = None

    def _halt(self) -> set[int]:
        """Stop who is to be killed, so that nobody is left out.

        What a process starts between being seen and being killed would be an orphan, and nothing tells whose. Who is stopped
        starts nothing, and still is its children's parent.
        """
        begun = latest = time.monotonic()
        ours: set[int] = set()
        going: set[int] = set()
        while True:
            going = {pid for pid in going if not _is_halted(pid)}
            found = self._descendants(ours)
            new = found - ours
            for pid in new:
                _signal(pid, signal.SIGSTOP)
            now = time.monotonic()
            if new:
                latest = now
            if not (going or new) or now > min(latest + _HALT_S, begun + _PATIENCE_S):
                return found
            going |= new
            ours = found
            time.sleep(0.001)

    def _descendants(self, known: set[int]) -> set[int]:
        """Of those who are here: who was handed over or is known, and what these started. A number may be another's later."""
        here = {pid: _parent_of(pid) for directory in self._made for pid in members(directory)}
        found = (self._handed | known) & here.keys()
        while more := {pid for pid, above in here.items() if above in found} - found:
            found |= more
        return found

    def _expel(self, ours: set[int]) -> None:
        """Move whoever is here and is not ours to end to where this process is."""
        view = View()
        homes = (view.group_of(view.process).directory, _own_cgroup2(view))
        for directory, home in zip(self._made, homes, strict=False):
            for pid in members(directory) - ours - self._handed - {0}:
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
    if delegated is not None and not systemd_manages(delegated):
        return delegated, None
    refusal = "there is no systemd to ask for one"
    if systemd_runs():
        try:
            scope = Scope(name, view, own)
        except NotSupported as error:
            refusal = str(error)
        else:
            return scope.place, scope
    above = "no group above hands the memory controller down to us"
    if delegated is not None:
        above = f"the nearest one above that hands the memory controller down, {delegated.name}, is systemd's own"
    raise NotSupported(
        "no group can be made here: on cgroup v2 a group with processes may have none with limits below it, "
        f"{above}, and {refusal}",
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


def _has_groups(directory: str) -> bool:
    with os.scandir(directory) as entries:
        return any(entry.is_dir(follow_symlinks=False) for entry in entries)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # who may not be killed keeps the group from being removed
        os.kill(pid, number)


def _is_halted(pid: int) -> bool:
    """Whether all its threads are stopped or have ended."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        return all(_stat(f"/proc/{pid}/task/{tid}")[0] in "TtZX" for tid in threads)
    except OSError:
        return not os.path.exists(f"/proc/{pid}")  # a single thread that ended: look again


def _parent_of(pid: int) -> int | None:
    try:
        return int(_stat(f"/proc/{pid}")[1])
    except SourceError:
        return None


def _stat(directory: str) -> list[str]:
    """State, parent and so on."""
    return read_text(f"{directory}/stat").rpartition(")")[2].split()
