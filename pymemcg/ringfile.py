# SPDX-License-Identifier: Apache-2.0
"""The ring as a file that outlives its sampler: where it is, what becomes of the one before, and its copy on a disk.

On a tmpfs the ring itself is the file. On a disk a row stored into a mapped file would wait for the disk, so an ordinary native
thread copies there what the ring holds, ten times a second.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from pymemcg._ffi import check_ring, ffi, lib
from pymemcg.errors import SourceError
from pymemcg.mounts import file_system
from pymemcg.ring import MAGIC

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymemcg.ring import Ring

FOLDER: Final = "/dev/shm/pymemcg"  # noqa: S108 - a tmpfs by convention, and others may not touch what is ours there
"""Where ring files are by default: on a tmpfs, which in a pod outlives its containers."""
KEPT: Final = 3
"""Rings of earlier lives: PATH.1 is the last one's."""
PERIOD_NS: Final = 100_000_000
"""Of the copies on a disk."""
_PATIENCE_S: Final = 1.0
"""Who reads a ring file asks for a moment whether anybody uses it, and a sampler that is killed is gone a little later."""
_BLANK: Final = (b"", bytes(len(MAGIC)))
"""What a file begins with that a machine lost its power over."""


def place(ring_file: str | os.PathLike[str] | bool) -> str:
    """The absolute path that is meant; True is a file in FOLDER, named after the program.

    A container that starts again has another group and other pids, but runs the same program.
    """
    if isinstance(ring_file, bool):
        return f"{FOLDER}/{_program()}.ring"
    path = os.fspath(ring_file)
    if not path or path.endswith("/"):
        raise ValueError(f"ring_file={path!r}: expected the path of a file, or True for one in {FOLDER}")
    return os.path.abspath(path)


def _program() -> str:
    path = os.path.abspath(sys.argv[0]) if sys.argv and sys.argv[0] not in ("", "-c", "-m") else "python"
    name = os.path.basename(path)
    return os.path.basename(os.path.dirname(path)) if name == "__main__.py" else name


def prepare(path: str) -> None:
    """See to the folder: the default one is made; it is for everybody, as /tmp is.

    Raises:
        SourceError: There is none, or others could play tricks in it.
    """
    folder = os.path.dirname(path)
    try:
        if folder == FOLDER and not os.path.lexists(folder):
            os.mkdir(folder)
        status = os.lstat(folder)
        if folder == FOLDER and stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
            os.chmod(folder, 0o1777)  # noqa: S103 - as /tmp: files are 0600, and belong to whoever made them
            status = os.lstat(folder)
    except OSError as error:
        raise _refused(path, error) from error
    safe = status.st_uid in (0, os.geteuid()) and (status.st_mode & stat.S_ISVTX or not status.st_mode & 0o022)
    if folder == FOLDER and not (stat.S_ISDIR(status.st_mode) and safe):
        why = f"cannot be created: the owner of {folder}, uid {status.st_uid}, could remove it"
        raise SourceError(why, path=path, hint="name a file in a folder of this user's")


def on_tmpfs(path: str) -> bool:
    """Whether a ring itself may be there."""
    try:
        return file_system(os.path.dirname(path)) == "tmpfs"
    except OSError as error:
        raise _refused(path, error) from error


