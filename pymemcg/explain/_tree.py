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
from contextlib import contextmanager, suppress
from typing import IO, Any, Final

from pymemcg.errors import MemcgError, RecordingError, SourceError
from pymemcg.mounts import file_system, parse_entries, read_text

NOTES: Final = "pymemcg.json"
"""What a collection says of itself: target, time and page, and what was seen in the seconds before."""

_FORMAT: Final = 1
_MOST_BYTES: Final = 256 << 20  # of an archive, unpacked; the files of a node with a thousand pods are some 60 MiB
_MOST_FILES: Final = 200_000
_MOST_OF_FILE: Final = 16 << 20  # none of the kernel's texts is larger
_WANTED: Final = re.compile(
    r"proc/(?:meminfo|vmstat|zoneinfo|buddyinfo|swaps|version|pressure/\w+|sys/vm/\w+)"
    r"|proc/(?:PID|[0-9]+)/(?:cgroup|mountinfo|stat|statm|status|oom_score|oom_score_adj|smaps_rollup)"
    r"|(?:[^/]+/)+(?:memory|cgroup)\.[^/]+"  # wherever cgroups are mounted
)
_FOLDERS: Final = re.compile(
    r"proc(?:/(?:pressure|sys(?:/vm)?|PID|[0-9]+(?:/root(?:/.*)?)?))?|sys(?:/fs(?:/cgroup(?:/.*)?)?)?", re.DOTALL
)
_PID: Final = re.compile(r"[1-9][0-9]{0,9}")
_WHOLE: Final = re.compile(r"-?[0-9]{1,19}")
_MOST: Final = (1 << 63) - 1
_LEADS_OUT: Final = re.compile(r"(^|/)\.\.(/|$)|\0")
_OUT_OF_REACH: Final = re.compile(r"(^|/)\.\.?(/|$)|^/|\0")


def whole(word: str) -> int | None:
    """A number as kernels print it; None for what is none, or is too large to be one."""
    number = int(word) if _WHOLE.fullmatch(word) else None
    return None if number is None or abs(number) > _MOST else number


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
            if _LEADS_OUT.search(path):  # pids in a collection may be anything
                self.absent[path] = "it is no path of a kernel's file"
                return None
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
        return whole((self.text(path) or "").strip())

    def keyed(self, path: str, separator: str | None = None) -> dict[str, int]:
        """A file of lines that are a key and a number; what is no such line is left out."""
        found = {}
        for line in (self.text(path) or "").splitlines():
            key, _, value = line.partition(separator) if separator else line.partition(" ")
            word = value.split(maxsplit=1)[0] if value.strip() else ""
            if not word.startswith("-") and (count := whole(word)) is not None:
                found[key] = count
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
        kept = _Copy(path, root)
        try:
            if os.path.isdir(path):
                _copy(path, kept)
            elif os.path.exists(path) and not os.path.isfile(path):
                raise RecordingError("is neither a folder nor an archive", path=path)
            else:
                _unpack(path, kept)
            if os.path.isdir(f"{root}/proc"):
                _name_process(root)
        except OSError as error:
            if isinstance(error, MemcgError):
                raise
            raise RecordingError(f"cannot be read: {error}", path=path) from error
        if not os.path.isdir(f"{root}/proc"):
            raise RecordingError("is no collection: it has no proc", path=path, hint="`pymemcg explain --save FILE` makes one")
        _check_paths(root)
        yield Tree(root, _notes(path, root))


class _Copy:
    """The files of a collection that an explanation reads, and no more of them than a collection has.

    Args:
        path: The collection, for messages.
        root: Where to.
    """

    def __init__(self, path: str, root: str) -> None:
        self._path, self._root = path, root
        self._bytes, self._files = _MOST_BYTES, _MOST_FILES

    def count(self, name: str, size: int) -> None:
        """Count a file, wanted or not, before it is read.

        Raises:
            RecordingError: It is one too many.
        """
        self._bytes, self._files = self._bytes - size, self._files - 1
        if self._bytes < 0 or self._files < 0:
            raise RecordingError(f"is larger than {_MOST_BYTES >> 20} MiB, which no collection is", path=self._path)
        if size > _MOST_OF_FILE and wanted(name):
            raise RecordingError(
                f"has a {name} of more than {_MOST_OF_FILE >> 20} MiB, which no file of a kernel is", path=self._path
            )

    def file(self, name: str, content: IO[bytes]) -> None:
        """Write a file; by what it has, as a kernel's files are larger than they tell."""
        text = content.read(_MOST_OF_FILE + 1)
        self.count(name, len(text))
        target = os.path.join(self._root, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "xb") as file:
            file.write(text)

    def folder(self, name: str) -> None:
        """Make a folder; a group may have no file that is wanted."""
        self.count(name, 0)
        os.makedirs(os.path.join(self._root, name), exist_ok=True)

    def own(self, pid: str) -> None:
        """Name the process that looked."""
        os.makedirs(f"{self._root}/proc", exist_ok=True)
        os.symlink(pid, f"{self._root}/proc/self")


