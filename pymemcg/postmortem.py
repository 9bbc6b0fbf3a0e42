# SPDX-License-Identifier: Apache-2.0
"""What happened before a sampled life ended, from its ring alone: a container cannot read the kernel's log.

docs/postmortem.md tells how to read it.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Final

from pymemcg import _squeeze
from pymemcg._ending import COPY_NS, NEAR_TICKS, Ending, Traces, is_at, of_dead_writer
from pymemcg._ffi import NONE, text
from pymemcg._findings import Growth, LimitUse, Postmortem, SpanHits, StallSum, Step
from pymemcg._remains import running_boot_id
from pymemcg._said import level_names
from pymemcg._words import plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from pymemcg.channel import Window
    from pymemcg.detecting import Stall
    from pymemcg.oom import Kill
    from pymemcg.recording import Recording

__all__ = ["Ending", "Growth", "LimitUse", "Postmortem", "SpanHits", "StallSum", "Step", "postmortem", "running_boot_id"]

SECOND_NS: Final = 1_000_000_000
STEPS: Final = 10
"""Of the last second: a tenth is what a person reads, and ten ticks of the slowest rate."""
JUST_NS: Final = 100_000_000
"""A stall that ended so shortly before the last row went on up to the end: a copy on a disk may be as old."""
GROWTHS_S: Final = (1, 10, 60)
"""A burst, a request that takes too much, and a leak."""
LATER_S: Final = 10
"""So long after the last row a kill in the kernel's log is still this end: ticks may be late, and a kill takes time."""
COVERED: Final = 0.5
"""A trend over less than half of the time it is named after would be another time's."""
HARM_NS: Final = 1_000_000
"""A span that lost less was not hit: as for stalls (`Policy.least_ns`)."""
_CHUNK: Final = 1 << 19


def postmortem(
    recording: Recording,
    *,
    oom_kills_now: int | None = None,
    boot_id: str | None = None,
    logged: Iterable[Kill] = (),
) -> Postmortem:
    """Say what happened before the end of a ring, or of a recording.

    Args:
        recording: From `pymemcg.open`.
        oom_kills_now: The group's counter of OOM kills now (`memory.events:oom_kill`, `memory.oom_control:oom_kill`). None
            where the group may have been removed and made anew, as by a container's restart: a new one has counted nothing,
            which would be taken for "no OOM kill". A process that is killed seldom sees its own kill counted.
        boot_id: Of the kernel that runs now, if the machine seems to be that which the file is from; see `running_boot_id`.
            Where the file's is another one, the machine may have been started anew since, and `oom_kills_now` says nothing.
        logged: OOM kills of the running kernel's log, by `pymemcg.oom.kills`, for which `boot_id` is needed as well. One that
            was at the time of the last row is this end, if it was of the writer, or of its group.

    Thread-safe.
    """
    return _Examination(recording, oom_kills_now, boot_id, logged).told()


