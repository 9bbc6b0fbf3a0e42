# SPDX-License-Identifier: Apache-2.0
"""One sampler per group: who samples, and how the others come by its rings.

Whoever holds `flock` on the group's directory samples; that works on read-only mounts and without privileges. Its ring is a
file in the user's own folder in /dev/shm, named after the group's directory, so attaching is opening; where the ring is a file
that is to stay, its name there is a symbolic link that tells of it. Each process that uses a ring holds a shared `flock` on it:
a ring on which nobody does is a leftover, and the last one out removes its own name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pymemcg import ringfile
from pymemcg._ffi import ffi, lib
from pymemcg.errors import SourceError
from pymemcg.mounts import file_system
from pymemcg.ringfile import lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SHM = "/dev/shm"  # noqa: S108 - a tmpfs by convention, and its folder below is checked to be ours
_PATIENCE_S = 1.0
"""How long to wait for the ring of a sampler that is only starting, or for one that is ending to be gone."""

Role = Literal["sampling", "attached", "alone"]


@dataclass
class Seat:
    """A process's part in sampling a group.

    Attributes:
        role: "sampling", "attached" (another process samples, and its ring is ours to read), or "alone" (another process
            samples, and its ring is not: all into a ring of our own, and PSI left to the other while it reads it).
        ring_fd: The ring.
        lock_fd: The group's directory, for `flock`; -1 when alone.
        path: The ring's name, or None: nobody can attach.
        note: Why it is not better than it is, or None.
        previous: Where the ring file that was there before went, or None.
    """

    role: Role
    ring_fd: int
    lock_fd: int
    path: str | None
    note: str | None = None
    previous: str | None = None

    def leave(self) -> None:
        """Give the ring and the right to write it back; the last one out removes the ring's name. Twice is once."""
        path = self.path if self.ring_fd >= 0 else None
        if path is not None:
            with _turn(path):
                if lock(self.ring_fd, fcntl.LOCK_EX) and _is_at(path, self.ring_fd):
                    os.unlink(path)
        if self.ring_fd >= 0:
            fcntl.flock(self.ring_fd, fcntl.LOCK_UN)  # arrays keep the ring mapped, and with that its lock
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptors and change nothing: in a forked child, whose parent goes on using the same locks."""
        fds = self.ring_fd, self.lock_fd
        self.ring_fd = self.lock_fd = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def take_seat(directory: str, create: Callable[[int], None], *, at: str | None = None, patience_s: float = _PATIENCE_S) -> Seat:
    """Become the group's sampler, or attach to it.

    Args:
        directory: The memory group's.
        create: Lays the ring out in an empty file.
        at: Where a new ring is to be, a path on a tmpfs, and to stay; None = nowhere once nobody uses it.
        patience_s: How long to wait for a ring whose sampler is starting or ending.

    Raises:
        SourceError: The directory cannot be opened, there is no memory for a ring, or none can be where it is to be.
    """
    try:
        lock_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"cannot be opened: {error.strerror}", path=directory, errno=error.errno) from error
    try:
        home, note = _home()
        path = ring_path(os.fstat(lock_fd), os.geteuid()) if home else None
        deadline = time.monotonic() + patience_s
        while True:
            if lock(lock_fd, fcntl.LOCK_EX):
                return _sample(lock_fd, path, note, _Maker(create, at), deadline)
            ring_fd = None
            if path is not None:
                with _turn(path):
                    ring_fd = _join(path)
            if ring_fd is not None and _fits(ring_fd):
                return Seat("attached", ring_fd, lock_fd, path)
            if ring_fd is not None:
                os.close(ring_fd)
                note = f"{path} is of another version of pymemcg"
                break
            if time.monotonic() >= deadline:
                break
            time.sleep(0.01)
    except BaseException:
        os.close(lock_fd)
        raise
    os.close(lock_fd)
    note = f"another process samples this group and its ring cannot be shared: {note or f'nothing that is ours at {path}'}"
    maker = _Maker(create, at)
    return Seat("alone", maker.nameless(), -1, None, note, maker.previous)


@dataclass
class _Maker:
    """Makes a new ring.

    Attributes:
        create: Lays it out in an empty file.
        at: Where it is to be and to stay, or None.
        previous: Where the one went that was there, or None.
    """

    create: Callable[[int], None]
    at: str | None
    previous: str | None = None

    def nameless(self) -> int:
        """One that others do not find."""
        return _memfd(self.create) if self.at is None else self._stay(self.at)

    def named(self, path: str) -> int:
        """One to which others attach by that name."""
        _sweep(os.path.dirname(path))
        if os.path.lexists(path):  # before a ring is laid out for nothing
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if self.at is None:
            return _create_named(path, self.create)
        fd = self._stay(self.at)
        try:
            os.symlink(f"{os.fstat(fd).st_ino}:{self.at}", path)
        except BaseException:
            os.unlink(self.at)
            os.close(fd)
            raise
        return fd

    def _stay(self, at: str) -> int:
        fd, previous = ringfile.make(at, self.create)
        self.previous = previous or self.previous
        return fd


def _sample(lock_fd: int, path: str | None, note: str | None, maker: _Maker, deadline: float) -> Seat:
    """The lock is ours. Go on with the ring that others are attached to, if there is one; else make one."""
    while path is not None:
        try:
            with _turn(path):
                ring_fd = _inherit(path)
                if ring_fd is None:
                    return Seat("sampling", maker.named(path), lock_fd, path, previous=maker.previous)
            if _fits(ring_fd):
                return Seat("sampling", ring_fd, lock_fd, path)
            os.close(ring_fd)
            note = f"{path} is in use by another version of pymemcg"
            break
        except OSError as error:
            if maker.at is not None and isinstance(error, SourceError):  # it was asked for there
                raise
            note = f"no ring at {path}: {error.strerror or error}"
            # Whoever holds the name alone is about to remove it: waiting a moment is better than a memfd for life.
            if not isinstance(error, FileExistsError) or time.monotonic() >= deadline:
                break
        time.sleep(0.01)
    return Seat("sampling", maker.nameless(), lock_fd, None, f"others cannot attach: {note}", maker.previous)


@contextmanager
def _turn(path: str) -> Iterator[None]:
    """One process at a time: of several who come at once to a ring that nobody uses each would take the others for its users.

    It is a moment, and who was stopped in it holds others up no longer than for _PATIENCE_S.
    """
    try:
        fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # the folder was removed, and all rings' names with it
        yield
        return
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while not lock(fd, fcntl.LOCK_EX) and time.monotonic() < deadline:
            time.sleep(0.001)
        yield
    finally:
        os.close(fd)


def _inherit(path: str) -> int | None:
    """The ring to which others are attached; or None, and then its name is free."""
    fd = _join(path)
    if fd is None and os.path.islink(path):  # to a ring that was moved or removed
        os.unlink(path)
    return fd


def _create_named(path: str, create: Callable[[int], None]) -> int:
    """A ring that is whole and in use before it has a name."""
    home = os.path.dirname(path)
    fd = os.open(home, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    home_fd = -1
    try:
        create(fd)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        home_fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # With a dir_fd this is linkat(AT_SYMLINK_FOLLOW); without one it is link(), which links the symlink in /proc.
        os.link(f"/proc/self/fd/{fd}", os.path.basename(path), dst_dir_fd=home_fd, follow_symlinks=True)
    except BaseException:
        os.close(fd)
        raise
    finally:
        if home_fd >= 0:
            os.close(home_fd)
    return fd


def _memfd(create: Callable[[int], None]) -> int:
    try:
        fd = os.memfd_create("pymemcg", os.MFD_CLOEXEC)
    except OSError as error:
        raise SourceError(f"cannot be created: {error.strerror}", path="a memfd for the ring", errno=error.errno) from error
    try:
        create(fd)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for who comes by it through /proc
    except BaseException:
        os.close(fd)
        raise
    return fd


def _join(path: str) -> int | None:
    """Open a ring that others use and say that we do, too; None where there is none. One that nobody uses loses its name."""
    try:
        fd = os.open(file_of(path), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    if lock(fd, fcntl.LOCK_EX):
        if _is_at(path, fd):
            os.unlink(path)
    # Its last user may have removed it between our open and our lock: then it is nobody's, whatever we hold.
    elif lock(fd, fcntl.LOCK_SH) and _is_at(path, fd):
        return fd
    os.close(fd)
    return None


def _fits(ring_fd: int) -> bool:
    out = ffi.new("struct memcg_map **")
    if lib.memcg_map_open(ring_fd, out) != 0:
        return False
    lib.memcg_map_free(out[0])
    return True


def _sweep(home: str) -> None:
    """Remove what killed processes left behind."""
    for name in os.listdir(home):
        path = f"{home}/{name}"
        fd = _join(path)
        if fd is not None:
            os.close(fd)
        elif os.path.islink(path) and _leads_nowhere(path):
            os.unlink(path)


def _leads_nowhere(path: str) -> bool:
    """Whether the ring file of that name was moved or removed. In folders that are not here others may see it."""
    file, inode = _followed(path)
    try:
        return os.stat(file, follow_symlinks=False).st_ino != inode
    except OSError:
        return os.path.isdir(os.path.dirname(file)) or file.startswith(f"{_SHM}/")  # there all see the same


def ring_path(directory: os.stat_result, uid: int) -> str:
    """Where a user's ring of a group is, if there is one.

    Args:
        directory: The status of the group's directory.
        uid: The effective user id of its sampling process.
    """
    return f"{_home_of(uid)}/{directory.st_dev:x}-{directory.st_ino:x}"


def _home_of(uid: int) -> str:
    return f"{_SHM}/pymemcg-{uid}"


def _home() -> tuple[str | None, str | None]:
    """The user's folder for rings and None, or None and why there is none."""
    home = _home_of(os.geteuid())
    try:
        if file_system(_SHM) != "tmpfs":
            return None, f"{_SHM} is not a tmpfs"  # a row stored into a mapped file on a disk waits for the disk
        os.makedirs(home, mode=0o700, exist_ok=True)
        status = os.lstat(home)
    except OSError as error:
        return None, f"{error.filename or home}: {error.strerror}"
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        return None, f"{home} is not a folder of this user's alone"
    return home, None


def file_of(path: str) -> str:
    """Where the ring of that name is: there, or where a link to `inode:path` says it stays."""
    return _followed(path)[0]


def _followed(path: str) -> tuple[str, int | None]:
    try:
        inode, _, file = os.readlink(path).partition(":")
    except OSError:
        return path, None
    return file, int(inode) if inode.isdecimal() else -1


def _is_at(path: str, fd: int) -> bool:
    """Whether that is the ring of that name. A link lies in our own folder, but may lead into one of everybody's."""
    (file, inode), status = _followed(path), os.fstat(fd)
    try:
        there = os.stat(file, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(there, status) and status.st_uid == os.geteuid() and inode in (None, status.st_ino)
