# SPDX-License-Identifier: Apache-2.0
"""One verdict out of a small set, the numbers that led to it, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pymemcg.explain._advice import Advice, advice
from pymemcg.explain._facts import FULL, PRESSED, Facts

if TYPE_CHECKING:
    from pymemcg.explain._edge import Edge
    from pymemcg.explain._makeup import Makeup
    from pymemcg.explain._outcome import Outcome
    from pymemcg.explain._snapshot import Snapshot

VERDICTS: Final = {
    "killed": "The OOM killer is at work in it: processes were killed while this was watched.",
    "hung": "Its tasks hang: the limit is reached, nothing can be reclaimed, and the OOM killer is off.",
    "tmpfs-leak": "Files in memory (tmpfs, /dev/shm, shared memory) take the limit up. They stay until they are deleted.",
    "growth": "It grows: memory that reclaim cannot take is filling the limit. If that goes on, an OOM kill is at its end.",
    "swap-storm": "It works with more memory than it has: pages come back from swap all the time, and threads wait for each.",
    "throttled": "It is above memory.high: its threads are put to sleep so that it grows no further.",
    "dirty-backlog": "Much of its cache waits to be written to a disk: reclaim at the limit has to wait for that.",
    "kernel-memory": "The kernel's own memory for it (files' names, page tables, threads, sockets) takes up much of the limit.",
    "full": "Nearly all of the limit is memory that reclaim cannot take: what more it asks for may end in an OOM kill.",
    "parent-squeezed": "Not its own limit is full, but that of a group above it, which others use up, too.",
    "thrash": (
        "Files that it needs are thrown out of memory and read again, over and over: the limit is too small for its work."
    ),
    "cache-pressure": (
        "The limit is full of page cache, and freeing that holds its threads up: stalls, but no danger of a kill."
    ),
    "swappable": "The limit is full of memory that only swap can take, and there is swap: slow when it is needed, but no kill.",
    "node-squeezed": "The whole machine is short of memory: whoever allocates has to reclaim, whatever its own limit.",
    "healthy-cache": "At or near its limit, and healthy: it is page cache, which goes when somebody needs the memory.",
    "healthy": "Nothing to worry about.",
    "unknown": "Too little can be read here to tell.",
}
"""Verdict to what it says, the gravest first: the first that fits is told, others that fit beside it."""

_DIRTY_HELD: Final = 0.05
"""Where threads are held, less is a backlog: on v2 writers wait from vm.dirty_ratio (20 %) of a group's cache and headroom on,
which of a full limit may be little (`balance_dirty_pages`, mm/page-writeback.c)."""
_HALF: Final = 0.5  # of a limit that others share: where most of it is cache, nobody is squeezed
_STORM_BYTES_PER_S: Final = 1 << 20  # 256 pages a second, some percent of a thread's time with zram and all of it with a disk
_NODE_LEFT: Final = 0.05  # of the machine's memory: kubelets evict at some percent, and kills come soon after
_HELD: Final = 0.02  # of the time: less is milliseconds in a second, which requests notice and nobody else

_NO_WORRY: Final = {"healthy", "healthy-cache"}
_CALM: Final = {"full", "thrash", "swap-storm", "growth", "node-squeezed"}
"""They are to worry about where they show: see `_worry`."""
_YES: Final = {"killed", "hung"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to think of it.

    Attributes:
        name: A key of `VERDICTS`.
        worry: "no", "watch" (slow, or near the edge) or "yes" (it fails, or soon will).
        says: In a sentence.
        because: The numbers that led to it: what, and how much.
        also: Other verdicts that fit.
        advice: What to do.
    """

    name: str
    worry: str
    says: str
    because: tuple[tuple[str, str], ...]
    also: tuple[str, ...]
    advice: tuple[Advice, ...]


