# SPDX-License-Identifier: Apache-2.0
"""What a guest needs on the host, so that none of it stays there: processes that die with ours, a folder that is removed."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import NoReturn

from rig.kernels import UnavailableError

TIMED_OUT = 124
DIED = 125

# A real disk, unlike /tmp at times: guests' disks are files here. Short, since it holds sockets.
FOLDERS = Path("/var/tmp")
PREFIX = "pymemcg-vm-"

SEARCHED = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # root by plain `su` has none of the two


def need(packages: dict[str, str]) -> None:
    """Look for commands; each comes with the Debian package that has it."""
    if os.geteuid() != 0:
        raise UnavailableError("a guest has this machine's file tree, and root there is root: so only root may start one")
    missing = missing_of(packages)
    if missing:
        raise UnavailableError(f"missing here: apt-get install --no-install-recommends {' '.join(sorted(missing))}")


def missing_of(packages: dict[str, str]) -> set[str]:
    """Packages whose commands are not here. Debian's other busybox has the same name and needs libraries that no guest has."""
    found = {command: shutil.which(command, path=SEARCHED) for command in packages}
    busybox = found.get("busybox")
    if busybox and b"/ld-" in Path(busybox).read_bytes()[:4096]:
        found["busybox"] = None
    return {packages[command] for command, there in found.items() if not there}


def exit_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that everything is cleaned up."""

    def leave(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder, removed at the end; what earlier runs left that were killed the hard way is removed at once."""
    for left in FOLDERS.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):  # another run has just removed it
            if time.time() - left.stat().st_mtime > 60:
                _remove_if_unused(left)
    path = Path(mkdtemp(prefix=PREFIX, dir=FOLDERS))
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _remove_if_unused(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return  # another has just removed it, or it is another user's
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        pass  # its run goes on
    finally:
        os.close(descriptor)


@contextmanager
def running(*command: str | Path, dies_by: str = "KILL", **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with this block, and with our own process however that ends."""
    # Our own end may come before the kernel has been asked to tell it: then the process has another parent by now.
    guarded = ["setpriv", "--pdeathsig", dies_by, "--", "sh", "-c", 'test "$PPID" = "$0" && exec "$@"', str(os.getpid())]
    process = subprocess.Popen([*guarded, *command], stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def relay(source: int, seconds: float) -> bool:
    """Copy a pipe to stdout until its writers are gone; False if that took too long."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([source], [], [], left)[0]:
            chunk = os.read(source, 65536)
            if not chunk:
                return True
            while chunk:
                chunk = chunk[os.write(1, chunk) :]
    return False


def outcome(status: Path, log: Path, *, in_time: bool, seconds: float) -> int:
    """The guest's exit status; if it gave none, why not goes to stderr."""
    given = status.read_text().strip() if status.exists() else ""
    if given:
        return int(given)
    reason = "the guest died" if in_time else f"the guest was stopped after {seconds:g} s"
    print(f"{reason}; the end of its kernel's log:", file=sys.stderr)
    if log.exists():
        print("\n".join(log.read_text(errors="replace").splitlines()[-20:]), file=sys.stderr)
    return DIED if in_time else TIMED_OUT
