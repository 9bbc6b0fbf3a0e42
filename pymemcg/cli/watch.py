# SPDX-License-Identifier: Apache-2.0
"""Show a group's memory as it is now: usage against the limit, what it consists of, rates, limit hits and pressure.

On a terminal, with rich (pip install 'pymemcg[cli]'), a live screen; else a line a second. Ends with Ctrl-C.
--once reads the counters a single time without a sampler; it needs 6 MiB of memory at most, and leaves PSI alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from pymemcg._words import UNKNOWN, number, share, size
from pymemcg.cgroup import Target, resolve
from pymemcg.cli._arguments import add_target, duration
from pymemcg.cli._text import has_rich
from pymemcg.once import read_once

if TYPE_CHECKING:
    from pymemcg.sampler import Sampler

HELP: Final = "show a group's memory live, or once"

_HEADER_EVERY = 20  # lines, on a terminal: as vmstat does
_SCREEN_INTERVAL_S, _LINE_INTERVAL_S = 0.33, 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    add_target(parser)
    parser.add_argument("--once", action="store_true", help="read the counters once, without a sampler, and end")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line, every interval")
    parser.add_argument(
        "--interval",
        type=duration,
        metavar="TIME",
        help="time between lines or refreshes: 500ms, 10s (default: 1s; screen 330ms)",
    )


def run(args: argparse.Namespace) -> int:
    """Watch until Ctrl-C."""
    if args.once:
        target = resolve(args.target)
        reading = read_once(target)
        print(json.dumps(reading) if args.json else "\n".join(_once_lines(target, reading)))
        return 0
    from pymemcg.cli._live import sampler_of

    with sampler_of(args.target) as sampler:
        if args.json:
            for now in _observe(sampler, args.interval or _LINE_INTERVAL_S):
                print(json.dumps(now), flush=True)
        elif sys.stdout.isatty() and has_rich():
            from pymemcg.cli._screen import show

            show(sampler, args.interval or _SCREEN_INTERVAL_S)
        else:
            _print_lines(sampler, args.interval or _LINE_INTERVAL_S)
    return 0


def _observe(sampler: Sampler, interval_s: float) -> Iterator[dict[str, Any]]:
    from pymemcg.cli._live import Observer

    observer = Observer(sampler)
    due = time.monotonic()
    while True:
        due = max(due + interval_s, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))  # it may have passed since
        yield observer.observe()


# ---- Once ----------------------------------------------------------------------------------------------------------


def _once_lines(target: Target, reading: dict[str, Any]) -> Iterator[str]:
    yield f"{target.directory} (cgroup v{target.version})"
    absent = reading["absent"]
    usage, limit = reading.get("usage_bytes"), reading["limit_bytes"]
    if usage is None:
        yield f"  usage         {UNKNOWN}  {absent.get('usage', '')}"
    elif limit is None:
        yield f"  usage         {size(usage)}, no limit to be seen from here"
    else:
        yield f"  usage         {size(usage)} of {size(limit)} ({share(usage / limit)}), limit set by {reading['limit_level']}"
        yield f"  headroom      {size(reading['headroom_bytes'])}, nearest limit: {reading['headroom_level']}"
    for title, name in (
        ("working set", "working_set_bytes"),
        ("anon", "anon_bytes"),
        ("file", "file_bytes"),
        ("swap", "swap_bytes"),
    ):
        if name in reading:
            yield f"  {title:<12}  {size(reading[name])}"
    for title, name in (
        ("limit hits", "limit_hits"),
        ("memsw hits", "memsw_hits"),
        ("high hits", "high_hits"),
        ("OOM kills", "oom_kills"),
        ("faults", "faults"),
        ("major faults", "major_faults"),
    ):
        if name in reading:
            yield f"  {title:<12}  {number(reading[name])}"
    for name, reason in absent.items():
        yield f"  {name:<12}  {UNKNOWN}  {reason}"


# ---- A line an interval --------------------------------------------------------------------------------------------

_COLUMNS: Final = (
    ("usage", "usage_bytes", size),
    ("max", "usage_max_bytes", size),
    ("limit", "limit_bytes", size),
    ("wset", "working_set_bytes", size),
    ("anon", "anon_bytes", size),
    ("file", "file_bytes", size),
    ("growth/s", "growth_bytes_per_s", size),
    ("faults/s", "faults_per_s", number),
    ("hits/s", "limit_hits_per_s", number),
    ("some", "some_ratio", share),
    ("full", "full_ratio", share),
)
_WIDTH: Final = {size: 10, number: 9, share: 6}


def _print_lines(sampler: Sampler, interval_s: float) -> None:
    header = "time    " + "".join(f"{title:>{_WIDTH[form]}}" for title, _, form in _COLUMNS)
    for i, now in enumerate(_observe(sampler, interval_s)):
        if i == 0 or (sys.stdout.isatty() and i % _HEADER_EVERY == 0):
            print(header)
        cells = (f"{form(now.get(name)):>{_WIDTH[form]}}" for _, name, form in _COLUMNS)
        print(time.strftime("%H:%M:%S") + "".join(cells), flush=True)
