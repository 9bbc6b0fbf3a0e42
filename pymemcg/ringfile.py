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
from typing import TYPE_CHECKING, Final

from pymemcg._ffi import check_ring, ffi, lib
from pymemcg.errors import SourceError
from pymemcg.mounts import file_system

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
_MAGIC: Final = b"PYMEMCG\0"
_BLANK: Final = (b"", bytes(len(_MAGIC)))
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
            os.chmod(folder, 0o1777)  # noqa: S103 - as /tmp: files are 0600, and belong to whoever made them
        status = os.lstat(folder)
    except OSError as error:
        raise _refused(path, error) from error
    tricky = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
    if folder == FOLDER and (not stat.S_ISDIR(status.st_mode) or tricky):
        raise SourceError(f"cannot be created: {folder} is not a folder in which others' files are safe", path=path)


def on_tmpfs(path: str) -> bool:
    """Whether a ring itself may be there."""
    try:
        return file_system(os.path.dirname(path)) == "tmpfs"
    except OSError as error:
        raise _refused(path, error) from error


def make(path: str, lay_out: Callable[[int], None]) -> tuple[int, str | None]:
    """Create the file, which is whole before it has its name; what was there is kept.

    Args:
        path: Absolute.
        lay_out: Fills the empty file.

    Returns:
        (descriptor that holds a shared flock, where the ring that was there went or None)

    Raises:
        SourceError: It cannot be created, is in use, or there is something else that must not be lost.
    """
    fd = _create(f"{path}.new", path)
    try:
        _fill(fd, lay_out, path)
        previous = _keep(path)
        try:
            os.link(f"{path}.new", path)
        except OSError as error:
            raise _refused(path, error) from error
    except BaseException:
        os.close(fd)
        raise
    finally:
        os.unlink(f"{path}.new")
    return fd, previous


def _fill(fd: int, lay_out: Callable[[int], None], path: str) -> None:
    try:
        lay_out(fd)
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: str, error: OSError) -> SourceError:
    hints = {
        errno.ENOSPC: "the file system is full; a shorter history_s or a lower rate_hz needs less",
        errno.EROFS: "the file system is read-only; /dev/shm is seldom",
        errno.ENOENT: "its folder must be there",
    }
    hint = hints.get(error.errno or 0)
    return SourceError(f"cannot be created: {error.strerror}", path=path, hint=hint, errno=error.errno)


def _create(new: str, path: str) -> int:
    """An empty file that nobody else has; what a sampler left of one that was killed meanwhile goes."""
    for attempt in range(2):
        try:
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileExistsError as error:
            if attempt:
                raise _refused(new, error) from error
            _with_lock(new, path, os.unlink)
        except OSError as error:
            raise _refused(path, error) from error
        else:
            return fd
    raise AssertionError  # the second attempt raises


def _keep(path: str) -> str | None:
    """Move a ring that nobody uses to PATH.1, and those before it on."""
    if not os.path.lexists(path):
        return None

    def move(_: str) -> None:
        for n in range(KEPT, 0, -1):
            older = f"{path}.{n - 1}" if n > 1 else path
            if os.path.lexists(older):
                os.replace(older, f"{path}.{n}")

    _with_lock(path, path, move)
    return f"{path}.1"


def _with_lock(name: str, path: str, do: Callable[[str], None]) -> None:
    """Do something with a ring file of ours that nobody uses."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise _refused(name, error) from error
        raise SourceError("cannot be created: what is there is a symbolic link", path=name, errno=error.errno) from error
    try:
        _check_ours(fd, name)
        _lock(fd)
        if is_at(name, fd):
            do(name)
    except BlockingIOError as error:
        hint = "samplers of different groups need files of their own"
        raise SourceError("cannot be created: another sampler writes it", path=path, hint=hint, errno=errno.EBUSY) from error
    finally:
        os.close(fd)


def _lock(fd: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _check_ours(fd: int, name: str) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        raise SourceError("cannot be created: what is there is no file of this user's", path=name)
    start = os.pread(fd, len(_MAGIC), 0)
    if start != _MAGIC and start not in _BLANK:
        raise SourceError("cannot be created: what is there is no ring of pymemcg, and is not touched", path=name)


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

    def __init__(self, path: str, ring_fd: int, ring: Ring) -> None:
        self.path = path
        self.previous: str | None = None
        header = ffi.buffer(ring.header, ffi.offsetof("struct memcg_ring_header", "state"))[:]
        fd = self._join(header)
        if fd is None:
            fd, self.previous = make(path, lambda empty: _lay_out(empty, ring))
        self._fd = fd
        self.handle = ffi.new("struct memcg_copy **")
        rc = lib.memcg_copy_start(ring_fd, fd, PERIOD_NS, self.handle)
        if rc < 0:
            os.close(fd)
            check_ring(rc, path, "cannot be written")

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
        copy, self.handle[0] = self.handle[0], ffi.NULL
        if copy != ffi.NULL:
            lib.memcg_copy_stop(copy)
            os.close(self._fd)

    def forget(self) -> None:
        """In a forked child: the thread is the parent's."""
        copy, self.handle[0] = self.handle[0], ffi.NULL
        if copy != ffi.NULL:
            lib.memcg_copy_forget(copy)
            os.close(self._fd)


def _lay_out(fd: int, ring: Ring) -> None:
    """An empty ring of the same layout, with every byte allocated; the magic goes in last."""
    os.posix_fallocate(fd, 0, ring.header.file_bytes)
    columns = (offset for table in ring.tables.values() for offset in table.offsets.values())
    begin = bytearray(ffi.buffer(ffi.cast("char *", ring.header), min(columns)))
    entry = ffi.typeof("struct memcg_channel_header")
    head = ffi.offsetof(entry, "head")
    first = ring.header.channels_offset + head
    heads = [(first + n * ffi.sizeof(entry), ffi.sizeof(entry) - head) for n in range(len(ring.tables))]
    state = (ffi.offsetof("struct memcg_ring_header", "state"), ffi.sizeof("struct memcg_state"))
    for at, length in (*heads, state, (0, len(_MAGIC))):
        begin[at : at + length] = bytes(length)
    for data in (begin, _MAGIC):
        if os.pwrite(fd, data, 0) != len(data):  # what is allocated is written whole
            raise OSError(errno.EIO, os.strerror(errno.EIO))
