# SPDX-License-Identifier: Apache-2.0
"""A post-mortem in a sentence, and in a line of a log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pymemcg._ending import NEAR_SHARE, is_at
from pymemcg._words import number, plain, size, span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymemcg.postmortem import Growth, Postmortem

_ADVERB: Final = {"certain": "certainly", "almost certain": "almost certainly", "likely": "probably", "possible": "perhaps"}


def verdict(told: Postmortem) -> str:
    """What happened, how sure that is, and what it rests on."""
    ending = told.ending
    adverb = _ADVERB[ending.certainty]
    why = "; ".join(ending.why)
    first = {
        "stopped": "It was stopped in order.",
        "oom": f"{_capital(adverb)} the OOM killer ended it: {why}.",
        "killed": f"{_capital(adverb)} not the OOM killer but something else ended it, a SIGKILL or a crash: {why}.",
        "restarted": f"{_capital(adverb)} it ended with the machine: {why}.",
        "running": "It goes on: a process uses the ring.",
        "recorded": "It is a recording, which tells of no end.",
        "unknown": f"How its writer died cannot be told: {why}.",
    }[ending.how]
    return " ".join([first, *_before(told)])


def _before(told: Postmortem) -> Iterator[str]:
    """What was worth knowing of the time before."""
    growth = _steepest(told)
    if growth is not None and growth.to_limit_s is not None and told.ending.how != "recorded":
        grew = f"In the last {growth.seconds} s usage grew by {size(growth.bytes_per_s)}/s"
        when = "" if at_limit(told) else f", which would have reached the nearest limit in {span(growth.to_limit_s * 1e9)}"
        yield f"{grew}{when}."


def at_limit(told: Postmortem) -> bool:
    """Whether usage was as good as at the nearest limit, so that nothing was to be reached any more."""
    nearest = told.nearest
    return nearest is not None and nearest.left_bytes is not None and is_at(nearest.limit_bytes, nearest.left_bytes)


def _steepest(told: Postmortem) -> Growth | None:
    """The steepest growth; at a limit one that made up 1/64 of it, since what is less only sways there."""
    least = told.nearest.limit_bytes * NEAR_SHARE if told.nearest is not None and at_limit(told) else 0
    grown = [growth for growth in told.growth if (growth.bytes_per_s or 0) * growth.seconds > least]
    return max(grown, key=lambda growth: growth.bytes_per_s or 0, default=None)


def line(told: Postmortem) -> str:
    """How it ended, the last usage against the nearest limit, growth and stalls."""
    parts = [f"{_how(told)}: {_usage(told)}", _growth(told)]
    stalls = told.stalls
    if stalls.count == 0:
        parts.append("no stalls")
    else:
        known = "" if stalls.stall_ns is None else f", {span(stalls.stall_ns)} in all, the worst {span(stalls.worst_ns)}"
        causes = ", ".join(f"{cause} {number(count)}" for cause, count in sorted(stalls.causes.items()))
        lately = f"; {number(len(told.last_stalls))} in the last second" if told.last_stalls else ""
        parts.append(f"{number(stalls.count)} stall{'s' if stalls.count > 1 else ''} ({causes}){known}{lately}")
    if told.missing:
        parts.append(f"damaged: {', '.join(told.missing)}")
    return plain("; ".join(part for part in parts if part))


def _how(told: Postmortem) -> str:
    who = f"pid {told.writer_pid}" if told.writer_pid else "it"
    adverb = _ADVERB[told.ending.certainty]
    return {
        "stopped": "stopped in order",
        "oom": f"{who} was killed, {adverb} by the OOM killer",
        "killed": f"{who} died, {adverb} not by the OOM killer",
        "restarted": f"{who} ended, {adverb} with the machine",
        "running": "still running",
        "recorded": "a recording",
        "unknown": f"{who} died, nobody knows of what",
    }[told.ending.how]


def _usage(told: Postmortem) -> str:
    nearest = told.nearest
    if nearest is None:
        return f"last usage {size(told.usage_bytes)}, no limit known"
    of = f" ({nearest.name})" if nearest.name and nearest.level else ""
    return f"last usage {size(nearest.usage_bytes)} of {size(nearest.limit_bytes)}{of}"


def _growth(told: Postmortem) -> str:
    known = [growth for growth in told.growth if growth.bytes_per_s is not None]
    grew = ", ".join(f"{size(growth.bytes_per_s, sign=True)}/s in {growth.seconds} s" for growth in known)
    return f"growth {grew}" if grew else "growth not known"


def _capital(word: str) -> str:
    return word[0].upper() + word[1:]
