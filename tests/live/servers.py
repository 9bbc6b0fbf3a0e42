# SPDX-License-Identifier: Apache-2.0
"""Real servers for test_services.py, each in a group with too little memory, and whoever asks them."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import facts

from pymemcg.bench.tracefs import Trace
from pymemcg.child import ChildGroup

MIB = 1 << 20
_HERE = str(Path(__file__).resolve().parent)
# It waits to be put into its group before it uses memory. Nothing is asked of the program's standard input.
_WAIT = "import os, sys; os.read(0, 1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


@dataclass(frozen=True)
class Asked:
    """A request that was answered.

    Attributes:
        path: What was asked for.
        ref: Its trace's id.
        answer: What came back.
        sent_ns: When it was sent.
        got_ns: When the answer was there.
    """

    path: str
    ref: str
    answer: dict[str, Any]
    sent_ns: int
    got_ns: int


class Server:
    """A server, from start to end.

    Args:
        command: Arguments of the interpreter; `{fd}` stands for the socket that it is to listen on, or `{port}` for the port.
        group: Where it runs.
        mapping_bytes: What each of its workers writes round and round.
        options: Of the middleware; None = without it.
    """

    def __init__(self, command: Sequence[str], group: ChildGroup, mapping_bytes: int, options: dict[str, Any] | None) -> None:
        self.group = group
        env = {"SERVICE_BYTES": str(mapping_bytes), "SERVICE_OPTIONS": json.dumps(options), "PYTHONUNBUFFERED": "1"}
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = self._socket.getsockname()
        fd = self._socket.fileno()
        self._log = tempfile.NamedTemporaryFile(prefix="pymemcg-server-")  # noqa: SIM115 - closed by `close`
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WAIT, *(part.format(fd=fd, port=self.address[1]) for part in command)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(fd,) if any("{fd}" in part for part in command) else (),
            cwd=_HERE,
            env={**os.environ, **env},
            start_new_session=True,
        )
        self._socket.close()  # or who asks a server that has died would wait for it
        assert self.process.stdin is not None
        group.add(self.process.pid)
        self.process.stdin.write(b"\n")
        self.process.stdin.close()

    def ask(self, path: str, ref: str | None = None) -> Asked:
        """Ask for a path, as part of a trace."""
        ref = ref or secrets.token_hex(16)
        for left in (2, 1, 0):
            try:
                return self._ask(path, ref)
            except ConnectionError:  # a worker that is recycled drops what it has accepted and not read
                if not left:
                    raise
        raise AssertionError

    def _ask(self, path: str, ref: str) -> Asked:
        connection = http.client.HTTPConnection(*self.address[:2], timeout=2 * facts.PATIENCE_S)
        try:
            headers = {"traceparent": f"00-{ref}-{secrets.token_hex(8)}-01", "Connection": "close"}
            sent_ns = time.monotonic_ns()
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                time.sleep(0.5)  # until the reason is in the log
                raise AssertionError((path, response.status, body, self.log()))
            return Asked(path, ref, json.loads(body), sent_ns, time.monotonic_ns())
        finally:
            connection.close()

    def ask_all(self, paths: Sequence[str], at_once: int = 20) -> list[Asked]:
        """Ask for all of them, so many at the same time."""
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(self.ask, paths))

    def log(self) -> str:
        """What it has written."""
        return Path(self._log.name).read_text()

    def hits(self) -> dict[str, dict[str, Any]]:
        """Hits that it has logged, by trace id."""
        whole = self.log().rpartition("\n")[0]  # of its last line there may be a part as yet
        found = [json.loads(line.removeprefix("HIT ")) for line in whole.splitlines() if line.startswith("HIT ")]
        return {hit["ref"]: hit for hit in found}

    def end(self) -> int:
        """Ask it to end, as whoever deploys it would, and say how it did."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(2 * facts.PATIENCE_S)

    def close(self) -> None:
        """End it and all that it started: they are of its session."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()


@contextmanager
def truth(server: Server, seconds: float) -> Iterator[dict[int, list[tuple[int, int]]]]:
    """Reclaim of the server's threads while the block runs, by the kernel's tracepoints: tid to (start_ns, end_ns)."""
    found: dict[int, list[tuple[int, int]]] = {}
    with Trace(seconds) as trace:
        trace.start(pids_of(server))
        yield found
        begun: dict[int, int] = {}
        for record in trace.records():
            if record.event.endswith("_begin"):
                begun[record.tid] = record.t_ns
            elif record.tid in begun:
                found.setdefault(record.tid, []).append((begun.pop(record.tid), record.t_ns))
        assert trace.lost() == 0


def pids_of(server: Server) -> list[int]:
    """The server and its workers: they are of one session."""
    pids = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.getsid(int(entry)) == server.process.pid:
                    pids.append(int(entry))
            except ProcessLookupError:
                continue
    return pids


def overlap_ns(intervals: Sequence[tuple[int, int]], start_ns: int, end_ns: int) -> int:
    """How much of the intervals lies between two times."""
    return sum(max(0, min(end, end_ns) - max(start, start_ns)) for start, end in intervals)


def until(true: Any, seconds: float = 2 * facts.PATIENCE_S) -> Any:
    """Wait for something that must come."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.02)
    return value
