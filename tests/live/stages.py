# SPDX-License-Identifier: Apache-2.0
"""Situations that people ask about, staged in a group of 64 MiB: what a process is told to do, and what goes on meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from actor import Actor

from pymemcg.child import ChildGroup

LIMIT = 64 << 20
WATCHED_S = 3.0

Make = Callable[..., ChildGroup]
Start = Callable[..., Actor]

_WRITE = """
def write(path, mib):
    with open(path, "wb") as file:
        for _ in range(mib): file.write(bytes(1 << 20))
        file.flush(); os.fsync(file.fileno())
def read(path, pause=0):
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20): time.sleep(pause)
def touched(mib):
    data = bytearray(mib << 20)
    data[::4096] = b"x" * len(data[::4096])
    return data
"""


_MEANWHILE = """
import threading
def work():
    {}
threading.Thread(target=work, daemon=True).start()
"""


@contextmanager
def healthy_cache(make: Make, start: Start, folder: Path) -> Iterator[ChildGroup]:
    """A process has read more than the limit, and rests."""
    group = make("cache", limit_bytes=LIMIT)
    with (folder / "data").open("wb") as file:  # by this process, which pays for its pages until they are dropped
        file.write(bytes(96 << 20))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    actor = start(group)
    actor.do(_WRITE)
    actor.do(f"read({str(folder / 'data')!r})")
    yield group


@contextmanager
def dirty_backlog(make: Make, start: Start, folder: Path) -> Iterator[ChildGroup]:
    """One process writes a large file, another needs memory for requests and gives it back."""
    group = make("streams", limit_bytes=LIMIT)
    writer, server = start(group), start(group)
    for actor in (writer, server):
        actor.do(_WRITE)
    writer.do(_MEANWHILE.format(f"while True: write({str(folder / 'backup')!r}, 96)"))
    server.do(_MEANWHILE.format("while True: touched(24); time.sleep(0.05)"))
    yield group


@contextmanager
def growth(make: Make, start: Start, folder: Path) -> Iterator[ChildGroup]:
    """A process keeps what it allocates, some MiB a second."""
    del folder
    group = make("growth", limit_bytes=LIMIT)
    actor = start(group)
    actor.do(_WRITE)
    actor.do("kept = [touched(8)]")
    actor.do(_MEANWHILE.format("for _ in range(36): kept.append(touched(1)); time.sleep(0.25)"))
    yield group


@contextmanager
def parent_squeezed(make: Make, start: Start, folder: Path) -> Iterator[ChildGroup]:
    """A group far below its own limit, in one that another fills."""
    pod = make("pod", limit_bytes=LIMIT)
    neighbour, group = pod.child("neighbour"), pod.child("service", limit_bytes=LIMIT // 2)
    hog, service = start(neighbour), start(group)
    for actor in (hog, service):
        actor.do(_WRITE)
    hog.do("kept = touched(40)")
    hog.do(f"write({str(folder / 'data')!r}, 32)")
    service.do("kept = touched(4)")
    hog.do(f"read({str(folder / 'data')!r})")
    yield group


@contextmanager
def tmpfs_leak(make: Make, start: Start, folder: Path) -> Iterator[ChildGroup]:
    """Files in memory that nobody deletes, and some cache."""
    group = make("tmpfs", limit_bytes=LIMIT)
    actor = start(group)
    actor.do(_WRITE)
    leak = Path("/dev/shm") / folder.name
    try:
        actor.do(f"write({str(leak)!r}, 40)")
        actor.do(f"write({str(folder / 'data')!r}, 40)")
        yield group
    finally:
        leak.unlink(missing_ok=True)


STAGES = {
    "healthy-cache": healthy_cache,
    "dirty-backlog": dirty_backlog,
    "growth": growth,
    "parent-squeezed": parent_squeezed,
    "tmpfs-leak": tmpfs_leak,
}


def main() -> None:
    """Stage one and explain it: `python tests/live/stages.py SITUATION [ARGUMENTS OF EXPLAIN]`."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="pymemcg-", dir="/var/tmp") as folder:

        def make(name: str, **options: Any) -> ChildGroup:
            return stack.enter_context(ChildGroup(name, **options))

        def start(group: ChildGroup) -> Actor:
            actor = Actor(group=group)
            stack.callback(actor.close)
            return actor

        with STAGES[sys.argv[1]](make, start, Path(folder)) as group:
            subprocess.run([sys.executable, "-m", "pymemcg", "explain", group.spec, *sys.argv[2:]], check=True)


if __name__ == "__main__":
    main()
