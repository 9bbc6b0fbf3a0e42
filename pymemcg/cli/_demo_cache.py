# SPDX-License-Identifier: Apache-2.0
"""`demo cache`: page cache fills the limit and stays; an allocation takes it back. Every sentence is of what was measured."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pymemcg._tally import Tally
from pymemcg._words import number, share, size, span
from pymemcg.child import ChildGroup
from pymemcg.cli import _stage
from pymemcg.cli._text import aligned, painted, wrapped
from pymemcg.errors import MemcgError
from pymemcg.places import members

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable

    from pymemcg.cli._story import Story
    from pymemcg.detecting import Stall
    from pymemcg.explain import Explanation
    from pymemcg.sampler import Sampler

_LIMIT: Final = _stage.LIMIT_BYTES
_DATA_BYTES: Final = 2 * _LIMIT
_ALLOCATED_BYTES: Final = 40 << 20  # fits beside the interpreters, if the cache makes room
_ROOM_BYTES: Final = 2 * (_LIMIT + _DATA_BYTES)
_READ_S: Final = 2.5  # slow enough to be seen, and no disk is the bottleneck
_WATCH_S: Final = 2.0  # so far behind memory.stat may be
_PAUSE_S: Final = 0.5  # so that one phase is told from the next in the picture
_MUCH: Final = 0.5  # of what it is compared with
_FULL: Final = 0.9  # of the limit: reclaim frees more at once than is asked for
_SLOWER: Final = 1.05  # times as much; less is the noise of a machine
_COLOURS: Final = {"no": 32, "watch": 33, "yes": 31}
_SHOWN: Final = (
    ("cAdvisor, Prometheus", "container_memory_usage_bytes"),
    ("kubelet, kubectl top", "memory"),
    ("docker stats, 20.10 and later", "MEM USAGE"),
    ("top, ps", "RES, RSS"),
)


@dataclass
class _Phase:
    """A part of the experiment.

    Attributes:
        title: Its name.
        begun_ns, ended_ns: When it was.
        then: What the group was at its end: "usage", "anon", "file", "working_set", in bytes; what is not known is no key.
        hits: How often the limit was hit in it; None where that is not counted.
        tally: The stalls in it.
    """

    title: str
    begun_ns: int
    ended_ns: int = 0
    then: dict[str, int] = field(default_factory=dict)
    hits: int | None = None
    tally: Tally = field(default_factory=Tally)


@dataclass
class _Taken:
    """An allocation, as the process that made it timed it."""

    begun_ns: int
    ended_ns: int
    cpu_ns: int
    slowest_ns: int

    def __str__(self) -> str:
        return (
            f"{span(self.ended_ns - self.begun_ns)} ({span(self.cpu_ns)} of CPU time, the slowest MiB {span(self.slowest_ns)})"
        )


@dataclass
class _Course:
    """What happened.

    Attributes:
        phases: In order: allocating with room, reading, resting, the reader gone, allocating without room.
        taken: The two allocations that were timed.
        explained: What `pymemcg explain` says while the reader rests.
        reads: When the reader read.
        alone: Whether nobody but the allocating process was in the group at the end.
    """

    phases: list[_Phase]
    taken: list[_Taken]
    explained: Explanation
    reads: tuple[int, int]
    alone: bool


def run(*, colours: bool) -> None:
    """Do it, and tell.

    Raises:
        MemcgError: It cannot be done here.
    """
    if (reason := _stage.why_not(_ROOM_BYTES, on_disk=True)) is not None:
        raise MemcgError(f"no group of its own can be filled with page cache here: {reason}")
    from pymemcg.cli._live import sampler_of
    from pymemcg.detecting import stalls

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pymemcg-", dir=_stage.disk()))
        group = stack.enter_context(ChildGroup("cache", limit_bytes=_LIMIT))
        text = f"A group of its own with {size(_LIMIT)}. In it a process reads a file of {size(_DATA_BYTES)} once, and ends. "
        text += f"Another one allocates {size(_ALLOCATED_BYTES)}: before that, when there is room, and after."
        print("\n".join(wrapped(text, _stage.width())))
        print(painted(group.directory, 2, colours=colours), end="\n\n", flush=True)
        _stage.write_data(f"{folder}/data", _DATA_BYTES)
        allocator = _stage.start(stack, group, "allocate", str(_ALLOCATED_BYTES))
        reader = _stage.start(stack, group, "read", str(_READ_S), f"{folder}/data")
        sampler = stack.enter_context(sampler_of(group.spec, adaptive=False))
        begun_ns = _stage.now_ns()
        course = _play(group, allocator, reader)
        ended_ns = _stage.now_ns()
        sampler.stop()  # it reads once more; all that it saw stays
        story = _stage.story_of(sampler, begun_ns, ended_ns, colours=colours)
        found = list(stalls(sampler))
        for phase in course.phases:
            _measure(phase, story, found)
        story.limit_bytes = _LIMIT
        story.works = {
            "reads": [course.reads],
            "allocates": [(taken.begun_ns, taken.ended_ns) for taken in course.taken],
        }
        print("\n".join(_lines(course, story, sampler, {allocator.pid: "allocates", reader.pid: "reads"})))


def _play(group: ChildGroup, allocator: subprocess.Popen[str], reader: subprocess.Popen[str]) -> _Course:
    from pymemcg.explain import Tree, explain, take
    from pymemcg.explain._watch import watch

    phases: list[_Phase] = []

    @contextmanager
    def phase(title: str) -> Iterator[None]:
        begun_ns = _stage.now_ns()
        yield
        time.sleep(_PAUSE_S)
        phases.append(_Phase(title, begun_ns, _stage.now_ns()))
        tell(len(phases))

    def allocate() -> _Taken:
        _stage.say(allocator)
        return _Taken(*_stage.answer(allocator, _PAUSE_S))

    def give_back() -> None:
        _stage.say(allocator)
        _stage.answer(allocator, _PAUSE_S)

    with _stage.progress(5) as tell:
        with phase("room"):
            allocate()  # what only the first costs would be taken for the price of room
            give_back()
            time.sleep(_PAUSE_S)
            first = allocate()
            time.sleep(_PAUSE_S)
            give_back()
        with phase("reading"):
            _stage.say(reader)
            begun, ended = _stage.answer(reader, _READ_S)
        with phase("resting"):
            explained = explain(take(Tree(), group.spec, meanwhile=watch(group.spec, _WATCH_S)))
        with phase("reader gone"):
            _stage.say(reader)
            _stage.wait_for("the reader", [reader], _PAUSE_S)
        with phase("no room"):
            alone = members(group.directory) == {allocator.pid}
            second = allocate()
    return _Course(phases, [first, second], explained, (begun, ended), alone)


def _measure(phase: _Phase, story: Story, found: Iterable[Stall]) -> None:
    """What the sampler's rows, and the stalls in all of them, say of it."""
    usage, stat = ({name: rows[name] for name in rows.names} for rows in (story.usage, story.stat))
    at, before = (int(usage["t_ns"].searchsorted(t_ns, side="right")) - 1 for t_ns in (phase.ended_ns, phase.begun_ns))
    if at >= 0:
        phase.then["usage"] = int(usage["usage_bytes"][at])
        if (name := story.hits()) is not None:
            phase.hits = int(usage[name][at] - usage[name][max(before, 0)])
    row = int(stat["t_ns"].searchsorted(phase.ended_ns, side="right")) - 1
    if row >= 0:
        phase.then |= {name: int(stat[name][row]) for name in ("anon", "file") if name in stat}
    if row >= 0 and at >= 0 and "inactive_file" in stat:
        phase.then["working_set"] = max(0, phase.then["usage"] - int(stat["inactive_file"][row]))
    for stall in found:
        if phase.begun_ns <= stall.start_ns < phase.ended_ns:
            phase.tally.add(stall)