class _Examination:
    """Looks at a recording from its end."""

    def __init__(self, recording: Recording, kills_now: int | None, boot_id: str | None, logged: Iterable[Kill]) -> None:
        self._recording = recording
        self._logged = logged
        self._state = recording.header.state
        self._kills_now = kills_now
        own = text(recording.header.boot_id)
        self._rebooted = None if boot_id is None or not own else own != boot_id
        ends = [_last(getattr(recording, name).window(rows=1), "t_ns") for name in ("usage", "stat", "node")]
        self._end = max((end for end in ends if end is not None), default=None)
        since = None if self._end is None else self._end - SECOND_NS
        self._second = recording.usage.window(since_ns=since if since is not None else 0)
        self._stalls = [stall for stall in recording.stalls() if not stall.harmless]

    def told(self) -> Postmortem:
        recording, end = self._recording, self._end
        info = recording.info
        usage = _last(recording.usage.window(rows=1), "usage_bytes")
        limits = self._limits(usage)
        nearest = _nearest(limits)
        stat = recording.stat.window(rows=1)
        inactive = _last(stat, "inactive_file")
        last = tuple(stall for stall in self._stalls if end is not None and (stall.end_ns or stall.start_ns) > end - SECOND_NS)
        return Postmortem(
            path=recording.path,
            target=_text_of(info.get("target", {}).get("directory")),
            host=_text_of(info.get("host")),
            writer_pid=int(self._state.writer_pid) or None if recording.is_ring else None,
            ended_ns=end,
            ended_realtime_ns=self._realtime_ns(end),
            lasted_ns=self._lasted_ns(),
            ending=self._ending(limits, nearest, last),
            usage_bytes=usage,
            peak_bytes=self._peak(),
            limits=limits,
            nearest=nearest,
            growth=tuple(self._growth(seconds, nearest) for seconds in GROWTHS_S),
            anon=_last(stat, "anon"),
            file=_last(stat, "file"),
            working_set=None if usage is None or inactive is None else max(0, usage - inactive),
            limit_hits=_risen(self._second, "limit_hits"),
            oom_kills=_last(recording.usage.window(rows=1), "oom_kills"),
            stalls=self._sum(),
            last_stalls=last,
            held_ns=self._held_ns(),
            hits=self._hits(),
            steps=self._steps(),
            missing=recording.missing,
            absent={name: why for name, why in info.get("absent", {}).items() if isinstance(why, str)},
            gap_ns=self._gap_ns(),
        )

    # ---- How it ended ----

    def _ending(self, limits: tuple[LimitUse, ...], nearest: LimitUse | None, last: tuple[Stall, ...]) -> Ending:
        recording = self._recording
        if recording.live and self._state.writer_pid:
            return Ending("running", "certain", ("a process uses the ring",))
        if not recording.is_ring:
            return Ending("recorded", "certain", ("it is a recording, not a sampler's ring",))
        if self._state.writer_pid == 0:
            return Ending("stopped", "certain", ("its sampler was stopped, and said so",))
        if self._end is None:
            return Ending("unknown", "possible", ("there are no rows",))
        kills = _last(self._second, "oom_kills")
        node = self._recording.node.window(since_ns=self._end - SECOND_NS)
        hits = [_risen(self._second, name) for name in ("limit_hits", "memsw_hits")]
        hits.append(self._hits_above(nearest))
        ends = [stall.end_ns is None or stall.end_ns > self._end - JUST_NS for stall in last]
        squeeze = _squeeze.of(recording, self._end, nearest, self._held_ns())
        kill = self._kill()
        seen = Traces(
            at_limit=self._at(limits, nearest),
            grown=squeeze.grown,
            hits=sum(hit for hit in hits if hit is not None) if any(hit is not None for hit in hits) else None,
            stalled=any(ends) or (self._held_ns() or 0) >= HARM_NS,
            kills=_risen(self._second, "oom_kills"),
            kills_before=kills,
            kills_now=self._kills_now,
            node_kills=_risen(node, "oom_kill"),
            rebooted=self._rebooted,
            logged="" if kill is None else f"the kernel's log has it (pid {kill.pid}): {kill.cause}: {plain(kill.why)}",
            logged_itself=kill is not None and kill.pid == self._state.writer_pid,
            short=squeeze.short,
            spare=squeeze.spare,
        )
        return of_dead_writer(seen)

    def _kill(self) -> Kill | None:
        """The OOM kill in the kernel's log that was this end: of the writer itself, or else of its group."""
        if self._end is None or self._rebooted is not False:
            return None
        then = [
            kill for kill in self._logged if kill.seconds is not None and -1 < kill.seconds - self._end / SECOND_NS < LATER_S
        ]
        directory = str(self._recording.info.get("target", {}).get("directory"))
        itself = [kill for kill in then if kill.pid == self._state.writer_pid]
        of_group = [kill for kill in then if kill.task_memcg not in (None, "/") and directory.endswith(str(kill.task_memcg))]
        return next(iter(itself + of_group), None)

    def _at(self, limits: tuple[LimitUse, ...], nearest: LimitUse | None) -> str | None:
        if nearest is None:
            looked = "level" in self._recording.limits.names and self._recording.limits.head > 0
            return "" if looked and not limits else None
        if not nearest.near:
            return ""
        at = "at" if is_at(nearest.limit_bytes, nearest.left_bytes or 0) else "about to reach"
        return f"{at} the limit of {nearest.name or ('the group' if nearest.level == 0 else 'a group above')}"

    def _hits_above(self, nearest: LimitUse | None) -> int | None:
        """Hits of a limit above in the last second."""
        if nearest is None or nearest.level == 0 or self._end is None:
            return None
        rows = self._recording.limits.window(since_ns=self._end - SECOND_NS)
        if "hits" not in rows or len(rows) == 0:
            return None
        hits = rows["hits"][rows["level"] == nearest.level]
        hits = hits[hits != NONE]
        return max(0, int(hits[-1]) - int(hits[0])) if hits.size else None

    def _held_ns(self) -> int | None:
        since = int(self._state.trace_open_ns)
        if self._end is None or not self._recording.is_ring or self._recording.live or not 0 < since < self._end:
            return None
        return self._end - since

    # ---- Usage ----

    def _limits(self, usage: int | None) -> tuple[LimitUse, ...]:
        rows = self._recording.limits.window()
        if len(rows) == 0 or not {"level", "limit_bytes"} <= set(rows.names):
            return ()
        names = level_names(self._recording.info)
        found = []
        levels = rows["level"]
        for level in sorted(level for level in set(levels[-4096:].tolist()) if 0 <= level < max(1, len(names))):
            at = int((levels == level).nonzero()[0][-1])
            used = usage if level == 0 else _cell(rows, "usage_bytes", at)
            for kind in ("limit", "high"):
                limit = _cell(rows, f"{kind}_bytes", at)
                if limit is not None and 0 < limit < 1 << 62:  # from there on it is none: `metrics.UNLIMITED_BYTES`
                    left = None if used is None else max(0, limit - used)
                    near = None if left is None else is_at(limit, left) or (level == 0 and left <= self._soon)
                    found.append(LimitUse(level, names.get(level), kind, limit, used, left, near))
        return tuple(found)

    @cached_property
    def _soon(self) -> float:
        """By how much usage would have grown before the next rows: as before the last one, or as in the last second."""
        rows = self._recording.usage.window(rows=2)
        if len(rows) < 2 or "usage_bytes" not in rows or NONE in rows["usage_bytes"]:
            return 0.0
        apart = int(rows["t_ns"][1]) - int(rows["t_ns"][0])
        slope = (int(rows["usage_bytes"][1]) - int(rows["usage_bytes"][0])) / apart if apart else 0.0
        slope = max(slope, (self._growth(1, None).bytes_per_s or 0.0) / SECOND_NS)
        ticks_ns = NEAR_TICKS * min(max(apart, int(self._state.period_ns)), SECOND_NS)
        return max(0.0, slope) * max(ticks_ns, COPY_NS if self._recording.is_copy else 0)

    def _growth(self, seconds: int, nearest: LimitUse | None) -> Growth:
        rows = self._recording.usage.window(seconds=seconds)
        if "usage_bytes" not in rows or len(rows) < 2 or rows["t_ns"][-1] - rows["t_ns"][0] < COVERED * seconds * SECOND_NS:
            return Growth(seconds, None, None)
        import math

        import numpy as np

        from pymemcg import metrics

        usage = rows["usage_bytes"]
        slope = metrics.growth(rows["t_ns"], np.where(usage == NONE, np.nan, usage.astype(np.float64)))
        if not math.isfinite(slope):
            return Growth(seconds, None, None)
        left = None if nearest is None else nearest.left_bytes
        to_limit = None if left is None else float(metrics.time_to_limit(left, slope))
        return Growth(seconds, slope, to_limit if to_limit is not None and math.isfinite(to_limit) else None)

    def _peak(self) -> int | None:
        channel = self._recording.usage
        if "usage_bytes" not in channel.names:
            return None
        usage = channel.window()["usage_bytes"]
        peak = -1
        for first in range(0, usage.size, _CHUNK):
            part = usage[first : first + _CHUNK]
            peak = max(peak, int(part[part != NONE].max(initial=-1)))
            channel.forget(first)
        return peak if peak >= 0 else None

    def _steps(self) -> tuple[Step, ...]:
        if self._end is None or "t_ns" not in self._second:
            return ()
        import numpy as np

        begin = self._end - SECOND_NS
        length = SECOND_NS // STEPS
        cuts = np.searchsorted(self._second["t_ns"], [begin + i * length for i in range(STEPS)]).tolist()
        steps = []
        for i, (first, end) in enumerate(zip(cuts, [*cuts[1:], len(self._second)], strict=True)):
            since, until = begin + i * length, begin + (i + 1) * length
            most = None
            if "usage_bytes" in self._second:
                usage = self._second["usage_bytes"][first:end]
                usage = usage[usage != NONE]
                most = int(usage.max()) if usage.size else None
            hits = _risen(self._second, "limit_hits", max(0, first - 1), end) if end > first else None
            steps.append(Step(self._end - since, most, hits, sum(_overlap(stall, since, until) for stall in self._stalls)))
        return tuple(steps)

    # ---- The rest ----

    def _sum(self) -> StallSum:
        known = [stall.stall_ns for stall in self._stalls if stall.stall_ns is not None]
        causes = Counter(stall.cause for stall in self._stalls)
        none_known = bool(self._stalls) and not known
        return StallSum(len(self._stalls), None if none_known else sum(known), max(known, default=None), dict(causes))

    def _hits(self) -> SpanHits | None:
        if not self._recording.spans.names or "spans" not in self._recording.info:
            return None
        hits = self._recording.hits(min_ns=HARM_NS)
        known = [hit.lost_ns for hit in hits if hit.lost_ns is not None]
        worst = Counter[str]()
        for hit in hits:
            worst[hit.name] += hit.lost_ns or hit.lo_ns
        lost = sum(known) if known or not len(hits) else None
        return SpanHits(len(hits), self._recording.spans.head, lost, tuple(name for name, _ in worst.most_common(5)))

    def _realtime_ns(self, t_ns: int | None) -> int | None:
        if t_ns is None:
            return None
        import numpy as np

        return int(self._recording.usage.realtime_ns(np.array([t_ns]))[0])

    def _lasted_ns(self) -> int | None:
        rows = self._recording.usage.window()
        return int(rows["t_ns"][-1]) - int(rows["t_ns"][0]) if len(rows) and "t_ns" in rows else None

    def _gap_ns(self) -> int | None:
        from pymemcg.mounts import file_system

        ended = self._realtime_ns(self._end)
        try:
            changed_ns = os.stat(self._recording.path).st_mtime_ns
            if ended is None or file_system(self._recording.path) == "tmpfs":  # a mapped file's time does not move there
                return None
        except OSError:
            return None
        return changed_ns - ended if changed_ns >= ended else None


def _nearest(limits: tuple[LimitUse, ...]) -> LimitUse | None:
    hard = [limit for limit in limits if limit.kind == "limit" and limit.left_bytes is not None]
    return min(hard, key=lambda limit: limit.left_bytes or 0, default=None)


def _cell(rows: Window, name: str, at: int) -> int | None:
    value = int(rows[name][at]) if name in rows else NONE
    return None if value == NONE or value < 0 else value


def _last(rows: Window, name: str) -> int | None:
    return _cell(rows, name, -1) if len(rows) else None


def _risen(rows: Window, name: str, first: int = 0, end: int | None = None) -> int | None:
    """By how much a counter rose in these rows."""
    if name not in rows:
        return None
    values: NDArray[np.int64] = rows[name][first:end]
    values = values[values != NONE]
    return max(0, int(values[-1]) - int(values[0])) if values.size else None


def _overlap(stall: Stall, since: int, until: int) -> int:
    return max(0, min(until, stall.end_ns or stall.start_ns) - max(since, stall.start_ns))


def _text_of(value: object) -> str | None:
    return value if isinstance(value, str) else None
