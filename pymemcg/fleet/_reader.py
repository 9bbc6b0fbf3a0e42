# SPDX-License-Identifier: Apache-2.0
"""A slice of a run as a recording: DuckDB reads the columns that the detector uses, of the row groups of that time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from pymemcg import schema
from pymemcg._counted import COLUMNS as PRESSURE
from pymemcg._facts import LIMITS, NODE, STAT, USAGE
from pymemcg._ffi import NONE
from pymemcg._traced import COLUMNS as RECLAIM
from pymemcg.export._pyarrow import pa
from pymemcg.export.parquet import to_recording
from pymemcg.fleet._dataset import TIMES
from pymemcg.fleet._duckdb import connected, duckdb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pymemcg.fleet._dataset import Run
    from pymemcg.recording import Recording

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "usage": ("t_ns", *USAGE),
    "stat": ("t_ns", *STAT),
    "node": ("t_ns", *NODE),
    "pressure": PRESSURE,
    "limits": tuple(schema.LIMITS_UNITS),
    "reclaim": RECLAIM,
    "spans": tuple(schema.SPANS_UNITS),
    "clock": tuple(schema.CLOCK_UNITS),
    "events": tuple(schema.EVENTS_UNITS),
}
"""What the detector reads of each channel; of `node` also all columns `allocstall…`."""
_TEXTS: Final = ("name", "ref")
"""Of `spans`, in place of the ids."""
assert set(LIMITS) - {"above", "falls"} <= set(COLUMNS["limits"])


class Reader:
    """Makes recordings of slices of a run, one after another in time.

    Args:
        run: What to read.
        folder: For temporary files.

    Not thread-safe. A context manager.
    """

    def __init__(self, run: Run, folder: str) -> None:
        self._run = run
        self._path = os.path.join(folder, "slice.memcg")
        self._database = connected(memory_limit="512MB", temp_directory=folder)
        self._stood_ns = 0
        self._standing: pa.Table | None = None
        self._units = {
            channel: {name: unit for name, unit in of["units"].items() if _is_read(channel, name)}
            for channel, of in run.said["channels"].items()
            if channel in COLUMNS
        }

    def recording(self, since_ns: int, until_ns: int) -> Recording:
        """What the run says of the time from `since_ns` to before `until_ns`, and which limits held when it begins.

        Raises:
            duckdb.Error: A file is damaged.
            MemcgError: The recording cannot be made.
        """
        self._stand(since_ns)
        tables: dict[str, Any] = {}
        for channel in self._units:
            rows = self._rows(channel, 0 if channel == "clock" else since_ns, until_ns)
            if rows is not None:
                tables[channel] = rows
        if self._standing is not None:
            rows = tables.get("limits")
            parts = [self._standing] if rows is None else [self._standing, rows.to_arrow_table()]
            tables["limits"] = pa.concat_tables(parts)
        made = to_recording(tables, self._path, provenance=self._said(until_ns))
        os.unlink(self._path)  # it stays mapped for as long as somebody uses it
        return made

    def _said(self, until_ns: int) -> Mapping[str, Any]:
        """What the run says of itself, as far as it is true of a time before its end."""
        channels = {}
        for channel, units in self._units.items():
            of = self._run.said["channels"][channel]
            closed = of["closed_at"] if of["closed_at"] and of["closed_at"][0] < until_ns else None
            channels[channel] = {**of, "units": units, "closed_at": closed}
        info = self._run.said["info"]
        if "spans" not in channels:
            info = {key: value for key, value in info.items() if key != "spans"}
        return {**self._run.said, "info": info, "channels": channels}

    def _rows(self, channel: str, since_ns: int, until_ns: int) -> Any:
        """A relation of the rows that speak of that time; None where no file has such."""
        paths = [file.path for file in self._run.files.get(channel, ()) if file.speaks_of(since_ns, until_ns)]
        return self._select(channel, paths, since_ns, until_ns) if paths else None

    def _select(self, channel: str, paths: Sequence[str], since_ns: int, until_ns: int) -> Any:
        since, until = TIMES.get(channel, ("t_ns", "t_ns"))
        names = [*self._units[channel], *(_TEXTS if channel == "spans" else ())]
        if channel == "spans":
            names = [name for name in names if name not in ("name_id", "ref_id")]
        late = f"({until} >= $since or {until} is null)" if channel == "reclaim" else f"{until} >= $since"
        columns = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
        query = f"from read_parquet($paths, hive_partitioning=false) select {columns} where {since} < $until and {late}"
        return self._database.sql(query, params={"paths": list(paths), "since": since_ns, "until": until_ns})

    def _stand(self, until_ns: int) -> None:
        """Bring what holds of each level up to a time: its last row before."""
        rows = self._rows("limits", self._stood_ns, until_ns) if "limits" in self._units and until_ns > self._stood_ns else None
        self._stood_ns = max(self._stood_ns, until_ns)
        if rows is None:
            return
        newest = "from levels qualify row_number() over (partition by level order by t_ns desc) = 1 order by t_ns, level"
        standing = rows.query("levels", newest).to_arrow_table()
        if self._standing is not None:
            both: Any = self._database.from_arrow(pa.concat_tables([self._standing, standing]))
            standing = both.query("levels", newest).to_arrow_table()
        self._standing = standing

    def pressure_before(self, t_ns: int, since_ns: int) -> int:
        """The last time in between at which PSI was read; `t_ns` where it was not."""
        rows = self._rows("pressure", since_ns, t_ns + 1)
        found = rows.aggregate("max(t_ns)").fetchall() if rows is not None else []
        return t_ns if not found or found[0][0] is None else int(found[0][0])

    def damaged(self) -> dict[str, str]:
        """Files whose rows cannot be read, and why not. Reads them all."""
        found = {}
        for channel in self._units:
            for file in self._run.files.get(channel, ()):
                try:
                    rows = pa.RecordBatchReader.from_stream(self._select(channel, [file.path], -NONE, NONE))
                    for _ in rows:  # no aggregate: the footer's statistics might answer for the rows
                        pass
                except (duckdb.Error, pa.ArrowException, OSError) as error:
                    found[file.path] = str(error).splitlines()[0]
        return found

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()


def _is_read(channel: str, column: str) -> bool:
    return column in COLUMNS[channel] or (channel == "node" and column.startswith("allocstall"))
