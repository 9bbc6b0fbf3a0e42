# SPDX-License-Identifier: Apache-2.0
"""Say of every OOM kill in a kernel log why it was, who asked for memory, and who died.

FILE is the output of dmesg or `journalctl -k`, or a log file in any form that people have them in; - is stdin. Without it, this
machine's own log is read, which needs CAP_SYSLOG where kernel.dmesg_restrict is 1. The cause is one of

  own-limit      the limit of the victim's own group
  parent-limit   the limit of a group above it, as of a Kubernetes pod
  group-limit    the limit of a group, and the log does not tell which of these two
  machine        the whole machine was out of memory
  node           the NUMA nodes were that a cpuset or a memory policy allows
  fragmentation  there was memory, but not so much of it in one piece

Exit code 137 is 128 + 9: ended by SIGKILL, whoever sent it. OOMKilled, by `docker inspect` and by Kubernetes, says that the OOM
killer ended some process of the container. Was it not the first one, the container may have gone on, and what it ended
with later has another reason.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from pymemcg._words import UNKNOWN, number, plain, size
from pymemcg.cli._stalls import BOLD, figure
from pymemcg.cli._text import aligned, has_colours, painted, terminal_width
from pymemcg.oom import Reader
from pymemcg.oom._logs import lines

if TYPE_CHECKING:
    from pymemcg.oom import Candidate, Kill

HELP: Final = "say of every OOM kill in a kernel log why it was and who died"

_SHOWN: Final = 10
_TITLE_WIDTH: Final = 10
# Of what the memory was, in the order of a table; parts of another one are said with it.
_KINDS: Final = {
    "anon": (),
    "file": ("file_mapped", "shmem", "file_dirty", "file_writeback"),
    "kernel": ("slab_reclaimable", "slab_unreclaimable", "pagetables", "kernel_stack", "percpu", "sock"),
}
# How runtimes and orchestrators call the groups of containers; some use only the id, or a UUID.
_CONTAINERS: Final = re.compile(
    r"docker|containerd|kubepods|cri-?o|libpod|podman|lxc|machine\.slice|nspawn|garden|nomad|ecs/|[0-9a-f]{64}"
    r"|[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}"
)
_OF_A_GROUP: Final = {"own-limit", "parent-limit", "group-limit"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.add_argument("file", nargs="?", metavar="FILE|-", help="a kernel log; without it, this machine's own")
    parser.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line, for each kill")


def run(args: argparse.Namespace) -> int:
    """Read and say."""
    reader, told = Reader(), 0
    words = KillLines(terminal_width(), colours=has_colours(), here=args.file is None)
    for line in lines(args.file, follow=args.follow):
        for kill in reader.close() if line is None else reader.feed(line):
            told += 1
            _say(kill, words, as_json=args.json)
    for kill in reader.close():
        told += 1
        _say(kill, words, as_json=args.json)
    if not args.json:
        where = "the kernel's log" if args.file is None else "stdin" if args.file == "-" else args.file
        print(f"{number(told) if told else 'No'} OOM kill{'' if told == 1 else 's'} in {number(reader.lines)} lines of {where}")
    return 0


def _say(kill: Kill, words: KillLines, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(kill.to_dict()), flush=True)
    else:
        print("\n".join(words.lines(kill)), end="\n\n", flush=True)


class KillLines:
    """A kill as people read it.

    Args:
        width: Columns.
        colours: Whether to use them.
        here: Whether it is this machine's own log, so that its clock is known.
    """

    def __init__(self, width: int, *, colours: bool, here: bool) -> None:
        self._width, self._colours = width, colours
        # The kernel's clock stands still while the machine is suspended, as this one does.
        self._booted_s = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC) if here else None

    def lines(self, kill: Kill) -> Iterator[str]:
        """All of it."""
        head = f"{kill.name} (pid {kill.pid}) was killed{self._when(kill)}"
        yield painted(plain(head), BOLD, colours=self._colours)
        for title, text in self._figures(kill):
            yield from figure(title, text, self._width, colours=self._colours, title_width=_TITLE_WIDTH)
        if kill.candidates:
            yield aligned([_CANDIDATE_TITLES, *map(_candidate, kill.candidates[:_SHOWN])], indent="    ")

    def _when(self, kill: Kill) -> str:
        if kill.when is not None:
            return f" at {kill.when}"
        if kill.seconds is None:
            return ""
        if self._booted_s is not None:
            return time.strftime(" on %a %d %b %Y at %H:%M:%S", time.localtime(self._booted_s + kill.seconds))
        return f" {kill.seconds:,.3f} s after the machine had started"

    def _figures(self, kill: Kill) -> Iterator[tuple[str, str]]:
        yield "cause", f"{kill.cause}: {kill.why}"
        if kill.asker is not None:
            yield "asked", _asked(kill)
        if victim := _victim(kill):
            yield "victim", victim
        if kill.chosen_pid is not None:
            yield "chosen", f"pid {kill.chosen_pid}; a child of it died in its place"
        if kill.cause in _OF_A_GROUP:
            yield "container" if _CONTAINERS.search(kill.task_memcg or "") else "its group", _ended(kill)
            yield "group", f"{kill.task_memcg or 'not in the log'}{_usage(kill)}"
        else:
            yield "machine", _machine(kill)
        if memory := _memory(kill):
            yield "memory", memory
        if kill.candidates:
            yield "candidates", _candidates_head(kill)


def _asked(kill: Kill) -> str:
    asker = kill.asker
    assert asker is not None
    pid = f"pid {asker.pid}" if asker.pid is not None else "pid not in the log"
    order = kill.order or 0
    wanted = f"; wanted {size(kill.page_bytes << order)} in one piece (order {order})" if order > 0 else ""
    flags = asker.gfp_mask.partition("(")[2].rstrip(")") or asker.gfp_mask
    return f"{asker.name} ({pid}{', the victim itself' if asker.pid == kill.pid else ''}){wanted}, {flags}"


def _victim(kill: Kill) -> str:
    parts = [
        ("anon", kill.anon_rss_bytes),
        ("file", kill.file_rss_bytes),
        ("shared", kill.shmem_rss_bytes),
        ("page tables", kill.pgtables_bytes),
        ("virtual", kill.total_vm_bytes),
    ]
    said = [f"{name} {size(count)}" for name, count in parts if count is not None]
    said += [f"oom_score_adj {kill.oom_score_adj}"] if kill.oom_score_adj is not None else []
    said += [f"user {kill.uid}"] if kill.uid is not None else []
    return ", ".join(said)


def _ended(kill: Kill) -> str:
    says = {
        "yes": "it ended with this process",
        "likely": "it likely ended with this process",
        "unlikely": "it likely went on, since this was not its first process",
        "unknown": "whether it ended is not known",
    }
    return f"{says[kill.entrypoint]}: {kill.entrypoint_why}"


def _usage(kill: Kill) -> str:
    if kill.usage_bytes is None:
        return ""
    owner = f"; {kill.oom_memcg}" if kill.cause != "own-limit" and kill.oom_memcg else ""
    limit = "no limit" if kill.limit_bytes is None else size(kill.limit_bytes)
    said = f"{owner}: {size(kill.usage_bytes)} of {limit} in use, at the limit {number(kill.failcnt)} times"
    if kill.swap_usage_bytes is not None:
        most = "no limit" if kill.swap_limit_bytes is None else f"limit {size(kill.swap_limit_bytes)}"
        said += f"; {kill.swap_kind} {size(kill.swap_usage_bytes)} ({most})"
    return said


def _machine(kill: Kill) -> str:
    said = [f"{size(kill.ram_bytes)} of memory"] if kill.ram_bytes is not None else []
    if kill.total_swap_bytes is not None:
        swap = f"{size(kill.free_swap_bytes)} of {size(kill.total_swap_bytes)} of swap free"
        said.append(swap if kill.total_swap_bytes else "no swap")
    zones = [
        f"zone {one.name} of node {one.node}: {size(one.free_bytes)} free, watermark {size(one.min_bytes)}"
        for one in kill.zones
    ]
    return "\n".join(filter(None, [", ".join(said), *zones])) or "not in the log"


def _memory(kill: Kill) -> str:
    told = []
    for kind, parts in _KINDS.items():
        inner = ", ".join(f"{name} {size(kill.memory[name])}" for name in parts if kill.memory.get(name))
        if kind in kill.memory:
            told.append(f"{kind} {size(kill.memory[kind])}" + (f" ({inner})" if inner else ""))
        elif inner:
            told.append(inner)
    return "; ".join(told)


_CANDIDATE_TITLES: Final = ("process", "pid", "badness", "resident", "swap", "page tables", "oom_score_adj")


def _candidates_head(kill: Kill) -> str:
    count = len(kill.candidates) + kill.candidates_left_out
    return f"{number(count)}, the worst first" + (f"; {_SHOWN} of them" if count > _SHOWN else "")


def _candidate(one: Candidate) -> tuple[str, ...]:
    never = "never" if one.oom_score_adj == -1000 else size(one.badness_bytes)  # OOM_SCORE_ADJ_MIN
    return (
        one.name or UNKNOWN,
        str(one.pid),
        never,
        size(one.rss_bytes),
        size(one.swap_bytes),
        size(one.pgtables_bytes),
        UNKNOWN if one.oom_score_adj is None else str(one.oom_score_adj),
    )
