# SPDX-License-Identifier: Apache-2.0
"""The stalls of many hosts: the detector over a data set of `record --parquet`, in worker processes or on a dask cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any

from pymemcg.fleet._dataset import Note, Run, listed, looked_into
from pymemcg.fleet._engines import ENGINES
from pymemcg.fleet._service import service_of

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ENGINES", "Note", "Report", "report", "service_of"]


@dataclass(frozen=True, slots=True)
class Report:
    """What a data set tells. Durations are ns, `…_per_hour` is per hour of sampled time; what is not known is None.

    Attributes:
        services: A row a service, the most stalled per sampled hour first.
        causes: A row a cause.
        hours: A row an hour of the day (`hour`: its beginning, CLOCK_REALTIME ns, by each host's own clock).
        targets: A row a target of a host.
        notes: What the figures lack.
        stalls: A row a stall or harmless episode: service, host, target, run, time (UTC), and the fields of
            `pymemcg.Stall` but `state`.
    """

    services: list[dict[str, Any]]
    causes: list[dict[str, Any]]
    hours: list[dict[str, Any]]
    targets: list[dict[str, Any]]
    notes: list[Note]
    stalls: pa.Table

    def to_dict(self) -> dict[str, Any]:
        """All but the stalls, ready for JSON."""
        tables = {name: getattr(self, name) for name in ("services", "causes", "hours", "targets")}
        return {**tables, "notes": [asdict(note) for note in self.notes]}

    def write(self, sink: IO[bytes]) -> None:
        """Write the stalls as Parquet."""
        from pymemcg.export._pyarrow import part

        part("parquet").write_table(self.stalls, sink, compression="zstd")


def _nothing_told(_done: int, _of: int) -> None:
    """For who does not want to know how far it is."""


def report(
    dataset: str | os.PathLike[str],
    *,
    engine: str = "duckdb",
    workers: int | None = None,
    tell: Callable[[int, int], object] = _nothing_told,
) -> Report:
    """Find all stalls in a data set, and add them up. The result does not depend on the engine.

    Args:
        dataset: The folder.
        engine: "duckdb": worker processes of this machine; "dask": a dask cluster, that of dask's setting `scheduler-address`
            (DASK_SCHEDULER_ADDRESS) or, where there is none, one of this machine's. All read the data set by this path.
        workers: How many processes of this machine; None = one for each CPU.
        tell: Called with how many runs are done, and of how many.

    Raises:
        ValueError: There is no such engine.
        RecordingError: There is no such data set.
        NotSupported: A library is not installed.
        MemcgError: A worker process died, or the cluster cannot be had.

    The processes are spawned: a script that calls this needs `if __name__ == "__main__":`.
    """
    from pymemcg.fleet import _engines
    from pymemcg.fleet._find import clipped, find
    from pymemcg.fleet._tables import stalls_of, summed

    found_files, notes = listed(dataset)
    with _engines.engine(engine, workers) as mapping:
        runs: list[Run] = []
        for looked in mapping(looked_into, found_files):
            if isinstance(looked, Run):
                runs.append(looked)
            else:
                notes += looked
        runs, doubled = clipped(runs)
        largest_first = sorted(runs, key=lambda run: -sum(file.rows for of in run.files.values() for file in of))
        found = []
        for one in mapping(find, largest_first):
            found.append(one)
            tell(len(found), len(runs))
    found.sort(key=lambda one: (one.run.host, one.run.run))
    notes += [*doubled, *(note for one in found for note in one.notes)]
    stalls = stalls_of(found)
    return Report(**summed(found, stalls), notes=notes, stalls=stalls)
