# SPDX-License-Identifier: Apache-2.0
"""Groups that somebody outside makes for us, who may only read the hierarchy: `tests/vm/as` does, by a socket."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from pymemcg import resolve
from pymemcg.child import PREFIX, ChildGroup

_NUMBER = os.environ.get("PYMEMCG_AS_GROUPS")
POSSIBLE = _NUMBER is not None


def _ask(**request: Any) -> dict[str, Any]:
    assert _NUMBER is not None
    with socket.socket(fileno=os.dup(int(_NUMBER))) as connection:
        connection.send(json.dumps(request).encode())
        answer: dict[str, Any] = json.loads(connection.recv(65536))
    if answer.get("errno"):
        raise OSError(answer["errno"], f"{request}: {answer['error']}")
    assert "error" not in answer, answer
    return answer


class OutsideGroup(ChildGroup):
    """What tests use of a `ChildGroup`, made by another."""

    def __init__(self, name: str, *, limit_bytes: int | None = None, above: OutsideGroup | None = None) -> None:
        own = f"{PREFIX}{os.getpid()}-{name}".removeprefix(PREFIX)
        made = _ask(do="make", name=own, above=above.number if above else None, limit=limit_bytes)
        self.number: int | None = made["number"]
        self.directory = made["directories"][0]
        self.cgroup2_directory = made["directories"][-1]
        if self.cgroup2_directory == self.directory and resolve(self.directory).version == 1:
            self.cgroup2_directory = None
        self.spec = f"cgroup:{resolve(self.directory).levels[0].name}"
        self._within: list[OutsideGroup] = []

    def child(self, name: str, *, limit_bytes: int | None = None) -> OutsideGroup:
        self._within.append(OutsideGroup(name, limit_bytes=limit_bytes, above=self))
        return self._within[-1]

    def add(self, pid: int) -> None:
        _ask(do="add", number=self.number, pid=pid)

    def write(self, file: str, text: str) -> None:
        _ask(do="write", number=self.number, file=file, text=text)

    def close(self) -> None:
        while self._within:
            self._within.pop().close()
        if self.number is not None:
            _ask(do="remove", number=self.number)
        self.number = None


def write(group: ChildGroup, file: str, text: str) -> None:
    """Set something of a test's group, as an administrator does."""
    if isinstance(group, OutsideGroup):
        group.write(file, text)
        return
    places = [place for place in (group.directory, group.cgroup2_directory) if place and os.path.exists(f"{place}/{file}")]
    Path((places or [group.directory])[0], file).write_text(text)
