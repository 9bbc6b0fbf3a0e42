# SPDX-License-Identifier: Apache-2.0
"""What a data set holds: its runs, from the names of files and from what their footers say, without reading a row."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from glob import escape, iglob
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pymemcg.errors import RecordingError
from pymemcg.export._pyarrow import pa, part
from pymemcg.export.parquet import provenance_of, runs
from pymemcg.fleet._service import group_of, service_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Named: TypeAlias = Mapping[str, Sequence[str]]

TIMES: Final = {
    "reclaim": ("start_ns", "end_ns"),
    "spans": ("start_ns", "end_ns"),
    "events": ("since_ns", "t_ns"),
}
"""From when to when a row of a channel speaks; `t_ns` in both places where it is not listed."""
_NUMBER: Final = re.compile(r"-(\d+)\.parquet$")
_SHOWN: Final = 3
"""Names that a note gives of many."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the figures lack, or that they are to be read with.

    Attributes:
        host: Of which host; None = of the whole data set.
        run: Of which run; None = of the whole host.
        what: In words.
    """

    host: str | None
    run: str | None
    what: str


@dataclass(frozen=True, slots=True)
class File:
    """A Parquet file of one channel.

    Attributes:
        path: Its name.
        number: Its place among the run's files of that channel, from 0 on.
        rows: How many it has.
        first_ns: The least time of its rows (CLOCK_MONOTONIC); None = it has none.
        last_ns: The greatest.
        open_ended: It has intervals that had no end when sampling ended.
    """

    path: str
    number: int
    rows: int
    first_ns: int | None
    last_ns: int | None
    open_ended: bool = False

    def speaks_of(self, since_ns: int, until_ns: int) -> bool:
        """Whether there may be rows of that time."""
        if self.first_ns is None or self.last_ns is None:
            return False
        return self.first_ns < until_ns and (self.open_ended or self.last_ns >= since_ns)


@dataclass(frozen=True, slots=True)
class Run:
    """What one sampler of one target wrote, on one clock.

    Attributes:
        host: As the folders have it.
        run: As the files' names have it.
        service: See `pymemcg.fleet.service_of`.
        group: The target's path in its hierarchy.
        said: See `pymemcg.export.arrow.provenance`.
        files: Channel to files in the order of their rows.
        since_ns: Tell nothing of the time before (CLOCK_MONOTONIC); another run tells it.
        notes: What its files lack.
    """

    host: str
    run: str
    service: str
    group: str
    said: Mapping[str, Any]
    files: Mapping[str, tuple[File, ...]]
    since_ns: int = 0
    notes: tuple[Note, ...] = ()

    def without(self, damaged: Mapping[str, str]) -> Run:
        """The same without some files: path to why."""
        kept = {channel: tuple(file for file in files if file.path not in damaged) for channel, files in self.files.items()}
        notes = [self.lacks(f"left out: {path}: {why}") for path, why in damaged.items()]
        return replace(self, files=kept, notes=(*self.notes, *notes))

    def span(self) -> tuple[int, int] | None:
        """The times of its first and its last row; None where it has none."""
        times = [
            (file.first_ns, file.last_ns)
            for channel in ("usage", "stat", "node", "pressure", "reclaim")
            for file in self.files.get(channel, ())
            if file.first_ns is not None and file.last_ns is not None
        ]
        return (min(first for first, _ in times), max(last for _, last in times)) if times else None

    def lacks(self, what: str) -> Note:
        """A note about it."""
        return Note(self.host, self.run, what)


@dataclass(frozen=True, slots=True)
class Listed:
    """A run as the names of its files tell of it.

    Attributes:
        host: As the folders have it.
        run: As the files' names have it.
        files: Channel to paths in the order of their rows.
    """

    host: str
    run: str
    files: Named = field(hash=False)


def listed(dataset: str | os.PathLike[str]) -> tuple[list[Listed], list[Note]]:
    """The runs of a data set by the names of its files, and what else is there.

    Raises:
        RecordingError: There is no such folder, or no such file in it.
    """
    folder = os.fspath(dataset)
    found = [Listed(host, run, files) for (host, run), files in runs(folder).items()]
    if not found:
        why = "has no files CHANNEL/host=HOST/date=DATE/NAME.parquet" if os.path.isdir(folder) else "is no folder"
        raise RecordingError(why, path=folder, hint="`pymemcg record --parquet DIR` writes such a data set")
    known = {path for run in found for paths in run.files.values() for path in paths}
    return found, list(_beside(folder, known))


def _beside(folder: str, known: set[str]) -> Iterator[Note]:
    """What lies in the partitions and is none of the runs' files."""
    others, unfinished, empty = [], [], []
    for place in sorted(iglob(f"{escape(folder)}/*/host=*/date=*/")):
        names = sorted(os.listdir(place))
        hidden = [name for name in names if name.startswith(".") and name.endswith(".unfinished")]
        unfinished += [place + name for name in hidden]
        others += [place + name for name in names if name not in hidden and place + name not in known]
        if not names:
            empty.append(place)
    told = (
        (others, "not read: no file that `record --parquet` writes"),
        (unfinished, "not read: not closed yet, or its writer was killed"),
        (empty, "empty partition"),
    )
    for paths, what in told:
        if paths:
            names = [os.path.relpath(path, folder) for path in paths[:_SHOWN]]
            more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
            yield Note(None, None, f"{', '.join(names)}{more}: {what}")


