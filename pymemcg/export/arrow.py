# SPDX-License-Identifier: Apache-2.0
"""Channels as Arrow: batches that lend a recording's own columns, and schemas that tell units and where the rows come from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pymemcg._ffi import NONE, text
from pymemcg._spanlog import SpanChannel
from pymemcg.channel import Channel, Window
from pymemcg.export._chunks import chunks
from pymemcg.export._pyarrow import pa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pymemcg.recording import Recording
    from pymemcg.spans import Ref

KEY: Final = b"pymemcg"
"""Under which key of a schema's metadata its provenance is."""
TIME: Final = "time"
LENT: Final = 1 << 20
"""Rows of a batch that is lent to others: a live ring with the defaults is one batch."""
_VERSION: Final = 1
_TIMESTAMP: Final = pa.timestamp("ns", "UTC")


def array(values: NDArray[np.int64]) -> pa.Array:
    """A column without a copy, shape (rows,); what is absent is null, by a bitmap that is only there where something is."""
    validity, nulls = None, 0
    if values.size and values.max() == NONE:
        present = values != NONE
        nulls = values.size - int(np.count_nonzero(present))
        validity = pa.py_buffer(np.packbits(present, bitorder="little"))
    return pa.Array.from_buffers(pa.int64(), values.size, [validity, pa.py_buffer(values)], nulls)


def _field(name: str, unit: str, kind: pa.DataType | None = None) -> pa.Field:
    return pa.field(name, pa.int64() if kind is None else kind, metadata={"unit": unit} if unit else None)


# ---- Provenance ----------------------------------------------------------------------------------------------------


