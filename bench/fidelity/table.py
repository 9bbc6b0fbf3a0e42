# SPDX-License-Identifier: Apache-2.0
"""What was found, as Markdown. What fails stays in, and is set in bold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from statistics import median
from typing import Any

import numpy as np

from bench.fidelity.judging import EVIDENCE, Judged
from bench.fidelity.scores import Score, near
from bench.fidelity.workloads import WORKLOADS

RECALL = PRECISION = 0.98
COVERED, WIDTH = 0.95, 2.0
ONSET_TICKS = 2.0
FOUND, MIDDLE_NS, FAR_NS = 0.999, 500, 2000
BEGIN, END = "<!-- fidelity: begin -->", "<!-- fidelity: end -->"
_NONE = "–"


@dataclass(slots=True)
class Report:
    """All that was measured.

    Attributes:
        command: That remakes it.
        about: The machine.
        judged: Runs of workloads.
        failed: What could not be run, and why.
        requests: Rows of requests, as `requests.Requests.row` gives them.
        costs: Lines about what evidence `trace` costs.
        steal: Share of CPU time that the hypervisor took.
        seconds: Of each run.
        guests: What was measured on other kernels.
    """

    command: str
    about: dict[str, Any]
    seconds: float
    judged: list[Judged] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    requests: list[list[str]] = field(default_factory=list)
    costs: list[list[str]] = field(default_factory=list)
    steal: float = 0.0
    guests: list[Report] = field(default_factory=list)

    @property
    def kernel_version(self) -> str:
        """As people call it: 6.12."""
        return ".".join(str(self.about["kernel"]).split(".")[:2])

    def to_markdown(self) -> str:
        """The page's part between its markers."""
        reports = [each for each in (self, *self.guests) if each.judged]
        ran = {each.workload.name for report in reports for each in report.judged}
        workloads = [each for each in WORKLOADS if each.name in ran]
        parts = [
            f"Remade by `{self.command}`. Broken promises are **bold**.",
            "\n".join(f"- **{_name(each)}**: {_about(each)}" for each in reports),
            "### All workloads together",
            _table(("kernel", *_TOTALS), [[_name(each), *_total(each.judged, name)] for name in EVIDENCE for each in reports]),
            "### The workloads",
            "\n".join(f"- **{each.name}**: {each.title}" for each in workloads),
            "### Stalls, workload by workload",
            "In brackets: how many processes, and where the sampler is.",
            _side_by_side(("evidence",), _STALLS_SHORT, reports, _short_rows),
            "### Reclaim intervals with evidence `trace`",
            _side_by_side((), _INTERVALS, reports, _interval_rows),
        ]
        if any(not each.true_stalls for each in workloads):
            parts += ["### Where nothing should be told", _side_by_side((), _QUIET, reports, _quiet_rows)]
        for report in reports:
            table = _table(_STALLS, [row for each in report.judged for row in _stall_rows(each)])
            parts += [f"### All figures of {_name(report)}", table]
        if self.requests:
            parts += ["### Requests", _table(_REQUESTS, self.requests)]
        if self.costs:
            parts += ["### What `trace` costs", _table(_COSTS, self.costs)]
        if failed := [f"- {_name(report)}, {name}: {why}" for report in (self, *self.guests) for name, why in report.failed]:
            parts += ["### Not to be had", "\n".join(failed)]
        return "\n\n".join(parts) + "\n"

    def write(self, path: str) -> None:
        """Put it between the markers of a page.

        Raises:
            ValueError: It has none.
        """
        with open(path, encoding="utf-8") as file:
            before, begin, rest = file.read().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ValueError(f"{path}: no {BEGIN} … {END}")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"{before}{BEGIN}\n\n{self.to_markdown()}\n{END}{after}")


_TOTALS = (
    "evidence",
    "stalls ≥ 1 ms",
    "recall",
    "of those missed, near 1 ms",
    "told",
    "told without a duration",
    "precision",
    "of those not true, near 1 ms",
    "onset p50 / p95, ticks",
    "said ÷ true time",
    "inside lo…hi",
    "hi ÷ lo",
)
_STALLS = ("workload", *(name for name in _TOTALS if "near" not in name))
_STALLS_SHORT = ("stalls ≥ 1 ms", "recall", "precision", "said ÷ true time")
_TIMED = [name for name in EVIDENCE if name != "counters"]
_QUIET = ("stalls ≥ 1 ms that there truly were", f"told of by {' / '.join(f'`{name}`' for name in _TIMED)}, not true")
_INTERVALS = ("true", "found", "invented", "begin apart p50 / p99", "end apart p50 / p99")
_REQUESTS = (
    "requests",
    "evidence",
    "requests that lost ≥ 1 ms",
    "named",
    "F1",
    "time in reclaim, said ÷ true",
    "spans within 1 %",
)
_COSTS = ("what", "with `trace`", "without", "difference", "95 % interval")


def _where(each: Judged) -> str:
    return f"{each.workload.name} ({each.environment.title})"


def _total(judged: Sequence[Judged], name: str) -> list[str]:
    scores = [each.scores[name] for each in judged if name in each.scores]
    if not scores:
        why = next((each.unavailable[name] for each in judged if name in each.unavailable), "not measured")
        return [f"`{name}`", why, *[_NONE] * (len(_TOTALS) - 2)]
    whole = reduce(add, scores, Score())
    promised = name != "counters"
    row = [f"`{name}`", *_figures(whole, promised=promised)]
    row.insert(3, f"{near(whole.missed_ns)} of {len(whole.missed_ns)}")
    row.insert(7, f"{near(whole.invented_ns)} of {len(whole.invented_ns)}")
    return row


