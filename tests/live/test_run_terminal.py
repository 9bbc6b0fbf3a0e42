# SPDX-License-Identifier: Apache-2.0
"""`pymemcg run` in front of a terminal: nobody sees that it stands between a shell and a command."""

from __future__ import annotations

import os
import pty
import select
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import facts
import pytest
from runner import LISTENER, RUN, as_pid_1, children_of

pytestmark = pytest.mark.live

ECHOING = ["sh", "-c", "echo be''gun; exec cat"]  # its command line does not show the word


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, command: list[str]):
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup pytest` hands down that it is ignored
            os.environ |= {"TERM": "dumb", "PS1": "$ ", "COLUMNS": "80"}
            os.execvp(command[0], command)
        self.seen = b""

    def _read(self) -> bool:
        """Whether there may be more."""
        if select.select([self.file], [], [], 0.2)[0]:
            try:
                self.seen += os.read(self.file, 65536)
            except OSError:  # nobody is on the other side
                return False
        return True

    def await_text(self, text: bytes) -> None:
        """What came until then is done with."""
        deadline = time.monotonic() + facts.PATIENCE_S
        while text not in self.seen:
            assert self._read(), self.seen
            assert time.monotonic() < deadline, (text, self.seen)
        self.seen = self.seen.partition(text)[2]

    def type(self, text: bytes) -> None:
        os.write(self.file, text)

    def end(self) -> int:
        """Its status."""
        deadline = time.monotonic() + facts.PATIENCE_S
        while self._read():
            assert time.monotonic() < deadline, self.seen
        return self.wait()

    def wait(self) -> int:
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def close(self) -> None:
        """End what did not end; what it started is told by the kernel."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        if self.file >= 0:
            os.close(self.file)


@pytest.fixture
def terminal() -> Iterator[Callable[[list[str]], Terminal]]:
    made: list[Terminal] = []

    def make(command: list[str]) -> Terminal:
        made.append(Terminal(command))
        return made[-1]

    yield make
    for each in made:
        each.close()


BASH = ["bash", "--norc", "--noprofile", "-i"]


def test_ctrl_c_comes_once(terminal):
    it = terminal([*RUN, "--", sys.executable, "-c", LISTENER])
    it.await_text(b"ready")
    for _ in range(3):
        it.type(b"\x03")
        it.await_text(b"2\r\n")
    time.sleep(0.2)  # for what comes too often
    (child,) = children_of(it.pid)
    os.kill(child, signal.SIGTERM)
    assert it.end() == 7
    assert b"2\r\n" not in it.seen.partition(b"pymemcg:")[0]


def test_a_hangup_reaches_the_command(terminal):
    """When a terminal goes away, the kernel tells the leader of its session alone."""
    it = terminal([*RUN, "--", sys.executable, "-c", LISTENER.replace("signal.SIGHUP, ", "")])
    it.await_text(b"ready")
    (child,) = children_of(it.pid)
    os.close(it.file)
    it.file = -1
    assert it.wait() == 128 + signal.SIGHUP
    assert not Path(f"/proc/{child}").exists()


def test_a_job_can_be_stopped_and_brought_back(terminal):
    it = terminal(BASH)
    it.await_text(b"$ ")
    it.type(shlex.join([*RUN, "--", *ECHOING]).encode() + b"\n")
    it.await_text(b"begun\r\n")
    it.type(b"one\n")
    it.await_text(b"one\r\none\r\n")
    for word in (b"two", b"three"):
        it.type(b"\x1a")
        it.await_text(b"Stopped")
        it.await_text(b"$ ")
        it.type(b"fg\n")
        it.await_text(b"exec cat'")
        it.type(word + b"\n")
        both = [word + b"\r\n"] * 2  # the terminal's echo, and what it says
        for text in both if facts.EMULATED else [b"".join(both)]:  # a slow shell may still be handing the terminal over
            it.await_text(text)
    it.type(b"\x04")
    it.await_text(b"pymemcg: sh ended with exit status 0")
    it.await_text(b"$ ")
    it.type(b"exit\n")
    assert it.end() == 0


def test_who_stops_itself_alone_is_not_waited_for(terminal):
    """As editors do: their job stops when they have put the screen in order, and not before."""
    it = terminal(BASH)
    it.await_text(b"$ ")
    command = [*RUN, "--", "sh", "-c", "kill -TSTP $$; echo ba''ck; exit 3"]
    it.type(shlex.join(command).encode() + b"\n")
    it.await_text(b"Stopped")
    it.await_text(b"$ ")
    it.type(b"fg\n")
    it.await_text(b"back\r\n")
    it.await_text(b"pymemcg: sh ended with exit status 3")
    it.await_text(b"$ ")
    it.type(b"exit\n")
    it.end()


def test_who_continues_us_alone_continues_the_command(terminal):
    it = terminal(BASH)
    it.await_text(b"$ ")
    it.type(shlex.join([*RUN, "--", "sh", "-c", "kill -TSTP $$; echo ba''ck; exit 3"]).encode() + b"\n")
    it.await_text(b"Stopped")
    (run,) = children_of(it.pid)
    os.kill(run, signal.SIGCONT)
    it.await_text(b"back\r\n")
    it.await_text(b"pymemcg: sh ended with exit status 3")
    it.type(b"exit\n")
    it.end()


@pytest.mark.parametrize("first", [False, True], ids=["", "pid 1"])
def test_a_shell_in_it_controls_its_jobs(first, terminal):
    it = terminal([*(as_pid_1() if first else RUN), "--", *BASH])
    it.await_text(b"$ ")
    it.type(shlex.join(ECHOING).encode() + b"\n")
    it.await_text(b"begun\r\n")
    it.type(b"\x1a")
    it.await_text(b"Stopped")
    it.type(b"exit 8\n")
    it.await_text(b"There are stopped jobs")
    it.type(b"exit 8\n")
    assert it.end() == 8
    assert b"no job control" not in it.seen
