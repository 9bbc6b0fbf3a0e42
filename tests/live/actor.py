# SPDX-License-Identifier: Apache-2.0
"""Python processes that do what a test tells them, line by line, where the test put them; and what a sampler leaves in one."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import facts

from pymemcg import sharing

MIB = 1 << 20

# A hundred processes start: where nothing is compiled beside the sources, and may not be, each would compile all of them.
_CACHE = tempfile.TemporaryDirectory(prefix="pymemcg-pycache-")
_COMPILED_ONCE = {"PYTHONPYCACHEPREFIX": _CACHE.name, "PYTHONDONTWRITEBYTECODE": ""}
if os.path.exists(cache_from_source(sharing.__file__)):
    _COMPILED_ONCE = {}

# Answers go to a descriptor of their own, so that whatever the code under test prints cannot pass for one. Only what all
# tests need is imported: what an import costs, and when numpy comes, is a subject of the tests.
_SCRIPT = """
import json, os, sys, time
def plain(value):
    try: return int(value)
    except (TypeError, ValueError): return repr(value)
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
space = {"os": os, "sys": sys, "time": time}
for line in sys.stdin:
    source = json.loads(line)
    try:
        try:
            code = compile(source, "<test>", "eval")
        except SyntaxError:
            exec(compile(source, "<test>", "exec"), space)
            answer = {"value": None}
        else:
            answer = {"value": eval(code, space)}
    except Exception as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    print(json.dumps(answer, default=plain), file=answers, flush=True)
"""

# For tests that enter namespaces: nothing but the interpreter is needed.
NAMESPACES = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
NEWNS = 0x00020000
RDONLY, REMOUNT, BIND, REC, PRIVATE = 1, 32, 4096, 16384, 1 << 18

def system(name, *args):
    if getattr(libc, name)(*(arg.encode() if isinstance(arg, str) else arg for arg in args)) != 0:
        raise OSError(ctypes.get_errno(), name)

def own_mounts():
    system("unshare", NEWNS)
    system("mount", None, "/", None, REC | PRIVATE, None)
"""


class Failed(Exception):  # noqa: N818 - an answer, not an error of the test's
    """What the actor's code raised: the exception's name and text."""

    def __init__(self, name: str, text: str):
        super().__init__(f"{name}: {text}")
        self.name, self.text = name, text


class Actor:
    """A process that runs what it is sent. `do` evaluates an expression, or executes statements, and waits for the answer."""

    def __init__(self, *, env: Mapping[str, str] | None = None, group: Any = None):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `close`
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
            env={**os.environ, **_COMPILED_ONCE, **(env or {})},
        )
        self.pid = self.process.pid
        if group is not None:
            group.add(self.pid)  # before it has used memory: it has not yet been told anything
        self.do("None")

    def send(self, source: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(source) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the process ended with {self.process.wait(facts.PATIENCE_S)}: {self.errors()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"], answer["text"])
        return answer["value"]

    def do(self, source: str) -> Any:
        self.send(source)
        return self.answer()

    def errors(self) -> str:
        """What it has written to stderr, and to stdout."""
        self._errors.seek(0)
        return self._errors.read()

    def end(self) -> int:
        """Let it run to its end, as any program does, and say how it ended."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(facts.PATIENCE_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it, and whomever it forked: they are of its session."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self._errors):
            try:
                assert pipe is not None
                pipe.close()
            except BrokenPipeError:
                pass


START = "from pymemcg import Sampler; s = Sampler({}).start()"


def start(actor: Actor, *arguments: str) -> str:
    """Start a sampler of the actor's own group, and say what part it plays."""
    actor.do(START.format(", ".join(arguments)))
    role: str = actor.do("s.role")
    return role


def threads(pid: int | str = "self") -> list[str]:
    """The names of a process's threads."""
    names = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            names.append((task / "comm").read_text().strip())
        except OSError:
            continue
    return sorted(names)


def files(pid: int | str = "self") -> list[str]:
    """What a process's descriptors point to."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except OSError:
            continue
    return sorted(found)


def maps(pid: int | str = "self") -> int:
    """How many of a process's mappings are of rings."""
    return sum("pymemcg" in line and ".so" not in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines())


def ring_file(directory: str, uid: int | None = None) -> Path:
    """Where the ring of a group is, if it has a name."""
    return Path(sharing.ring_path(os.stat(directory), os.geteuid() if uid is None else uid))


def lock_is_free(directory: str) -> bool:
    """Whether nobody holds the right to sample a group."""
    import fcntl

    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def kernels_count(directory: str) -> int | None:
    """How many processes of a group the OOM killer has ended, as the kernel counts; None where it does not."""
    for name in ("memory.events", "memory.oom_control"):
        if os.path.exists(f"{directory}/{name}"):
            counts = dict(line.split() for line in Path(directory, name).read_text().splitlines())
            return int(counts["oom_kill"]) if "oom_kill" in counts else None
    return None


def ended(pid: int) -> bool:
    """Whether a process has ended; where nobody waits for orphans, as in many a container, it stays as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def until(true: Callable[[], Any], seconds: float = facts.PATIENCE_S) -> Any:
    """Wait for something that must come; how long it takes is not what is asserted."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        if time.monotonic() > deadline:
            raise AssertionError("it did not come to be")
        time.sleep(0.01)
    return value


@contextmanager
def leaves_nothing(directory: str) -> Iterator[None]:
    """What runs inside must leave no thread, no descriptor, no mapping, no ring file and no lock in this process."""
    gc.collect()  # or what an earlier test left to the collector goes while this one looks
    before = threads(), files(), maps()
    yield
    until(lambda: threads() == before[0])  # a thread that was joined is in /proc for a moment longer
    assert files() == before[1]
    assert maps() == before[2]
    assert not ring_file(directory, os.geteuid()).exists()
    assert lock_is_free(directory)
