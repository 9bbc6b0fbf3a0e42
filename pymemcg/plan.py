# SPDX-License-Identifier: Apache-2.0
"""From a target to what the native sampler is told: which files feed which columns, and how large the rings are."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pymemcg import _ffi, _spanring, schema, tracepoints
from pymemcg._ffi import ffi, lib
from pymemcg.errors import NotSupported, SourceError
from pymemcg.ring import ChannelSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pymemcg.cgroup import Level, Target

SECOND_NS = 1_000_000_000
NODE_HZ = 10
PROCESS_ROWS = 8192
"""Room for 16 processes at 10 Hz over the default 60 s, with some to spare; more processes shorten the history."""
MAX_LEVELS = 32
"""MEMCG_LEVELS of csrc/sampler.h, whose arrays are of that length."""
RECLAIM_ROWS = 30_000
"""Three seconds of the fastest reclaim that was seen, 1.8 MiB of the 8 that a sampler may hold."""
FEW_ROWS = 512
"""Of channels that get a row now and then; a page of 4 KiB a column."""


@dataclass
class Feed:
    """A file whose values become columns: key in the file to column name."""

    path: str
    channel: str
    form: int
    fields: dict[str, str]


@dataclass
class Plan:
    """All that the native sampler needs to know.

    Attributes:
        target: What is sampled.
        channels: The tables of the ring.
        feeds: What fills them.
        absent: What is not there, and why: a column, or a channel.
        evidence: By which evidence stalls can be known here: name ("trace", "psi", "wchan", "counters") to None, or why not.
        event_ids: Of the tracepoints, for evidence "trace"; empty where there is none.
        identity: Which group it is: `device` and `inode` of its directory.

    Raises:
        SourceError: The group is gone.
    """

    target: Target
    period_ns: int
    stat_period_ns: int
    history_ns: int
    adaptive: bool
    channels: list[ChannelSpec] = field(default_factory=list)
    feeds: list[Feed] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    evidence: dict[str, str | None] = field(default_factory=dict)
    event_ids: dict[str, int] = field(default_factory=dict)
    identity: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        """The group as it is now: a new one of the same name is another."""
        try:
            group = os.stat(self.target.directory)
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}", path=self.target.directory, errno=error.errno) from error
        self.identity = {"device": group.st_dev, "inode": group.st_ino}

    @property
    def inside(self) -> bool:
        """Whether this process's CPU time is part of what the group's cpu.stat and PSI speak of."""
        return self.target.own or self.target.pressure_scope == "host"

    def info(self) -> dict[str, Any]:
        """What a ring made by this plan says of itself."""
        return {
            "target": self.target.describe() | self.identity,
            "absent": self.absent,
            "evidence": self.evidence,
            "kernel": os.uname().release,
            "host": os.uname().nodename,
            "page_bytes": os.sysconf("SC_PAGESIZE"),
            "cpus": os.cpu_count(),
            "adaptive": self.adaptive,
        }


def make_plan(
    target: Target,
    *,
    rate_hz: float,
    stat_rate_hz: float,
    history_s: float,
    adaptive: bool,
    evidence: str = "auto",
    event_ids: Mapping[str, int] | None = None,
    keeps_spans: bool = False,
) -> Plan:
    """Decide what can be sampled; with `keeps_spans` the ring has room for spans.

    Raises:
        SourceError: A file that a sampler cannot do without cannot be read.
        NotSupported: The group lies too deep, or the evidence that was asked for cannot be had.
    """
    if len(_sampled_levels(target)) > MAX_LEVELS:
        raise NotSupported(
            f"is {len(target.levels) - 1} levels below the hierarchy's visible root: at most {MAX_LEVELS} levels are sampled",
            path=target.directory,
            hint="name a group higher up",
        )
    plan = Plan(
        target,
        period_ns=round(SECOND_NS / rate_hz),
        stat_period_ns=round(SECOND_NS / stat_rate_hz),
        history_ns=round(history_s * SECOND_NS),
        adaptive=adaptive,
        absent=dict(target.absent),
    )
    _plan_usage(plan)
    _plan_stat(plan)
    _plan_pressure(plan)
    _plan_node(plan)
    limits = {name: schema.LIMITS_UNITS[name] for name in schema.LIMITS_UNITS if name != "high_bytes" or target.version == 2}
    _add(plan, "limits", 0, FEW_ROWS * len(target.levels), limits)
    _plan_processes(plan)
    _plan_reclaim(plan, evidence, event_ids)
    _check_evidence(plan, evidence)
    _add(plan, "clock", 60 * SECOND_NS, FEW_ROWS, schema.CLOCK_UNITS)
    _add(plan, "events", 0, FEW_ROWS, schema.EVENTS_UNITS)
    plan.channels += _spanring.specs() if keeps_spans else []
    return plan


def _sampled_levels(target: Target) -> list[Level]:
    return [level for level in target.levels if "usage" in level.files]


def _add(plan: Plan, name: str, period_ns: int, rows: int, units: dict[str, str]) -> None:
    # A window leaves 1/16 of the ring to the writer (channel.py); what it may lend is the history.
    plan.channels.append(ChannelSpec(name, period_ns, max(1, (rows * 16 + 14) // 15), units))


def _feed(plan: Plan, channel: str, path: str, form: int, fields: dict[str, str]) -> None:
    if fields:
        plan.feeds.append(Feed(path, channel, form, fields))


def _plan_usage(plan: Plan) -> None:
    own, target = plan.target.levels[0], plan.target
    if "usage" in own.files:
        _feed(plan, "usage", f"{own.directory}/{own.files['usage']}", _ffi.VALUE, {"": "usage_bytes"})
    if target.version == 2 and "hits" in own.files:
        path = f"{own.directory}/{own.files['hits']}"
        keys = _ffi.read_source(path, _ffi.KEYED)
        wanted = {"max": "limit_hits", "high": "high_hits", "oom_kill": "oom_kills"}
        _feed(plan, "usage", path, _ffi.KEYED, {key: wanted[key] for key in wanted if key in keys})
    if target.version == 1:
        _plan_usage_v1(plan)
    if target.pid is not None and target.own and target.spec == "self":
        fields = {"resident": "rss_bytes", "shared": "shared_bytes"}
        # Not by number: /proc may be of another pid namespace. Once opened it stays this process's.
        _feed(plan, "usage", "/proc/self/statm", _ffi.STATM, fields)
    columns = {column for feed in plan.feeds for column in feed.fields.values()} | {"t_ns", "late_ns"}
    units = {name: unit for name, unit in schema.USAGE_UNITS.items() if name in columns}
    _add(plan, "usage", plan.period_ns, plan.history_ns // plan.period_ns, units)


def counts_memsw(release: str) -> bool:
    """Whether a kernel, as `uname -r` names it, counts in memory.memsw.failcnt. From 6.15 on only memory's own counter does."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is None or (int(found[1]), int(found[2])) < (6, 15)


