# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, each with the path it is about and what would help."""

from __future__ import annotations

import os
import re
from typing import ClassVar


class MemcgError(Exception):
    """Base of all errors of pymemcg.

    Args:
        message: What was read or tried, and what was expected.
        path: The file or directory it is about.
        hint: What would help.

    Attributes:
        path: The file or directory it is about, or None.
        hint: What would help, or None.
        exit_code: The exit status with which a command ends on this error.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, path: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.hint = hint

    def __str__(self) -> str:
        """The path, unless the message names it, the message, and what would help."""
        text = str(self.args[0]) if self.args else type(self).__name__
        if self.path is not None and not _names(text, self.path):
            text = f"{self.path}: {text}"
        return f"{text} ({self.hint})" if self.hint else text


def _names(text: str, path: str) -> bool:
    """Whether a text has a path in it, and not a word of its own that reads the same: that one has no slash."""
    return "/" in path and re.search(rf"(?<![\w./-]){re.escape(path)}(?![\w/-]|\.\w)", text) is not None


class NotStarted(MemcgError, AttributeError):  # noqa: N818 - it names a state
    """What a sampler has from its start on was asked for before; to `hasattr` it is not there."""


class TargetError(MemcgError):
    """There is no such target, or it cannot be resolved from here."""

    exit_code = 3


class NotSupported(MemcgError):  # noqa: N818 - it names what the place lacks, which is no fault of the caller
    """This place does not have what was asked for."""

    exit_code = 4


class SourceError(MemcgError, OSError):
    """A file of the kernel could not be read or parsed.

    Args:
        message: What was read or tried, and what was expected.
        path: The file.
        hint: What would help.
        errno: The system's error number, or None where the content was at fault.

    Attributes:
        errno: As `OSError.errno`.
    """

    exit_code = 5

    def __init__(self, message: str, *, path: str | None = None, hint: str | None = None, errno: int | None = None) -> None:
        super().__init__(message, path=path, hint=hint)
        self.errno = errno
        self.strerror = os.strerror(errno) if errno is not None else None
        self.filename = path

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the error number too, which OSError keeps outside of the instance's dict."""
        outside = {"errno": self.errno, "strerror": self.strerror, "filename": self.filename}
        return type(self), self.args, vars(self) | outside


class RecordingError(MemcgError):
    """A recording or a ring's file is damaged, or is not one of ours."""

    exit_code = 6
