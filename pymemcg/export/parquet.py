# SPDX-License-Identifier: Apache-2.0
"""Tables as Parquet, and the way back: a recording of the tables of one."""

from __future__ import annotations

import json
import os
import re
import tempfile
from contextlib import ExitStack
from glob import glob, iglob
from typing import IO, TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote

import numpy as np

from pymemcg._ffi import NONE
from pymemcg._rowfile import RowFile
from pymemcg.errors import RecordingError
from pymemcg.export._part import Part, unwritten
from pymemcg.export._pyarrow import pa, part
from pymemcg.export.arrow import KEY
from pymemcg.recording import Recording
from pymemcg.ring import RECORDING_ALIGN, ChannelSpec, create

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pymemcg.spans import Ref

_pq: Final = part("parquet")
_FILE: Final = re.compile(r"host=([^/]*)/date=([^/]*)/\d{6}-([0-9a-f]+)-(\d+)\.parquet$")


def writer(sink: Any, schema: pa.Schema) -> Any:
    """Writes batches as Parquet, a row group each; a context manager.

    Integers go as differences (DELTA_BINARY_PACKED), which suits clocks, counters and sizes that seldom change, and then
    through zstd; with dictionaries, Parquet's usual way, files are twice as large and take longer (docs/exporting.md).
    """
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    differences = {field.name: "DELTA_BINARY_PACKED" for field in schema if field.name not in texts}
    return _pq.ParquetWriter(
        sink, schema, use_dictionary=texts, column_encoding=differences, compression="zstd", compression_level=1
    )


# ---- Reading what was written --------------------------------------------------------------------------------------


def provenance_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a Parquet file says of the recording that it comes from; see `pymemcg.export.arrow.provenance`.

    Raises:
        RecordingError: It cannot be read, or is no file of pymemcg's.
    """
    try:
        metadata = _pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise RecordingError(f"cannot be read: {error}", path=os.fspath(path)) from error
    return _said(metadata, os.fspath(path))


def _said(metadata: Mapping[bytes, bytes] | None, path: str) -> dict[str, Any]:
    try:
        said = json.loads((metadata or {})[KEY])
        return cast("dict[str, Any]", said) if said["channels"] else said["channels"]
    except (KeyError, TypeError, ValueError) as error:
        why = f"has no metadata {KEY.decode()!r} that tells what recording its rows are of"
        raise RecordingError(why, path=path, hint="read what `pymemcg export` or `record --parquet` wrote") from error


def read(paths: Sequence[str]) -> pa.RecordBatchReader:
    """Batches of one channel's files, one after another; the schema's metadata is what the last of them says.

    Raises:
        RecordingError: A file cannot be read, or is none of pymemcg's.
    """
    said = provenance_of(paths[-1])
    schema = _pq.read_schema(paths[-1]).with_metadata({KEY: json.dumps(said).encode()})

    def batches() -> Iterator[pa.RecordBatch]:
        for path in paths:
            with _pq.ParquetFile(path) as file:
                for batch in file.iter_batches():
                    yield batch.cast(schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def exported(folder: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Channel to file, of a folder that `pymemcg export` wrote: for `read`.

    Raises:
        RecordingError: There is no such file in it.
    """
    found = {os.path.basename(path)[:-8]: [path] for path in glob(f"{glob_escaped(folder)}/*.parquet")}
    if not found:
        raise RecordingError("has no Parquet files", path=os.fspath(folder))
    return found


def runs(dataset: str | os.PathLike[str]) -> dict[tuple[str, str], dict[str, list[str]]]:
    """The recordings of which a data set consists: (host, run) to channel to files in the order of their rows.

    A run is what one `pymemcg record --parquet` wrote, all on one clock.
    """
    found: dict[tuple[str, str], dict[str, list[tuple[str, int, str]]]] = {}
    for path in iglob(f"{glob_escaped(dataset)}/*/host=*/date=*/*.parquet"):
        named = _FILE.search(path)
        if named:
            host, date, run, number = named.groups()
            channel = os.path.relpath(path, dataset).split(os.sep)[0]
            found.setdefault((unquote(host), run), {}).setdefault(channel, []).append((date, int(number), path))
    return {
        key: {channel: [path for _, _, path in sorted(files, key=lambda file: file[1])] for channel, files in of.items()}
        for key, of in sorted(found.items())
    }


def glob_escaped(path: str | os.PathLike[str]) -> str:
    """A folder's name in a pattern."""
    from glob import escape

    return escape(os.fspath(path))


# ---- A recording of tables -----------------------------------------------------------------------------------------


