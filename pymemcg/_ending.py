# SPDX-License-Identifier: Apache-2.0
"""How a sampled life ended, from what its last rows say: pure, a decision a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

How = Literal["stopped", "oom", "killed", "restarted", "running", "recorded", "unknown"]
Certainty = Literal["certain", "almost certain", "likely", "possible"]

NEAR_SHARE: Final = 1 / 64
"""Usage this near below a limit was at it: each CPU charges up to 64 pages in advance, and takes them back when it is full …"""
NEAR_BYTES: Final = 4 << 20
"""… or nearer than this, but no more than a quarter of the limit: a huge page that does not fit is 2 MiB, and within a tick of
1 ms usage may grow by 4 MiB, which is as fast as the sampler takes growth to be."""
NEAR_TICKS: Final = 2
"""… or so near that it was there within so many ticks, as it grew: who yields to its group may tick five times a second …"""
COPY_NS: Final = 200_000_000
"""… or within what the copy of a ring on a disk may lack, which is made ten times a second."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How it ended.

    Attributes:
        how: "stopped": the sampler was stopped; "oom": by the OOM killer; "killed": the writer died by something else;
            "restarted": with the machine, on which another kernel runs now; "running": a process uses the ring; "recorded":
            it is a finished recording, which says nothing of an end; "unknown".
        certainty: "certain", "almost certain", "likely" or "possible".
        why: What that rests on.
    """

    how: How
    certainty: Certainty
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Traces:
    """What the last rows say. None = not known.

    Attributes:
        at_limit: At which limit usage was in the end, in words; "" = it was far from all that there were.
        grown: That it came there in the last second, or was to be there before the next rows, in words; "" = it did not.
        hits: How often a limit was hit in the last second.
        stalled: Threads were held for memory up to the end.
        kills: OOM kills that were counted in the last second.
        kills_before: The counter in the last row.
        kills_now: The counter of the same group now.
        node_kills: OOM kills on the whole machine in the last second.
        rebooted: Another kernel runs now.
        logged: What the kernel's log says of an OOM kill of the writer, or of a process of its group, in words; "" = nothing.
        logged_itself: That it was the writer.
        short: Signs that there was nothing left to free, in words.
        spare: Signs that there was, in words.
    """

    at_limit: str | None
    grown: str
    hits: int | None
    stalled: bool | None
    kills: int | None
    kills_before: int | None
    kills_now: int | None
    node_kills: int | None
    rebooted: bool | None
    logged: str = ""
    logged_itself: bool = False
    short: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()


def is_at(limit: int, left: int) -> bool:
    """Whether so little is as good as nothing, of a limit of so many bytes."""
    return left <= max(limit * NEAR_SHARE, min(NEAR_BYTES, limit // 4))


def of_dead_writer(seen: Traces) -> Ending:
    """How the writer of a ring died."""
    return _by_log(seen) or _by_count(seen) or _by_limit(seen) or _otherwise(seen)


def _by_log(seen: Traces) -> Ending | None:
    """By the kernel's own log, where it could be read and has a kill."""
    if not seen.logged:
        return None
    return Ending("oom", "certain" if seen.logged_itself else "almost certain", _texts(seen.logged, _full(seen) or _far(seen)))


def _by_count(seen: Traces) -> Ending | None:
    """By what the kernel counts, if that says something."""
    since = _killed_since(seen)
    if since is not None and since > 0:
        counted = f"the kernel counts {_kills(since)} in the group since the last row"
    elif seen.kills:
        counted = f"the kernel counted {_kills(seen.kills)} in the group in the last second"
    elif since == 0:
        counted = "the kernel has counted no OOM kill in the group since the last row"
        return Ending("killed", "almost certain", _texts(counted, _full(seen)))
    else:
        return None
    # Never certain: the one that was killed may have been another process of the group.
    return Ending("oom", "almost certain" if seen.at_limit else "likely", _texts(counted, _full(seen) or _far(seen)))


def _killed_since(seen: Traces) -> int | None:
    """OOM kills since the last row; None where nobody knows, as under another kernel, which counts anew."""
    if seen.rebooted or seen.kills_now is None or seen.kills_before is None:
        return None
    return seen.kills_now - seen.kills_before


def _by_limit(seen: Traces) -> Ending | None:
    """By how near the limit it was, if nothing tells that it could still be lived with."""
    if not seen.at_limit or _bearable(seen):
        return None
    pressed = _texts(*_pressed(seen), seen.grown)
    return Ending("oom", "likely" if pressed else "possible", _texts(_full(seen), *pressed, *seen.short))


def _pressed(seen: Traces) -> tuple[str, ...]:
    """What tells that usage did not only lie near the limit."""
    hit = f"a limit was hit {_times(seen.hits)} in the last second" if seen.hits else ""
    return _texts(hit, "threads were held for memory up to the end" if seen.stalled else "")


def _bearable(seen: Traces) -> bool:
    """Hits and stalls at the limit are those of every group that is squeezed: it dies of them when nothing can be freed."""
    return bool(seen.spare) and not seen.short and not seen.grown


def _otherwise(seen: Traces) -> Ending:
    spare = (f"but {' and '.join(seen.spare)}",) if seen.spare else ()
    near = _texts(_full(seen), *_pressed(seen), *spare) if seen.at_limit else _texts(_far(seen))
    if seen.node_kills and not seen.rebooted:
        were = "were" if seen.node_kills > 1 else "was"
        counted = f"there {were} {_kills(seen.node_kills)} on the whole machine in the last second"
        return Ending("oom", "possible", (counted, *near))
    if seen.rebooted:
        anew = "another kernel runs now: the machine was started anew since, or this is another machine"
        return Ending("restarted", "possible", (anew, *near))
    if seen.at_limit is None:
        return Ending("unknown", "possible", ("nothing tells how far usage was from a limit",))
    # At a limit the last rows alone cannot tell: a group above that is not seen may have been short, too.
    return Ending("killed", "possible" if seen.at_limit else "likely", near)


def _times(count: int) -> str:
    return f"{count:,} times" if count > 1 else "once"


def _kills(count: int) -> str:
    return f"{count:,} OOM kill{'s' if count > 1 else ''}"


def _full(seen: Traces) -> str:
    return f"usage was {seen.at_limit}" if seen.at_limit else ""


def _far(seen: Traces) -> str:
    return "usage was far from every limit" if seen.at_limit == "" else ""


def _texts(*texts: str) -> tuple[str, ...]:
    return tuple(text for text in texts if text)
