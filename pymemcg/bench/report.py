# SPDX-License-Identifier: Apache-2.0
"""What the overhead benchmark found: as plain values, as Markdown and for a terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pymemcg._version import __version__
from pymemcg.bench import machine

if TYPE_CHECKING:
    from pymemcg.bench.pairs import Estimate

TITLES = {
    "sample_over_pread_ratio": "a full native sample ÷ bare preads of the same files",
    "cpu_over_bare_loop_ratio": "CPU time at a fixed 1 kHz ÷ a bare loop's",
    "adaptive_over_full_ratio": "CPU time far from the limit ÷ at a fixed 1 kHz",
    "ticks_kept_1khz": "ticks kept at 1 kHz",
    "ticks_kept_10khz": "ticks kept at 10 kHz",
    "late_p99_at_limit_ratio": "late p99 in a group that reclaims ÷ beside it",
    "held_bytes": "memory held for sampling",
    "victim_p99_ratio": "p99 of a service with a sampler ÷ without",
}
_VERDICTS = {True: "kept", False: "not kept", None: "cannot be told here"}


@dataclass(frozen=True, slots=True)
class Measure:
    """One promise, measured.

    Attributes:
        key: Its name, one of `TITLES`.
        estimate: What was found.
        on: What it was measured on.
        steal_ratio: The share of CPU time that the hypervisor took meanwhile.
        promise: What was promised.
        kept: Whether it holds; None where it cannot be told.
        beside: What else was found in the same run, for comparison.
        unit: "ratio", "share" (of the whole) or "bytes".
    """

    key: str
    estimate: Estimate
    on: str
    steal_ratio: float
    promise: str
    kept: bool | None
    beside: dict[str, float] = field(default_factory=dict)
    unit: str = "ratio"

    def describe(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "value": self.estimate.value,
            "interval": [self.estimate.low, self.estimate.high],
            "pairs": self.estimate.pairs,
            "unit": self.unit,
            "on": self.on,
            "steal_ratio": self.steal_ratio,
            "promise": self.promise,
            "kept": self.kept,
            "beside": self.beside,
        }


@dataclass(frozen=True, slots=True)
class Row:
    """A default sampler in one setting.

    Attributes:
        setting: Where.
        victim_p99: Of a service's requests, with a sampler ÷ without.
        victim_p99_ns: Without.
        cpu_of_a_core: The CPU time that sampling takes, in all processes.
        ticks_per_s: As the setting lets them be.
        held_bytes: What the group is charged for samplers in all its workers.
        steal_ratio: Meanwhile.
    """

    setting: str
    victim_p99: Estimate
    victim_p99_ns: float
    cpu_of_a_core: float
    ticks_per_s: float
    held_bytes: float
    steal_ratio: float

    def describe(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "setting": self.setting,
            "victim_p99_ratio": self.victim_p99.value,
            "interval": [self.victim_p99.low, self.victim_p99.high],
            "pairs": self.victim_p99.pairs,
            "victim_p99_ns": self.victim_p99_ns,
            "cpu_of_a_core": self.cpu_of_a_core,
            "ticks_per_s": self.ticks_per_s,
            "held_bytes": self.held_bytes,
            "steal_ratio": self.steal_ratio,
        }


@dataclass
class Report:
    """All of it.

    Attributes:
        measures: By key, in order.
        rows: A default sampler, setting by setting.
        left_out: What could not be measured, and why.
        steal_ratio: The share of CPU time that the hypervisor took during the run.
        machine: `machine.describe`.
    """

    measures: dict[str, Measure] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    steal_ratio: float = 0.0
    machine: dict[str, Any] = field(default_factory=machine.describe)

    def add(self, measure: Measure) -> None:
        """Add one."""
        self.measures[measure.key] = measure

    @property
    def kept(self) -> bool:
        """Whether no promise was found broken."""
        return all(measure.kept is not False for measure in self.measures.values())

    def describe(self) -> dict[str, Any]:
        """As plain values, for JSON: the measures by their keys, beside them `rows`, `left_out` and `machine`."""
        found = {key: measure.describe() for key, measure in self.measures.items()}
        return found | {
            "rows": [row.describe() for row in self.rows],
            "left_out": self.left_out,
            "steal_ratio": self.steal_ratio,
            "machine": self.machine,
            "version": __version__,
        }

    def to_markdown(self) -> str:
        """A page to hand on."""
        measures = [["", "found", "95 % interval", "pairs", "promised", ""]]
        measures += [_measure_cells(measure) for measure in self.measures.values()]
        rows = [_row_cells(row) for row in self.rows]
        beside = [f"- {TITLES[key]}: {m.on}. {_beside(m)}".rstrip() for key, m in self.measures.items()]
        parts = [
            _markdown(measures),
            "A default sampler, adaptive, in a service:",
            _markdown([_ROW_HEADS, *rows]),
            "\n".join(beside),
            *(f"Left out: {what}: {why}." for what, why in self.left_out.items()),
            self.machine_line(),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def to_text(self) -> str:
        """For a terminal."""
        lines = [f"pymemcg {__version__} on {self.machine_line()}", ""]
        lines += _columns([_measure_cells(measure) for measure in self.measures.values()])
        lines += ["", "a default sampler, adaptive, in a service", ""]
        lines += _columns([_ROW_HEADS, *(_row_cells(row) for row in self.rows)])
        lines += ["", "beside them"]
        lines += [f"  {TITLES[key]}: {_beside(m)}" for key, m in self.measures.items() if m.beside]
        lines += [f"left out: {what}: {why}" for what, why in self.left_out.items()]
        return "\n".join(lines)

    def machine_line(self) -> str:
        """What it was measured on."""
        at = self.machine
        return (
            f"Linux {at['kernel']} {at['machine']}, {at['processor']}, {at['cpus_usable']} of {at['cpus']} CPUs, "
            f"HZ {at['hz']}, CPython {at['python']}, steal {self.steal_ratio:.1%}, load before {at['load']:.1f}"
        )


_ROW_HEADS = ["", "p99 with ÷ without", "95 % interval", "pairs", "CPU of a core", "ticks/s", "memory", "steal"]


def _measure_cells(measure: Measure) -> list[str]:
    found, unit = measure.estimate, measure.unit
    interval = f"{_figure(found.low, unit)} – {_figure(found.high, unit)}"
    verdict = _VERDICTS[measure.kept]
    return [TITLES[measure.key], _figure(found.value, unit), interval, f"{found.pairs}", measure.promise, verdict]


def _row_cells(row: Row) -> list[str]:
    p99 = row.victim_p99
    return [
        row.setting,
        f"{p99.value:.3f}",
        f"{p99.low:.3f} – {p99.high:.3f}",
        f"{p99.pairs}",
        f"{row.cpu_of_a_core:.2%}",
        f"{row.ticks_per_s:,.0f}",
        _figure(row.held_bytes, "bytes"),
        f"{row.steal_ratio:.1%}",
    ]


def _figure(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / (1 << 20):.2f} MiB"
    return f"{value:.2%}" if unit == "share" else f"{value:.3f}"


def _beside(measure: Measure) -> str:
    def text(name: str, value: float) -> str:
        if name.endswith("_bytes"):
            return f"{value / 1024:,.0f} KiB"
        if name.endswith("_ns"):
            return f"{value / 1000:,.2f} µs"
        return f"{value:.1%}" if name.endswith("_of_a_core") else f"{value:,.3f}".rstrip("0").rstrip(".")

    return "; ".join(f"{name} {text(name, value)}" for name, value in measure.beside.items())


def _markdown(table: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


def _columns(table: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip() for row in table]
