# SPDX-License-Identifier: Apache-2.0
"""Find the stalls of many hosts, in a data set that they wrote with `record --parquet DIR`, and add them up.

Tells which services were stalled the most, by what, and how often limits were hit, per hour of sampled time; and below that
what the data set lacks. The engine duckdb uses all CPUs of this machine; dask a cluster, that of DASK_SCHEDULER_ADDRESS or one
of this machine's. Both find the same. Needs the extra [fleet].
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from pymemcg._words import UNKNOWN, between, number, span
from pymemcg.cli._progress import progress
from pymemcg.cli._stalls import BOLD, DIM
from pymemcg.cli._text import aligned, elided, has_colours, painted, terminal_width, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pymemcg.fleet import Report

HELP: Final = "find and add up the stalls of many hosts"

_SHOWN: Final = 20
"""Rows of a table, and notes; --json has all."""
_OTHERS: Final = 88
"""Columns that a row of services takes beside its name."""
_LEAST_NAME: Final = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    report = actions.add_parser("report", help=HELP, description=__doc__, formatter_class=parser.formatter_class)
    report.add_argument("dataset", metavar="DATASET", help="the folder")
    report.add_argument(
        "--engine", choices=("duckdb", "dask"), default="duckdb", help="what runs the detector (default: duckdb)"
    )
    report.add_argument(
        "--json", action="store_true", help="print one JSON object, with all rows and also those of each target"
    )
    report.add_argument("--parquet", metavar="FILE", help="write the stalls, a row each; replaced if it exists")


def run(args: argparse.Namespace) -> int:
    """Report."""
    from pymemcg.export._part import Part, unwritten
    from pymemcg.fleet import report

    with ExitStack() as stack:
        part = None
        if args.parquet is not None:
            part = Part(args.parquet)  # before the work, so that it is not in vain
            stack.callback(part.drop)
        with progress("detecting", 1, "{says}") as told:
            found = report(
                args.dataset,
                engine=args.engine,
                tell=lambda done, of: told(done / of, f"{number(done)} of {number(of)} runs"),
            )
        if part is not None:
            try:
                found.write(part.file)
            except OSError as error:
                raise unwritten(part.path, error) from error
            part.keep()
    print(json.dumps(found.to_dict()) if args.json else "\n".join(_lines(found)))
    return 0


# ---- In words ------------------------------------------------------------------------------------------------------


def _lines(found: Report) -> Iterator[str]:
    hosts = len({row["host"] for row in found.targets})
    sampled = sum(row["sampled_ns"] or 0 for row in found.targets)
    yield f"{_counted(len(found.targets), 'target')} on {_counted(hosts, 'host')}, sampled for {span(sampled)} in all"
    yield from _table("Worst services", _SERVICE_TITLES, [_service(row) for row in found.services])
    yield from _table("Causes", _CAUSE_TITLES, [_cause(row) for row in found.causes])
    hours = sorted(found.hours, key=lambda row: (-(row["stall_ns_per_hour"] or 0), row["hour"]))
    yield from _table("Worst hours (UTC)", _HOUR_TITLES, [_hour(row) for row in hours])
    if found.notes:
        yield ""
        yield painted("What the figures lack", BOLD, colours=has_colours())
    for note in found.notes[:_SHOWN]:
        where = " ".join(filter(None, (note.host, note.run)))
        lines = wrapped(f"{where}: {note.what}" if where else note.what, terminal_width() - 4)
        yield from (f"{'    ' if i else '  '}{line}" for i, line in enumerate(lines))
    if len(found.notes) > _SHOWN:
        yield f"  and {number(len(found.notes) - _SHOWN)} more, which --json has"


def _counted(count: int, what: str) -> str:
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def _table(title: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield ""
    yield painted(title, BOLD, colours=has_colours())
    if not rows:
        yield "  none"
        return
    head, *body = aligned([titles, *rows[:_SHOWN]]).split("\n")
    yield painted(head, DIM, colours=has_colours())
    yield from body
    if len(rows) > _SHOWN:
        yield f"  and {number(len(rows) - _SHOWN)} more, which --json has"


_SERVICE_TITLES: Final = (
    "service",
    "targets",
    "sampled",
    "stalls",
    "stalled/h",
    "worst",
    "mostly",
    "limit hits/h",
    "span hits/h",
)
_CAUSE_TITLES: Final = ("cause", "stalls", "stalled", "between", "worst", "no duration", "harmless", "limit hits")
_HOUR_TITLES: Final = ("hour", "targets", "sampled", "stalls", "stalled/h", "limit hits/h", "span hits/h")


def _service(row: Mapping[str, Any]) -> tuple[str, ...]:
    name = elided(row["service"], max(_LEAST_NAME, terminal_width() - _OTHERS))
    return (
        *(name, number(row["targets"]), span(row["sampled_ns"])),
        *(number(row["stalls"]), span(row["stall_ns_per_hour"]), span(row["worst_ns"]), row["cause"] or UNKNOWN),
        *(number(row["limit_hits_per_hour"]), number(row["span_hits_per_hour"])),
    )


def _cause(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        *(row["cause"], number(row["stalls"]), span(row["stall_ns"]), between(row["stall_lo_ns"], row["stall_hi_ns"])),
        *(span(row["worst_ns"]), number(row["unknown"]), span(row["harmless_ns"]), number(row["limit_hits"])),
    )


def _hour(row: Mapping[str, Any]) -> tuple[str, ...]:
    begin = UNKNOWN if row["hour"] is None else time.strftime("%Y-%m-%d %H:00", time.gmtime(row["hour"] // 10**9))
    return (
        *(begin, number(row["targets"]), span(row["sampled_ns"]), number(row["stalls"]), span(row["stall_ns_per_hour"])),
        *(number(row["limit_hits_per_hour"]), number(row["span_hits_per_hour"])),
    )
