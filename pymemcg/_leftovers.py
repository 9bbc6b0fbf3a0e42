# SPDX-License-Identifier: Apache-2.0
"""What a recording that was broken off leaves: whose it is, where it goes, and how it becomes one."""

from __future__ import annotations

import fcntl
import os
import re
from collections import Counter
from contextlib import ExitStack, suppress
from itertools import count
from typing import Final

from pymemcg._rowfile import RowFile, reading
from pymemcg.errors import RecordingError
from pymemcg.ring import RECORDING_ALIGN, ChannelSpec, create

_LEFT: Final = re.compile(r"\.(?:(?P<whole>whole)|part(?:\.(?P<number>[0-9]+))?)")


def being_written(path: str) -> RecordingError:
    """The error of who comes second."""
    return RecordingError(
        "is being written by another recorder", path=path, hint="recordings at one time need files of their own"
    )


def locked(fd: int, path: str) -> bool:
    """Lock a file for as long as it is open; whether nobody else has, and it still has its name.

    A recorder at work always holds the lock of the last of its files, or of the whole one.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system that has no locks
        pass
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def left_of(path: str) -> list[str]:
    """The files of a recording that is not finished, in the order of their rows."""
    folder, name = os.path.split(path)
    found = []
    with suppress(OSError):  # whoever creates the first will hear of it
        for other in os.listdir(folder or "."):
            match = _LEFT.fullmatch(other, len(name)) if other.startswith(name) else None
            if match:
                found.append((match["whole"] is None, int(match["number"] or 0), os.path.join(folder, other)))
    return [other for *_, other in sorted(found)]


def _ours(path: str, stack: ExitStack) -> list[str]:
    """Likewise, and no recorder is at work on them until the stack is left."""
    left = left_of(path)
    for name in {*left[:1], *left[-1:]}:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise being_written(path) from None
        stack.callback(os.close, fd)
        if not locked(fd, name):
            raise being_written(path)
    if left_of(path) != left:  # it was faster
        raise being_written(path)
    return left


def lay_aside(path: str) -> str | None:
    """Rename what a recording that was broken off has left.

    Args:
        path: Of the recording.

    Returns:
        The recording that `join` makes of it, which may be one of several: PATH.left-1 and so on; None where nothing is left.

    Raises:
        RecordingError: Another recorder writes it.
        OSError: It cannot be renamed.
    """
    with ExitStack() as stack:
        left = _ours(path, stack)
        if not left:
            return None
        aside = next(new for new in (f"{path}.left-{n}" for n in count(1)) if not (os.path.lexists(new) or left_of(new)))
        for name in reversed(left):
            os.rename(name, aside + name[len(path) :])
    return aside


def join(path: str | os.PathLike[str]) -> None:
    """Make one recording of what a recording that was broken off, as by a kill, has left: PATH.part, PATH.part.1 and so on.

    Args:
        path: Of the recording, which is replaced when it is whole; then the parts are removed.

    Raises:
        RecordingError: There are none, a recorder is at work on them, one of them cannot be read or is of another recording,
            or there is no room; then all of them stay.

    Thread-safe.
    """
    path = os.fspath(path)
    made = f"{path}.{os.getpid()}.joined"
    with ExitStack() as stack:
        try:
            left = _ours(path, stack)
            filled = [name for name in left if not _is_blank(name)]
            if not filled:
                raise RecordingError(f"nothing is left of it: there is no {os.path.basename(path)}.part", path=path)
            fd = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            stack.callback(os.close, fd)
            stack.callback(_remove, made)
            _fill(fd, made, filled)
            os.fdatasync(fd)
            os.replace(made, path)
        except OSError as error:
            raise RecordingError(f"cannot be put together: {error.strerror}", path=path) from error
        for name in left:
            _remove(name)


def _is_blank(path: str) -> bool:
    """Whether the kill came before it was laid out: then it has no rows."""
    with open(path, "rb") as file:
        return not any(file.read(1))


def _fill(fd: int, path: str, left: list[str]) -> None:
    rows: Counter[str] = Counter()
    with reading(left[0]) as first:
        pass
    for name in left:
        with reading(name) as part:
            if part.created[2] != first.created[2] or list(part.tables) != list(first.tables):
                raise RecordingError(f"is no part of the same recording as {left[0]}", path=name)
            rows.update(part.rows)
    specs = [ChannelSpec(name, t.period_ns, max(1, rows[name]), t.units) for name, t in first.tables.items()]
    create(fd, specs, first.info, align=RECORDING_ALIGN, reserve=False)
    whole = RowFile(fd, path)
    whole.date(*first.created)
    for name in left:
        with reading(name) as part:
            # The kill may have come when a part was in the whole, or some of its channels, and was there still.
            second = left[0].endswith(".whole") and name == left[1]
            again = [channel for channel in part.tables if second and whole.ends_as(part, channel)]
            whole.append(part, without=again)
            whole.publish(part.closed_at)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
