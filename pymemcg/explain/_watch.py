# SPDX-License-Identifier: Apache-2.0
"""What moves in the seconds before a snapshot: growth, hits, and stalls where a sampler can run.

PSI is read by the sampler alone, which waits until a read is harmless.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from pymemcg.cgroup import Target, resolve
from pymemcg.errors import MemcgError, TargetError
from pymemcg.explain._makeup import unwritten
from pymemcg.explain._snapshot import Meanwhile, StallsSeen
from pymemcg.explain._take import read_events, read_limit, read_stat, read_usage
from pymemcg.explain._tree import Tree

if TYPE_CHECKING:
    from pymemcg._stall import Stall
    from pymemcg.sampler import Sampler

_LOOKS: Final = 30  # 435 pairs: a few odd looks do not move their median, and Python sorts them in a moment
_STAT_EACH: Final = 3  # looks: reading memory.stat takes locks of the kernel's
_SAMPLERS_BYTES: Final = 64 << 20
"""Room that our own group must have for a sampler in it: with numpy that takes some 20 MiB, and watching must not fill it."""


def watch(spec: str, seconds: float) -> Meanwhile:
    """Watch a group for so long.

    Raises:
        TargetError: There is no such target, or it vanished.
        NotSupported: This place has no memory cgroups.
    """
    target = resolve(spec)
    identity = _identity(target)
    sampler, why_not = _sampler(spec)  # before the first look: its start takes time and memory
    try:
        first, begun_ns = Ends(target), time.monotonic_ns()
        looks = _Looks(target, seconds)
        again = resolve(spec)
        last, lasted_ns = Ends(again), time.monotonic_ns() - begun_ns
        if _identity(again) != identity:
            raise TargetError(f"{spec} is another group than a moment ago", path=again.directory, hint="look again")
        stalls = None
        if sampler is not None:
            stalls, why_not = _seen(sampler, begun_ns)
    finally:
        if sampler is not None:
            sampler.stop()
    return Meanwhile(
        seconds=lasted_ns / 1e9,
        growth_bytes_per_s=trend(looks.usage),
        anon_growth_bytes_per_s=trend_of_stat(looks.anon),
        anon_grows=grows([count for _, count in looks.anon]),
        most_bytes=max((count for _, count in looks.usage), default=None),
        most_dirty_bytes=max((count for _, count in looks.dirty), default=None),
        events={name: happened(events, last.events.get(name, {})) for name, events in first.events.items()},
        stat=moved(counters(first.stat), last.stat),
        vmstat=moved(counters(first.vmstat), last.vmstat),
        stalls=stalls,
        why_no_stalls=why_not,
    )


class Ends:
    """What counters say at one end of the watch.

    Attributes:
        stat: memory.stat under the common names.
        vmstat: Of the machine.
        events: Level's name to its events.
    """

    def __init__(self, target: Target) -> None:
        tree = Tree()
        self.stat = read_stat(tree, target.directory, target.version)
        self.vmstat = tree.keyed("/proc/vmstat")
        self.events = {}
        for i, level in enumerate(target.levels):
            events = read_events(tree, level.directory, target.version)
            if i and target.version == 2:  # what happened to groups below an ancestor is no news of its own limit
                events = tree.keyed(f"{level.directory}/memory.events.local") or events
            elif target.version == 1:
                _take_hits_where_they_count(tree, level.directory, events)
            self.events[level.name] = events


def _take_hits_where_they_count(tree: Tree, at: str, events: dict[str, int]) -> None:
    """memory.failcnt does not count where memsw's limit is not above memory's, but memory.memsw.failcnt does, until 6.15."""
    limit, both = (read_limit(tree, at, 1, kind) for kind in ("max", "memsw"))
    if limit is not None and both is not None and both <= limit:
        events.pop("max", None)
        if hits := tree.number(f"{at}/memory.memsw.failcnt"):  # 0 may be that of a kernel that does not count
            events["max"] = hits


def _identity(target: Target) -> tuple[int, int] | None:
    """What tells its group from another one of that name; None where it is gone."""
    try:
        status = os.stat(target.directory)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class _Looks:
    """Readings at even distances, as seconds and bytes.

    Attributes:
        usage: Of the group.
        anon: Of its memory without a file.
        dirty: Of what has to be written to a disk.
    """

    def __init__(self, target: Target, seconds: float) -> None:
        self.usage: list[tuple[float, int]] = []
        self.anon: list[tuple[float, int]] = []
        self.dirty: list[tuple[float, int]] = []
        begun = time.monotonic()
        for i in range(_LOOKS):
            tree, now = Tree(), time.monotonic() - begun
            _add(self.usage, now, read_usage(tree, target.directory, target.version))
            if i % _STAT_EACH == 0:
                stat = read_stat(tree, target.directory, target.version)
                _add(self.anon, now, anonymous(stat))
                _add(self.dirty, now, unwritten(stat))
            time.sleep(max(0.0, begun + seconds * (i + 1) / _LOOKS - time.monotonic()))


def _add(points: list[tuple[float, int]], now: float, count: int | None) -> None:
    if count is not None:
        points.append((now, count))


def anonymous(stat: Mapping[str, int]) -> int | None:
    """Memory without a file: anonymous, shmem and tmpfs."""
    return stat["anon"] + stat["shmem"] if {"anon", "shmem"} <= stat.keys() else None


def grows(counts: list[int]) -> bool | None:
    """Whether they grow and do not only breathe: the least of the last third is above the most of the first.

    Or they never fall, and rise in the first half and in the second: the kernel of a machine with many CPUs adds up memory.stat
    only every 2 s, so that a steady growth is seen as two steps, near the ends.
    """
    third = len(counts) // 3
    if not third:
        return None
    steps = counts == sorted(counts) and counts[0] < counts[len(counts) // 2] < counts[-1]
    return steps or min(counts[-third:]) > max(counts[:third])


def trend_of_stat(points: list[tuple[float, int]]) -> float | None:
    """`trend`; or, where most readings are the same as the one before, and median slopes are nothing, from end to end."""
    changes = sum(later[1] != point[1] for point, later in pairwise(points))
    return trend(points if 2 * changes >= len(points) - 1 else [points[0], points[-1]])


_COUNTERS: Final = ("pg", "workingset_", "pswp", "zswp", "thp_", "allocstall", "compact_", "oom_kill", "swpin_", "swpout_")


def counters(figures: Mapping[str, int]) -> dict[str, int]:
    """Those of memory.stat or vmstat that count what happened, and not how much there is of something."""
    return {name: count for name, count in figures.items() if name.startswith(_COUNTERS) and name != "workingset_nodes"}


def happened(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """How often each of these events happened, 0 where it did not; those that nobody counted at both ends are left out."""
    return {name: after[name] - count for name, count in before.items() if after.get(name, -1) >= count}


def moved(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """By how much counters rose; those that did not, or went backwards (another group of that name), are left out."""
    return {name: after[name] - count for name, count in before.items() if after.get(name, 0) > count}


def trend(points: list[tuple[float, int]]) -> float | None:
    """The median slope of all pairs of points, as `pymemcg.metrics.growth` has it (Theil 1950, Sen 1968), without numpy.

    Args:
        points: Seconds and bytes.

    Returns:
        Bytes a second; None with fewer than two distinct times.
    """
    slopes = sorted(
        (later[1] - point[1]) / (later[0] - point[0])
        for i, point in enumerate(points)
        for later in points[i + 1 :]
        if later[0] > point[0]
    )
    middle = len(slopes) // 2
    if not slopes:
        return None
    return slopes[middle] if len(slopes) % 2 else (slopes[middle - 1] + slopes[middle]) / 2


# ---- Stalls --------------------------------------------------------------------------------------------------------


def _sampler(spec: str) -> tuple[Sampler | None, str | None]:
    """A sampler that runs, where that can be done without harm; or why not."""
    if find_spec("numpy") is None:
        return None, "numpy is not installed, which a sampler needs"
    room = _own_room()
    if room is not None and room < _SAMPLERS_BYTES:
        mib = _SAMPLERS_BYTES >> 20
        return (
            None,
            f"a sampler would take memory of the group that this command runs in, and that has less than {mib} MiB left",
        )
    try:
        from pymemcg.sampler import Sampler

        sampler = Sampler(spec).start()
    except (MemcgError, ImportError) as error:  # a numpy that is there may yet be one of another Python
        return None, str(error)
    if sampler.role == "disabled":
        return None, "sampling is disabled by PYMEMCG_DISABLE=1"
    return sampler, None


def _own_room() -> int | None:
    """What is left below the nearest limit of the group that pays for this process, or of one above it; None = no limit.

    Whatever is watched: a neighbour's limit is none of ours, but its pod's may be.
    """
    try:
        own = resolve()
    except MemcgError:
        return None
    tree, room = Tree(), []
    for level in own.levels:
        usage = read_usage(tree, level.directory, own.version)
        used = {"max": usage, "high": usage}
        if own.version == 1:
            used["memsw"] = tree.number(f"{level.directory}/memory.memsw.usage_in_bytes")
        for kind, count in used.items():
            limit = read_limit(tree, level.directory, own.version, kind)
            if limit is not None and count is not None:
                room.append(limit - count)
    return min(room, default=None)


def _seen(sampler: Sampler, begun_ns: int) -> tuple[StallsSeen | None, str | None]:
    """What a sampler saw since then, or why that cannot be told."""
    from pymemcg.detecting import stalls

    try:
        told = [stall for stall in stalls(sampler) if (stall.end_ns or stall.start_ns) >= begun_ns]
        evidence = {name for name, why_not in sampler.evidence.items() if why_not is None}
        if not len(sampler.pressure.window(since_ns=begun_ns)):
            evidence.discard("psi")  # it works, but reading it would have done harm: of this time it knows nothing
    except MemcgError as error:
        return None, str(error)
    return tally(told, tuple(name for name in sampler.evidence if name in evidence)), None


def tally(told: Sequence[Stall], evidence: tuple[str, ...]) -> StallsSeen:
    """Add up those of a millisecond and more, those of unknown length, and the rest."""
    timed = not {"trace", "psi"}.isdisjoint(evidence)
    long = [stall for stall in told if stall.harmless is False]
    known = [stall.stall_ns for stall in long if stall.stall_ns is not None]
    causes: dict[str, int] = {}
    for stall in long:
        causes[stall.cause] = causes.get(stall.cause, 0) + 1
    return StallsSeen(
        count=len(long),
        stall_ns=sum(known) if timed and len(known) == len(long) else None,
        worst_ns=max(known, default=None),
        causes=causes,
        unknown=sum(stall.harmless is None for stall in told),
        evidence=evidence,
        harmless_ns=sum(stall.stall_ns or 0 for stall in told if stall.harmless) if timed else None,
    )