def to_recording(
    tables: Mapping[str, Any], path: str | os.PathLike[str], *, provenance: Mapping[str, Any] | None = None
) -> Recording:
    """Make a recording of the tables of one.

    Args:
        tables: Channel to rows in their order: whatever has Arrow's C stream interface, such as what `read` gives, a pyarrow or
            polars table, or a relation of duckdb's. Columns beside the channel's own are ignored, null is what was absent.
            A channel that is not given has no rows.
        path: The file; it is replaced when the recording is whole.
        provenance: What `provenance_of` gives; None = that of the tables' own metadata.

    Returns:
        The recording, opened.

    Raises:
        RecordingError: A table lacks a column, there is no provenance, or the recording cannot be written.

    Holds one batch at a time. Thread-safe.
    """
    place = os.fspath(path)
    opened: dict[str, Any] = {}
    if provenance is None:
        opened = {name: pa.RecordBatchReader.from_stream(table) for name, table in tables.items()}
        provenance = _said_by(opened, place)
    if unknown := sorted(set(tables) - set(provenance["channels"])):
        raise RecordingError(f"tables {', '.join(unknown)} are of no channel of this recording", path=place)
    with ExitStack() as stack:
        try:
            folder = os.path.dirname(os.path.abspath(place))
            spools = {
                name: _Spool(stack, folder, name, of["units"], provenance["info"])
                for name, of in provenance["channels"].items()
            }
            for name, table in tables.items():  # one after another: a connection of duckdb's has one result at a time
                for batch in opened.get(name) or pa.RecordBatchReader.from_stream(table):
                    spools[name].add(batch)
            made = Part(place)
            stack.callback(made.drop)
            _lay_out(made.file.fileno(), place, provenance, spools)
        except OSError as error:
            raise unwritten(place, error) from error
        made.keep()
    return Recording(place)


def _said_by(readers: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What tables say of their recording; of the texts of spans their own says most."""
    told = {name: reader.schema.metadata for name, reader in readers.items() if KEY in (reader.schema.metadata or {})}
    return _said(told.get("spans") or next(iter(told.values()), None), path)


class _Spool:
    """The columns of one channel, each in a file without a name, until it is known how long they are."""

    def __init__(self, stack: ExitStack, folder: str, name: str, units: Mapping[str, str], info: Mapping[str, Any]) -> None:
        self._name = name
        self.units = dict(units)
        self.columns: dict[str, IO[bytes]] = {
            column: stack.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 - it is one's context
            for column in self.units
        }
        self.rows = 0
        self.names: dict[str, int] = {}
        self.refs: dict[Ref, int] = {}
        self._int_refs = bool(info.get("spans", {}).get("int_refs"))

    def add(self, batch: pa.RecordBatch) -> None:
        ids = {}
        if self._name == "spans" and "name" in batch.schema.names:
            ids["name_id"] = self._ids(batch.column("name").to_pylist(), self.names)
            refs = batch.column("ref").to_pylist()
            if self._int_refs:
                refs = [None if ref is None else int(ref) for ref in refs]
            ids["ref_id"] = self._ids(refs, self.refs)
        for column, file in self.columns.items():
            if column not in ids and column not in batch.schema.names:
                raise RecordingError(f"the table of {self._name} has no column {column!r}, but {', '.join(batch.schema.names)}")
            values = ids[column] if column in ids else _values(batch.column(column))
            file.write(values.tobytes())
        self.rows += batch.num_rows

    @staticmethod
    def _ids(texts: Sequence[Any], known: dict[Any, int]) -> NDArray[np.int64]:
        return np.array([-1 if text is None else known.setdefault(text, len(known)) for text in texts], np.int64)

    def pieces(self, column: str) -> Iterator[bytes]:
        source = self.columns[column]
        source.seek(0)
        while chunk := source.read(1 << 20):
            yield chunk


def _values(column: pa.Array) -> NDArray[np.int64]:
    whole = column.cast(pa.int64())
    filled = whole.fill_null(NONE) if whole.null_count else whole
    return cast("NDArray[np.int64]", filled.to_numpy(zero_copy_only=False))


def _lay_out(fd: int, path: str, said: Mapping[str, Any], spools: Mapping[str, _Spool]) -> None:
    info = dict(said["info"])
    if "spans" in info and "names" not in info["spans"]:
        texts = {"names": list(spools["spans"].names), "refs": list(spools["spans"].refs)}
        info["spans"] = {key: value for key, value in info["spans"].items() if key != "int_refs"} | texts
    channels = said["channels"]
    specs = [ChannelSpec(name, of["period_ns"], max(1, spools[name].rows), of["units"]) for name, of in channels.items()]
    create(fd, specs, info, align=RECORDING_ALIGN, reserve=False)
    made = RowFile(fd, path)
    for name, table in made.tables.items():
        for column in table.offsets:
            made.fill(name, column, spools[name].pieces(column))
        made.rows[name] = spools[name].rows
    made.publish({name: of["closed_at"] for name, of in channels.items()})
    made.date(said["created_ns"], said["created_realtime_ns"], said["boot_id"].encode())
