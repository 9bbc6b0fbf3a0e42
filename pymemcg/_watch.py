# SPDX-License-Identifier: Apache-2.0
"""What the watcher's thread is made of: a cheap look at the rings, kills as events, and callbacks that cannot hurt it."""

from __future__ import annotations

import inspect
import sys
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pymemcg import schema
from pymemcg._ffi import NONE
from pymemcg.channel import Channels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pymemcg._hit import Hit
    from pymemcg.channel import Channel
    from pymemcg.detecting import Stall
    from pymemcg.sampler import Sampler

COST_FACTOR = 50
"""What takes long rests this many times as long: the thread may use 1/50 of a core, whatever happens."""
HARM_NS = 1_000_000
"""What a span must have lost to be told of: `Policy.least_ns`."""
LATE_NS = 100_000_000
"""Spans are looked at so long after their end: their thread may have waited for the GIL between its clock and its note."""
RETRY_NS = 1_000_000_000
"""What raised an error is tried again so much later."""
FORGOTTEN_NS = 60_000_000_000
"""So long after a stall no more hits of it can be found (`Policy.reach_ns`)."""
SLOW_S = 1.0
"""A callback that takes longer is told of, once: nobody hears of anything else meanwhile."""


def native_lock() -> Any:
    """A reentrant lock for moments in which nothing waits.

    Reentrant, since a signal's handler may stop the sampler in the middle of anything. Never gevent's, whose own do not work
    reliably between native threads.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey:
        return monkey.get_original("_thread", "RLock")()
    import _thread

    return _thread.RLock()


@dataclass(frozen=True, slots=True)
class OomKill:
    """The OOM killer ended processes of the group, and the group lives on.

    Attributes:
        t_ns: When it was seen (CLOCK_MONOTONIC): the tick whose counter was higher.
        since_ns: It had not happened by then.
        kills: Processes killed in between.
        oom_kills: Processes killed in all, as the kernel counts.
        usage_bytes: Usage of the group when it was last seen before; None = not known.
        limit_bytes: The group's own limit; None = none, or not known.
    """

    t_ns: int
    since_ns: int
    kills: int
    oom_kills: int
    usage_bytes: int | None
    limit_bytes: int | None


class Source(Channels):
    """A sampler from a start to a stop.

    Its channels stay those of this time when it is started anew, and it can be dropped although it is watched.

    Attributes:
        asked: Which evidence it was asked for.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = weakref.ref(sampler)
        self._kept = dict(sampler._channels)  # noqa: SLF001 - one room
        self.asked: str = sampler._options["evidence"]  # noqa: SLF001 - one room

    def __getattr__(self, name: str) -> Any:
        if name in schema.CHANNELS:
            return self._kept[name]
        sampler = self._sampler()
        if sampler is None:
            raise ReferenceError("the sampler was dropped")
        return getattr(sampler, name)


class Newest:
    """The newest row of some columns, without a window's costs.

    Args:
        channel: The channel.
        names: Columns; those that it does not have are left out.
    """

    def __init__(self, channel: Channel, names: Iterable[str]) -> None:
        self._channel = channel
        self.names = tuple(name for name in names if name in channel.names)
        self._columns = [channel._column(name) for name in self.names]  # noqa: SLF001 - one room
        self._capacity = channel.capacity

    def row(self) -> tuple[int, ...]:
        """Its values; none before there is a row. The writer overwrites it only after all others."""
        head = self._channel.head if self._columns else 0
        at = (head - 1) % self._capacity if head else 0
        return tuple([column.item(at) for column in self._columns]) if head else ()


class Glance:
    """Tells whether anything can have happened, for some microseconds: by the newest rows, without reading the others.

    What happens on the node alone, somewhere else perhaps, is only asked for once there is a stall to explain.

    Args:
        source: The channels.

    Not thread-safe.
    """

    def __init__(self, source: Channels) -> None:
        self._counters = (
            Newest(source.usage, ("limit_hits", "memsw_hits", "high_hits")),
            Newest(source.pressure, ("some_us",)),
        )
        self._as_they_happen = tuple(channel for channel in (source.reclaim, source.limits, source.events) if channel.names)
        self._seen: tuple[object, ...] = ()

    def changed(self) -> bool:
        """Whether anything came since the last call; at the first call it did."""
        before = self._seen
        self._seen = (*[channel.head for channel in self._as_they_happen], *[newest.row() for newest in self._counters])
        return self._seen != before


