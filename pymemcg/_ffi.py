# SPDX-License-Identifier: Apache-2.0
"""The only importer of the extension: its functions, its errors as exceptions, and sources as Python objects."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from pymemcg.errors import MemcgError, NotSupported, RecordingError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator


def _refuse_subinterpreters() -> None:
    """The extension's state, and cffi's, belong to the main interpreter."""
    for name in (
        "_interpreters",
        "_xxsubinterpreters",
    ):  # 3.13, and before; a shared library or built in, as the Python was built
        try:
            module = __import__(name)
        except ImportError:
            continue
        current, main = module.get_current(), module.get_main()
        if (current[0] if isinstance(current, tuple) else current) != (main[0] if isinstance(main, tuple) else main):
            raise ImportError(
                "pymemcg cannot be imported in a subinterpreter: its sampling threads belong to the process. "
                "Import it in the main interpreter, whose sampler covers the whole group."
            )
        return


_refuse_subinterpreters()

from pymemcg._native import ffi, lib  # noqa: E402 - a subinterpreter must be refused before cffi crashes or complains

NONE: int = 2**63 - 1
"""A limit that is none, and a hit count that a level does not have (MEMCG_NONE)."""

VALUE: int = lib.MEMCG_FORMAT_VALUE
KEYED: int = lib.MEMCG_FORMAT_KEYED
STATM: int = lib.MEMCG_FORMAT_STATM
PSI: int = lib.MEMCG_FORMAT_PSI

_HINTS = {
    errno.ENODEV: "the cgroup was removed, or cgroup.pressure is 0",
    errno.ESRCH: "the process has ended",
    errno.EACCES: "its owner, or a user who may read it, can",
    errno.EPERM: "the seccomp profile or a missing capability forbids it",
    errno.EOPNOTSUPP: "PSI is switched off: boot with psi=1",
    errno.EINVAL: "its text is not of the expected form; please report it with the file's content",
    errno.ERANGE: "a number in it does not fit into 64 bits; please report it with the file's content",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOSPC: "the file system is full",
    errno.ENOMEM: "there is no memory left for the rings; a shorter history_s or a lower rate_hz needs less",
}
_RING_ERRORS = {
    errno.EBADMSG: "is damaged or no ring of pymemcg",
    errno.EPROTO: "has another layout version or byte order; the pymemcg that wrote it can read it",
    errno.ENOTSUP: "was a live ring of a machine with smaller pages and cannot be mapped here",
}


def or_none(value: int) -> int | None:
    """A value of a column; None where it has none."""
    return None if value == NONE else value


def check_ring(rc: int, path: str, what: str) -> int:
    """Turn the -errno of a function about rings into an exception; see `check`.

    Raises:
        RecordingError: The file is no ring that can be read here.
        SourceError: Everything else; carries `errno`.
    """
    if -rc in _RING_ERRORS:
        raise RecordingError(_RING_ERRORS[-rc], path=path)
    return check(rc, path, what)


def check(rc: int, path: str, what: str = "cannot be read") -> int:
    """Turn -errno into an exception.

    Returns:
        `rc` where it is no error.

    Raises:
        SourceError: It is one; carries `errno`.
    """
    if rc >= 0:
        return rc
    raise SourceError(f"{what}: {os.strerror(-rc)}", path=path, hint=_HINTS.get(-rc), errno=-rc)


class Source:
    """One opened pseudo-file of the kernel, read as the sampler reads it.

    Args:
        path: The file.
        form: VALUE, KEYED, STATM or PSI.

    Raises:
        SourceError: It cannot be opened, read or parsed.

    Not thread-safe: one thread at a time.
    """

    def __init__(self, path: str, form: int) -> None:
        self.path = path
        out = ffi.new("struct memcg_source **")
        check(lib.memcg_source_open(os.fsencode(path), form, out), path)
        self._source = ffi.gc(out[0], lib.memcg_source_free)

    def read(self) -> dict[str, int]:
        """Read it anew: key to value; the key of a single value is "".

        Raises:
            SourceError: It cannot be read any more (ENODEV, ESRCH: what it spoke of is gone) or parsed.
        """
        check(lib.memcg_source_read(self._source), self.path)
        return dict(self.items())

    def items(self) -> Iterator[tuple[str, int]]:
        """The values as last read."""
        for i in range(lib.memcg_source_count(self._source)):
            key = ffi.string(lib.memcg_source_key(self._source, i)).decode("ascii", "replace")
            yield key, lib.memcg_source_value(self._source, i)


def read_source(path: str, form: int) -> dict[str, int]:
    """Open a pseudo-file, read it once and close it; see `Source`."""
    return dict(Source(path, form).items())


def text(field: Any) -> str:
    """A NUL-terminated field of a header."""
    return ffi.string(field).decode("utf-8", "replace")  # type: ignore[no-any-return]


__all__ = [
    "KEYED",
    "NONE",
    "PSI",
    "STATM",
    "VALUE",
    "MemcgError",
    "NotSupported",
    "Source",
    "check",
    "check_ring",
    "ffi",
    "lib",
    "read_source",
    "text",
]
