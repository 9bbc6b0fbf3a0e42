# SPDX-License-Identifier: Apache-2.0
"""A command as `run` runs it: begun when told to, handed every signal, waited for, and orphans reaped meanwhile.

It stays in this process's own process group, so that whatever a terminal does is done to both: it can read, be stopped and be
brought to the foreground as if nobody stood between it and the shell.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final

from pymemcg.errors import MemcgError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

_OURS: Final = {
    *(signal.SIGKILL, signal.SIGSTOP),  # nobody can wait for them
    *(signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE, signal.SIGXCPU, signal.SIGXFSZ),
    *(signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGSYS),
}
_FORWARDED: Final = frozenset(signal.valid_signals() - _OURS)
"""All that may be meant for a service: which one asks it to stop, or to read its settings again, is its own affair."""

_BY_A_TERMINAL: Final = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_TO_A_LEADER: Final = {signal.SIGHUP, signal.SIGCONT}
_NEVER_BEGUN: Final = 125


class NotExecutable(MemcgError):  # noqa: N818 - it names a state
    """There is such a command, but it cannot be executed."""

    exit_code: ClassVar[int] = 126  # as shells do


class NotFound(MemcgError):  # noqa: N818 - it names a state
    """There is no such command."""

    exit_code: ClassVar[int] = 127  # as shells do


class Command:
    """A process that becomes a command as soon as it is released; until then it only waits, and can be put into a group.

    In a `with` block signals wait for `wait`, also in threads that are started there. It must be entered before the process
    has other threads: a signal would be delivered to one of them.

    Args:
        words: The program, looked for in PATH, and its arguments.

    Attributes:
        pid: Of the process.

    Only for the main thread.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self.pid = 0
        self._gate = self._failure = -1

    def __enter__(self) -> Command:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED | {signal.SIGCHLD})
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who started us may ignore it, and children would leave no status
        gate, self._gate = os.pipe()
        self._failure, failure = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            self._become(gate, failure)
        os.close(gate)
        os.close(failure)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._gate >= 0:  # it was never released, and ends of itself now
            os.close(self._gate)
            os.close(self._failure)
            os.waitpid(self.pid, 0)
        while signal.sigtimedwait(_FORWARDED, 0):  # what came at the end was for the command, too
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _become(self, gate: int, failure: int) -> None:
        """In the child: wait, then be the command, with the signals as they were before Python changed them."""
        try:
            if not os.read(gate, 1):
                os._exit(_NEVER_BEGUN)
            for which in (signal.SIGPIPE, signal.SIGXFSZ, *_FORWARDED):
                if which in (signal.SIGPIPE, signal.SIGXFSZ) or callable(signal.getsignal(which)):
                    signal.signal(which, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            os.execvp(self._words[0], self._words)  # noqa: S606 - to run it is what we are for
        except OSError as error:
            os.write(failure, str(error.errno).encode())
        finally:
            os._exit(NotExecutable.exit_code)

    def release(self) -> None:
        """Let it begin.

        Raises:
            NotFound: There is no such command.
            NotExecutable: It cannot be executed.
        """
        with open(self._failure, "rb") as failure:
            os.write(self._gate, b"\n")
            os.close(self._gate)
            self._gate = -1
            said = failure.read()
        if said:
            os.waitpid(self.pid, 0)
            raise self._refused(int(said))

    def _refused(self, why: int) -> MemcgError:
        name = self._words[0]
        there = os.path.lexists(name) if "/" in name else shutil.which(name) is not None
        if why in (errno.ENOENT, errno.ENOTDIR) and not there:
            return NotFound("command not found", path=name)
        hint = {
            errno.ENOENT: "the program that its first line names is missing",
            errno.ENOEXEC: "a script needs a first line such as #!/bin/sh",
        }.get(why)
        return NotExecutable(f"cannot be executed: {os.strerror(why)}", path=name, hint=hint)

    def wait(self) -> int:
        """Wait for its end, hand it the signals that come, and reap whoever else was left to this process.

        Returns:
            Its exit status, or minus the signal that killed it.
        """
        while (status := self._reap()) is None:
            info = signal.sigwaitinfo(_FORWARDED | {signal.SIGCHLD})
            if info.si_signo != signal.SIGCHLD and self._lacks(info):
                with suppress(PermissionError):  # it has become another user
                    os.kill(self.pid, info.si_signo)
        return status

    def _lacks(self, info: signal.struct_siginfo) -> bool:
        """Whether the command did not get a signal that we got.

        A terminal sends to the whole process group, the command included; only when it hangs up it sends to the leader of its
        session alone. And a command that signals its own group (`kill 0`) knows of it.
        """
        if info.si_signo == signal.SIGCONT and not self._is_still_stopped():
            return False
        if info.si_code > 0:  # from the kernel
            return info.si_signo in _TO_A_LEADER and os.getsid(0) == os.getpid()
        return info.si_pid != self.pid

    def _is_still_stopped(self) -> bool:
        """Whether the command was not continued when we were; a shell continues the whole process group.

        If a terminal has stopped it again since, that came to us, too.
        """
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                state = file.read().rpartition(b") ")[2][:1]
        except OSError:  # there is no /proc here
            state = b"T"
        return state == b"T" and signal.SIGTSTP not in signal.sigpending()

    def _reap(self) -> int | None:
        """The command's status, if it has ended.

        Everybody's children may end here: those that this process had before it became pymemcg, and orphans, as pid 1 gets
        them and who was made their reaper.
        """
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                return None
            if pid != self.pid:
                continue
            if not os.WIFSTOPPED(status):
                return os.waitstatus_to_exitcode(status)
            if os.WSTOPSIG(status) in _BY_A_TERMINAL and os.getpid() != 1 and _has_terminal():
                os.kill(os.getpid(), signal.SIGSTOP)  # the shell waits for us; the SIGCONT that ends this is forwarded


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY))
    except OSError:
        return False
    return True