def _name(report: Report) -> str:
    return report.kernel_version


def _about(report: Report) -> str:
    about = report.about
    where = f"Linux {about['kernel']}, HZ={about['hz']}, {about['cpus']} CPU{'s' if about['cpus'] > 1 else ''}"
    if about.get("guest"):
        return f"{where}, emulated, its clock counting instructions, 1 ns each; runs of {report.seconds:g} s"
    return f"{where} ({about['processor']}), load {about['load']:.1f}; runs of {report.seconds:g} s, steal {report.steal:.1%}"


Rows = Callable[[Judged], dict[tuple[str, ...], list[str]]]
"""What a run comes to: from the first cells of a row to those of its kernel's columns."""


def _side_by_side(first: Sequence[str], columns: Sequence[str], reports: Sequence[Report], rows: Rows) -> str:
    """A table with the columns of each kernel; what it did not run is left out."""
    cells: dict[tuple[str, ...], dict[int, list[str]]] = {}
    for i, report in enumerate(reports):
        for each in report.judged:
            for key, row in rows(each).items():
                cells.setdefault((_where(each), *key), {})[i] = row
    head = ["workload", *first, *(f"{_name(report)}: {column}" for report in reports for column in columns)]
    none = [_NONE] * len(columns)
    names = [workload.name for workload in WORKLOADS]
    lines = sorted(cells, key=lambda key: names.index(key[0].partition(" (")[0]))
    return _table(head, [[*key, *(cell for i in range(len(reports)) for cell in cells[key].get(i, none))] for key in lines])


def _short_rows(each: Judged) -> dict[tuple[str, ...], list[str]]:
    found = {}
    for name, score in each.scores.items():
        figures = dict(zip(_STALLS[2:], _figures(score, promised=name != "counters"), strict=True))
        found[(f"`{name}`",)] = [figures[column] for column in _STALLS_SHORT]
    for name in each.unavailable:
        found[(f"`{name}`",)] = ["not to be had", *[_NONE] * (len(_STALLS_SHORT) - 1)]
    return found


def _quiet_rows(each: Judged) -> dict[tuple[str, ...], list[str]]:
    if each.workload.true_stalls:
        return {}
    scores = [each.scores.get(name) for name in _TIMED]
    true = max((score.true for score in each.scores.values()), default=0)
    return {(): [str(true), " / ".join(_NONE if s is None else _bold(str(s.told - s.right), s.told > s.right) for s in scores)]}


def _stall_rows(each: Judged) -> Iterable[list[str]]:
    for name, score in each.scores.items():
        yield [_where(each), f"`{name}`", *_figures(score, promised=name != "counters")]
    for name, why in each.unavailable.items():
        yield [_where(each), f"`{name}`", why, *[_NONE] * (len(_STALLS) - 3)]


def _figures(score: Score, *, promised: bool) -> list[str]:
    """From the number of true stalls to hi ÷ lo. Of counters, recall is promised, and that none is told of without a hit."""
    onsets = np.abs(score.onset_ticks)
    middle, late = np.percentile(onsets, (50, 95)) if len(onsets) else (0.0, 0.0)
    width = median(hi / max(lo, 1) for lo, hi in zip(score.lo_ns, score.hi_ns, strict=True)) if score.lo_ns else None
    precision = _share(score.precision, PRECISION if promised else 0)
    if not promised and score.unhit:
        precision += f" **({score.unhit} without a hit)**"
    return [
        str(score.true),
        _share(score.recall, RECALL),
        str(score.told),
        str(score.vague),
        precision,
        _bold(f"{middle:.1f} / {late:.1f}", promised and late > ONSET_TICKS) if len(onsets) else _NONE,
        f"{sum(score.said_ns) / sum(score.true_ns):.2f}" if score.true_ns else _NONE,
        _share(score.covered, COVERED),
        _bold(f"{width:.2f}", width > WIDTH) if width is not None else _NONE,
    ]


def _interval_rows(each: Judged) -> dict[tuple[str, ...], list[str]]:
    found = each.intervals
    if found is None:
        return {}
    share = found.found / found.true if found.true else None
    shares = _NONE if share is None else _bold(f"{share:.3%}", share < FOUND)
    apart = [_apart(found.begin_ns), _apart(found.end_ns)]
    return {(): [str(found.true), shares, _bold(str(found.invented), found.invented > 0), *apart]}


def _apart(differences_ns: Sequence[int]) -> str:
    if not differences_ns:
        return _NONE
    middle, far = np.percentile(np.abs(differences_ns), (50, 99))
    return f"{_bold(f'{middle / 1000:.2f}', middle > MIDDLE_NS)} / {_bold(f'{far / 1000:.2f}', far > FAR_NS)} µs"


def _share(value: float | None, promised: float) -> str:
    return _NONE if value is None else _bold(f"{value:.3f}", value < promised)


def _bold(text: str, broken: Any) -> str:
    return f"**{text}**" if broken else text


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    line: Callable[[Sequence[str]], str] = lambda cells: f"| {' | '.join(cells)} |"  # noqa: E731
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])