class Kills:
    """Rises of `oom_kills` as events, from its making on.

    Args:
        source: The channels.

    Not thread-safe.
    """

    def __init__(self, source: Channels) -> None:
        self._usage, self._limits = source.usage, source.limits
        self._newest = Newest(self._usage, ("oom_kills", "t_ns", "usage_bytes"))
        self._count = Newest(self._usage, ("oom_kills",))
        self.counted = bool(self._count.names)
        self._last = self._newest.row() or (0, 0)

    def news(self) -> list[OomKill]:
        """What happened since the last call; for a microsecond where nothing did."""
        if self._count.row() in ((), self._last[:1]):
            return []
        import numpy as np

        rows = self._usage.window(since_ns=self._last[1] + 1).copy()
        told = []
        for at in np.flatnonzero(np.diff(rows["oom_kills"], prepend=self._last[0]) > 0).tolist():
            before = tuple(rows[name].item(at - 1) for name in self._newest.names) if at else self._last
            kills, t_ns = rows["oom_kills"].item(at), rows["t_ns"].item(at)
            usage = before[2] if len(before) > 2 and before[2] != NONE else None
            told.append(OomKill(t_ns, before[1], kills - before[0], kills, usage, self._limit_at(t_ns)))
        if len(rows):
            self._last = tuple(rows[name].item(-1) for name in self._newest.names)
        return told

    def _limit_at(self, t_ns: int) -> int | None:
        rows = self._limits.window()
        if "limit_bytes" not in rows:
            return None
        limits = rows["limit_bytes"][(rows["level"] == 0) & (rows["t_ns"] <= t_ns)]
        return int(limits[-1]) if len(limits) and limits[-1] != NONE else None


class HitNews:
    """Hits of this process's spans, each once, when nothing about it will change any more.

    Hits come only after stalls, but long after: a span ends whenever it ends.

    Args:
        since_ns: Spans that ended before are left out.

    Not thread-safe.
    """

    def __init__(self, since_ns: int) -> None:
        self._told_ns = since_ns
        self._stalled_ns = self._due_ns = NONE
        self._rested_ns = 0

    def stalled(self, stall: Stall, now_ns: int) -> None:
        """A stall was told: there may be hits."""
        if stall.harmless is not True:
            self._stalled_ns = stall.end_ns or now_ns
            self._due_ns = min(self._due_ns, max(now_ns, self._rested_ns))

    def news(self, sampler: Sampler, now_ns: int, *, last: bool) -> list[Hit]:
        """Those that have become final; where it is the `last` call, all that are left."""
        if self._stalled_ns == NONE or (now_ns < self._due_ns and not last):
            return []
        began, self._due_ns = time.thread_time_ns(), now_ns + RETRY_NS
        durations = any(sampler.evidence.get(name, "") is None for name in ("trace", "psi"))
        hits = sampler._hits_since(self._told_ns - LATE_NS, HARM_NS if durations else 0)  # noqa: SLF001 - one room
        until_ns = NONE if last else min(hits.final_until_ns, now_ns - LATE_NS)
        found = []
        for at in reversed(range(len(hits))):
            hit = hits[at]
            if hit.end_ns <= self._told_ns - LATE_NS:
                break
            if self._told_ns < hit.end_ns <= until_ns:
                found.append(hit)
        self._told_ns = max(self._told_ns, until_ns)
        if self._told_ns > self._stalled_ns + FORGOTTEN_NS:
            self._stalled_ns = NONE
        self._rested_ns = now_ns + min(COST_FACTOR * (time.thread_time_ns() - began), FORGOTTEN_NS)
        self._due_ns = max(self._rested_ns, now_ns + min((now_ns - self._stalled_ns) // 4, FORGOTTEN_NS))
        return found[::-1]


class Callbacks:
    """What the service wants to be told. Nothing that a callback does gets out of `tell`.

    Args:
        callbacks: Name to function, or None.

    Raises:
        TypeError: One is not to be called, or is a coroutine function: a thread cannot await.

    Used by one thread at a time.
    """

    def __init__(self, **callbacks: Callable[[Any], object] | None) -> None:
        self._callbacks = {name: callback for name, callback in callbacks.items() if callback is not None}
        self._said: set[tuple[str, ...]] = set()
        for name, callback in self._callbacks.items():
            if not callable(callback):
                raise TypeError(f"{name}={callback!r}: expected a function")
            if inspect.iscoroutinefunction(callback):
                raise TypeError(f"{name}={callback!r}: expected an ordinary function; `async for` over stalls() awaits")

    def __contains__(self, name: str) -> bool:
        return name in self._callbacks

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def tell(self, name: str, event: object) -> None:
        """Call one of them, where it is given."""
        callback = self._callbacks.get(name)
        if callback is None:
            return
        began = time.monotonic()
        try:
            callback(event)
        except BaseException as error:  # noqa: BLE001 - also SystemExit: a callback may not end the watching, silently at that
            self.say((name, type(error).__qualname__), "%s raised; further %s of it are not logged", name, type(error).__name__)
        took = time.monotonic() - began
        if took > SLOW_S:
            self.say((name,), "%s took %.1f s; whoever is to be told anything else waits meanwhile", name, took)

    def say(self, kind: tuple[str, ...], text: str, *values: object) -> None:
        """Log once of a kind, with the traceback where something was raised."""
        if kind in self._said:
            return
        self._said.add(kind)
        import logging  # 0.7 MiB that a container that is full does not have for doctor

        log = logging.getLogger("pymemcg")
        raised = sys.exc_info()[1]
        log.log(logging.ERROR if raised else logging.WARNING, "pymemcg: %s", text % values, exc_info=raised)