# ---- In a worker ---------------------------------------------------------------------------------------------------


def looked_into(run: Listed) -> Run | tuple[Note, ...]:
    """A run as the footers of its files tell of it; notes where none of them can be read."""
    try:
        return _looked_into(run)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one run, the others are told of
        return (Note(run.host, run.run, f"left out: {type(error).__name__}: {error}"),)


def _looked_into(run: Listed) -> Run | tuple[Note, ...]:
    notes: list[Note] = []
    files: dict[str, tuple[File, ...]] = {}
    said: dict[str, dict[str, Any]] = {}
    for channel, paths in run.files.items():
        good: list[File] = []
        for path in paths:
            try:
                file = _file(path, channel)
                if path == paths[-1] or channel not in said:  # the newest tells most
                    said[channel] = provenance_of(path)
            except RecordingError as error:
                notes.append(Note(run.host, run.run, f"left out: {error}"))
            else:
                good.append(file)
        files[channel] = tuple(good)
    if not said:
        return (*notes, Note(run.host, run.run, "left out: none of its files can be read"))
    provenance = said.get("usage") or next(iter(said.values()))
    if "spans" in said:  # only there is it known of which kind their references are
        provenance = {**provenance, "info": {**provenance["info"], "spans": said["spans"]["info"].get("spans", {})}}
    info = provenance["info"]
    found = Run(run.host, run.run, service_of({**info, "host": run.host}), group_of(info), provenance, files)
    return replace(found, notes=(*notes, *_lacking(found)))


def _file(path: str, channel: str) -> File:
    """What a footer says: the range of times is in the statistics of its row groups.

    Raises:
        RecordingError: It cannot be read.
    """
    since, until = TIMES.get(channel, ("t_ns", "t_ns"))
    try:
        footer = part("parquet").read_metadata(path)
        names = footer.schema.names
        groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
        first = [group.column(names.index(since)).statistics for group in groups if group.num_rows]
        last = [group.column(names.index(until)).statistics for group in groups if group.num_rows]
        first_ns = min((one.min for one in first if one.has_min_max), default=None)
        last_ns = max((one.max for one in [*first, *last] if one.has_min_max), default=None)
        open_ended = any(one.null_count for one in last)
    except (OSError, ValueError, AttributeError, pa.ArrowException) as error:
        raise RecordingError(f"cannot be read: {error}", path=path) from error
    number = _NUMBER.search(path)
    return File(path, int(number[1]) if number else 0, footer.num_rows, first_ns, last_ns, open_ended)


def _lacking(run: Run) -> Iterator[Note]:
    """What is missing, so that stalls may be."""
    for channel, files in run.files.items():
        missing = sum(after.number - before.number - 1 for before, after in pairwise(files))
        if missing:
            yield run.lacks(f"{channel}: {missing} of its files are not there, or cannot be read")
    rows = {channel: sum(file.rows for file in files) for channel, files in run.files.items()}
    absent: Mapping[str, str] = run.said["info"].get("absent") or {}
    evidence: Mapping[str, str | None] = run.said["info"].get("evidence") or {}
    if not rows.get("usage"):
        yield run.lacks(f"no usage, so that hits cannot be dated: {absent.get('usage', 'it has no rows')}")
    if not rows.get("pressure"):
        yield run.lacks(f"no PSI: {evidence.get('psi') or absent.get('pressure', 'it has no rows')}")
    if why := evidence.get("trace"):
        yield run.lacks(f"no tracepoints: {why}")
