# SPDX-License-Identifier: Apache-2.0
"""What `demo` and its experiments play on: a group with a limit, processes in it, a file on a disk, and a bar for who waits."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from pymemcg._words import size
from pymemcg.cgroup import resolve
from pymemcg.child import ChildGroup
from pymemcg.cli._text import has_rich, painted, terminal_width
from pymemcg.errors import MemcgError, SourceError
from pymemcg.explain._take import read_stat
from pymemcg.explain._tree import Tree
from pymemcg.mounts import IN_MEMORY, file_system
from pymemcg.once import read_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pymemcg._tally import Tally
    from pymemcg.cli._story import Story
    from pymemcg.sampler import Sampler

LIMIT_BYTES: Final = 64 << 20
GRACE_S: Final = 20.0  # beyond what something should take: who is squeezed is slow
_WIDTH: Final = 110  # of pictures; wider ones are no clearer
_WORST: Final = 8


def now_ns() -> int:
    """CLOCK_MONOTONIC, as all rows have it."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def width() -> int:
    """Columns to write in."""
    return min(terminal_width(), _WIDTH)


def why_not(room_bytes: int, *, on_disk: bool) -> str | None:
    """Why nothing can be squeezed here, or None.

    Args:
        room_bytes: What must be left below our own limit.
        on_disk: Whether a file on a disk is needed.
    """
    target = resolve()
    left = read_limits(target)["headroom_bytes"]
    if left is not None:  # file pages that nobody used again go before anybody is killed; our own are in each level's usage
        left += read_stat(Tree(), target.directory, target.version).get("inactive_file", 0)
    if left is not None and left < room_bytes:
        return f"only {size(left)} are left below your own limit, and whoever lives there might be killed for it"
    if on_disk and disk() is None:
        return "its file would have to lie on a disk, and no writable folder here does (set TMPDIR to one)"
    return ChildGroup.possible()


@contextmanager
def hangup_as_ctrl_c() -> Iterator[None]:
    """A terminal that is closed ends it as Ctrl-C does, or groups and files would be left; unless it is to go on (nohup)."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- Processes -----------------------------------------------------------------------------------------------------


def start(stack: ExitStack, group: ChildGroup, *words: str) -> subprocess.Popen[str]:
    """A part of `_service.py`, in the group and waiting for its line; killed and reaped when the stack unwinds."""
    program = os.path.join(os.path.dirname(__file__), "_service.py")
    # A session of its own: Ctrl-C is for us, who then clean up.
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-I", "-S", program, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    stack.callback(end, process)
    group.add(process.pid)
    return process


def end(process: subprocess.Popen[str]) -> None:
    """Kill it, if it lives, and reap it."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def say(process: subprocess.Popen[str], line: str = "") -> None:
    """Give it a line; one that has been killed hears nothing, which is told later."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(f"{line}\n")
        process.stdin.flush()


def answer(process: subprocess.Popen[str], seconds: float) -> list[int]:
    """The numbers of its next line.

    Raises:
        MemcgError: It has ended without, or says nothing for `GRACE_S` longer than it should take.
    """
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], seconds + GRACE_S)[0]:
        raise MemcgError("a process of the experiment says nothing", hint="is this machine very busy?")
    line = process.stdout.readline()
    if not line:
        raise MemcgError(f"a process of the experiment was ended: {ending(process.wait())}")
    return [int(word) for word in line.split()]


def wait_for(
    who: str, processes: Sequence[subprocess.Popen[str]], seconds: float, tell: Callable[[float], None] | None = None
) -> None:
    """Wait until all have ended.

    Args:
        who: They, in words.
        processes: Each.
        seconds: How long they should take.
        tell: Is told the seconds so far.

    Raises:
        MemcgError: They have not ended `GRACE_S` later.
    """
    begun = time.monotonic()
    while any(process.poll() is None for process in processes):
        lasted = time.monotonic() - begun
        if lasted > seconds + GRACE_S:
            raise MemcgError(f"{who} does not end", hint="is this machine very busy?")
        if tell is not None:
            tell(min(lasted, seconds))
        time.sleep(0.05)


def ending(status: int) -> str:
    """How a process ended, by its `returncode`."""
    if status == -signal.SIGKILL:
        return "killed, as the OOM killer does"
    return f"signal {-status}" if status < 0 else f"exit status {status}"


# ---- A file, which must be on a disk: the pages of one in a tmpfs cannot be reclaimed without swap ------------------


def disk() -> str | None:
    """A writable folder on a disk; None where there is none."""
    folders = (os.environ.get("TMPDIR"), "/var/tmp", tempfile.gettempdir(), os.getcwd())  # noqa: S108 - looked at, not trusted
    writable = (folder for folder in folders if folder and os.access(folder, os.W_OK))
    return next((folder for folder in writable if file_system(folder) not in IN_MEMORY), None)


def write_data(path: str, count: int) -> None:
    """A file of so many bytes that is on the disk and not in the page cache: its pages are charged to who reads them."""
    try:
        with open(path, "wb") as file:
            file.writelines(os.urandom(1 << 20) for _ in range(count >> 20))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise SourceError(f"cannot be written: {error.strerror}", path=path, errno=error.errno) from error


# ---- Telling -------------------------------------------------------------------------------------------------------


def story_of(sampler: Sampler, begun_ns: int, ended_ns: int, *, colours: bool) -> Story:
    """What was seen between two times."""
    from pymemcg.cli._story import Story

    return Story(sampler, begun_ns, ended_ns, width=width(), colours=colours)


def tally_of(sampler: Sampler, begun_ns: int) -> Tally:
    """The stalls since a time."""
    from pymemcg._tally import Tally
    from pymemcg.detecting import stalls

    tally = Tally(keep=_WORST)
    for stall in stalls(sampler):
        if stall.end_ns is None or stall.end_ns >= begun_ns:
            tally.add(stall)
    return tally


def stall_lines(sampler: Sampler, tally: Tally, names: dict[int, str], *, colours: bool) -> Iterable[str]:
    """What stalls add up to, and the worst of them.

    Args:
        sampler: That saw them.
        tally: Their sum.
        names: Of threads, which may be gone.
        colours: Whether to use colours.
    """
    from pymemcg.cli._stalls import StallLines, figures, realtime_of, table, thread_name

    yield from figures(tally, sampler.evidence, width(), colours=colours, title_width=14)
    if tally.count:
        page = os.sysconf("SC_PAGESIZE")
        name_of = lambda tid, end_ns: names.get(tid) or thread_name(tid, end_ns)  # noqa: E731 - used once
        yield f"\n{painted('The worst stalls', 1, colours=colours)}"
        yield from table(tally, StallLines(realtime_of(sampler), width(), colours, page, name_of))


@contextmanager
def progress(seconds: float) -> Iterator[Callable[[float], None]]:
    """A function that is told the seconds so far, for a bar on stderr."""
    if not (sys.stderr.isatty() and has_rich()):
        yield lambda _seconds: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(TextColumn("sampling"), BarColumn(), console=Console(stderr=True), transient=True)
    with bar:
        task = bar.add_task("", total=seconds)
        yield lambda done: bar.update(task, completed=done)