def wanted(name: str) -> bool:
    """Whether an explanation reads a file of that path in a collection."""
    return name == NOTES or _WANTED.fullmatch(name) is not None


def _copy(path: str, kept: _Copy) -> None:
    """Copy regular files: a device or a FIFO may give without end, or wait for ever, and a link leads elsewhere."""
    proc = os.path.join(path, "proc")
    with suppress(SourceError, FileNotFoundError):
        if file_system(proc) == "proc":
            raise RecordingError(
                "is a running machine and no collection", path=path, hint="explain the target there, without --root"
            )
    waiting = ["proc", "sys"]
    found = [NOTES]
    while waiting:
        at = waiting.pop()
        try:
            entries = list(os.scandir(os.path.join(path, at)))
        except OSError:  # as if it was not there
            continue
        kept.folder(at)
        for entry in entries:
            name = f"{at}/{entry.name}"
            if entry.is_dir(follow_symlinks=False) and _FOLDERS.fullmatch(name):
                waiting.append(name)
            elif name == "proc/self" and entry.is_symlink() and _PID.fullmatch(os.readlink(entry.path)):
                kept.own(os.readlink(entry.path))
            elif wanted(name):
                found.append(name)
    for name in found:
        source = os.path.join(path, name)
        with suppress(FileNotFoundError, PermissionError):
            if stat.S_ISREG(os.lstat(source).st_mode):
                with open(source, "rb", opener=_plainly) as file:
                    kept.file(name, file)


def _plainly(path: str, flags: int) -> int:
    """Open what was a regular file a moment ago."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _unpack(path: str, kept: _Copy) -> None:
    """Unpack files that are wanted and the link `proc/self`, and nothing that would lie elsewhere."""
    import tarfile
    import zlib

    try:
        with tarfile.open(path, mode="r:gz" if _is_gzip(path) else "r:") as archive:
            for entry in archive:
                name = entry.name.removeprefix("./")
                if entry.isdir() or not name:
                    continue
                if _OUT_OF_REACH.search(name):
                    raise RecordingError(f"has a file {entry.name!r}, which is no path of a collection", path=path)
                if name == "proc/self" and entry.issym() and _PID.fullmatch(entry.linkname):
                    kept.own(entry.linkname)
                elif entry.isreg() and wanted(name) and entry.size <= _MOST_OF_FILE:
                    content = archive.extractfile(entry)
                    if content is not None:
                        kept.file(name, content)
                else:
                    kept.count(name, entry.size)
    except (tarfile.TarError, zlib.error, EOFError, ValueError, RecursionError) as error:
        raise RecordingError(f"is no archive of a collection: {error}", path=path) from error


def _is_gzip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _name_process(root: str) -> None:
    unnamed, own = f"{root}/proc/PID", f"{root}/proc/self"
    if os.path.isdir(unnamed):
        pid = read_text(f"{unnamed}/stat").partition(" ")[0]
        if not _PID.fullmatch(pid):
            raise RecordingError(f"begins with {pid[:20]!r}, which is no pid", path=f"{unnamed}/stat")
        os.rename(unnamed, f"{root}/proc/{pid}")
        if not os.path.lexists(own):
            os.symlink(pid, own)


def _check_paths(root: str) -> None:
    """Mounts are looked for below the copy, so none may lead out of it."""
    for pid in os.listdir(f"{root}/proc"):
        at = f"{root}/proc/{pid}"
        if os.path.isfile(f"{at}/cgroup") and "\0" in read_text(f"{at}/cgroup"):
            raise RecordingError("has a path that no kernel prints", path=f"{at}/cgroup")
        if os.path.isfile(f"{at}/mountinfo"):
            for entry in parse_entries(read_text(f"{at}/mountinfo"), path=f"{at}/mountinfo"):
                if _LEADS_OUT.search(entry.point) or "\0" in entry.root:
                    raise RecordingError(f"has a mount at {entry.point!r}", path=f"{at}/mountinfo")


def _notes(path: str, root: str) -> dict[str, Any]:
    import json

    from pymemcg.explain._notes import check

    if not os.path.exists(f"{root}/{NOTES}"):
        return {}
    try:
        notes = json.loads(read_text(f"{root}/{NOTES}"))
        if not isinstance(notes, dict) or notes.get("format") != _FORMAT:
            raise RecordingError(
                f"has a {NOTES} of another format than {_FORMAT}", path=path, hint="a newer pymemcg may read it"
            )
        check(notes)
    except RecursionError as error:
        raise RecordingError(f"has a {NOTES} that is no JSON of ours: it is too deep", path=path) from error
    except json.JSONDecodeError as error:
        raise RecordingError(f"has a {NOTES} that is no JSON: {error}", path=path) from error
    except ValueError as error:
        raise RecordingError(f"has a {NOTES} that is none of ours: {error}", path=path) from error
    return notes
