# SPDX-License-Identifier: Apache-2.0
"""Groups for who may not make any: somebody outside, who is root, makes them, as a runtime does for a container.

The command asks over a socket, whose number is in PYMEMCG_AS_GROUPS, a JSON object a message, and is answered by one:

    {"do": "make", "name": …, "above": number or null, "limit": bytes or null}   {"number": …, "directories": […]}
    {"do": "add", "number": …, "pid": in its own pid namespace}                  {}
    {"do": "write", "number": …, "file": such as memory.max, "text": …}          {}
    {"do": "remove", "number": …}                                                {}

What cannot be done is answered by {"error": why, "errno": the kernel's number for it or null}. Only groups that were made
for the command are written to. Directories are as the command sees them, memory's first.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from who.groups import Group

VARIABLE = "PYMEMCG_AS_GROUPS"


class Outside:
    """Makes groups, one request after the other, until the command has ended.

    Args:
        own: The command's group.
        inside: Whether the command sees nothing outside of it; what is made must be below it then.
    """

    def __init__(self, own: Group, *, inside: bool) -> None:
        self._own, self._inside = own, inside
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._theirs.set_inheritable(True)
        self._made: dict[int, Group] = {}
        self._last = 0
        self._leaf: Group | None = None

    @property
    def number(self) -> str:
        """Of the command's descriptor."""
        return str(self._theirs.fileno())

    def begin(self) -> None:
        """When the command has been started."""
        self._theirs.close()
        threading.Thread(target=self._serve, daemon=True).start()

    def end(self) -> None:
        """What it has left is removed."""
        for number in sorted(self._made, reverse=True):
            self._remove(number=number)

    def _serve(self) -> None:
        acts: dict[str, Callable[..., dict[str, Any]]] = {
            "make": self._make,
            "add": self._add,
            "write": self._write,
            "remove": self._remove,
        }
        while message := self._ours.recv(65536):
            try:
                request = json.loads(message)
                answer = acts[request.pop("do")](**request)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, who asked waits for an answer
                answer = {"error": f"{type(error).__name__}: {error}", "errno": getattr(error, "errno", None)}
            self._ours.send(json.dumps(answer).encode())

    def _make(self, *, name: str, above: int | None, limit: int | None) -> dict[str, Any]:
        on_v2 = self._own.hierarchies[0].version == 2
        parent = self._made[above] if above is not None else self._own if self._inside or not on_v2 else None
        if parent is self._own and on_v2:
            self._make_room()
        elif parent is not None:
            parent.hand_down()
        group = Group(name, parent)
        self._last += 1
        self._made[self._last] = group
        if limit is not None:
            group.limit(limit)
        return {"number": self._last, "directories": [self._seen(at) for at in range(len(group.directories))]}

    def _seen(self, at: int) -> str:
        directory = self._made[self._last].directories[at]
        if not self._inside:
            return str(directory)
        return f"{self._own.hierarchies[at].point}/{directory.relative_to(self._own.directories[at])}"

    def _add(self, *, number: int, pid: int) -> dict[str, Any]:
        self._made[number].add(self._host_pid(pid))
        return {}

    def _write(self, *, number: int, file: str, text: str) -> dict[str, Any]:
        self._made[number].write(file, text)
        return {}

    def _remove(self, *, number: int) -> dict[str, Any]:
        self._made.pop(number).remove()
        if not self._made:
            self._give_back()
        return {}

    def _make_room(self) -> None:
        """On v2 a group with processes may have none with limits below it: its own move into one of theirs meanwhile."""
        if self._leaf is None:
            self._leaf = Group("service", self._own)
            _move(self._own, self._leaf)
            self._own.hand_down()

    def _give_back(self) -> None:
        if self._leaf is not None:
            self._own.hand_down(on=False)
            _move(self._leaf, self._own)
            self._leaf.remove()
            self._leaf = None

    def _host_pid(self, pid: int) -> int:
        groups = [self._own, *self._made.values()]
        for group in groups:
            for top, _, _ in os.walk(group.memory):
                for known in Path(top, "cgroup.procs").read_text().split():
                    if _number_inside(int(known)) == pid:
                        return int(known)
        raise OSError(f"there is no process {pid}")


def _number_inside(pid: int) -> int:
    """What a process is called in the innermost pid namespace that it is in."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return -1
    return int(next(line for line in lines if line.startswith("NSpid:")).split()[-1])


def _move(origin: Group, to: Group) -> None:
    while pids := (origin.memory / "cgroup.procs").read_text().split():
        for pid in pids:
            try:
                to.add(int(pid))
            except ProcessLookupError:  # it has ended
                continue
