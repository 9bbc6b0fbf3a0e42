# SPDX-License-Identifier: Apache-2.0
"""Files that have their name only when they are whole."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from pymemcg.errors import MemcgError


class Part:
    """A file that is being written, under a name that no pattern for data files matches: `.NAME.PID.unfinished`.

    Args:
        path: The name that it is to have.

    Attributes:
        path: As given.
        file: To write to.

    Raises:
        MemcgError: It cannot be created.

    Not thread-safe.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        if os.path.lexists(self.path) and not os.path.isfile(self.path):  # /dev/null would be one afterwards
            raise MemcgError("is there already, and no file", path=self.path)
        folder, name = os.path.split(self.path)
        self._part = os.path.join(folder, f".{name}.{os.getpid()}.unfinished")
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self.file = os.fdopen(os.open(self._part, flags, 0o644), "w+b")
        except OSError as error:
            raise unwritten(self.path, error) from error

    def keep(self) -> int:
        """Give it its name, and what had that name before is no more.

        Returns:
            Its size in bytes.

        Raises:
            MemcgError: It cannot be written to its end.
        """
        try:
            with self.file:
                self.file.flush()
                os.fsync(self.file.fileno())  # or after a power failure the name may be there without the data
                size = os.fstat(self.file.fileno()).st_size
            os.replace(self._part, self.path)
            _sync_folder(self.path)
        except OSError as error:
            self.drop()
            raise unwritten(self.path, error) from error
        return size

    def drop(self) -> None:
        """Remove it; nothing to do where it has its name."""
        with suppress(OSError):  # what is buffered finds no room
            self.file.close()
        with suppress(FileNotFoundError):
            os.unlink(self._part)


def _sync_folder(path: str) -> None:
    """Or after a power failure the file may be without its name."""
    try:
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # one may write to it and not read it
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot
            raise
    finally:
        os.close(fd)


def unwritten(path: str, error: OSError) -> MemcgError:
    """What is to be said of a file that cannot be written."""
    return MemcgError(f"cannot be written: {error.strerror or error}", path=path)