def _plan_usage_v1(plan: Plan) -> None:
    own = plan.target.levels[0]

    def read(role: str) -> int | None:
        return _ffi.read_source(f"{own.directory}/{own.files[role]}", _ffi.VALUE)[""] if role in own.files else None

    limit, memsw, memsw_hits = read("limit"), read("memsw_limit"), read("memsw_hits")
    shadowed = limit is not None and memsw is not None and memsw <= limit < _ffi.NONE
    if shadowed:
        plan.absent["limit_hits"] = "memory.failcnt does not count where memsw's limit is not above memory's"
    elif "hits" in own.files:
        _feed(plan, "usage", f"{own.directory}/{own.files['hits']}", _ffi.VALUE, {"": "limit_hits"})
    if memsw_hits == 0 and not counts_memsw(os.uname().release):
        plan.absent["memsw_hits"] = "Linux 6.15 and later do not count in memory.memsw.failcnt"
    elif memsw_hits is not None:
        _feed(plan, "usage", f"{own.directory}/{own.files['memsw_hits']}", _ffi.VALUE, {"": "memsw_hits"})
    path = f"{own.directory}/memory.oom_control"
    try:
        found = "oom_kill" in _ffi.read_source(path, _ffi.KEYED)
    except SourceError as error:
        plan.absent["oom_kills"] = str(error)
        return
    if found:
        _feed(plan, "usage", path, _ffi.KEYED, {"oom_kill": "oom_kills"})
    else:
        plan.absent["oom_kills"] = "memory.oom_control of this kernel has no oom_kill"


