# SPDX-License-Identifier: Apache-2.0
"""Score the detector of stalls, as root: `python -m bench.fidelity --kernels here 6.1 6.12 --write docs/fidelity.md`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator

from bench.fidelity import costs, guests, requests, running
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
HERE = "here"
NOT_HERE = (
    ("background reclaim", "kswapd works when the whole machine runs out: tests/live/test_thrash.py lets a guest do that"),
)


def main() -> int:
    """Run what is asked for."""
    args = _arguments()
    guests.processes.exit_on_signals()  # and what was made is removed, as after Ctrl-C
    seconds, complete = args.seconds or (LONG_SECONDS if args.long else SECONDS), True
    command = "python -m bench.fidelity" + _kernels_option(args) + (" --long" if args.long else "")
    command += f" --seconds {seconds:g}" if args.seconds else ""
    about = machine.describe() | {"guest": os.environ.get("PYMEMCG_VM")}
    report = Report(command, about, seconds, failed=[] if about["guest"] else list(NOT_HERE))
    raw: dict[str, object] = {"about": report.about, "seconds": seconds, "runs": []}
    if args.again:
        kept_others(args.again, report)
        for workload, environment, run in kept(args.again):
            if not args.only or workload.name in args.only:
                report.judged.append(judge(workload, environment, run))
        report.guests = guests.kept_reports(args.again, args.only)
        report.command = "python -m bench.fidelity" + (f" --kernels {HERE} " if report.guests else "")
        report.command += " ".join(str(each.about.get("guest") or each.kernel_version) for each in report.guests)
    else:
        with tempfile.TemporaryDirectory(prefix="pymemcg-fidelity-") as folder:
            complete = _measure_all(report, raw, args, seconds, args.keep or folder)
    raw["runs"] = [each.describe() for each in report.judged]
    raw["guests"] = [{"about": each.about, "runs": [run.describe() for run in each.judged]} for each in report.guests]
    raw["failed"], raw["steal"] = report.failed, report.steal
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(raw, file)
    if args.write:
        report.write(args.write)
    if not args.brief:
        print(report.to_markdown())
    return 0 if complete else 1


def _measure_all(report: Report, raw: dict[str, object], args: argparse.Namespace, seconds: float, folder: str) -> bool:
    """Here first, and then in guests: not at the same time, or each would disturb the other. False if a guest failed."""
    if HERE in args.kernels:
        steal = machine.Steal()
        _measure(report, raw, args, seconds, folder)
        report.steal = steal.ratio()
        keep_others(folder, report)  # before the guests: whatever becomes of those, this has been measured
    if kernels := [each for each in args.kernels if each != HERE]:
        options = [
            "--brief",
            "--seconds",
            f"{args.seconds or guests.SECONDS:g}",
            *(["--only", *args.only] if args.only else []),
        ]
        report.guests, failed = guests.measure(kernels, folder, options, _tell)
        report.failed += failed
        if failed and HERE in args.kernels:
            keep_others(folder, report)
        return not failed
    return True


def _measure(report: Report, raw: dict[str, object], args: argparse.Namespace, seconds: float, folder: str) -> None:
    with ZramSwap(SWAP_BYTES):
        for workload in (each for each in WORKLOADS if each.cpus <= len(os.sched_getaffinity(0))):
            for environment in _environments(workload, long=args.long, brief=args.brief):
                if not args.only or workload.name in args.only:
                    _one(report, workload, environment, seconds, folder, score=not args.brief)
        if not args.only and not args.brief:
            report.requests, raw["requests"] = requests.measure(seconds, _tell)
            try:
                report.costs, raw["costs"] = costs.measure(PAIRS, _tell)
            except MemcgError as error:
                report.failed.append(("costs", str(error)))


def _one(report: Report, workload: Workload, environment: Environment, seconds: float, folder: str, *, score: bool) -> None:
    where = f"{workload.name} ({environment.title})"
    _tell(where)
    name = f"{workload.name}-{environment.processes}-{'in' if environment.inside else 'out'}.memcg".replace(" ", "-")
    steal = machine.Steal()
    try:
        run = running.run(workload, environment, seconds, os.path.join(folder, name))
        keep(workload, environment, run)
        if score:
            report.judged.append(judge(workload, environment, run))
            report.judged[-1].steal = steal.ratio()
    except MemcgError as error:
        report.failed.append((where, str(error)))
        print(f"  failed: {error}", file=sys.stderr, flush=True)


def _kernels_option(args: argparse.Namespace) -> str:
    return "" if args.kernels == [HERE] else f" --kernels {' '.join(args.kernels)}"


def _tell(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


def _environments(workload: Workload, *, long: bool, brief: bool) -> Iterator[Environment]:
    """One process watched from outside and several with samplers inside; in a long run also the other way round."""
    few, many = workload.processes[0], workload.processes[-1]
    yield Environment(few, inside=False)
    if not brief:
        yield Environment(many, inside=True)
    if long and not brief:
        yield Environment(few, inside=True)
        if many != few:
            yield Environment(many, inside=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.fidelity", description=__doc__)
    parser.add_argument("--long", action="store_true", help="longer runs, in twice as many environments")
    parser.add_argument("--seconds", type=float, help="of each run")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[each.name for each in WORKLOADS], help="workloads")
    parser.add_argument(
        "--kernels",
        nargs="+",
        default=[HERE],
        metavar="KERNEL",
        help="where: here (%(default)s), or a kernel that tests/vm/run can boot, such as 6.12",
    )
    parser.add_argument("--brief", action="store_true", help="one environment each, kept and not scored, and nothing else")
    parser.add_argument("--json", metavar="FILE", help="write all scores, with what they are made of")
    parser.add_argument("--write", metavar="PAGE", help="put the tables between the markers of a page")
    parser.add_argument("--keep", metavar="FOLDER", help="keep the recordings there, with the truth")
    parser.add_argument("--again", metavar="FOLDER", help="run nothing, but judge the detector by what was kept there")
    args = parser.parse_args()
    names = [guests.name_of(kernel) for kernel in args.kernels]
    if len(set(names)) < len(names):
        parser.error(f"kernels of the same name: {' '.join(sorted(names))}")
    if args.keep:
        os.makedirs(args.keep, exist_ok=True)
    return args


if __name__ == "__main__":
    sys.exit(main())
