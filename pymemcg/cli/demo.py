# SPDX-License-Identifier: Apache-2.0
"""Make a small service short of memory, sample it 1,000 times a second, and show what happened.

The service runs for 8 s in a group of its own with a limit of 64 MiB, which is removed again; under systemd it is a scope that
systemd is asked for. Where no group can be made (most containers) this process's own group is sampled instead, as it is.

Two experiments do likewise, with real files and real allocations, and say what was measured:

  cache  a process reads a file, and page cache fills the limit and stays; an allocation takes it back (9 s, on a disk 128 MiB)
  oom    a process takes ever more memory, until the kernel kills it (4 s); it is the only one in its group

They need a group of their own, and where none can be made they end with status 1 and say what would help.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Final

from pymemcg._words import size
from pymemcg.child import ChildGroup
from pymemcg.cli import _stage
from pymemcg.cli._text import has_colours, painted, terminal_width, wrapped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HELP: Final = "sample a small service that runs short of memory"

SECONDS: Final = 8.0
_OWN_SECONDS: Final = 3.0
_DATA_BYTES: Final = 96 << 20  # half as much again as the limit
_ROOM_BYTES: Final = 2 * (_stage.LIMIT_BYTES + _DATA_BYTES)  # the service, its file on the way to the disk, and as much again
_EXPERIMENTS: Final = {"cache": "pymemcg.cli._demo_cache", "oom": "pymemcg.cli._demo_oom"}
_NEXT: Final = {
    None: (
        ("pymemcg doctor", "what can be measured of your own service here"),
        ("pymemcg watch TARGET", "live; TARGET is pid:N, container:ID or cgroup:/path"),
        ("pymemcg stalls TARGET", "its stalls, as they happen"),
        ("pymemcg run -- CMD", "run a command, and see its stalls"),
        ("pymemcg demo cache, demo oom", "what page cache does at a limit, and what ends at it"),
        ("pymemcg record TARGET --duration 10s -o it.memcg", ""),
        ("", "into a file, for pymemcg.open('it.memcg')"),
        ("with pymemcg.Sampler() as s:", "in your own service; s.usage, s.stat, s.pressure … are arrays"),
    ),
    "cache": (
        ("pymemcg explain TARGET", "the same of your own group: who says what, and whether to worry"),
        ("pymemcg stalls TARGET", "its stalls, as they happen"),
        ("pymemcg demo oom", "what is no page cache ends otherwise"),
    ),
    "oom": (
        ("pymemcg oom", "all OOM kills that this machine's log has"),
        ("pymemcg explain TARGET", "how far your own group is from one"),
        ("Sampler(ring_file=True)", "a flight recorder that outlives a kill, for pymemcg postmortem"),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.add_argument("experiment", nargs="?", choices=tuple(_EXPERIMENTS), help="without one, the small service")


def run(args: argparse.Namespace) -> int:
    """Show it."""
    colours = has_colours()
    with _stage.hangup_as_ctrl_c():
        if args.experiment is not None:
            import_module(_EXPERIMENTS[args.experiment]).run(colours=colours)
        else:
            _show_service(colours=colours)
    print(f"\n{painted('What to try next', 1, colours=colours)}")
    for command, says in _NEXT[args.experiment]:
        print(f"  {command:<28}  {says}".rstrip())
    return 0


def _show_service(*, colours: bool) -> None:
    reason = _stage.why_not(_ROOM_BYTES, on_disk=True)
    if reason is None:
        _run_service(colours=colours)
    else:
        text = f"No service can be squeezed in a group of its own here: {reason}. So this is your own group, as it is, for "
        text += f"{_OWN_SECONDS:.0f} s."
        print("\n".join(wrapped(text, terminal_width())), end="\n\n", flush=True)
        _look_at_own(colours=colours)


def _run_service(*, colours: bool) -> None:
    from pymemcg.cli._live import sampler_of

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pymemcg-", dir=_stage.disk()))
        group = stack.enter_context(ChildGroup("demo", limit_bytes=_stage.LIMIT_BYTES))
        print(f"A small service runs for {SECONDS:.0f} s in a group of its own with {size(_stage.LIMIT_BYTES)}.")
        print("Every other second a batch job beside it reads files and fills memory.")
        print(painted(group.directory, 2, colours=colours), end="\n\n", flush=True)
        _stage.write_data(f"{folder}/data", _DATA_BYTES)
        serving = _stage.start(stack, group, "serve", str(SECONDS), f"{folder}/data", f"{folder}/latencies")
        batch = _stage.start(stack, group, "batch", str(SECONDS), f"{folder}/data")
        # The full rate also far from the limit, for the picture; outside of the group the sampler cannot dilute its PSI.
        sampler = stack.enter_context(sampler_of(group.spec, adaptive=False))
        begun_ns = _stage.now_ns()
        _run_to_the_end([serving, batch])
        story = _stage.story_of(sampler, begun_ns, begun_ns + round(SECONDS * 1e9), colours=colours)
        story.limit_bytes = _stage.LIMIT_BYTES
        story.requests = _read_latencies(f"{folder}/latencies")
        told = (line.split() for line in batch.stdout or ())
        story.works["batch job"] = [(int(begin), int(end)) for begin, end in told]
        print("\n".join(story.lines()))
        names = {serving.pid: "service", batch.pid: "batch job"}
        print("\n".join(_stage.stall_lines(sampler, _stage.tally_of(sampler, begun_ns), names, colours=colours)))
        for name, process in (("service", serving), ("batch job", batch)):
            if process.returncode != 0:
                print(f"  The {name} was ended: {_stage.ending(process.returncode)}. What it has not told is missing above.")


def _run_to_the_end(processes: list[subprocess.Popen[str]]) -> None:
    """Let them begin, all at once, and wait until all have ended."""
    for process in processes:
        _stage.say(process)
    with _stage.progress(SECONDS) as tell:
        _stage.wait_for("the service", processes, SECONDS, tell)


def _read_latencies(path: str) -> NDArray[np.int64] | None:
    import numpy as np

    try:
        return np.fromfile(path, dtype=np.int64).reshape(-1, 2)
    except FileNotFoundError:
        return None


def _look_at_own(*, colours: bool) -> None:
    from pymemcg.cli._live import sampler_of

    with sampler_of("self") as sampler:
        begun_ns = _stage.now_ns()
        with _stage.progress(_OWN_SECONDS) as tell:
            for i in range(int(_OWN_SECONDS * 10)):
                tell(i / 10)
                time.sleep(0.1)
        story = _stage.story_of(sampler, begun_ns, begun_ns + round(_OWN_SECONDS * 1e9), colours=colours)
        assert sampler.target is not None
        print(painted(sampler.target.directory, 2, colours=colours))
        story.limit_bytes = sampler.target.limit()[0]
        print("\n".join(story.lines()))
        print("\n".join(_stage.stall_lines(sampler, _stage.tally_of(sampler, begun_ns), {}, colours=colours)))