def provenance(channels: Iterable[Channel], info: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a recording of their rows again, beside the rows.

    Args:
        channels: Those of one recording or one sampler.
        info: What it says of itself.

    Returns:
        version; boot_id; created_ns and created_realtime_ns: CLOCK_MONOTONIC and CLOCK_REALTIME at one moment; channels, in the
        order of their positions, each with period_ns, units, and closed_at (CLOCK_MONOTONIC in ns, errno) or None; and info.
        JSON.
    """
    there = sorted((channel for channel in channels if channel.names), key=lambda channel: channel.position)
    if not there:  # sampling is switched off
        return {}
    header = there[0]._ring.header  # type: ignore[union-attr]  # noqa: SLF001 - one room
    return {
        "version": _VERSION,
        "boot_id": text(header.boot_id),
        "created_ns": header.created_ns,
        "created_realtime_ns": header.created_realtime_ns,
        "channels": {
            channel.name: {"period_ns": channel.period_ns, "units": dict(channel.units), "closed_at": channel.closed_at}
            for channel in there
        },
        "info": dict(info),
    }


def without_texts(info: Mapping[str, Any]) -> dict[str, Any]:
    """`info` where the texts of spans are columns."""
    if "spans" not in info:
        return dict(info)
    spans = {key: value for key, value in info["spans"].items() if key not in ("names", "refs")}
    refs: Sequence[Ref] = [ref for ref in info["spans"].get("refs", ()) if ref is not None]  # a ring's spans may have none
    return {**info, "spans": {**spans, "int_refs": bool(refs) and all(isinstance(ref, int) for ref in refs)}}


def _metadata(said: Mapping[str, Any]) -> dict[bytes, bytes]:
    return {KEY: json.dumps(said).encode()}


# ---- Columns as they are, for the C stream interface ---------------------------------------------------------------


def reader(channel: Channel, window: Window) -> pa.RecordBatchReader:
    """Rows of a channel that nobody writes to any more: all its columns, lent, a batch for every 2^20 rows.

    Args:
        channel: The channel.
        window: Rows of it.
    """
    ring = channel._ring  # noqa: SLF001 - one room
    metadata = None
    if ring is not None:
        info = ring.info if channel.name == "spans" else without_texts(ring.info)
        others = [Channel(name, ring, table) for name, table in ring.tables.items()]
        metadata = _metadata(provenance(others, info) | {"channel": channel.name})
    schema = pa.schema([_field(name, unit) for name, unit in channel.units.items()], metadata=metadata)

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, len(window), LENT):
            part = window.part(first, first + LENT)
            yield pa.record_batch([array(part[name]) for name in window.names], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


# ---- Tables, for files ---------------------------------------------------------------------------------------------


class Texts:
    """What the ids in rows of `spans` mean.

    Args:
        names: Texts of `name_id`.
        refs: Gives the references of `ref_id`.

    Attributes:
        int_refs: Whether all references so far were numbers; None before the first.
    """

    def __init__(self, names: Sequence[str], refs: Callable[[Sequence[int]], Sequence[Ref]]) -> None:
        self._names = names
        self._refs = refs
        self.int_refs: bool | None = None

    @classmethod
    def of(cls, channel: Channel, info: Mapping[str, Any]) -> Texts:
        """Those of a sampler's channel, or of a recording's."""
        if isinstance(channel, SpanChannel):
            return cls(channel.log.names, channel.log.refs)
        said = info.get("spans", {})
        refs: Sequence[Ref] = said.get("refs", ())
        return cls(said.get("names", ()), lambda ids: [refs[i] if 0 <= i < len(refs) else None for i in ids])

    def columns(self, window: Window) -> list[pa.Array]:
        """`name` and `ref` of rows; null where there is none."""
        count = len(self._names)
        names = [self._names[i] if 0 <= i < count else None for i in window["name_id"].tolist()]
        refs = self._refs(window["ref_id"].tolist())
        if any(ref is not None for ref in refs):
            self.int_refs = self.int_refs is not False and all(isinstance(ref, (int, type(None))) for ref in refs)
        strings = [None if ref is None else str(ref) for ref in refs]
        return [pa.array(names, pa.string()), pa.array(strings, pa.string())]


class Table:
    """A channel as a table of a file: its columns behind `time`, in UTC, which is that of the row's `t_ns` or `end_ns`.

    Of `spans`, `name` and `ref` stand for the ids, which mean nothing outside of their recording.

    Args:
        channel: A channel with columns.
        said: Its `provenance`.
        texts: What ids of spans mean; only for `spans`.

    Attributes:
        schema: Units are in the fields' metadata, provenance is in the schema's.
        texts: As given.

    Not thread-safe.
    """

    def __init__(self, channel: Channel, said: Mapping[str, Any], texts: Texts | None = None) -> None:
        self.channel = channel
        self.texts = texts
        self._names = [name for name in channel.names if texts is None or name not in ("name_id", "ref_id")]
        fields = [_field(TIME, "", _TIMESTAMP), *(_field(name, channel.units[name]) for name in self._names)]
        if texts is not None:
            fields += [_field("name", "", pa.string()), _field("ref", "", pa.string())]
        self.schema = pa.schema(fields, metadata=_metadata({**said, "channel": channel.name}))

    def batch(self, window: Window) -> pa.RecordBatch:
        """Rows of it; columns are lent where the window's are."""
        realtime_ns = self.channel.realtime_ns(window[self.channel.time])
        columns = [pa.Array.from_buffers(_TIMESTAMP, len(window), [None, pa.py_buffer(realtime_ns)], 0)]
        columns += [array(window[name]) for name in self._names]
        if self.texts is not None:
            columns += self.texts.columns(window)
        return pa.record_batch(columns, schema=self.schema)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows of a recording; what was handed out is taken out of this process's memory."""
        return map(self.batch, chunks(self.channel))


def tables(recording: Recording) -> dict[str, Table]:
    """All channels that were recorded, also those without a row."""
    from pymemcg import schema

    channels = {name: getattr(recording, name) for name in schema.CHANNELS}
    said = provenance(channels.values(), without_texts(recording.info))
    spans = Texts.of(channels["spans"], recording.info)
    return {
        name: Table(channel, said, spans if name == "spans" else None) for name, channel in channels.items() if channel.names
    }


def writer(sink: Any, schema: pa.Schema) -> Any:
    """Writes batches as an Arrow IPC file; a context manager."""
    return pa.ipc.new_file(sink, schema)
