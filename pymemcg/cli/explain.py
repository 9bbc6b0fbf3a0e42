# SPDX-License-Identifier: Apache-2.0
"""Explain a group's memory: why it is at its limit, which tool is right, what happens next, and what to do.

It watches for 3 s how memory moves and whether threads are held, then reads everything once. Seven parts: the verdict, who says
what, what it is made of, how far it is to the edge, what happens there, the node, and Kubernetes where there is one.

--save hands on what it read, so that somebody without access to this machine can explain it there with --root: files of the
group, of its neighbours and of the machine, and of each process its name and sizes, but no command line and no environment.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from pymemcg._words import UNKNOWN, number, plain, share, size
from pymemcg.cli._stalls import BOLD, figure
from pymemcg.cli._text import aligned, elided, has_colours, painted, terminal_width, wrapped
from pymemcg.explain import Explanation, Tree, explain, notes, opened, take

if TYPE_CHECKING:
    from pymemcg.explain._edge import Limit
    from pymemcg.explain._kubernetes import KubernetesSection
    from pymemcg.explain._outcome import Candidate
    from pymemcg.explain._snapshot import Snapshot

HELP: Final = "explain a group's memory: which tool is right, what happens at the limit, what to do"

_SECONDS: Final = 3.0  # long enough for a trend and some requests, short enough to wait for
_SHOWN: Final = 5
_GROUP_WIDTH: Final = 40
_NAME_WIDTH: Final = 28  # of a pod or container: its id begins there
_BECAUSE_WIDTH: Final = 27
_COLOURS: Final = {"no": 32, "watch": 33, "yes": 31}
_WORRY: Final = {"no": "no need to worry", "watch": "worth a look", "yes": "worry"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.add_argument(
        "target",
        nargs="?",
        metavar="TARGET",
        help="self (this process's own group; the default), pid:N, cgroup:/path, a cgroup's directory, or container:ID",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--pss", action="store_true", help="also read each process's fair share, which costs the kernel a walk")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--save", metavar="FILE.tar.gz", help="also write what was read, for --root; a file of that name is replaced"
    )
    where.add_argument("--root", metavar="TREE|FILE.tar.gz", help="explain such a collection instead of this machine")


def run(args: argparse.Namespace) -> int:
    """Look, and say."""
    if args.root is not None:
        with opened(args.root) as tree:
            told = explain(take(tree, args.target, pss=args.pss))
    else:
        told = explain(_look(args.target or "self", pss=args.pss, save=args.save))
    if args.json:
        import json

        print(json.dumps(told.to_dict()))
    else:
        print("\n".join(_Page(told, terminal_width(), colours=has_colours()).lines()))
        if args.save:
            print(f"\nWhat this rests on is in {args.save}: pymemcg explain --root {args.save}")
    return 0


def _look(spec: str, *, pss: bool, save: str | None) -> Snapshot:
    from pymemcg.explain._watch import watch

    tree = Tree()
    snapshot = take(tree, spec, pss=pss, meanwhile=watch(spec, _SECONDS))
    if save is not None:
        tree.save(save, notes(snapshot))
    return snapshot


class _Page:
    """An explanation as people read it.

    Args:
        told: What to tell.
        width: Columns.
        colours: Whether to use them.
    """

    def __init__(self, told: Explanation, width: int, *, colours: bool) -> None:
        self._told, self._width, self._colours = told, width, colours

    def lines(self) -> Iterator[str]:
        """All of it."""
        told, snapshot = self._told, self._told.snapshot
        yield self._bold(plain(f"{snapshot.group.directory} (cgroup v{snapshot.version}, {snapshot.target})"))
        if snapshot.charged_elsewhere:
            yield from wrapped(plain(snapshot.charged_elsewhere), self._width)
        yield ""
        yield from self._verdict()
        yield from self._part("Who says what", _tools(told, self._width), told.tools.says)
        yield from self._part("What it is made of", _makeup(told, self._width), told.makeup.says)
        yield from self._part("How far to the edge", _limits(told, self._width), told.edge.says)
        yield from self._part("What happens there", _candidates(told), told.outcome.says)
        yield from self._part("The node", _zones(told), told.machine.says)
        if told.kubernetes is not None:
            yield from self._part("Kubernetes", _pods(told.kubernetes), told.kubernetes.says)
        if snapshot.absent:
            yield from self._part("What could not be read", "", [f"{what}: {why}" for what, why in snapshot.absent.items()])

    def _bold(self, text: str) -> str:
        return painted(text, BOLD, colours=self._colours)

    def _verdict(self) -> Iterator[str]:
        verdict = self._told.verdict
        worry = painted(_WORRY[verdict.worry], _COLOURS[verdict.worry], colours=self._colours)
        yield f"{self._bold(verdict.name)}: {worry}"
        yield from wrapped(verdict.says, self._width)
        yield ""
        for what, text in verdict.because:
            yield from figure(what, text, self._width, colours=False, title_width=_BECAUSE_WIDTH)
        if verdict.also:
            yield from figure("also fits", ", ".join(verdict.also), self._width, colours=False, title_width=_BECAUSE_WIDTH)
        yield ""
        yield self._bold("What to do")
        for one in verdict.advice:
            mark = painted("not", _COLOURS["yes"], colours=self._colours) if one.danger else " - "
            lines = [line for text in (one.do, f"({one.costs})") for line in wrapped(plain(text), self._width - 6)]
            for i, line in enumerate(lines):
                yield f"  {mark if i == 0 else '   '} {line}"

    def _part(self, title: str, table: str, says: Iterable[str]) -> Iterator[str]:
        yield ""
        yield self._bold(title)
        if table:
            yield table
        for text in says:
            yield from (("  " if i else "· ") + line for i, line in enumerate(wrapped(plain(text), self._width - 2)))


def _tools(told: Explanation, width: int) -> str:
    rows, before = [], ""
    for one in told.tools.shown:
        rows.append((one.tool if one.tool != before else "", one.figure, size(one.shown_bytes), one.formula))
        before = one.tool
    return aligned(rows, left=(0, 1, 3), width=width)


def _makeup(told: Explanation, width: int) -> str:
    usage = told.makeup.usage_bytes
    rows = []
    for part in told.makeup.parts:
        of = UNKNOWN if not usage or part.within else share(part.part_bytes / usage)
        rows.append((f"{'  ' if part.within else ''}{part.name}", size(part.part_bytes), "" if part.within else of, part.means))
    return aligned(rows, left=(0, 3), width=width) if rows else ""


def _limits(told: Explanation, width: int) -> str:
    if not told.edge.limits:
        return ""
    table = aligned([_LIMIT_TITLES, *map(_limit, told.edge.limits)], left=(0, 1, 6), width=width)
    if not told.edge.sharers:
        return table
    rows = [
        (elided(one.group, _GROUP_WIDTH), size(one.usage_bytes), "this one" if one.own else "") for one in told.edge.sharers
    ]
    return f"{table}\n\n{aligned([('below that limit', 'used', ''), *rows[:_SHOWN]], left=(0, 2))}"


_LIMIT_TITLES: Final = ("group", "kind", "limit", "used", "left", "reclaimable", "what it does")


def _limit(one: Limit) -> tuple[str, ...]:
    figures = (one.limit_bytes, one.used_bytes, one.left_bytes, one.reclaimable_bytes)
    return elided(one.group, _GROUP_WIDTH), one.kind, *map(size, figures), one.does


_ZONE_TITLES: Final = ("zone", "free", "min", "low", "high", "of")


def _zones(told: Explanation) -> str:
    rows = []
    for zone in told.snapshot.node.zones:
        figures = (zone.free_bytes, zone.min_bytes, zone.low_bytes, zone.high_bytes, zone.managed_bytes)
        rows.append((f"{zone.name} of node {zone.node}", *map(size, figures)))
    return aligned([_ZONE_TITLES, *rows]) if rows else ""


_POD_TITLES: Final = ("pod or container", "class", "usage", "working set", "request", "beyond it", "limit", "")


def _pods(told: KubernetesSection) -> str:
    """The furthest beyond its request first: the first that the kubelet would evict."""
    rows = []
    for one in (*told.pods[:_SHOWN], *told.containers[:_SHOWN]):
        figures = (one.usage_bytes, one.working_set_bytes, one.request_bytes, one.over_request_bytes, one.limit_bytes)
        named = (one.name.rstrip("/").rpartition("/")[2] or one.name)[:_NAME_WIDTH]
        rows.append((f"{one.kind} {named}", one.qos or UNKNOWN, *map(size, figures), "this one" if one.target else ""))
    return aligned([_POD_TITLES, *rows], left=(0, 1, 7)) if rows else ""


_CANDIDATE_TITLES: Final = ("process", "pid", "badness", "resident", "swap", "page tables", "oom_score_adj")


def _candidates(told: Explanation) -> str:
    every = told.outcome.candidates
    if not every:
        return ""
    table = aligned([_CANDIDATE_TITLES, *map(_candidate, every[:_SHOWN])])
    return table if len(every) <= _SHOWN else f"{table}\n  and {number(len(every) - _SHOWN)} more"


def _candidate(one: Candidate) -> tuple[str, ...]:
    badness = "never" if one.never else size(one.badness_bytes)
    figures = (one.rss_bytes, one.swap_bytes, one.pgtables_bytes)
    adj = UNKNOWN if one.oom_score_adj is None else str(one.oom_score_adj)
    return one.name, str(one.pid), badness, *map(size, figures), adj
