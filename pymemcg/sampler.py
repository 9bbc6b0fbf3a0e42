# SPDX-License-Identifier: Apache-2.0
"""The sampler as a service embeds it."""

from __future__ import annotations

import os
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from pymemcg import ringfile, schema
from pymemcg._ffi import ffi
from pymemcg._spanlog import SpanChannel
from pymemcg.cgroup import resolve
from pymemcg.channel import Channel, Channels
from pymemcg.errors import NotStarted, NotSupported
from pymemcg.plan import make_plan
from pymemcg.running import Running
from pymemcg.spans import Marked
from pymemcg.watching import Callbacks, Watched, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from pymemcg._hit import Hit
    from pymemcg.cgroup import Target
    from pymemcg.detecting import Stall
    from pymemcg.watching import OomKill

_OF_THE_SAMPLING_PROCESS = ("rss_bytes", "shared_bytes")
EVIDENCE = ("auto", "trace", "psi", "counters")
MAX_RATE_HZ = 20_000
"""A tick costs about 10 us of CPU time, most of it the wake-up: faster ones would run into each other."""
MAX_STAT_RATE_HZ = 100
"""A read of memory.stat may flush the counters of the whole machine."""


class Sampler(Watched, Marked, Channels):
    """Samples a memory cgroup from a native thread that never takes the GIL.

    The first process of a group that starts one samples, the others attach to its rings (`role`); when it ends, another goes
    on with the same rings. With the environment variable PYMEMCG_DISABLE=1 everything is a no-op with empty channels.

    Args:
        target: `self`, `pid:N`, `cgroup:/path`, a directory, `container:ID`; see `pymemcg.resolve`.
        rate_hz: Rows of `usage` a second, up to 20,000.
        stat_rate_hz: Rows of `stat` a second, up to 100; reading memory.stat takes kernel locks.
        history_s: How far back the rings reach at these rates; they reach further where ticks are slower.
        adaptive: Tick at 100 Hz far from every limit, and yield until the sampler takes at most 1/20 of the CPU time that the
            rest of the group takes, so that PSI is not diluted. False keeps the full rate.
        evidence: By what stalls are to be known: "trace", "psi" or "counters" alone, or "auto" for all that can be had.
        event_ids: Ids of the tracepoints for a process that may open them (CAP_PERFMON) but cannot read tracefs; see
            `pymemcg.tracepoints`. Without them the environment variable PYMEMCG_EVENT_IDS, or tracefs.
        on_stall: Called with each `Stall`, first `open`, then `closed`; a harmless one every 10 s. From a thread of its own.
        on_hit: Called with each `Hit` that cost a span a millisecond or nobody knows how much, once it is final, likewise.
        on_oom: Called with an `OomKill` when processes of the group were killed, from the same thread.
        ring_file: A file that always has the last `history_s`, also after this process was killed, for `pymemcg postmortem`.
            True is one in /dev/shm/pymemcg, named after the program. What is there is kept as `.1`, up to `.3`.

    Thread-safe. A forked child re-attaches at its first use of the sampler.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] = "self",
        *,
        rate_hz: float = 1000,
        stat_rate_hz: float = 10,
        history_s: float = 60,
        adaptive: bool = True,
        evidence: str = "auto",
        event_ids: Mapping[str, int] | None = None,
        on_stall: Callable[[Stall], object] | None = None,
        on_hit: Callable[[Hit], object] | None = None,
        on_oom: Callable[[OomKill], object] | None = None,
        ring_file: str | os.PathLike[str] | bool | None = None,
    ) -> None:
        self._spec = target
        self._options: dict[str, Any] = {
            "rate_hz": rate_hz,
            "stat_rate_hz": stat_rate_hz,
            "history_s": history_s,
            "adaptive": adaptive,
            "evidence": evidence,
            "event_ids": event_ids,
        }
        self._ring_file = None if ring_file in (None, False) else ringfile.place(ring_file)
        self._disabled = os.environ.get("PYMEMCG_DISABLE") == "1"
        self._watcher = Watcher(self, Callbacks(on_stall=on_stall, on_hit=on_hit, on_oom=on_oom))
        self._mark(disabled=self._disabled, keeps=self._ring_file is not None)
        self._lock = threading.RLock()
        self._running: Running | None = None
        self._forked = False
        self._told = False
        self._target: Target | None = None
        self._channels: dict[str, Channel] = {}
        self._own = True
        self._no_spans: str | None = None
        self._last_stats: dict[str, Any] = {}
        self._last_absent: dict[str, str] = {}
        self._last_evidence: dict[str, str | None] = {}
        for name, value, most in (
            ("rate_hz", rate_hz, MAX_RATE_HZ),
            ("stat_rate_hz", stat_rate_hz, MAX_STAT_RATE_HZ),
            ("history_s", history_s, 86400),
        ):
            if not 0.01 <= value <= most:
                raise ValueError(f"{name}={value!r}: expected a number from 0.01 to {most}")
        if evidence not in EVIDENCE:
            raise ValueError(f"evidence={evidence!r}: expected one of {', '.join(EVIDENCE)}")
        _samplers[id(self)] = self

    # ---- Life cycle ----

    def start(self) -> Sampler:
        """Take the first sample and start the threads; nothing to do where it runs already.

        Raises:
            TargetError: There is no such target, or it cannot be seen from here.
            NotSupported: This place has no memory cgroups.
            SourceError: A file cannot be read, there is no room for the rings, or the ring file cannot be created.
        """
        with self._lock:
            if self._running is not None:
                return self
            if self._disabled:
                self._channels = {name: Channel(name, None, None) for name in schema.CHANNELS}
                return self
            self._target = resolve(self._spec)
            if self._ring_file:
                ringfile.prepare(self._ring_file)
            plan = make_plan(self._target, **self._options, keeps_spans=self._ring_file is not None)
            self._running = Running(plan, self._ring_file)
            self._bind(self._running)
            self._forked = False
            self._running.await_first_row()
            self._check_evidence()
            self._watcher.begin()
            previous = self._running.previous()
        if previous is not None:
            self._tell_of(previous)
        return self

    def _tell_of(self, previous: str) -> None:
        """One line in the log on the life before this one: warns unless that one was stopped."""
        import logging

        log = logging.getLogger("pymemcg")
        try:
            from pymemcg.postmortem import postmortem, running_boot_id
            from pymemcg.recording import open as open_recording

            recording = open_recording(previous)
            before, now = (info.get("target", {}) for info in (recording.info, self.describe()))
            same = "inode" in before and all(before.get(key) == now.get(key) for key in ("device", "inode"))
            kills = self.usage.window(rows=1)["oom_kills"].tolist() if same and "oom_kills" in self.usage.names else []
            told = postmortem(recording, oom_kills_now=max(kills, default=None), boot_id=running_boot_id())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason not to sample
            log.warning("pymemcg: the previous life cannot be told of: %s", error)
        else:
            level = logging.INFO if told.ending.how == "stopped" else logging.WARNING
            log.log(level, "pymemcg: the previous life: %s (%s)", told.line(), previous)

    def _check_evidence(self) -> None:
        """The process that samples may have other evidence than this one was asked for."""
        assert self._running is not None
        asked = self._options["evidence"]
        why = self._running.evidence()[asked] if asked != "auto" else None
        if why is not None:
            self.stop()
            raise NotSupported(f"evidence {asked!r} cannot be had: {why}", path=str(self._spec))

    def stop(self) -> None:
        """End sampling at once. What has been sampled stays readable."""
        with self._lock:
            running = self._running
            if self._sink is not None:
                self._sink.close()  # before the ring is copied for the last time; a forked child's goes to its parent's ring
            if running is not None:
                self._last_stats, self._last_absent = self._stats(running), self._absent(running)
                self._last_evidence = running.evidence()
                self._running = None
                running.stop()
            self._forked = False
            await_watcher = self._watcher.end()
        await_watcher()  # without the lock: a callback may be using the sampler

    def __enter__(self) -> Sampler:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _bind(self, running: Running) -> None:
        tables = running.ring.tables
        self._channels = {name: Channel(name, running.ring, tables.get(name)) for name in schema.CHANNELS}
        self._channels["spans"] = SpanChannel(self._spans, running.ring)
        self._no_spans = self._open_sink(running.seat.ring_fd)
        self._own = running.seat.role != "attached"
        if not self._own:
            why = (
                "it would be that of the process that samples "
                f"({running.ring.header.state.writer_pid} at the start), not of this one ({os.getpid()}); see `processes`"
            )
            hidden = dict.fromkeys(_OF_THE_SAMPLING_PROCESS, why)
            self._channels["usage"] = Channel("usage", running.ring, tables.get("usage"), hidden=hidden)

    def _uncover(self) -> None:
        """This process's own RSS, once it samples. A channel of before, and its windows, go on without it."""
        running = self._running
        if not self._own and running is not None and running.writes():
            self._own = True
            self._channels["usage"] = Channel("usage", running.ring, running.ring.tables.get("usage"))

    def _after_fork(self) -> None:
        """In the child, at once: a lock that it kept open would outlive its parent."""
        self._lock = threading.RLock()
        self._watcher.forget()
        running, self._running = self._running, None
        if running is not None:
            running.forget()
            self._forked, self._told = True, False

    def _reattach(self) -> None:
        """At the first use in a forked child; where that fails, at the next."""
        with self._lock:
            if self._forked and not self._told:
                self._told = True
                import logging  # 0.7 MiB that a container that is full does not have for doctor

                told = "pymemcg: this process (%d) was forked from one that samples; it attaches anew"
                logging.getLogger("pymemcg").warning(told, os.getpid())
            if self._forked:
                self.start()

    # ---- What it knows ----

    def _channel(self, name: str) -> Channel:
        if self._forked:
            self._reattach()
        if name == "usage":
            self._uncover()
        if name in self._channels:
            return self._channels[name]
        raise NotStarted(f"there is no {name} before start()", hint="use `with Sampler() as s:`")

    @property
    def ring_file(self) -> str | None:
        """Where the ring file is, which outlives this process; None where none was asked for."""
        return self._ring_file

    @property
    def target(self) -> Target | None:
        """What is sampled; None before `start` and where disabled."""
        return self._target

    @property
    def role(self) -> str:
        """This process's part.

        "sampling"; "attached": another process samples, and its rings are read; "alone": another samples and its rings cannot
        be had, so this one samples for itself, without PSI while the other reads it; "stopped"; or "disabled".
        """
        if self._forked:
            self._reattach()
        return self._role()

    def _role(self) -> str:
        running = self._running
        if running is None:
            return "disabled" if self._disabled else "stopped"
        if running.seat.role == "alone":  # it writes too, but a ring of its own
            return "alone"
        return "sampling" if running.writes() else "attached"

    @property
    def absent(self) -> dict[str, str]:
        """What is not measured here, a channel or a column, and why; after `stop` what it was then."""
        if self._forked:
            self._reattach()
        running = self._running
        return self._absent(running) if running else dict(self._last_absent)

    def _absent(self, running: Running) -> dict[str, str]:
        absent = dict(running.plan.absent)
        if running.seat.note:
            absent["sharing"] = running.seat.note
        for name, channel in self._channels.items():
            if channel.closed:
                absent[name] = f"closed: {channel.closed}"
        if self._no_spans is not None:
            absent["ring_file_spans"] = self._no_spans
        copy_error = running.copy_error()
        if copy_error:
            absent["ring_file"] = copy_error
        if running.pressure_is_anothers():
            absent["pressure"] = "left to the process that reads this group's PSI: a second reader would destroy it"
        return absent

    @property
    def evidence(self) -> dict[str, str | None]:
        """By what stalls can be known here: "trace", "psi", "wchan", "counters" to None, or why not.

        After `stop` what it was then; empty before `start` and where disabled.
        """
        if self._forked:
            self._reattach()
        running = self._running
        return running.evidence() if running else dict(self._last_evidence)

    def describe(self) -> dict[str, Any]:
        """What a recording of this sampler says of itself: target, kernel, host, and what is absent and why."""
        if self._forked:
            self._reattach()
        running = self._running
        return running.plan.info() | {"absent": self.absent, "evidence": running.evidence()} if running else {}

    def stats(self) -> dict[str, Any]:
        """What sampling does and costs.

        Returns:
            role; writer_pid; takeovers; ticks; missed (deadlines passed over); period_ns and full_period_ns;
            late_ns: p50, p99 and max over what the `usage` ring holds; cost_ns: a recent read of each channel's files;
            tick_cpu_ns, keeper_cpu_ns: CPU time of the two threads; group_cpu_ns: of the rest of the group since the start;
            diluted_ppm: the sampler's share of the group's CPU time; psi_reads; stat_period_ns;
            ring_bytes, locked_bytes: the ring, and what of it is locked; held_bytes: all that this process holds for sampling,
            the ring included where it writes it.
            After `stop` what it was then, with the role "stopped"; empty before `start` and where disabled.
        """
        if self._forked:
            self._reattach()
        running = self._running
        stats = self._stats(running) if running else dict(self._last_stats)
        if stats:
            stats |= {"role": self._role(), "late_ns": self._lateness()}
        return stats

    def _stats(self, running: Running) -> dict[str, Any]:
        """All that needs no arrays: numpy must not be loaded to stop."""
        state = running.ring.header.state
        words = [field for field, _ in ffi.typeof("struct memcg_state").fields if field != "cost_ns"]
        stats: dict[str, Any] = {"role": ""} | {word: getattr(state, word) for word in words}
        stats["cost_ns"] = {table.name: state.cost_ns[table.index] for table in running.ring.tables.values()}
        stats["ring_bytes"] = running.ring.header.file_bytes
        # The group is charged for a ring once, however many are attached to it.
        stats["held_bytes"] = running.held_bytes() + (running.ring.header.file_bytes if running.writes() else 0)
        return stats

    def _lateness(self) -> dict[str, int]:
        late = self.usage.window()
        if "late_ns" not in late or len(late) == 0:
            return {}
        import numpy as np

        p50, p99 = np.percentile(late["late_ns"], (50, 99), method="higher").tolist()
        return {"p50": p50, "p99": p99, "max": int(late["late_ns"].max())}

    def __repr__(self) -> str:
        return f"<Sampler of {self._spec!r}: {'not attached since the fork' if self._forked else self._role()}>"


