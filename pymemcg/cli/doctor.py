# SPDX-License-Identifier: Apache-2.0
"""Say what can be measured here, for which group, and what each missing thing would need.

Nothing is started, changed or left behind. The exit status is 4 where not even a group's usage can be measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Final

from pymemcg._words import UNKNOWN, size
from pymemcg.cli._arguments import add_target
from pymemcg.cli._text import has_colours, painted, terminal_width, wrapped
from pymemcg.doctor import examine
from pymemcg.errors import NotSupported
from pymemcg.surroundings import Check

HELP: Final = "say what can be measured here, and what each missing thing would need"

_COLOURS: Final = {"yes": 32, "partly": 33, "no": 31, "info": 36}
_STATE_WIDTH, _NAME_WIDTH = 6, 17


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    add_target(parser)
    parser.add_argument("--json", action="store_true", help="print the facts as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Examine and print."""
    report = examine(args.target)
    checks: list[Check] = report["checks"]
    if args.json:
        print(json.dumps(report | {"checks": [dataclasses.asdict(check) for check in checks]}, indent=2))
    else:
        print("\n".join(_lines(report, terminal_width(), colours=has_colours())))
    measurable = any(check.name == "usage" and check.state == "yes" for check in checks)
    return 0 if measurable else NotSupported.exit_code


def _lines(report: dict[str, Any], width: int, *, colours: bool) -> Iterator[str]:
    yield f"pymemcg {report['pymemcg']}, Python {report['python']}, Linux {report['kernel']} ({report['machine']})"
    yield ""
    group = report["group"]
    if group:
        yield from _group_lines(group)
        yield ""
    for check in report["checks"]:
        state = check.state if check.state != "info" else "-"
        mark = painted(state.ljust(_STATE_WIDTH), _COLOURS[check.state], colours=colours)
        text = [check.says] + ([f"needs: {check.needs}"] if check.needs and check.needs not in check.says else [])
        hang = " " * (_STATE_WIDTH + 2 + _NAME_WIDTH + 2)
        lines = [line for part in text for line in wrapped(part, width - len(hang))]
        yield f"{mark}  {check.name.ljust(_NAME_WIDTH)}  {lines[0]}"
        yield from (hang + line for line in lines[1:])


def _group_lines(group: dict[str, Any]) -> Iterator[str]:
    layout = "hybrid: memory on v1 beside cgroup2" if group["layout"] == "hybrid" else f"cgroup {group['layout']}"
    whose = "this process's own group" if group["own"] else "another group"
    yield f"{group['spec']}: {whose} ({layout})"
    yield f"  memory    {group['directory']}"
    if group["cgroup2_directory"] and group["cgroup2_directory"] != group["directory"]:
        yield f"  cgroup2   {group['cgroup2_directory']}"
    if group["pressure_file"]:
        yield f"  pressure  {group['pressure_file']}"
    limit = group["limit_bytes"]
    if limit is None:
        yield "  limit     none that can be seen from here"
    else:
        yield f"  limit     {size(limit)}, set by {group['limit_level']}"
    if len(group["levels"]) > 1 or group["levels"][0]["high_bytes"] is not None:
        for level in group["levels"]:
            says = ", ".join(
                f"{role} {size(level[f'{role}_bytes'])}"
                for role in ("usage", "limit", "high")
                if level[f"{role}_bytes"] is not None
            )
            yield f"            {level['name']}: {says or UNKNOWN}"