def _plan_stat(plan: Plan) -> None:
    path = f"{plan.target.directory}/memory.stat"
    try:
        fields = schema.stat_fields(_ffi.read_source(path, _ffi.KEYED), plan.target.version)
    except SourceError as error:
        plan.absent["stat"] = plan.target.absent.get("stat", str(error))
        return
    _feed(plan, "stat", path, _ffi.KEYED, {f.key: f.name for f in fields})
    units = schema.STAT_UNITS | {f.name: f.unit for f in fields}
    _add(plan, "stat", plan.stat_period_ns, plan.history_ns // plan.stat_period_ns, units)


def _plan_pressure(plan: Plan) -> None:
    path = plan.target.pressure_file
    if path is None:
        return
    if not os.access(_cpu_stat(plan.target) or "", os.R_OK):
        plan.absent["pressure"] = "without the group's cpu.stat nothing tells when PSI may be read without harm"
        return
    _feed(plan, "pressure", path, _ffi.PSI, {"some_us": "some_us", "full_us": "full_us"})
    units = dict(schema.PRESSURE_UNITS)
    # After memory.pressure, whose read has just ended the window in which the kernel adds up: this one ends an empty one.
    cpu = f"{path[: -len('memory')]}cpu" if plan.target.pressure_scope == "host" else f"{os.path.dirname(path)}/cpu.pressure"
    if os.access(cpu, os.R_OK):
        _feed(plan, "pressure", cpu, _ffi.PSI, {"some_us": "cpu_wait_us"})
    else:
        plan.absent["cpu_wait_us"] = f"{cpu} cannot be read"
        del units["cpu_wait_us"]
    _add(plan, "pressure", 0, FEW_ROWS * 2, units)


def _plan_node(plan: Plan) -> None:
    try:
        fields = schema.node_fields(_ffi.read_source("/proc/vmstat", _ffi.KEYED))
    except SourceError as error:
        plan.absent["node"] = str(error)
        return
    _feed(plan, "node", "/proc/vmstat", _ffi.KEYED, {f.key: f.name for f in fields})
    units = schema.NODE_UNITS | {f.name: f.unit for f in fields}
    _add(plan, "node", SECOND_NS // NODE_HZ, plan.history_ns * NODE_HZ // SECOND_NS, units)


def _plan_processes(plan: Plan) -> None:
    foreign = tracepoints.foreign_proc()
    if foreign is not None:
        plan.absent["processes"] = foreign
        return
    _add(plan, "processes", SECOND_NS // NODE_HZ, PROCESS_ROWS, schema.PROCESSES_UNITS)


def _plan_reclaim(plan: Plan, evidence: str, event_ids: Mapping[str, int] | None) -> None:
    """Tracepoints, where they can be had, and a look at who sleeps at memory.high."""
    why = _find_event_ids(plan, event_ids) if evidence in ("auto", "trace") else f"evidence {evidence!r} was asked for"
    if why is None and not any(tracepoints.membership(plan.target)):
        plan.event_ids, why = {}, "nothing tells this group's threads from those of others: its path is out of sight"
    plan.evidence["trace"] = why
    plan.evidence["wchan"] = _no_wchan(plan, evidence)
    if why is not None:
        plan.absent["reclaim"] = why
    if why is None or plan.evidence["wchan"] is None:
        _add(plan, "reclaim", 0, RECLAIM_ROWS, schema.RECLAIM_UNITS)


def _no_wchan(plan: Plan, evidence: str) -> str | None:
    if evidence != "auto":
        return f"evidence {evidence!r} was asked for"
    if "high" not in plan.target.levels[0].files:
        return plan.target.absent.get("high", "no memory.high")
    return tracepoints.foreign_proc()


def _find_event_ids(plan: Plan, event_ids: Mapping[str, int] | None) -> str | None:
    try:
        ids = tracepoints.check_event_ids(event_ids) if event_ids is not None else tracepoints.event_ids()
    except NotSupported as error:
        if event_ids is not None:
            raise
        return str(error)
    why = tracepoints.probe(ids)
    if why is None:
        plan.event_ids = ids
    return why


def _check_evidence(plan: Plan, evidence: str) -> None:
    """Say which evidence there is, and refuse one that was asked for and cannot be had."""
    channels = {spec.name: spec.columns for spec in plan.channels}
    plan.evidence["psi"] = None if "pressure" in channels else plan.absent.get("pressure", "no PSI")
    counted = any(name.endswith("_hits") for name in channels["usage"])
    plan.evidence["counters"] = None if counted else plan.absent.get("limit_hits", "nothing counts hits of the limit")
    if evidence == "auto":
        return
    why = plan.evidence[evidence]
    if why is not None:
        raise NotSupported(f"evidence {evidence!r} cannot be had: {why}", path=plan.target.directory)


def _cpu_stat(target: Target) -> str | None:
    return f"{target.cgroup2_directory}/cpu.stat" if target.cgroup2_directory else None


class NativeConfig:
    """A `struct memcg_config` and all that it points to, alive as long as this object."""

    def __init__(self, plan: Plan, *, ring_fd: int, lock_fd: int, attached: bool) -> None:
        self._alive: list[Any] = []
        target = plan.target
        self.struct = ffi.new("struct memcg_config *")
        c = self.struct
        c.tracepoint = tracepoints.in_order(plan.event_ids)
        c.cgroup_id, path = tracepoints.membership(target)
        c.memory_path, c.memory_version = self._text(path) if path is not None else ffi.NULL, target.version
        c.ring_fd, c.lock_fd = ring_fd, lock_fd
        c.flags = lib.MEMCG_ADAPTIVE * plan.adaptive | lib.MEMCG_INSIDE * plan.inside | lib.MEMCG_ATTACHED * attached
        c.flags |= lib.MEMCG_WCHAN * (plan.evidence.get("wchan", "") is None)
        c.period_ns, c.stat_period_ns, c.node_period_ns = plan.period_ns, plan.stat_period_ns, SECOND_NS // NODE_HZ
        c.feeds = len(plan.feeds)
        c.feed = self._array("struct memcg_feed[]", (self._feed(feed) for feed in plan.feeds))
        levels = _sampled_levels(target)
        c.levels, c.level = len(levels), self._array("struct memcg_level[]", (self._level(level) for level in levels))
        c.group = self._text(target.directory) if "processes" not in plan.absent else ffi.NULL
        cpu_stat = _cpu_stat(target)
        readable = cpu_stat is not None and os.access(cpu_stat, os.R_OK)
        c.cpu_stat = self._text(cpu_stat) if readable and cpu_stat else ffi.NULL

    def _text(self, value: str) -> Any:
        self._alive.append(ffi.new("char[]", os.fsencode(value)))
        return self._alive[-1]

    def _array(self, kind: str, values: Iterable[Any]) -> Any:
        self._alive.append(ffi.new(kind, list(values)))
        return self._alive[-1]

    def _feed(self, feed: Feed) -> tuple[Any, ...]:
        pairs = ((self._text(key), self._text(column)) for key, column in feed.fields.items())
        fields = self._array("struct memcg_field[]", pairs)
        return self._text(feed.path), self._text(feed.channel), feed.form, len(feed.fields), fields

    def _level(self, level: Level) -> tuple[Any, ...]:
        def path(role: str) -> Any:
            return self._text(f"{level.directory}/{level.files[role]}") if role in level.files else ffi.NULL

        hits = level.files.get("hits", "")
        keys = (
            self._text("max") if hits.startswith("memory.events") else ffi.NULL,
            # The file of an ancestor that does not count what happens below it: the group's own `high` is a column of `usage`.
            self._text("high") if hits == "memory.events.local" else ffi.NULL,
        )
        return path("usage"), path("limit"), path("high"), path("hits"), *keys
