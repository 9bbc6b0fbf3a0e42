# SPDX-License-Identifier: Apache-2.0
"""The files that an explanation rests on: of this machine, or of one that was collected.

Each file that is asked for is read once and kept, so that `save` can hand on just what was read. Command lines and environments
are never read. Nothing but `save` writes outside of a temporary folder.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pymemcg.errors import MemcgError, RecordingError, SourceError
from pymemcg.mounts import read_text

NOTES: Final = "pymemcg.json"
"""What a collection says of itself: target, time and page, and what was seen in the seconds before."""

_FORMAT: Final = 1
_MOST_BYTES: Final = 256 << 20  # of an archive, unpacked; the files of a node with a thousand pods are some 60 MiB
_MOST_FILES: Final = 200_000
_OUT_OF_REACH: Final = re.compile(r"(^|/)\.\.?(/|$)|^/|\0")


class Tree:
    """Pseudo-files below a root.

    Args:
        root: Where the machine's `/` is.
        notes: What a collection says of itself; empty for this machine.

    Attributes:
        root: As given.
        notes: As given.
        here: Whether it is this machine, now.
        absent: Path to why it could not be read.
    """

    def __init__(self, root: str = "/", notes: dict[str, Any] | None = None) -> None:
        self.root = root
        self.notes = notes or {}
        self.here = root == "/"
        self.absent: dict[str, str] = {}
        self._prefix = os.path.abspath(root).rstrip("/")
        self._texts: dict[str, str] = {}

    def text(self, path: str) -> str | None:
        """A file whole, or None where it is not there or may not be read; `absent` says which.

        Args:
            path: As the machine has it, or below `root`, as targets have it.
        """
        path = self.inside(path)
        if path not in self._texts and path not in self.absent:
            try:
                self._texts[path] = read_text(self._prefix + path)
            except SourceError as error:
                self.absent[path] = error.strerror or str(error)
        return self._texts.get(path)

    def texts(self, path: str, change: re.Pattern[str]) -> None:
        """Read a file, and keep no more of it than the lines that a pattern finds."""
        text = self.text(path)
        if text is not None:
            self._texts[self.inside(path)] = "".join(line for line in text.splitlines(keepends=True) if change.search(line))

    def number(self, path: str) -> int | None:
        """A file that is one number; None where there is none, or it is none ("max")."""
        text = (self.text(path) or "").strip()
        return int(text) if text.lstrip("-").isdecimal() and text.isascii() else None

    def keyed(self, path: str, separator: str | None = None) -> dict[str, int]:
        """A file of lines that are a key and a number; what is no such line is left out."""
        found = {}
        for line in (self.text(path) or "").splitlines():
            key, _, value = line.partition(separator) if separator else line.partition(" ")
            word = value.split(maxsplit=1)[0] if value.strip() else ""
            if word.isdecimal() and word.isascii():
                found[key] = int(word)
        return found

    @property
    def own_pid(self) -> int:
        """Of the process that looked, in that /proc."""
        return int(os.readlink(f"{self._prefix}/proc/self"))

    def folders(self, path: str) -> list[str]:
        """The names of the folders in one, sorted; none where it cannot be looked into."""
        try:
            with os.scandir(self._prefix + self.inside(path)) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:
            return []

    def inside(self, path: str) -> str:
        """The path as the machine has it."""
        return path[len(self._prefix) :] if self._prefix and path.startswith(f"{self._prefix}/") else path

    def save(self, path: str, notes: dict[str, Any]) -> None:
        """Write what was read as a .tar.gz, which `opened` takes and its owner alone may read.

        A file of that name is replaced once the new one is whole; a link, a device or a folder is not.

        Raises:
            MemcgError: It cannot be written, or something else than a file is there.
        """
        import json
        import tarfile
        import tempfile

        _may_replace(path)
        part = None
        try:
            # Of a name that nobody can foresee: whoever may write to the folder could have put a link there.
            number, part = tempfile.mkstemp(prefix=".pymemcg-explain-", dir=os.path.dirname(path) or ".")
            with open(number, "wb") as file, tarfile.open(fileobj=file, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
                _add(archive, NOTES, json.dumps({"format": _FORMAT} | notes, indent=2))
                for name in sorted(self._texts):
                    _add(archive, name.lstrip("/"), self._texts[name])
                own = tarfile.TarInfo("proc/self")
                own.type, own.linkname = tarfile.SYMTYPE, str(self.own_pid)
                archive.addfile(own)
            os.replace(part, path)
        except OSError as error:
            raise MemcgError(f"cannot be written: {error.strerror}", path=path) from error
        finally:
            if part is not None and os.path.lexists(part):
                os.unlink(part)


def _may_replace(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # it is not there; or what is wrong is said when it is written
        return
    if not stat.S_ISREG(mode):
        raise MemcgError("is there and is no regular file", path=path, hint="name a new file, or one to replace")


def _add(archive: Any, name: str, text: str) -> None:
    import io
    import tarfile

    content = os.fsencode(text)
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    archive.addfile(entry, io.BytesIO(content))


@contextmanager
def opened(path: str) -> Iterator[Tree]:
    """A collection as a tree: what `save` wrote, or a folder of that shape, in a copy that is gone again afterwards.

    The folder `proc/PID`, as in captured trees, stands for the process in it, which becomes `self` unless there is one.

    Raises:
        RecordingError: It is no collection.
    """
    import tempfile  # here and below: a container that is full has no room for what nobody asks for there

    with tempfile.TemporaryDirectory(prefix="pymemcg-explain-") as root:
        try:
            if os.path.isdir(path):
                for part in ("proc", "sys", NOTES):
                    _copy(os.path.join(path, part), os.path.join(root, part))
            else:
                _unpack(path, root)
        except (OSError, EOFError) as error:
            raise RecordingError(f"cannot be read: {error}", path=path) from error
        if not os.path.isdir(f"{root}/proc"):
            raise RecordingError("is no collection: it has no proc", path=path, hint="`pymemcg explain --save FILE` makes one")
        _name_process(root)
        yield Tree(root, _notes(path, root))


def _copy(source: str, target: str) -> None:
    import shutil

    if os.path.isdir(source):
        shutil.copytree(source, target, symlinks=True)
    elif os.path.exists(source):
        shutil.copyfile(source, target)


def _unpack(path: str, root: str) -> None:
    """Unpack files, folders and the link `proc/self`, and nothing that would lie elsewhere."""
    import shutil
    import tarfile
    import zlib

    left, files = _MOST_BYTES, _MOST_FILES
    try:
        with tarfile.open(path, mode="r:*") as archive:
            for entry in archive:
                name = entry.name.removeprefix("./")
                if entry.isdir() or not name:
                    continue
                left, files = left - entry.size, files - 1
                if left < 0 or files < 0:
                    raise RecordingError(f"is larger than {_MOST_BYTES >> 20} MiB, which no collection is", path=path)
                if _OUT_OF_REACH.search(name):
                    raise RecordingError(f"has a file {entry.name!r}, which is no path of a collection", path=path)
                target = os.path.join(root, name)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                if name == "proc/self" and entry.issym() and entry.linkname.isdecimal():
                    os.symlink(entry.linkname, target)
                elif entry.isreg() and (content := archive.extractfile(entry)) is not None:
                    with open(target, "xb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, zlib.error) as error:
        raise RecordingError(f"is no archive of a collection: {error}", path=path) from error


def _name_process(root: str) -> None:
    unnamed, own = f"{root}/proc/PID", f"{root}/proc/self"
    if os.path.isdir(unnamed):
        pid = read_text(f"{unnamed}/stat").partition(" ")[0]
        os.rename(unnamed, f"{root}/proc/{int(pid)}")
        if not os.path.lexists(own):
            os.symlink(str(int(pid)), own)


def _notes(path: str, root: str) -> dict[str, Any]:
    import json

    if not os.path.exists(f"{root}/{NOTES}"):
        return {}
    try:
        notes = json.loads(read_text(f"{root}/{NOTES}"))
    except ValueError as error:
        raise RecordingError(f"has a {NOTES} that is no JSON: {error}", path=path) from error
    if not isinstance(notes, dict) or notes.get("format") != _FORMAT:
        raise RecordingError(f"has a {NOTES} of another format than {_FORMAT}", path=path, hint="a newer pymemcg may read it")
    return notes
