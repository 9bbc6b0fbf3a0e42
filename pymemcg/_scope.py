# SPDX-License-Identifier: Apache-2.0
"""A delegated group from systemd, in whose own groups nobody else should make any.

It is asked through its own tools: `systemd-run --scope` puts a process of ours into a new scope, and below that we may do as we
like. That process holds the scope open, which else would go as soon as it is empty, and ends with us, whatever becomes of us.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pymemcg.errors import MemcgError, NotSupported
from pymemcg.mounts import read_text

if TYPE_CHECKING:
    from pymemcg.places import Place, View

_RUNS: Final = "/run/systemd/system"  # as sd_booted(3) knows it
_PATIENCE_S: Final = 20.0
_HOLDER: Final = "holder"
_USER_MANAGER: Final = re.compile(r"user@[0-9]+\.service")


def systemd_manages(place: Place) -> bool:
    """Whether systemd runs, and this group is one of its own: its top, a slice, or that of a user's manager."""
    name = os.path.basename(place.name)
    own = not name or name.endswith(".slice") or _USER_MANAGER.fullmatch(name) is not None
    return own and os.path.isdir(_RUNS)


def systemd_runs() -> bool:
    """Whether there is a systemd to ask."""
    return os.path.isdir(_RUNS)


class Scope:
    """A transient scope that is delegated to us: of the system for root, else of the user's own manager.

    Args:
        name: What its unit's name begins with.
        view: The hierarchies; memory is on cgroup v2.
        own: This process's group. The scope is put into the same slice, so that the slice's limits hold there, too.

    Attributes:
        place: Where groups may be made below.

    Raises:
        NotSupported: systemd gives none, or processes could not be moved there; the message says why.
    """

    def __init__(self, name: str, view: View, own: Place) -> None:
        self._manager = [] if os.geteuid() == 0 else ["--user"]
        self._unit = f"{name}-{secrets.token_hex(4)}.scope"
        self._holder = self._start(_slice_of(own.name, user=bool(self._manager)))
        try:
            self.place = view.group_of(view.find_process(self._holder.pid))
            if os.path.basename(self.place.name) != self._unit:
                raise NotSupported("systemd put a process elsewhere than into its scope", path=self.place.directory)
            self.directory = f"{self.place.directory}/{_HOLDER}"
            os.mkdir(self.directory)
            self._write(self._holder.pid)
            self._try_to_move(own)
        except (OSError, MemcgError) as error:
            self.close()
            raise NotSupported(f"systemd's scope cannot be used: {error}") from error

    def _start(self, slices: list[str]) -> subprocess.Popen[bytes]:
        what = ["--scope", "--quiet", "--collect", "--no-ask-password", f"--unit={self._unit}", "--property=Delegate=yes"]
        command = ["systemd-run", *self._manager, *what, "--description=Memory groups of pymemcg", *slices, "--", "cat"]
        holder = _popen(command)
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        with suppress(BrokenPipeError):
            holder.stdin.write(b"\n")  # `cat` repeats it once it is there
            holder.stdin.flush()
        ready, _, _ = select.select([holder.stdout], [], [], _PATIENCE_S)
        if ready and holder.stdout.read(1):
            return holder
        holder.kill()
        said = holder.stderr.read().decode(errors="replace").strip() if ready else f"no answer within {_PATIENCE_S:.0f} s"
        _end(holder)
        raise NotSupported(f"systemd gives no scope: {said.splitlines()[-1] if said else f'status {holder.returncode}'}")

    def _try_to_move(self, own: Place) -> None:
        """See whether a process can be moved here from our own group, where that takes systemd's help."""
        both = os.path.commonpath([own.directory, self.place.directory])
        if os.access(f"{both}/cgroup.procs", os.W_OK):
            return
        probe = _popen(["cat"])
        try:
            self.admit(probe.pid)
        finally:
            probe.kill()
            _end(probe)

    def admit(self, pid: int) -> None:
        """Have systemd move a process into the scope: from a login session we may not do so ourselves.

        Raises:
            NotSupported: It does not.
        """
        manager = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]
        call = ["AttachProcessesToUnit", "ssau", self._unit, f"/{_HOLDER}", "1", str(pid)]
        command = ["busctl", *self._manager, "call", *manager, *call]
        try:
            done = subprocess.run(  # noqa: S603 - nothing in it is foreign
                command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S, env=_environment()
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotSupported(f"systemd cannot be asked to move a process: {error}") from error
        if done.returncode != 0:
            raise NotSupported(f"systemd does not move a process into its scope: {done.stderr.strip()}")

    def _write(self, pid: int) -> None:
        with open(f"{self.directory}/cgroup.procs", "wb", buffering=0) as file:
            file.write(str(pid).encode())

    def close(self) -> None:
        """Let go of it. systemd removes it once nobody is in it any more; whoever was left there lives on."""
        self._holder.kill()
        _end(self._holder)
        if not hasattr(self, "directory"):
            return
        deadline = time.monotonic() + _PATIENCE_S
        while _is_empty(self.place.directory) and time.monotonic() < deadline:
            time.sleep(0.01)


def _is_empty(directory: str) -> bool:
    """Whether it is there, with nobody in it or in groups below."""
    try:
        return "populated 0" in read_text(f"{directory}/cgroup.events")
    except MemcgError:
        return False


def _slice_of(path: str, *, user: bool) -> list[str]:
    """The option that names the slice of a group, as the manager that is asked knows it."""
    names = path.split("/")
    at = next((i for i, name in enumerate(names) if _USER_MANAGER.fullmatch(name)), len(names))
    names = names[at:] if user else names[:at]  # what is below a user's manager the system's does not know, as after `sudo`
    found = [name for name in names if name.endswith(".slice")]
    return [f"--slice={found[-1]}"] if found else []


def _environment() -> dict[str, str]:
    """Where a user's manager is found, also where nobody logged in, or root became that user and left its own behind."""
    there = f"/run/user/{os.geteuid()}"
    return {**os.environ, "XDG_RUNTIME_DIR": there} if os.geteuid() and os.path.isdir(there) else dict(os.environ)


def _popen(command: list[str]) -> subprocess.Popen[bytes]:
    """Start it in a session of its own: a terminal's Ctrl-C is for us."""
    try:
        return subprocess.Popen(  # noqa: S603 - nothing in it is foreign
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=_environment(),
        )
    except OSError as error:
        raise NotSupported(f"{command[0]} cannot be started: {error.strerror}") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        with suppress(BrokenPipeError):
            pipe.close()
