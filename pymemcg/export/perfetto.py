# SPDX-License-Identifier: Apache-2.0
"""A recording as a trace for Perfetto (ui.perfetto.dev): counters, reclaim and spans by thread, and stalls, on one time line.

The trace is protobuf, encoded by the `perfetto` library packet by packet, so memory stays the same however long it is. Times
are CLOCK_MONOTONIC; clock snapshots tell CLOCK_REALTIME beside it.
"""

from __future__ import annotations

from importlib import import_module
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from pymemcg import metrics, schema
from pymemcg._ffi import NONE, or_none
from pymemcg._said import level_names
from pymemcg.errors import NotSupported
from pymemcg.export._chunks import chunks

try:
    from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder
except ImportError as error:
    raise NotSupported("traces for Perfetto need perfetto", hint="pip install 'pymemcg[perfetto]'") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from pymemcg.channel import Channel, Window
    from pymemcg.detecting import Stall
    from pymemcg.recording import Recording

_pb: Final[Any] = import_module("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
_EVENT: Final = _pb.TrackEvent
_MONOTONIC: Final = _pb.BUILTIN_CLOCK_MONOTONIC
_REALTIME: Final = _pb.BUILTIN_CLOCK_REALTIME
_SEQUENCE: Final = 1
_UNITS: Final = {
    "bytes": {"unit": _pb.CounterDescriptor.UNIT_SIZE_BYTES},
    "events": {"unit": _pb.CounterDescriptor.UNIT_COUNT},
    "%": {"unit_name": "%"},
}
_HITS: Final = ("limit_hits", "memsw_hits", "high_hits", "oom_kills")
_OF_STALLS: Final = (
    *("stall_ns", "stall_lo_ns", "stall_hi_ns", "longest_ns", "cpu_wait_ns", "intervals", "limit_hits", "reclaimed_pages"),
    *("usage_bytes", "limit_bytes", "anon", "file", "incomplete"),
)


class _Trace:
    """Writes tracks and their events.

    Attributes:
        events: How many so far.
    """

    def __init__(self, sink: IO[bytes]) -> None:
        self._builder = StreamingTraceProtoBuilder(sink)
        self._tracks = 0
        self._last: dict[int, int | float] = {}
        self._sample = self._event(_EVENT.TYPE_COUNTER, 0, 0)  # one for all counters, which are by far the most
        self.events = 0

    def clocks(self, monotonic_ns: int, realtime_ns: int) -> None:
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.clock_snapshot.primary_trace_clock = _MONOTONIC
        for clock, now_ns in ((_MONOTONIC, monotonic_ns), (_REALTIME, realtime_ns)):
            packet.clock_snapshot.clocks.add(clock_id=clock, timestamp=now_ns)
        self._builder.write_packet(packet)

    def track(self, **says: Any) -> int:
        """A track, by what its descriptor says of it.

        Returns:
            What its events call it.
        """
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        if self._tracks == 0:
            packet.sequence_flags = packet.SEQ_INCREMENTAL_STATE_CLEARED
        self._tracks += 1
        packet.track_descriptor.MergeFrom(_pb.TrackDescriptor(uuid=self._tracks, **says))
        self._builder.write_packet(packet)
        return self._tracks

    def counter(self, name: str, unit: str, parent: int) -> int:
        return self.track(name=name, parent_uuid=parent, counter=_UNITS[unit])

    def samples(self, track: int, t_ns: NDArray[np.int64], values: NDArray[Any]) -> None:
        """A counter's values, where they change: until then the one before holds. What is absent or NaN is left out."""
        known = values == values if values.dtype.kind == "f" else values != NONE  # noqa: PLR0124 - NaN
        t_ns, values = t_ns[known], values[known]
        if values.size == 0:
            return
        changes = np.flatnonzero(np.diff(values)) + 1
        if values[0] != self._last.get(track):
            changes = np.concatenate([[0], changes])
        self._last[track] = values[-1].item()
        packet = self._sample
        event = packet.track_event
        event.track_uuid = track
        word = "double_counter_value" if values.dtype.kind == "f" else "counter_value"
        for now_ns, value in zip(t_ns[changes].tolist(), values[changes].tolist(), strict=True):
            packet.timestamp = now_ns
            setattr(event, word, value)
            self._builder.write_packet(packet)
        self.events += changes.size

    def slice(self, track: int, begin_ns: int, end_ns: int, name: str, says: Mapping[str, Any]) -> None:
        packet = self._event(_EVENT.TYPE_SLICE_BEGIN, track, begin_ns)
        self._say(packet.track_event, name, says)
        self._builder.write_packet(packet)
        self._builder.write_packet(self._event(_EVENT.TYPE_SLICE_END, track, end_ns))
        self.events += 1

    def instant(self, track: int, t_ns: int, name: str, says: Mapping[str, Any]) -> None:
        packet = self._event(_EVENT.TYPE_INSTANT, track, t_ns)
        self._say(packet.track_event, name, says)
        self._builder.write_packet(packet)
        self.events += 1

    def _event(self, kind: int, track: int, t_ns: int) -> Any:
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.timestamp, packet.timestamp_clock_id = t_ns, _MONOTONIC
        packet.track_event.type, packet.track_event.track_uuid = kind, track
        return packet

    @staticmethod
    def _say(event: Any, name: str, says: Mapping[str, Any]) -> None:
        event.name = name
        for key, value in says.items():
            if isinstance(value, int):
                event.debug_annotations.add(name=key, int_value=value)
            elif value is not None:
                event.debug_annotations.add(name=key, string_value=str(value))


def write(recording: Recording, sink: IO[bytes], tell: Callable[[int], object]) -> int:
    """Write a recording as one trace.

    Args:
        recording: What to export.
        sink: Where to; it needs not be able to seek.
        tell: Called with the rows of each chunk that was read.

    Returns:
        Events in it: values of counters, slices and instants.
    """
    trace = _Trace(sink)
    directory = recording.info.get("target", {}).get("directory", "")
    root = trace.track(name=f"memory of {directory}".strip())
    _clocks(trace, recording, tell)
    _stalls(trace, root, recording)
    _usage(trace, root, recording, tell)
    _limits(trace, root, recording, tell)
    _stat(trace, root, recording, tell)
    _pressure(trace, root, recording, tell)
    threads = _Threads(trace)
    _reclaim(trace, threads, recording, tell)
    _spans(trace, threads, recording, tell)
    return trace.events


def _clocks(trace: _Trace, recording: Recording, tell: Callable[[int], object]) -> None:
    """In the order of their times, or Perfetto drops them: a file may have been made after its first row."""
    header = recording.usage._ring.header  # type: ignore[union-attr]  # noqa: SLF001 - one room
    pairs = [(header.created_ns, header.created_realtime_ns)]
    for rows in _parts(recording.clock, tell):
        pairs += zip(rows["t_ns"].tolist(), rows["realtime_ns"].tolist(), strict=True)
    for monotonic_ns, realtime_ns in sorted(pairs):
        trace.clocks(monotonic_ns, realtime_ns)


def _parts(channel: Channel, tell: Callable[[int], object]) -> Iterator[Window]:
    for rows in chunks(channel):
        yield rows
        tell(len(rows))


# ---- Counters ------------------------------------------------------------------------------------------------------


def _usage(trace: _Trace, root: int, recording: Recording, tell: Callable[[int], object]) -> None:
    channel = recording.usage
    tracks = {"usage_bytes": trace.counter("usage", "bytes", root)} if "usage_bytes" in channel.names else {}
    tracks |= {name: trace.counter(name, "events", root) for name in _HITS if name in channel.names}
    for rows in _parts(channel, tell):
        for name, track in tracks.items():
            trace.samples(track, rows["t_ns"], rows[name])


def _limits(trace: _Trace, root: int, recording: Recording, tell: Callable[[int], object]) -> None:
    """One that is lifted is told as an instant: nothing says of a counter that it has no value any more."""
    names = level_names(recording.info)
    tracks: dict[tuple[int, str], int] = {}
    finite: set[tuple[int, str]] = set()
    for rows in _parts(recording.limits, tell):
        for name in ("limit_bytes", "high_bytes"):
            if name not in rows:
                continue
            for t_ns, level, value in zip(*(rows[column].tolist() for column in ("t_ns", "level", name)), strict=True):
                key, what = (level, name), name.removesuffix("_bytes")
                if level:
                    what += f" of {names.get(level, f'level {level}')}"
                if value != NONE:
                    if key not in tracks:
                        tracks[key] = trace.counter(what, "bytes", root)
                    trace.samples(tracks[key], np.array([t_ns]), np.array([value]))
                    finite.add(key)
                elif key in finite:
                    trace.instant(root, t_ns, f"no {what} any more", {})
                    finite.discard(key)


def _stat(trace: _Trace, root: int, recording: Recording, tell: Callable[[int], object]) -> None:
    usage = recording.usage.window()
    names = [name for name in ("anon", "file") if name in recording.stat.names]
    tracks = {name: trace.counter(name, "bytes", root) for name in names}
    working_set = None
    if "inactive_file" in recording.stat.names and "usage_bytes" in usage and len(usage):
        working_set = trace.counter("working set", "bytes", root)
    for rows in _parts(recording.stat, tell):
        for name, track in tracks.items():
            trace.samples(track, rows["t_ns"], rows[name])
        if working_set is not None:
            last = usage["t_ns"].searchsorted(rows["t_ns"], side="right") - 1
            at = np.flatnonzero(last >= 0)
            used = usage["usage_bytes"][last[at]]
            trace.samples(working_set, rows["t_ns"][at], metrics.working_set(used, rows["inactive_file"][at]))


def _pressure(trace: _Trace, root: int, recording: Recording, tell: Callable[[int], object]) -> None:
    """Shares of time, each from the read before to its own."""
    rows = recording.pressure.window()
    if len(rows) < 2:
        return
    for name in ("some", "full"):
        if f"{name}_us" in rows:
            shares = metrics.pressure_ratio(rows["t_ns"], rows[f"{name}_us"]) * 100
            track = trace.counter(f"pressure, {name}", "%", root)
            trace.samples(track, rows["t_ns"][:-1], shares[1:])
    tell(len(rows))


# ---- Slices --------------------------------------------------------------------------------------------------------


class _Lanes:
    """Tracks of one name beside each other, for slices that come in the order of their ends and may overlap."""

    def __init__(self, make: Callable[[], int]) -> None:
        self._make = make
        self._lanes: list[list[int]] = []  # track, end of its last slice

    def lane(self, begin_ns: int, end_ns: int) -> int:
        """The first on which nothing is there meanwhile."""
        for lane in self._lanes:
            if lane[1] <= begin_ns:
                lane[1] = end_ns
                return lane[0]
        self._lanes.append([self._make(), end_ns])
        return self._lanes[-1][0]


class _Threads:
    """Tracks of threads."""

    def __init__(self, trace: _Trace) -> None:
        self._trace = trace
        self._tracks: dict[tuple[int, int], int] = {}
        self._spans: dict[tuple[int, int], _Lanes] = {}

    def track(self, pid: int, tid: int) -> int:
        if (pid, tid) not in self._tracks:
            self._tracks[pid, tid] = self._trace.track(thread={"pid": pid, "tid": tid})
        return self._tracks[pid, tid]

    def spans(self, pid: int, tid: int) -> _Lanes:
        if (pid, tid) not in self._spans:
            thread = self.track(pid, tid)
            self._spans[pid, tid] = _Lanes(lambda: self._trace.track(name="spans", parent_uuid=thread))
        return self._spans[pid, tid]


def _reclaim(trace: _Trace, threads: _Threads, recording: Recording, tell: Callable[[int], object]) -> None:
    for rows in _parts(recording.reclaim, tell):
        columns = (rows[name].tolist() for name in schema.RECLAIM_UNITS)
        for begin, end, pid, tid, kind, pages, wait in zip(*columns, strict=True):
            says = {"reclaimed_pages": or_none(pages), "cpu_wait_ns": or_none(wait)}
            trace.slice(threads.track(pid, tid), begin, end, schema.RECLAIM_KINDS.get(kind, f"kind {kind}"), says)


def _spans(trace: _Trace, threads: _Threads, recording: Recording, tell: Callable[[int], object]) -> None:
    said = recording.info.get("spans", {})
    names, refs, pid = said.get("names", ()), said.get("refs", ()), int(said.get("pid", 0))
    for rows in _parts(recording.spans, tell):
        columns = (rows[name].tolist() for name in ("start_ns", "end_ns", "tid", "name_id", "ref_id", "attribution"))
        pids = rows["pid"].tolist() if "pid" in rows else [pid] * len(rows)
        for pid, begin, end, tid, name, ref, how in zip(pids, *columns, strict=True):
            says = {"ref": _text(refs, ref), "attribution": schema.SPAN_ATTRIBUTIONS.get(how)}
            trace.slice(threads.spans(pid, tid).lane(begin, end), begin, end, str(_text(names, name) or "span"), says)


def _text(texts: Any, at: int) -> Any:
    return texts[at] if 0 <= at < len(texts) else None


def _stalls(trace: _Trace, root: int, recording: Recording) -> None:
    """What the detector says, harmless episodes apart from stalls, which may lie within them."""
    stalls = _Lanes(lambda: trace.track(name="stalls", parent_uuid=root))
    harmless = _Lanes(lambda: trace.track(name="harmless reclaim", parent_uuid=root))
    for stall in sorted(recording.stalls(), key=_end):
        lanes = harmless if stall.harmless else stalls
        says = {"evidence": ", ".join(stall.evidence), "held threads": ", ".join(map(str, stall.tids)) or None}
        says |= {name: getattr(stall, name) for name in _OF_STALLS}
        trace.slice(lanes.lane(stall.start_ns, _end(stall)), stall.start_ns, _end(stall), stall.cause, says)


def _end(stall: Stall) -> int:
    return stall.start_ns if stall.end_ns is None else stall.end_ns
