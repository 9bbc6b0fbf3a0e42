# SPDX-License-Identifier: Apache-2.0
"""Runs that are kept beside their recordings, so that another detector can be judged by them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, astuple
from pathlib import Path

from bench.fidelity.running import Environment, Run
from bench.fidelity.table import Report
from bench.fidelity.truth import Interval, Truth
from bench.fidelity.workloads import WORKLOADS, Workload
from pymemcg.recording import Recording

_OTHERS = "others.json"
_REPORTED = ("command", "about", "seconds", "failed", "requests", "costs", "steal")


def keep(workload: Workload, environment: Environment, run: Run) -> None:
    """Write the truth beside the recording."""
    found = {
        "workload": workload.name,
        "environment": asdict(environment),
        "intervals": [astuple(each) for each in run.truth.intervals],
        "waits": run.truth.waits,
        "span_ns": [run.truth.since_ns, run.truth.until_ns, run.begin_ns, run.end_ns],
        "touches": run.touches,
        "stats": run.stats,
        "evidence": run.evidence,
    }
    with open(f"{run.recording.path}.truth", "w", encoding="utf-8") as file:
        json.dump(found, file)


def kept(folder: str) -> Iterator[tuple[Workload, Environment, Run]]:
    """All runs of a folder, in the order of the workloads."""
    workloads = {each.name: each for each in WORKLOADS}
    found = [(json.loads(path.read_text()), str(path).removesuffix(".truth")) for path in sorted(Path(folder).glob("*.truth"))]
    found.sort(key=lambda each: list(workloads).index(each[0]["workload"]))
    for run, path in found:
        waits = {int(tid): [(start, end) for start, end in spans] for tid, spans in run["waits"].items()}
        since_ns, until_ns, begin_ns, end_ns = run["span_ns"]
        true = Truth([Interval(*each) for each in run["intervals"]], waits, 0, since_ns, until_ns)
        touches = [(tid, start, end) for tid, start, end in run["touches"]]
        yield (
            workloads[run["workload"]],
            Environment(**run["environment"]),
            Run(Recording(path), true, touches, begin_ns, end_ns, run["stats"], run["evidence"]),
        )


def keep_others(folder: str, report: Report) -> None:
    """Write what is no run of a workload."""
    with open(f"{folder}/{_OTHERS}", "w", encoding="utf-8") as file:
        json.dump({name: getattr(report, name) for name in _REPORTED}, file)


def kept_others(folder: str, report: Report) -> None:
    """Read it again, where there is any."""
    path = Path(folder, _OTHERS)
    if path.exists():
        for name, value in json.loads(path.read_text()).items():
            setattr(report, name, value)