# Properties, since a __getattr__ would make every attribute slow, and a span looks up two of them.
for _name in schema.CHANNELS:
    setattr(Sampler, _name, property(partial(Sampler._channel, name=_name)))  # noqa: SLF001 - one room

_samplers: weakref.WeakValueDictionary[int, Sampler] = weakref.WeakValueDictionary()
_fork_lock = threading.RLock()
_waited_for: list[Sampler] = []


def _before_fork() -> None:
    """Let starts and stops in other threads end first: the child would hold their descriptors, with locks, for good."""
    global _waited_for  # noqa: PLW0603 - from here to `_after_fork_in_parent`, under the lock
    _fork_lock.acquire()
    _waited_for = [sampler for _, sampler in sorted(_samplers.items())]
    for sampler in _waited_for:
        sampler._lock.acquire()  # noqa: SLF001 - one room


def _after_fork_in_parent() -> None:
    global _waited_for  # noqa: PLW0603 - see `_before_fork`
    for sampler in _waited_for:
        sampler._lock.release()  # noqa: SLF001 - one room
    _waited_for = []
    _fork_lock.release()


def _after_fork_in_child() -> None:
    global _fork_lock, _waited_for  # the thread that would release them is the parent's
    _fork_lock, _waited_for = threading.RLock(), []
    for sampler in list(_samplers.values()):
        sampler._after_fork()  # noqa: SLF001 - one room


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