def make(path: str, lay_out: Callable[[int], None], join: Callable[[], int | None] = lambda: None) -> tuple[int, str | None]:
    """Create the file, which is whole before it has its name; what was there is kept.

    Args:
        path: Absolute.
        lay_out: Fills the empty file.
        join: Gives a descriptor of the file that is there, if it will do; others may be about to make it.

    Returns:
        (descriptor, which holds a shared flock if the file is new; where the ring that was there went or None)

    Raises:
        SourceError: It cannot be created, is in use, or there is something else that must not be lost.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        joined = join()
        if joined is not None:
            return joined, None
        try:
            return _make(path, lay_out)
        except SourceError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _make(path: str, lay_out: Callable[[int], None]) -> tuple[int, str | None]:
    """One attempt; EBUSY where somebody else is at it."""
    new = f"{path}.new"
    fd = -1
    try:
        fd = _create(new)
        lay_out(fd)
        previous = _keep(path)
        os.rename(new, path)  # nothing is there: _keep moved it, and who else makes one here needs that other name
    except BaseException as error:
        if fd >= 0:
            if is_at(new, fd):
                os.unlink(new)
            os.close(fd)
        if isinstance(error, OSError) and not (isinstance(error, SourceError) and error.path and error.path.startswith(path)):
            raise _refused(path, error) from error
        raise
    return fd, previous


def _refused(path: str, error: OSError) -> SourceError:
    hints = {
        errno.ENOSPC: "the file system is full; a shorter history_s or a lower rate_hz needs less",
        errno.EROFS: "the file system is read-only; /dev/shm is seldom",
        errno.ENOENT: "its folder must be there",
    }
    hint = hints.get(error.errno or 0)
    return SourceError(f"cannot be created: {error.strerror}", path=path, hint=hint, errno=error.errno)


def _create(new: str) -> int:
    """An empty file that nobody else has; what a sampler left of one that was killed meanwhile goes."""
    if os.path.lexists(new):
        fd = _unused(new)
        os.unlink(new)
        os.close(fd)
    try:
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise _busy(new) from None
    if lock(fd, fcntl.LOCK_SH) and is_at(new, fd):
        return fd
    os.close(fd)  # in between somebody took it for a leftover
    raise _busy(new)


def _keep(path: str) -> str | None:
    """Move a ring that nobody uses to PATH.1, and those before it on; all of them must be rings of ours."""
    if not os.path.lexists(path):
        return None
    names = [path, *(f"{path}.{n}" for n in range(1, KEPT + 1))]
    held: list[int] = []
    try:
        held.extend(_unused(name) for name in names if os.path.lexists(name))
        for n in range(KEPT, 0, -1):
            if os.path.lexists(names[n - 1]):
                os.replace(names[n - 1], names[n])
    finally:
        for fd in held:
            os.close(fd)
    return names[1]


def _unused(name: str) -> int:
    """A ring file of ours that nobody uses, locked.

    Raises:
        SourceError: It is something else, or in use (EBUSY).
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:  # it was moved or removed meanwhile
        raise _busy(name) from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise _refused(name, error) from error
        raise SourceError("cannot be created: what is there is a symbolic link", path=name, errno=error.errno) from error
    try:
        _check_unused(fd, name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _busy(name: str) -> SourceError:
    hint = "samplers of different groups need files of their own"
    return SourceError("cannot be created: another sampler writes it", path=name, hint=hint, errno=errno.EBUSY)


def _check_unused(fd: int, name: str) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        raise SourceError("cannot be created: what is there is no file of this user's", path=name)
    start = os.pread(fd, len(MAGIC), 0)
    if start != MAGIC and start not in _BLANK:
        raise SourceError("cannot be created: what is there is no ring of pymemcg, and is not touched", path=name)
    if not lock(fd, fcntl.LOCK_EX) or not is_at(name, fd):
        raise _busy(name)


def lock(fd: int, kind: int) -> bool:
    """Take or change a lock of an open file (flock) if that needs no waiting.

    Returns:
        Whether it is held now. A lock that could not be changed is lost.
    """
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(path: str, fd: int) -> bool:
    """Whether an open file is the one at that path."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


class Copy:
    """A ring's copy in a file, kept up by a native thread.

    The processes that use one ring may all be asked for the same file: one of them copies, and when it ends, another.

    Args:
        path: Of the file.
        ring_fd: Of the ring.
        ring: The same.

    Attributes:
        previous: Where the ring file that was there went, or None.

    Raises:
        SourceError: The file cannot be created.
    """

    def __init__(self, path: str, ring: Ring) -> None:
        self.path = path
        self.handle = ffi.new("struct memcg_copy **")
        header = ffi.buffer(ring.header, ffi.offsetof("struct memcg_ring_header", "state"))[:]
        self._fd, self.previous = make(path, lambda empty: _lay_out(empty, ring), lambda: self._join(header))

    def start(self, ring_fd: int) -> None:
        """Start the thread that copies.

        Raises:
            SourceError: It cannot be started.
        """
        check_ring(lib.memcg_copy_start(ring_fd, self._fd, PERIOD_NS, self.handle), self.path, "cannot be written")

    def _join(self, header: bytes) -> int | None:
        """The file, where it is a copy of this very ring already."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        if os.fstat(fd).st_uid == os.geteuid() and os.pread(fd, len(header), 0) == header:
            return fd
        os.close(fd)
        return None

    def error(self) -> str | None:
        """Why it goes on no more, or None."""
        state = lib.memcg_copy_state(self.handle[0]) if self.handle[0] != ffi.NULL else 0
        return f"{self.path} could not be written: {os.strerror(-state)}" if state < 0 else None

    def stop(self) -> None:
        """Copy a last time, if it is this process's turn, and close. Twice is once."""
        self._end(lib.memcg_copy_stop)

    def forget(self) -> None:
        """In a forked child: the thread is the parent's."""
        self._end(lib.memcg_copy_forget)

    def _end(self, end: Callable[[Any], None]) -> None:
        copy, self.handle[0] = self.handle[0], ffi.NULL
        if copy != ffi.NULL:
            end(copy)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _lay_out(fd: int, ring: Ring) -> None:
    """An empty ring of the same layout, marked as a copy, with every byte allocated; the magic goes in last."""
    os.posix_fallocate(fd, 0, ring.header.file_bytes)
    columns = (offset for table in ring.tables.values() for offset in table.offsets.values())
    begin = bytearray(ffi.buffer(ffi.cast("char *", ring.header), min(columns)))
    header, entry = ffi.typeof("struct memcg_ring_header"), ffi.typeof("struct memcg_channel_header")
    head, begun = ffi.offsetof(entry, "head"), ffi.offsetof(entry, "begun")
    for n in range(len(ring.tables)):
        at = ring.header.channels_offset + n * ffi.sizeof(entry)
        begin[at + head : at + ffi.sizeof(entry)] = bytes(ffi.sizeof(entry) - head)
        begin[at + begun : at + begun + 8] = (1).to_bytes(8, sys.byteorder)
    state = ffi.offsetof(header, "state")
    begin[state : state + ffi.sizeof("struct memcg_state")] = bytes(ffi.sizeof("struct memcg_state"))
    begin[: len(MAGIC)] = bytes(len(MAGIC))
    for data in (begin, MAGIC):
        if os.pwrite(fd, data, 0) != len(data):  # what is allocated is written whole
            raise OSError(errno.EIO, os.strerror(errno.EIO))
