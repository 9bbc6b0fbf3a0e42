# SPDX-License-Identifier: Apache-2.0
"""`demo oom`: anonymous memory grows to the limit, and the kernel kills. Every sentence is of what was measured."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pymemcg._ending import is_at
from pymemcg._tally import Tally
from pymemcg._words import UNKNOWN, number, size, span
from pymemcg.cgroup import resolve
from pymemcg.child import ChildGroup
from pymemcg.cli import _stage
from pymemcg.cli._stalls import figure
from pymemcg.cli._text import painted, wrapped
from pymemcg.errors import MemcgError
from pymemcg.once import read_once
from pymemcg.places import members

if TYPE_CHECKING:
    import subprocess

    from pymemcg.cli._story import Story
    from pymemcg.oom import Kill
    from pymemcg.sampler import Sampler

_LIMIT: Final = _stage.LIMIT_BYTES
_GROWTH_BYTES: Final = 2 * _LIMIT  # if nothing stops it; half of it does not fit
_GROWTH_S: Final = 5.0
_ROOM_BYTES: Final = 2 * _GROWTH_BYTES
_PAUSE_S: Final = 0.3  # so that the picture has a beginning and an end
_LOG_S: Final = 2.0  # a journal may be late
_TITLE_WIDTH: Final = 14


@dataclass
class _Death:
    """What happened.

    Attributes:
        pid: Of the process that grew.
        status: Its `returncode`.
        taken_bytes: What it had said it had.
        begun_ns: When it was let go.
        ended_ns: When it was killed, by the group's counter; else when its parent saw its end.
        kills: OOM kills that the group's counter rose by; None where there is none.
        alone: Whether it was the only process in the group.
    """

    pid: int
    status: int
    taken_bytes: int
    begun_ns: int
    ended_ns: int
    kills: int | None
    alone: bool


def run(*, colours: bool) -> None:
    """Do it, and tell.

    Raises:
        MemcgError: It cannot be done here.
    """
    if (reason := _stage.why_not(_ROOM_BYTES, on_disk=False)) is not None:
        raise MemcgError(f"no group of its own, in which a kill can hit nobody else, can be filled here: {reason}")
    from pymemcg.cli._live import sampler_of

    with ExitStack() as stack:
        group = stack.enter_context(ChildGroup("oom", limit_bytes=_LIMIT))
        group.forbid_swap()
        text = f"A process in a group of its own with {size(_LIMIT)}, and no swap, takes a MiB of memory every "
        text += f"{_GROWTH_S * 1000 * (1 << 20) / _GROWTH_BYTES:.0f} ms and gives none back, until the kernel ends it."
        print("\n".join(wrapped(text, _stage.width())))
        print(painted(group.directory, 2, colours=colours), end="\n\n", flush=True)
        process = _stage.start(stack, group, "grow", str(_GROWTH_S), str(_GROWTH_BYTES))
        sampler = stack.enter_context(sampler_of(group.spec, adaptive=False))
        begun_ns = _stage.now_ns()
        death = _play(group, process)
        ended_ns = _stage.now_ns()
        sampler.stop()  # it reads once more; all that it saw stays
        story = _stage.story_of(sampler, begun_ns, ended_ns, colours=colours)
        story.limit_bytes = _LIMIT
        death.ended_ns = _first_rise_ns(story, "oom_kills") or death.ended_ns
        story.works["grows"] = [(death.begun_ns, death.ended_ns)]
        print("\n".join(_lines(death, story, sampler)))
        print("\n".join(_logged(group, death, colours=colours)))


def _play(group: ChildGroup, process: subprocess.Popen[str]) -> _Death:
    target = resolve(group.spec)
    before, alone = read_once(target).get("oom_kills"), members(group.directory) == {process.pid}
    time.sleep(_PAUSE_S)
    begun_ns = _stage.now_ns()
    _stage.say(process)
    with _stage.progress(_GROWTH_S * _LIMIT / _GROWTH_BYTES) as tell:
        _stage.wait_for("the process that grows", [process], _GROWTH_S, tell)
    ended_ns = _stage.now_ns()
    after = read_once(target).get("oom_kills")
    time.sleep(_PAUSE_S)
    kills = None if before is None or after is None else after - before
    taken_bytes = sum(1 << 20 for line in process.stdout or () if line.endswith("\n"))
    return _Death(process.pid, process.returncode, taken_bytes, begun_ns, ended_ns, kills, alone)


# ---- Telling -------------------------------------------------------------------------------------------------------


def _lines(death: _Death, story: Story, sampler: Sampler) -> Iterator[str]:
    yield from story.lines()
    tally = _stage.tally_of(sampler, story.begun_ns)
    yield from _stage.stall_lines(sampler, tally, {death.pid: "grows"}, colours=story.colours)
    yield ""
    yield painted("How it ended", 1, colours=story.colours)
    for title, text in _ending(death, story, sampler):
        yield from figure(title, text, story.width, colours=story.colours, title_width=_TITLE_WIDTH)


def _ending(death: _Death, story: Story, sampler: Sampler) -> Iterator[tuple[str, str]]:
    took = span(death.ended_ns - death.begun_ns)
    was = "was killed" if death.status == -signal.SIGKILL else "ended"
    yield "who", f"the process that grew (pid {death.pid}) {was} after {took}, when it had taken {size(death.taken_bytes)}"
    yield "by whom", _by_whom(death)
    yield "limit", _limit(story)
    yield "its parent", _status(death.status)
    yield "elsewhere", _elsewhere(death)
    yield "before", _before(death, story, sampler)


def _limit(story: Story) -> str:
    if not len(story.usage):
        return UNKNOWN
    high = int(story.usage["usage_bytes"].max())
    told = "the group's own" if is_at(_LIMIT, _LIMIT - high) else "not the group's own"
    return f"{told}, of {size(_LIMIT)}: usage was {size(high)} at most"


def _by_whom(death: _Death) -> str:
    if death.kills is None:
        return "the kernel does not count OOM kills by group here"
    if not death.kills:
        return "not the OOM killer: the group's counter of its kills did not rise"
    alone = ", and nobody else was in the group" if death.alone else ""
    return f"the OOM killer: the group's counter of its kills rose by {number(death.kills)}{alone}"


def _status(status: int) -> str:
    if status >= 0:
        return f"sees exit status {status}"
    name, code = signal.Signals(-status).name, 128 - status
    return f"sees that signal {-status} ({name}) ended it; shells, Docker and Kubernetes call that {code} (128 + {-status})"


def _elsewhere(death: _Death) -> str:
    if death.status != -signal.SIGKILL or not death.kills:
        return "no tool would call this OOMKilled" if death.kills == 0 else UNKNOWN
    return (
        "as the first process of a container it would have ended that: exit code 137 and OOMKilled, in `docker inspect` as in "
        "a pod's status. As another one's child it would have left the container running, and next to no trace"
    )


def _before(death: _Death, story: Story, sampler: Sampler) -> str:
    """What could have been noticed before the kill: hits, and stalls."""
    from pymemcg.detecting import stalls

    tally = Tally()
    for stall in stalls(sampler):
        if death.begun_ns <= stall.start_ns < death.ended_ns:
            tally.add(stall)
    told = f"stalls: {tally.says()}" if tally.count else "no stall of 1 ms or longer"
    if tally.harmless_ns:
        told += f", and {span(tally.harmless_ns)} of shorter reclaim"
    first_ns = _first_rise_ns(story, story.hits())
    if first_ns is None:
        return told
    if death.ended_ns <= first_ns:
        return f"{told}. No sample lay between the first hit of the limit and the end"
    return f"{told}. From the first hit of the limit to the end it took {span(death.ended_ns - first_ns)}"


def _first_rise_ns(story: Story, name: str | None) -> int | None:
    """When a counter first rose."""
    if name is None or name not in story.usage or not len(story.usage):
        return None
    risen = story.usage[name] > story.usage[name][0]
    return int(story.usage["t_ns"][risen.argmax()]) if risen.any() else None


# ---- The kernel's log ----------------------------------------------------------------------------------------------


def _logged(group: ChildGroup, death: _Death, *, colours: bool) -> Iterator[str]:
    """What the kernel says of this kill, and of no other; or why that cannot be read."""
    from pymemcg.cli.oom import KillLines

    yield ""
    yield painted("What the kernel's log says of it", 1, colours=colours)
    try:
        kill = _find(os.path.basename(group.directory), death)
    except MemcgError as error:
        yield from (f"  {line}" for line in wrapped(str(error), _stage.width() - 2))
        return
    if kill is None:
        yield "  nothing" if death.kills else "  nothing, and there was no kill"
    else:
        yield from (
            f"  {line}"
            for lines in KillLines(_stage.width() - 2, colours=colours, here=True).lines(kill)
            for line in lines.split("\n")
        )


def _find(name: str, death: _Death) -> Kill | None:
    """The kill in the group of that name; where the log names none, of that pid, which in a container is another."""
    from pymemcg.oom import kills
    from pymemcg.oom._logs import kernel_lines

    deadline = time.monotonic() + _LOG_S
    while True:
        ours = [kill for kill in kills(kernel_lines()) if _is_ours(kill, name, death)]
        if ours or not death.kills or time.monotonic() > deadline:
            return ours[-1] if ours else None
        time.sleep(_LOG_S / 10)


def _is_ours(kill: Kill, name: str, death: _Death) -> bool:
    group = kill.task_memcg or kill.oom_memcg
    return kill.pid == death.pid if group is None else os.path.basename(group) == name
