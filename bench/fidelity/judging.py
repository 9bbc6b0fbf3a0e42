# SPDX-License-Identifier: Apache-2.0
"""What the detector makes of a run's recording, evidence by evidence, beside the truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.fidelity.running import Environment, Run, rises
from bench.fidelity.scores import IntervalScore, Score, said, score, score_intervals
from bench.fidelity.truth import Interval
from bench.fidelity.workloads import Workload
from pymemcg import schema
from pymemcg.detecting import stalls
from pymemcg.recording import Recording

EVIDENCE = ("trace", "psi", "counters", "auto")
_EDGE_NS = 100_000_000
"""Intervals are compared from so long after the beginning of the trace to so long before its end."""


@dataclass(slots=True)
class Judged:
    """A run of one workload in one environment.

    Attributes:
        workload: Which.
        environment: Where.
        episodes: Stalls that there were, with the harmless ones.
        held_ns: For how long somebody was held, in all.
        scores: By evidence.
        unavailable: By evidence, why it has none.
        intervals: Of evidence `trace`, where it works.
        stats: Of the sampler.
        causes: By evidence, how often each cause was named for what counts.
        told: By evidence, what it told of that counts; and what there was: for who wants to see why.
        steal: Share of CPU time that the hypervisor took meanwhile.
    """

    workload: Workload
    environment: Environment
    episodes: int
    held_ns: int
    scores: dict[str, Score]
    unavailable: dict[str, str]
    intervals: IntervalScore | None
    stats: dict[str, Any]
    causes: dict[str, dict[str, int]] = field(default_factory=dict)
    told: dict[str, list[list[Any]]] = field(default_factory=dict)
    steal: float = 0.0

    def describe(self) -> dict[str, Any]:
        """For JSON, with all that the figures are made of."""
        return {
            "workload": self.workload.name,
            "title": self.workload.title,
            "environment": asdict(self.environment),
            "episodes": self.episodes,
            "held_ns": self.held_ns,
            "scores": {name: asdict(each) for name, each in self.scores.items()},
            "unavailable": self.unavailable,
            "intervals": _without_lists(self.intervals),
            "stats": self.stats,
            "causes": self.causes,
            "told": self.told,
            "steal": self.steal,
        }


def judge(workload: Workload, environment: Environment, run: Run, evidence: Iterable[str] = EVIDENCE) -> Judged:
    """Let the detector work on the recording, and score it."""
    true = run.episodes()
    hits, ticks = rises(run.recording), run.recording.usage.read()[0]["t_ns"].tolist()
    found = Judged(workload, environment, len(true), sum(each.stall_ns for each in true), {}, {}, None, run.stats)
    found.told["truth"] = [[each.start_ns, each.end_ns, each.stall_ns, each.longest_ns] for each in true if each.counts]
    for name in evidence:
        if why := run.evidence.get(name):
            found.unavailable[name] = why
            continue
        try:
            told = [said(each) for each in stalls(run.recording, evidence=name)]
        except Exception as error:  # noqa: BLE001 - a detector that fails is a finding, and others may not
            found.unavailable[name] = f"**fails: {type(error).__name__}: {error}**"
            continue
        told = [each for each in told if each.end_ns >= run.truth.since_ns and each.start_ns <= run.truth.until_ns]
        timed = name != "counters"
        known = run.episodes(touches=name != "trace")  # by what happens at a tracepoint, where that is all there is to see
        found.scores[name] = score(known, told, None if timed else hits, ticks, timed=timed)
        causes: dict[str, int] = {}
        for each in told:
            if each.harmless is not True:
                causes[each.cause] = causes.get(each.cause, 0) + 1
        found.causes[name] = causes
        found.told[name] = [
            [each.start_ns, each.end_ns, each.stall_ns, each.longest_ns, each.lo_ns, each.hi_ns, each.harmless, each.cause]
            for each in told
        ]
    if "trace" in found.scores:
        since, until = run.truth.since_ns + _EDGE_NS, run.truth.until_ns - _EDGE_NS
        found.intervals = score_intervals(run.truth.intervals, intervals_told(run.recording), since, until)
    return found


def intervals_told(recording: Recording) -> list[Interval]:
    """The `reclaim` channel's rows that have a begin and an end event, as the truth has them."""
    rows = recording.reclaim.read()[0]
    if not len(rows):
        return []
    columns = (rows[name].tolist() for name in ("tid", "kind", "start_ns", "end_ns", "reclaimed_pages"))
    kinds = {number: name for number, name in schema.RECLAIM_KINDS.items() if name in ("memcg", "direct", "compaction")}
    return [
        Interval(tid, kinds[kind], start, end, pages)
        for tid, kind, start, end, pages in zip(*columns, strict=True)
        if kind in kinds and end < 2**63 - 1
    ]


def _without_lists(found: IntervalScore | None) -> dict[str, int] | None:
    return {"true": found.true, "found": found.found, "invented": found.invented} if found else None