# ---- Telling -------------------------------------------------------------------------------------------------------


def _lines(course: _Course, story: Story, sampler: Sampler, names: dict[int, str]) -> Iterator[str]:
    colours, width = story.colours, story.width
    yield from story.picture()
    yield ""
    head, *rest = aligned(_table(course)).split("\n")
    yield painted(head, 1, colours=colours)
    yield from rest
    yield ""
    yield painted("What it shows", 1, colours=colours)
    for i, (text, below) in enumerate(_lessons(course, story, colours=colours), 1):
        yield from (f"{f'{i}.' if at == 0 else '':<3}{line}" for at, line in enumerate(wrapped(text, width - 3)))
        if below:
            yield below
    yield ""
    yield from _stage.stall_lines(sampler, _stage.tally_of(sampler, story.begun_ns), names, colours=colours)


def _table(course: _Course) -> Iterator[list[str]]:
    phases = course.phases
    yield ["", *(phase.title for phase in phases)]
    yield ["lasted", *(span(phase.ended_ns - phase.begun_ns) for phase in phases)]
    titles = {"usage": "usage in the end", "anon": "anonymous", "file": "page cache", "working_set": "working set"}
    for name, title in titles.items():
        yield [title, *(size(phase.then.get(name)) for phase in phases)]
    yield ["limit hits", *(number(phase.hits) for phase in phases)]
    yield ["stalls", *(number(phase.tally.count) for phase in phases)]
    yield ["in reclaim", *(span(_in_reclaim_ns(phase)) for phase in phases)]


