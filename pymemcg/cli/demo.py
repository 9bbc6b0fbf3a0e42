# SPDX-License-Identifier: Apache-2.0
"""Make a small service short of memory, sample it 1,000 times a second, and show what happened.

The service runs for 8 s in a group of its own with a limit of 64 MiB, which is removed again; under systemd it is a scope that
systemd is asked for. Where no group can be made (most containers) this process's own group is sampled instead, as it is.
"""

from __future__ import annotations

import argparse
import os
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
from pymemcg.cli._text import has_colours, has_rich, painted, terminal_width, wrapped
from pymemcg.errors import MemcgError, SourceError
from pymemcg.mounts import IN_MEMORY, file_system
from pymemcg.once import read_limits

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from pymemcg.cli._story import Story
    from pymemcg.sampler import Sampler

HELP: Final = "sample a small service that runs short of memory"

LIMIT_BYTES: Final = 64 << 20
SECONDS: Final = 8.0
_OWN_SECONDS: Final = 3.0
_DATA_BYTES: Final = 96 << 20  # half as much again as the limit
_ROOM_BYTES: Final = 2 * (LIMIT_BYTES + _DATA_BYTES)  # the service, its file on the way to the disk, and as much again
_GRACE_S: Final = 20.0  # beyond SECONDS: a squeezed service is slow to end
_WIDTH: Final = 110  # of pictures; wider ones are no clearer
_WORST: Final = 8
_NEXT: Final = (
    ("pymemcg doctor", "what can be measured of your own service here"),
    ("pymemcg watch TARGET", "live; TARGET is pid:N, container:ID or cgroup:/path"),
    ("pymemcg stalls TARGET", "its stalls, as they happen"),
    ("pymemcg run -- CMD", "run a command, and see its stalls"),
    ("pymemcg record TARGET --duration 10s -o it.memcg", ""),
    ("", "into a file, for pymemcg.open('it.memcg')"),
    ("with pymemcg.Sampler() as s:", "in your own service; s.usage, s.stat, s.pressure … are arrays"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments: none."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Show it."""
    del args
    colours = has_colours()
    reason = _why_not()
    if reason is None:
        _run_service(colours=colours)
    else:
        text = f"No service can be squeezed in a group of its own here: {reason}. So this is your own group, as it is, for "
        text += f"{_OWN_SECONDS:.0f} s."
        print("\n".join(wrapped(text, terminal_width())), end="\n\n", flush=True)
        _look_at_own(colours=colours)
    print(f"\n{painted('What to try next', 1, colours=colours)}")
    for command, says in _NEXT:
        print(f"  {command:<28}  {says}".rstrip())
    return 0


def _why_not() -> str | None:
    """Why no service can be squeezed here, or None."""
    left = read_limits(resolve())["headroom_bytes"]
    if left is not None and left < _ROOM_BYTES:
        return f"only {size(left)} are left below your own limit, and whoever lives there might be killed for it"
    if _disk() is None:
        return "its file would have to lie on a disk, and no writable folder here does (set TMPDIR to one)"
    return ChildGroup.possible()


def _run_service(*, colours: bool) -> None:
    from pymemcg.cli._live import sampler_of

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pymemcg-", dir=_disk()))
        group = stack.enter_context(ChildGroup("demo", limit_bytes=LIMIT_BYTES))
        print(f"A small service runs for {SECONDS:.0f} s in a group of its own with {size(LIMIT_BYTES)}.")
        print("Every other second a batch job beside it reads files and fills memory.")
        print(painted(group.directory, 2, colours=colours), end="\n\n", flush=True)
        _write_data(f"{folder}/data")
        serving = _start(stack, group, "serve", f"{folder}/data", f"{folder}/latencies")
        batch = _start(stack, group, "batch", f"{folder}/data")
        # The full rate also far from the limit, for the picture; outside of the group the sampler cannot dilute its PSI.
        sampler = stack.enter_context(sampler_of(group.spec, adaptive=False))
        begun_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        _wait_for([serving, batch])
        story = _story(sampler, begun_ns, SECONDS, colours=colours)
        story.limit_bytes = LIMIT_BYTES
        story.requests = _read_latencies(f"{folder}/latencies")
        told = (line.split() for line in batch.stdout or ())
        story.batch = [(int(begin), int(end)) for begin, end in told]
        print("\n".join(story.lines()))
        _tell_stalls(sampler, begun_ns, {serving.pid: "service", batch.pid: "batch job"}, colours=colours)
        for name, process in (("service", serving), ("batch job", batch)):
            if process.returncode != 0:
                print(f"  The {name} was ended: {_ending(process.returncode)}. What it has not told is missing above.")


def _look_at_own(*, colours: bool) -> None:
    from pymemcg.cli._live import sampler_of

    with sampler_of("self") as sampler:
        begun_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        with _progress(_OWN_SECONDS) as tell:
            for i in range(int(_OWN_SECONDS * 10)):
                tell(i / 10)
                time.sleep(0.1)
        story = _story(sampler, begun_ns, _OWN_SECONDS, colours=colours)
        assert sampler.target is not None
        print(painted(sampler.target.directory, 2, colours=colours))
        story.limit_bytes = sampler.target.limit()[0]
        print("\n".join(story.lines()))
        _tell_stalls(sampler, begun_ns, {}, colours=colours)


def _story(sampler: Sampler, begun_ns: int, seconds: float, *, colours: bool) -> Story:
    from pymemcg.cli._story import Story

    return Story(sampler, begun_ns, begun_ns + round(seconds * 1e9), width=min(terminal_width(), _WIDTH), colours=colours)


def _tell_stalls(sampler: Sampler, begun_ns: int, names: dict[int, str], *, colours: bool) -> None:
    from pymemcg._tally import Tally
    from pymemcg.cli._stalls import StallLines, figures, realtime_of, table, thread_name
    from pymemcg.detecting import stalls

    width = min(terminal_width(), _WIDTH)
    tally = Tally(keep=_WORST)
    for stall in stalls(sampler):
        if stall.end_ns is None or stall.end_ns >= begun_ns:
            tally.add(stall)
    print("\n".join(figures(tally, sampler.evidence, width, colours=colours, title_width=14)))
    if tally.count:
        lines = StallLines(
            realtime_of(sampler),
            width,
            colours,
            os.sysconf("SC_PAGESIZE"),
            lambda tid, end_ns: names.get(tid) or thread_name(tid, end_ns),
        )
        print(f"\n{painted('The worst stalls', 1, colours=colours)}")
        print("\n".join(table(tally, lines)))


# ---- The service ---------------------------------------------------------------------------------------------------


def _start(stack: ExitStack, group: ChildGroup, *words: str) -> subprocess.Popen[str]:
    """One part of the service, in the group and waiting for its line; killed and reaped when the stack unwinds."""
    program = os.path.join(os.path.dirname(__file__), "_service.py")
    command = [sys.executable, "-I", "-S", program, words[0], str(SECONDS), *words[1:]]
    # A session of its own: Ctrl-C is for us, who then clean up.
    process = subprocess.Popen(  # noqa: S603 - our own program
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    stack.callback(_end, process)
    group.add(process.pid)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def _wait_for(processes: list[subprocess.Popen[str]]) -> None:
    """Let them begin, all at once, and wait until all have ended."""
    for process in processes:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has been killed; that is told later
            process.stdin.write("\n")
            process.stdin.flush()
    begun = time.monotonic()
    with _progress(SECONDS) as tell:
        while any(process.poll() is None for process in processes):
            if time.monotonic() - begun > SECONDS + _GRACE_S:
                raise MemcgError("the service does not end", hint="is this machine very busy?")
            tell(min(time.monotonic() - begun, SECONDS))
            time.sleep(0.05)


def _ending(status: int) -> str:
    if status == -signal.SIGKILL:
        return "killed, as the OOM killer does"
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def _read_latencies(path: str) -> NDArray[np.int64] | None:
    import numpy as np

    try:
        return np.fromfile(path, dtype=np.int64).reshape(-1, 2)
    except FileNotFoundError:
        return None


# ---- Its file, which must be on a disk: the pages of one in a tmpfs cannot be reclaimed without swap ----------------


def _disk() -> str | None:
    """A writable folder on a disk; None where there is none."""
    folders = (os.environ.get("TMPDIR"), "/var/tmp", tempfile.gettempdir(), os.getcwd())  # noqa: S108 - looked at, not trusted
    writable = (folder for folder in folders if folder and os.access(folder, os.W_OK))
    return next((folder for folder in writable if file_system(folder) not in IN_MEMORY), None)


def _write_data(path: str) -> None:
    """A file that is on the disk and not in the page cache, so that its pages are charged to who reads them."""
    try:
        with open(path, "wb") as file:
            file.writelines(os.urandom(1 << 20) for _ in range(_DATA_BYTES >> 20))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise SourceError(f"cannot be written: {error.strerror}", path=path, errno=error.errno) from error


# ---- Progress, on stderr -------------------------------------------------------------------------------------------


@contextmanager
def _progress(seconds: float) -> Iterator[Callable[[float], None]]:
    """A function that is told the seconds so far."""
    if not (sys.stderr.isatty() and has_rich()):
        yield lambda _seconds: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(TextColumn("sampling"), BarColumn(), console=Console(stderr=True), transient=True)
    with bar:
        task = bar.add_task("", total=seconds)
        yield lambda done: bar.update(task, completed=done)
