# SPDX-License-Identifier: Apache-2.0
"""Score the detector of stalls on this machine, as root: `python -m bench.fidelity --write docs/fidelity.md`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator

from bench.fidelity import costs, requests, running
from bench.fidelity.judging import judge
from bench.fidelity.keeping import keep, keep_others, kept, kept_others
from bench.fidelity.running import Environment
from bench.fidelity.table import Report
from bench.fidelity.workloads import WORKLOADS, Workload
from pymemcg.bench import machine
from pymemcg.bench.swap import ZramSwap
from pymemcg.errors import MemcgError

SECONDS, LONG_SECONDS = 9.0, 20.0
SWAP_BYTES = 2 << 30
PAIRS = 20
NOT_HERE = (
    ("memory.high", "the truth would be the load's own log; needs memory on cgroup v2"),
    ("background reclaim", "kswapd works when the whole machine runs out; that is nothing to do on a machine that others use"),
)


def main() -> int:
    """Run what is asked for."""
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and what was made is removed, as after Ctrl-C
    steal = machine.Steal()
    seconds = args.seconds or (LONG_SECONDS if args.long else SECONDS)
    command = (
        "python -m bench.fidelity" + (" --long" if args.long else "") + (f" --seconds {seconds:g}" if args.seconds else "")
    )
    report = Report(command, machine.describe(), seconds, failed=list(NOT_HERE))
    raw: dict[str, object] = {"about": report.about, "seconds": seconds, "runs": []}
    if args.again:
        kept_others(args.again, report)
        for workload, environment, run in kept(args.again):
            if not args.only or workload.name in args.only:
                report.judged.append(judge(workload, environment, run))
    else:
        _measure(report, raw, args, seconds)
        report.steal = steal.ratio()
        if args.keep:
            keep_others(args.keep, report)
    raw["runs"] = [each.describe() for each in report.judged]
    raw["failed"], raw["steal"] = report.failed, report.steal
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(raw, file)
    if args.write:
        report.write(args.write)
    print(report.to_markdown())
    return 0


def _measure(report: Report, raw: dict[str, object], args: argparse.Namespace, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="pymemcg-fidelity-") as folder, ZramSwap(SWAP_BYTES):
        for workload in WORKLOADS:
            for environment in _environments(workload, long=args.long):
                if not args.only or workload.name in args.only:
                    _one(report, workload, environment, seconds, args.keep or folder)
        if not args.only:
            report.requests, raw["requests"] = requests.measure(seconds, _tell)
            try:
                report.costs, raw["costs"] = costs.measure(PAIRS, _tell)
            except MemcgError as error:
                report.failed.append(("costs", str(error)))


def _one(report: Report, workload: Workload, environment: Environment, seconds: float, folder: str) -> None:
    where = f"{workload.name} ({environment.title})"
    _tell(where)
    name = f"{workload.name}-{environment.processes}-{'in' if environment.inside else 'out'}.memcg".replace(" ", "-")
    steal = machine.Steal()
    try:
        run = running.run(workload, environment, seconds, os.path.join(folder, name))
        keep(workload, environment, run)
        report.judged.append(judge(workload, environment, run))
        report.judged[-1].steal = steal.ratio()
    except MemcgError as error:
        report.failed.append((where, str(error)))
        print(f"  failed: {error}", file=sys.stderr, flush=True)


def _tell(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


def _environments(workload: Workload, *, long: bool) -> Iterator[Environment]:
    """One process watched from outside and several with samplers inside; in a long run also the other way round."""
    few, many = workload.processes[0], workload.processes[-1]
    yield Environment(few, inside=False)
    yield Environment(many, inside=True)
    if long:
        yield Environment(few, inside=True)
        if many != few:
            yield Environment(many, inside=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.fidelity", description=__doc__)
    parser.add_argument("--long", action="store_true", help="longer runs, in twice as many environments")
    parser.add_argument("--seconds", type=float, help="of each run")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[each.name for each in WORKLOADS], help="workloads")
    parser.add_argument("--json", metavar="FILE", help="write all scores, with what they are made of")
    parser.add_argument("--write", metavar="PAGE", help="put the tables between the markers of a page")
    parser.add_argument("--keep", metavar="FOLDER", help="keep the recordings there, with the truth")
    parser.add_argument("--again", metavar="FOLDER", help="run nothing, but judge the detector by what was kept there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