def _in_reclaim_ns(phase: _Phase) -> int | None:
    return None if phase.tally.unknown else phase.tally.stall_ns + phase.tally.harmless_ns


def _lessons(course: _Course, story: Story, *, colours: bool) -> Iterator[tuple[str, str]]:
    """Sentences, and what stands below them."""
    _, reading, resting, left, taken = course.phases
    yield _filled(reading, resting), ""
    yield _dashboards(course, colours=colours)
    yield _stays(course, resting, left), ""
    yield _taken_back(course, left, taken), ""
    yield _cost(course, taken, story), ""


def _filled(reading: _Phase, resting: _Phase) -> str:
    usage = resting.then.get("usage", 0)
    told = f"Reading took usage to {size(usage)}, {share(usage / _LIMIT)} of the limit"
    if usage >= _FULL * _LIMIT:
        told += ", and there it stays: the kernel keeps what was read, in case that somebody reads it again"
    return f"{told}. {_held(reading)}"


def _held(phase: _Phase) -> str:
    """What reclaim cost in a phase."""
    tally = phase.tally
    hits = f"The limit was hit {number(phase.hits)} time{'s' if phase.hits != 1 else ''}" if phase.hits else ""
    lasted = span(phase.ended_ns - phase.begun_ns)
    if tally.unknown:
        return f"{hits or 'Reclaim was seen'}; for how long that held anybody cannot be known here."
    if tally.count:
        return f"{f'{hits}, with' if hits else 'There were'} stalls in these {lasted}: {tally.says()}."
    if not phase.hits and not tally.harmless_ns:
        return f"In these {lasted} nobody had to reclaim anything."
    freed = f"{span(tally.harmless_ns)} of reclaim in {lasted}, and nobody was held for 1 ms"
    return f"{f'{hits}, but that was harmless' if hits else 'That was harmless'}: {freed}."


def _dashboards(course: _Course, *, colours: bool) -> tuple[str, str]:
    """What each tool would show, and what is to be thought of it."""
    shown = {(one.tool, one.figure): one.shown_bytes for one in course.explained.tools.shown}
    known = [(tool, figure, count) for tool, figure in _SHOWN if (count := shown.get((tool, figure))) is not None]
    rows = [(tool, figure, size(count), share(count / _LIMIT)) for tool, figure, count in known]
    verdict = course.explained.verdict
    name = painted(verdict.name, _COLOURS[verdict.worry], colours=colours)
    text = f"While the reader rested, tools would have shown of the limit what is below. `pymemcg explain` says {name}: "
    return text + verdict.says, aligned(rows, indent="   ", left=(0, 1))


def _stays(course: _Course, resting: _Phase, left: _Phase) -> str:
    before, after, usage = resting.then.get("file"), left.then.get("file"), left.then.get("usage", 0)
    gone = "The reader has ended, and nobody has the file open any more" if course.alone else "The reader has ended"
    now = f"usage is {size(usage)}, {share(usage / _LIMIT)} of the limit"
    if before is None or after is None:
        return f"{gone}: {now}."
    if after < _MUCH * before:
        return f"{gone}: of {size(before)} of page cache {size(after)} are left, and {now}."
    leak = ": that is nobody's leak" if course.alone else ""
    return f"{gone}. Yet {size(after)} of its page cache are still charged to the group, and {now}{leak}."


def _taken_back(course: _Course, left: _Phase, taken: _Phase) -> str:
    before, after = left.then, taken.then
    titles = {"anon": "anonymous memory went", "file": "page cache", "usage": "usage"}
    known = [name for name in titles if name in before and name in after]
    moved = ", ".join(f"{titles[name]} from {size(before[name])} to {size(after[name])}" for name in known)
    who = "in the process that allocated, the only one there" if course.alone else "in whoever allocated"
    dropped = after.get("file", 0) < before.get("file", 0)
    how = f" To make room the kernel dropped page cache, {who}." if dropped else ""
    return f"Then {size(_ALLOCATED_BYTES)} were allocated: {moved or 'how memory moved is not known'}.{how} {_held(taken)}"


def _cost(course: _Course, taken: _Phase, story: Story) -> str:
    first, second = course.taken
    told = f"The allocation took {second}, and when there was room {first}. "
    ratio = second.cpu_ns / max(1, first.cpu_ns)  # how long it took is also a matter of who else wanted the CPUs
    if ratio >= _SLOWER:
        told += f"At a full limit it was {ratio:.1f} times as much work"
    else:
        told += "A full limit made it no more work, as far as can be told"
    if held_ns := _in_reclaim_ns(taken):
        told += f"; {span(held_ns)} went into reclaim"
    kills = story.kills()
    if kills is None:
        return f"{told}."
    return f"{told}. {'Nobody was killed for it.' if not kills else f'OOM kills meanwhile: {number(kills)}.'}"
