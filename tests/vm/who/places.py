# SPDX-License-Identifier: Apache-2.0
"""What a command sees of the file system, and that it can get at what it is made of."""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

from who import confine

_IN_MEMORY = ("tmpfs", "ramfs", "overlay")


def make_file(folder: str, name: str, size: int) -> str | None:
    """A file without content whose pages are cached, and charged, when they are read; None where it would be in memory."""
    if not on_disk(folder):
        return None
    path = f"{folder}/{name}"
    with open(path, "wb") as file:
        file.truncate(size)
    os.chmod(path, 0o644)
    return path


def on_disk(path: str) -> bool:
    return _file_system(path) not in _IN_MEMORY


def _file_system(path: str) -> str:
    number = os.stat(path).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        if head.split()[2] == device:
            return tail.split()[0]
    return ""


def on_the_way(arguments: list[str]) -> list[str]:
    """The programs and files that a command names, with all that they are links to and scripts of; and those of PATH."""
    found: list[str] = []
    named = [path for arg in arguments for path in re.findall(r"/[\w./+-]+", arg) if not path.startswith("/proc")]
    ahead = [shutil.which(arguments[0]) or "/", *named, *os.environ["PATH"].split(":")]
    while ahead:
        path = os.path.abspath(ahead.pop())
        if path in found or not os.path.lexists(path):
            continue
        found.append(path)
        if os.path.islink(path):
            ahead.append(os.path.join(os.path.dirname(path), os.readlink(path)))
        elif os.path.realpath(path) != path:
            ahead.append(os.path.realpath(path))
        elif os.path.isfile(path) and os.access(path, os.X_OK):
            ahead += _interpreter(path)
    return found


def _interpreter(path: str) -> list[str]:
    with open(path, "rb") as file:
        first = file.readline(4096)
    if not first.startswith(b"#!"):
        return []
    words = os.fsdecode(first[2:]).split()
    return [shutil.which(words[-1]) or ""] if words and words[0].endswith("/env") else words[:1]


def open_up(arguments: list[str]) -> None:
    """Let others through where a folder on the way to these is closed to them, as /root is; seen by this process alone."""
    paths = [Path(path) for path in on_the_way(arguments)]
    confine.own_mounts()
    while closed := _closed(paths):
        names = {path.relative_to(closed).parts[0] for path in paths if path.is_relative_to(closed)}
        confine.cover(str(closed), sorted(names), "mode=755")


def _closed(paths: list[Path]) -> Path | None:
    folders = (folder for path in paths for folder in reversed(path.parents))
    return next((folder for folder in folders if not folder.stat().st_mode & stat.S_IXOTH), None)


def read_only_root(needed: list[str], *, volume: str) -> None:
    """All that is mounted becomes read-only, but for /proc, a volume, empty /tmp and /dev/shm; what is needed of /tmp stays."""
    confine.mount(volume, volume, None, confine.BIND)
    confine.set_read_only("/", on=True, below=True)
    for writable in ("/proc", volume):
        confine.set_read_only(writable, on=False, below=False)
    kept = {Path(path).parts[2] for path in needed if path.startswith("/tmp/")}
    confine.cover("/tmp", sorted(kept), "mode=1777")
    confine.cover("/dev/shm", [], "mode=1777,size=64m")
