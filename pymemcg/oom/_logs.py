# SPDX-License-Identifier: Apache-2.0
"""Where kernel logs are: the kernel's own buffer, systemd's journal, files, pipes."""

from __future__ import annotations

import errno
import os
import re
import select
import stat
import time
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import Final

from pymemcg.errors import MemcgError, NotSupported, SourceError

KMSG: Final = "/dev/kmsg"
_RECORD: Final = 8192  # CONSOLE_EXT_LOG_MAX: what the kernel gives at most for one read
_CHUNK: Final = 1 << 16
_QUIET_S: Final = 1.0
"""After so long without a line nothing more of a report is to come."""
_LOOK_S: Final = 0.5  # how often a file is looked at that may have grown
_MAGIC: Final = {
    b"\x1f\x8b": "zcat {} | pymemcg oom -",
    b"\xfd7zXZ\x00": "xzcat {} | pymemcg oom -",
    b"\x28\xb5\x2f\xfd": "zstdcat {} | pymemcg oom -",
    b"LPKSHHRH": "journalctl -k --file {} | pymemcg oom -",
    b"\xff\xfe": "iconv -f UTF-16 {} | pymemcg oom -",
}
_HINT: Final = "dmesg | pymemcg oom -"

# prio,seq,usec,flags;text, and lines of properties that begin with a blank. The kernel's own have facility 0.
_KMSG: Final = re.compile(rb"(\d+),\d+,\d+,[^;]*;")
_ESCAPED: Final = re.compile(rb"\\x([0-9a-f]{2})")

Lines = Iterator[str | None]
"""Lines of a log; None = it has been quiet for a while, and who follows may say what is known."""


def lines(path: str | None, *, follow: bool) -> Lines:
    """The lines of a log.

    Args:
        path: A file, "-" for stdin, or None for this machine's own log: /dev/kmsg, or where that is not allowed the journal.
        follow: Go on with what comes.

    Raises:
        NotSupported: The machine's log cannot be read from here; the message says what would help.
        MemcgError: The file is no text.
        SourceError: It cannot be read.
    """
    if path == "-":
        return _of_descriptor(0, "stdin", follow=follow)
    if path is None:
        return _of_machine(follow=follow)
    return _of_file(path, follow=follow)


def kernel_lines() -> Iterator[str]:
    """What is in this machine's own log now; raises as `lines` does."""
    return (line for line in lines(None, follow=False) if line is not None)


def _of_machine(*, follow: bool) -> Lines:
    try:
        fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            first = _record(fd)  # that it may be read is not known before
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        import shutil  # here and below: a container that is full has no journal, and is to be spared

        if (journal := shutil.which("journalctl")) is not None:
            return _of_journal(journal, error, follow=follow)
        raise _not_readable(error) from error
    return _of_kmsg(fd, first, follow=follow)


def _not_readable(error: OSError) -> NotSupported:
    if error.errno in (errno.EPERM, errno.EACCES):
        need = "needs CAP_SYSLOG, or kernel.dmesg_restrict = 0"
        return NotSupported(f"the kernel's log may not be read: {error.strerror}", path=KMSG, hint=f"{need}; or sudo {_HINT}")
    hint = f"in a container it mostly is not; on the host: {_HINT}"
    return NotSupported(f"the kernel's log cannot be read: {error.strerror}", path=KMSG, hint=hint)


# ---- The kernel's buffer -------------------------------------------------------------------------------------------


def _record(fd: int) -> bytes | None:
    """The next record; None where there is none yet. What was overwritten before it could be read is passed over."""
    while True:
        try:
            return os.read(fd, _RECORD)
        except BlockingIOError:
            return None
        except BrokenPipeError:
            continue


def _of_kmsg(fd: int, record: bytes | None, *, follow: bool) -> Lines:
    try:
        while record is not None or follow:
            if record is None:
                if not select.select([fd], [], [], _QUIET_S)[0]:
                    yield None
            else:
                yield from of_record(record)
            record = _record(fd)
    finally:
        os.close(fd)


def of_record(record: bytes) -> list[str]:
    r"""The lines of a record of /dev/kmsg, as in "4,339,5140900,-;anon 1\x0afile 2"; none where a user's program wrote it."""
    head = _KMSG.match(record)
    if head is None or int(head[1]) > 7:  # priorities of facility 0
        return []
    text = record.partition(b"\n")[0]
    return _text(_ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), text)).split("\n")


# ---- The journal, files and pipes ----------------------------------------------------------------------------------


def _of_journal(program: str, denied: OSError, *, follow: bool) -> Lines:
    import subprocess

    command = [program, "--dmesg", "--quiet", "--no-pager", "--output=short-iso"]
    command += ["--follow", "--lines=all"] if follow else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as journal:  # noqa: S603 - found in PATH
        try:
            assert journal.stdout is not None
            some = False
            for line in _of_descriptor(os.dup(journal.stdout.fileno()), "journalctl", follow=follow):
                some = some or line is not None
                yield line
            if not some:
                raise _not_readable(denied)
        finally:
            journal.terminate()


def _of_file(path: str, *, follow: bool) -> Lines:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", path=path, errno=error.errno) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        yield from _of_descriptor(fd, path, follow=follow)
        return
    begin = os.pread(fd, 8, 0)
    for magic, hint in _MAGIC.items():
        if begin.startswith(magic):
            os.close(fd)
            raise MemcgError("is no text", path=path, hint=hint.format(path))
    yield from _of_descriptor(fd, path, follow=follow)


def _of_descriptor(fd: int, name: str, *, follow: bool) -> Lines:
    """Its lines, closed at the end. What is longer than a chunk comes in pieces."""
    rest = b""
    with closing(_chunks(fd, name, follow=follow)) as chunks:
        for chunk in chunks:
            if chunk is None:
                yield None
                continue
            whole, end, rest = (rest + chunk).rpartition(b"\n")
            if end:
                yield from _text(whole).split("\n")
            if len(rest) > _CHUNK:
                yield _text(rest)
                rest = b""
    if rest:
        yield _text(rest)


def _text(content: bytes) -> str:
    """Of many lines at once, which is much faster; what is no UTF-8 does not reach beyond its line."""
    return content.decode("utf-8", "replace")


def _chunks(fd: int, name: str, *, follow: bool) -> Generator[bytes | None, None, None]:
    try:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        grown_s = time.monotonic()
        while True:
            if follow and not regular and not select.select([fd], [], [], _QUIET_S)[0]:
                yield None
            elif chunk := os.read(fd, _CHUNK):
                grown_s = time.monotonic()
                yield chunk
            elif not (follow and regular):
                return
            elif (other := _again(fd, name)) != fd:
                while chunk := os.read(fd, _CHUNK):  # what came last into the old one
                    yield chunk
                os.close(fd)
                fd = other
            else:
                if time.monotonic() - grown_s > _QUIET_S:
                    yield None
                time.sleep(_LOOK_S)
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", path=name, errno=error.errno) from error
    finally:
        with suppress(OSError):
            os.close(fd)


def _again(fd: int, path: str) -> int:
    """The file of that name: another one where the log was rotated, from its beginning where it was cut."""
    if os.fstat(fd).st_size < os.lseek(fd, 0, os.SEEK_CUR):
        os.lseek(fd, 0, os.SEEK_SET)
    try:
        if not os.path.samestat(os.stat(path), os.fstat(fd)):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # between two names
        pass
    return fd