def judge(snapshot: Snapshot, makeup: Makeup, edge: Edge, outcome: Outcome) -> Verdict:
    """Find the verdict."""
    facts = Facts(snapshot, makeup, edge, outcome)
    fits = [name for name in VERDICTS if name not in _NO_WORRY | {"unknown"} and _RULES[name](facts)]
    if not fits:
        known = snapshot.group.usage_bytes is not None and makeup.at_once_bytes is not None
        fits = [("healthy-cache" if facts.full else "healthy") if known else "unknown"]
    name = fits[0]
    says = VERDICTS[name]
    if name in _NO_WORRY and snapshot.group.events.get("oom_kill"):
        says += " But processes in it have been OOM-killed before: see what happens there."
    return Verdict(name, _worry(name, facts), says, tuple(facts.numbers()), tuple(fits[1:]), advice(name, snapshot, edge))


def _worry(name: str, facts: Facts) -> str:
    """Whether it fails, or soon will; or is slow, or near the edge."""
    if name in _NO_WORRY:
        return "watch" if facts.snapshot.group.events.get("oom_kill") else "no"
    if name in _YES:
        return "yes"
    if name not in _CALM:  # they make it slow; where next to nothing is left to reclaim, they end in a kill
        return "yes" if facts.stuck >= FULL else "watch"
    bad = {
        # A heap that fills its limit and stays so is what its owner wanted.
        "full": facts.own_stuck >= FULL and (facts.hits > 0 or facts.pressed or facts.snapshot.meanwhile is None),
        "thrash": facts.held >= _HELD,
        "swap-storm": facts.held >= _HELD,
        "growth": not facts.was_higher,
        "node-squeezed": facts.left_on_node < _NODE_LEFT,
    }
    return "yes" if bad[name] else "watch"


def _node_is_short(facts: Facts) -> bool:
    zones = facts.snapshot.node.zones
    below = bool(zones) and sum(zone.free_bytes for zone in zones) < sum(zone.min_bytes for zone in zones)
    held = facts.snapshot.node.pressure.get("some", (0.0,))[0] >= PRESSED
    return facts.left_on_node < _NODE_LEFT or below or (facts.node_stalls > 0 and held)


_RULES: Final[dict[str, Callable[[Facts], bool]]] = {
    "killed": lambda facts: facts.kills > 0,
    "hung": lambda facts: bool(
        facts.snapshot.group.others.get("oom_kill_disable") and facts.snapshot.group.others.get("under_oom")
    ),
    "tmpfs-leak": lambda facts: facts.much(facts.unmapped_shmem) and facts.full,
    "growth": lambda facts: facts.grows,
    "swap-storm": lambda facts: facts.swapped_in >= _STORM_BYTES_PER_S,
    "throttled": lambda facts: (
        facts.edge.first is not None
        and facts.edge.first.kind == "high"
        and facts.throttled > 0
        and (facts.pressed or facts.stuck >= FULL)
    ),
    "full": lambda facts: (
        facts.own_stuck >= FULL or (facts.own_first and facts.full and not facts.is_cache and not facts.swaps)
    ),
    "parent-squeezed": lambda facts: (
        facts.edge.first is not None
        and facts.edge.first.group != facts.snapshot.group.name
        and (facts.full or facts.hits_above > 0)
        and (facts.pressed or (facts.edge.unreclaimable_ratio or 0.0) >= _HALF)
    ),
    "dirty-backlog": lambda facts: (
        facts.at_limit and (facts.much(facts.dirty) or (facts.pressed and facts.dirty >= _DIRTY_HELD * facts.limit))
    ),
    "kernel-memory": lambda facts: facts.much(facts.part.get("kernel")) and facts.stuck >= FULL,
    "thrash": lambda facts: facts.at_limit and facts.pressed and facts.read_again >= _STORM_BYTES_PER_S,
    "cache-pressure": lambda facts: facts.at_limit and facts.pressed,
    "swappable": lambda facts: facts.full and not facts.is_cache and facts.swaps,
    "node-squeezed": _node_is_short,
}
