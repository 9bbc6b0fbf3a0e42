# SPDX-License-Identifier: Apache-2.0
"""What the rules of a verdict ask for, and the numbers that it is told with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from pymemcg._words import number, share, size, span
from pymemcg.explain._outcome import stalls_seen

if TYPE_CHECKING:
    from pymemcg.explain._edge import Edge
    from pymemcg.explain._makeup import Makeup
    from pymemcg.explain._outcome import Outcome
    from pymemcg.explain._snapshot import Snapshot

_MUCH: Final = 0.25  # of a limit: what is less does not explain that it is full
FULL: Final = 0.9
"""Share of the limit that neither reclaim nor swap can take, from which on little is left: some of the rest is always in
use."""
_SOON_S: Final = 600.0
"""A straight line further into the future than ten minutes, drawn from a few seconds, says nothing."""
_GROWS_RATIO: Final = 0.0005
"""Of the limit in a second: less is what any heap does while it breathes."""
_PEAK_RATIO: Final = 1.05  # of the usage that is told: what it was before is told where it was really more
PRESSED: Final = 0.005  # PSI `some`: a two-hundredth of the time in which somebody waits; a calm service has 0


class Facts:
    """What the rules ask for; what is not known counts as not so."""

    def __init__(self, snapshot: Snapshot, makeup: Makeup, edge: Edge, outcome: Outcome) -> None:
        self.snapshot, self.makeup, self.edge, self.outcome = snapshot, makeup, edge, outcome
        self.seconds = snapshot.meanwhile.seconds if snapshot.meanwhile else 0.0
        self.limit = edge.first.limit_bytes if edge.first else snapshot.node.meminfo.get("MemTotal", 0)
        self.part = {part.name: part.part_bytes for part in makeup.parts}
        self.hits = self._hits(snapshot.group.name)
        self.hits_above = sum(self._hits(group.name) for group in snapshot.levels[1:])
        self.at_limit = edge.near or self.hits > 0 or (self.pressed and self.used >= FULL)

    @property
    def full(self) -> bool:
        """Whether it is at its limit, or near it."""
        return self.at_limit or self.used >= FULL

    @property
    def is_cache(self) -> bool:
        """Whether what fills it is page cache to a good part."""
        goes = (self.makeup.at_once_bytes or 0) + (self.makeup.after_writeback_bytes or 0)
        own = self.edge.first is None or self.edge.first.group == self.snapshot.group.name
        if own:
            return goes >= _MUCH * (self.snapshot.group.usage_bytes or 0)
        return (self.edge.unreclaimable_ratio or 0.0) <= 1 - _MUCH

    @property
    def left_on_node(self) -> float:
        """Share of the machine's memory that could still be had, swap with it; 1 where that is not known."""
        info = self.snapshot.node.meminfo
        if not info.get("MemTotal") or "MemAvailable" not in info:
            return 1.0
        return (info["MemAvailable"] + info.get("SwapFree", 0)) / info["MemTotal"]

    @property
    def held(self) -> float:
        """Share of the time in which somebody was held: by stalls, else by PSI's last 10 s."""
        stalls = self.snapshot.meanwhile.stalls if self.snapshot.meanwhile else None
        if stalls is not None and stalls.stall_ns is not None and self.seconds:
            return stalls.stall_ns / 1e9 / self.seconds
        return self.snapshot.pressure.get("some", (0.0,))[0]

    @property
    def was_higher(self) -> bool:
        """Whether usage has been clearly higher before, without having been at the limit: a flank, as far as one can tell."""
        peak, usage = self.snapshot.group.peak_bytes, self.snapshot.group.usage_bytes
        return peak is not None and usage is not None and 1.1 * usage <= peak <= 0.98 * self.limit

    @property
    def unmapped_shmem(self) -> int:
        """Files in memory that are no process's shared memory: what the one that maps most maps is taken off."""
        mapped = max((one.status.get("RssShmem", 0) for one in self.snapshot.processes), default=0)
        return max(0, self.part.get("shmem", 0) - mapped)

    @property
    def own_first(self) -> bool:
        """Whether the limit that it meets first is its own."""
        return self.edge.first is not None and self.edge.first.group == self.snapshot.group.name

    @property
    def own_stuck(self) -> float:
        """As `stuck`, of the group's own limit."""
        group = self.snapshot.group
        if group.limit_bytes is None or group.usage_bytes is None or self.makeup.at_once_bytes is None:
            return 0.0
        swap = min(self.outcome.swap_left_bytes or 0, self.makeup.to_swap_bytes or 0)
        goes = self.makeup.at_once_bytes + (self.makeup.after_writeback_bytes or 0) + swap
        return max(0, group.usage_bytes - goes) / max(1, group.limit_bytes)

    @property
    def used(self) -> float:
        """Of the first limit, at its most while watched."""
        first, meanwhile = self.edge.first, self.snapshot.meanwhile
        if first is None or first.used_bytes is None:
            return 0.0
        own = first.group == self.snapshot.group.name
        most = meanwhile.most_bytes if meanwhile and own else None
        return max(first.used_bytes, most or 0) / max(1, first.limit_bytes)

    def _hits(self, name: str, event: str = "max") -> int:
        meanwhile = self.snapshot.meanwhile
        return meanwhile.events.get(name, {}).get(event, 0) if meanwhile else 0

    @property
    def kills(self) -> int:
        """OOM kills in the group while it was watched: the kernel counts them where the victim was."""
        return self._hits(self.snapshot.group.name, "oom_kill")

    @property
    def throttled(self) -> int:
        """How often memory.high had a task reclaim or sleep meanwhile."""
        return self._hits(self.edge.first.group, "high") if self.edge.first else 0

    def much(self, count: int | None) -> bool:
        """Whether something explains a full limit."""
        return bool(self.limit) and (count or 0) >= _MUCH * self.limit

    @property
    def dirty(self) -> int:
        """The most that waited to be written: it comes and goes."""
        meanwhile = self.snapshot.meanwhile
        seen = meanwhile.most_dirty_bytes if meanwhile else None
        return max(seen or 0, self.makeup.after_writeback_bytes or 0)

    @property
    def stuck(self) -> float:
        """Share of the limit that neither reclaim can take, now or after writing, nor swap."""
        swap = min(self.outcome.swap_left_bytes or 0, self.makeup.to_swap_bytes or 0)
        later = swap + (self.makeup.after_writeback_bytes or 0)
        return max(0.0, (self.edge.unreclaimable_ratio or 0.0) - (later / self.limit if self.limit else 0.0))

    @property
    def pressed(self) -> bool:
        """Whether somebody was held: by stalls, where what tells of durations saw them, else by PSI's last 10 s."""
        stalls = self.snapshot.meanwhile.stalls if self.snapshot.meanwhile else None
        if stalls is not None and (stalls.count or stalls.harmless_ns is not None):
            return stalls.count > 0
        return self.snapshot.pressure.get("some", (0.0,))[0] >= PRESSED

    @property
    def grows(self) -> bool:
        """Whether memory without a file grows, so that a kill is near."""
        meanwhile, ahead = self.snapshot.meanwhile, self.edge.seconds_to_kill
        growth = meanwhile.anon_growth_bytes_per_s if meanwhile else None
        return growth is not None and ahead is not None and growth >= _GROWS_RATIO * self.limit and ahead <= _SOON_S

    def moved(self, *names: str) -> float:
        """Bytes a second by which counters of pages rose: of the group."""
        meanwhile = self.snapshot.meanwhile
        if meanwhile is None or not self.seconds:
            return 0.0
        return sum(meanwhile.stat.get(name, 0) for name in names) * self.snapshot.node.page_bytes / self.seconds

    @property
    def swaps(self) -> bool:
        """Whether there is swap for what it has of memory without a file."""
        return (self.outcome.swap_left_bytes or 0) >= (self.makeup.to_swap_bytes or 0) > 0

    @property
    def swapped_in(self) -> float:
        """Bytes a second that came back from swap: the group's (6.14), or what refaulted of its anonymous memory."""
        return max(self.moved("pswpin"), self.moved("workingset_refault_anon"))

    @property
    def read_again(self) -> float:
        """Bytes a second of files that came back; before 5.9 one counter has those of swap, too."""
        return max(self.moved("workingset_refault_file"), self.moved("workingset_refault"))

    @property
    def node_stalls(self) -> int:
        """How often somebody on the machine had to reclaim for the whole of it."""
        meanwhile = self.snapshot.meanwhile
        moved = meanwhile.vmstat if meanwhile else {}
        return sum(count for name, count in moved.items() if name.startswith("allocstall"))

    def _usage(self, usage: int) -> str:
        first, meanwhile = self.edge.first, self.snapshot.meanwhile
        if first is not None and first.group != self.snapshot.group.name:
            return f"{size(usage)} itself; {size(first.used_bytes)} of {size(first.limit_bytes)} of {first.group}"
        of = "" if first is None else f" of {size(first.limit_bytes)}"
        most = meanwhile.most_bytes if meanwhile else None
        peak = f", {size(most)} at most while watched" if most is not None and most > _PEAK_RATIO * usage else ""
        return f"{size(usage)}{of}{peak}"

    def numbers(self) -> Iterator[tuple[str, str]]:
        """The figures that it rests on."""
        group = self.snapshot.group
        if group.usage_bytes is not None:
            yield "usage", self._usage(group.usage_bytes)
        if self.edge.unreclaimable_ratio is not None:
            yield "cannot be reclaimed at once", f"{share(self.edge.unreclaimable_ratio)} of the limit"
        if self.outcome.swap_left_bytes is not None:
            yield "may still be swapped", size(self.outcome.swap_left_bytes)
        if self.snapshot.meanwhile is not None:
            yield "growth", f"{size(self.edge.growth_bytes_per_s, sign=True)}/s"
            yield "stalls", stalls_seen(self.snapshot).rstrip(".")
        if self.edge.seconds_to_kill is not None and self.grows:
            yield "to an OOM kill at that pace", span(self.edge.seconds_to_kill * 1e9)
        if some := self.snapshot.pressure.get("some"):
            yield "memory pressure (PSI some)", f"{share(some[0])} of the last 10 s, {share(some[2])} of the last 5 min"
        if self.dirty:
            yield "to be written to a disk", f"{size(self.dirty)} at most"
        yield from self._events()

    def _events(self) -> Iterator[tuple[str, str]]:
        if self.swapped_in:
            yield "back from swap", f"{size(self.swapped_in)}/s"
        if kills := self.snapshot.group.events.get("oom_kill"):
            now = f", {number(self.kills)} of them while watched" if self.kills else ""
            yield "OOM kills", f"{number(kills)} so far{now}"
        if self.was_higher and self.grows:
            yield "the most it ever was", size(self.snapshot.group.peak_bytes)
        if self.node_stalls:
            yield "direct reclaim on the machine", f"{number(self.node_stalls)} times"
