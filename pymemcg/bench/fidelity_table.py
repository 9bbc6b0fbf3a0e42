# SPDX-License-Identifier: Apache-2.0
"""What the fidelity benchmark found, as ratios, as JSON and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from pymemcg.bench import machine
from pymemcg.bench.pairs import Estimate, estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymemcg.bench.loads import Load

PROMISED_RATIO = 0.98
PROMISED_LOSS_MS = 1.0
PROMISED_TRUTH = 0.9


@dataclass(frozen=True, slots=True)
class Run:
    """One load, once. Times are sums over the run.

    Attributes:
        seconds: How long.
        psi_us: The sampled group's PSI, `some`.
        parent_us: That of the unread group above.
        truth_us: Reclaim by tracepoints, of all threads together.
        intervals: How many reclaims that was.
        reads: Of PSI, by the sampler or the naive reader.
        stats: Of the sampler, `Sampler.stats`.
        group_cpu_us: The group's CPU time, the sampler's included.
    """

    seconds: float
    psi_us: int
    parent_us: int
    truth_us: int
    intervals: int
    reads: int
    stats: dict[str, Any]
    group_cpu_us: int

    @property
    def over_parent(self) -> float:
        """What is left of what the unread group saw; 1 where it saw nothing."""
        return self.psi_us / self.parent_us if self.parent_us else 1.0

    @property
    def lost_ms_per_minute(self) -> float:
        """Stall time that reading destroyed; negative where the sampled group saw more."""
        return (self.parent_us - self.psi_us) / 1000 / (self.seconds / 60)

    @property
    def over_truth(self) -> float:
        """PSI ÷ reclaim by tracepoints; 1 where there was none."""
        return self.psi_us / self.truth_us if self.truth_us else 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """What a load with so many processes came to."""

    load: Load
    processes: int
    sampled: tuple[Run, ...]
    unsampled: tuple[Run, ...]
    fixed: tuple[Run, ...] = ()
    naive: tuple[Run, ...] = ()

    @property
    def over_parent(self) -> Estimate:
        """Ratio (a) of design, over the repetitions."""
        return _spread([run.over_parent for run in self.sampled])

    @property
    def over_truth(self) -> Estimate:
        """Ratio (b), over the pairs."""
        pairs = zip(self.sampled, self.unsampled, strict=True)
        # Where PSI shows nothing of the load at all, there is nothing that a sampler could take away.
        return _spread([run.over_truth / without.over_truth if without.over_truth else 1.0 for run, without in pairs])

    @property
    def lost_ms_per_minute(self) -> float:
        """The mean."""
        return sum(run.lost_ms_per_minute for run in self.sampled) / len(self.sampled)

    @property
    def undisturbed_by_reading(self) -> bool:
        """Whether promise (a) is kept."""
        return self.over_parent.value >= PROMISED_RATIO or self.lost_ms_per_minute < PROMISED_LOSS_MS

    @property
    def undisturbed_by_running(self) -> bool:
        """Whether promise (b) is kept."""
        return self.over_truth.value >= PROMISED_TRUTH

    def describe(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        minutes = sum(run.seconds for run in self.sampled) / 60
        return {
            "load": self.load.name,
            "title": self.load.title,
            "processes": self.processes,
            "promised": self.load.promised,
            "psi_over_parent_ratio": _describe(self.over_parent),
            "psi_over_parent_kept": self.undisturbed_by_reading,
            "lost_ms_per_minute": self.lost_ms_per_minute,
            "psi_over_truth_ratio": _describe(self.over_truth),
            "psi_over_truth_kept": self.undisturbed_by_running,
            "psi_reads_per_minute": sum(run.reads for run in self.sampled) / minutes,
            "stall_ms_per_minute": sum(run.truth_us for run in self.sampled) / 1000 / minutes,
            "group_cpu_ratio": sum(run.group_cpu_us for run in self.sampled) / 60e6 / minutes,
            "fixed_rate": _beside(self.fixed, self.unsampled),
            "naive_1khz": _beside(self.naive, self.unsampled),
        }


@dataclass(frozen=True, slots=True)
class Result:
    """All rows, and what they were measured on."""

    rows: tuple[Row, ...]
    seconds: float
    repetitions: int
    steal: float

    @property
    def kept(self) -> bool:
        """Whether every load for which a promise is made keeps it."""
        return all(row.undisturbed_by_reading and row.undisturbed_by_running for row in self.rows if row.load.promised)

    def describe(self) -> dict[str, Any]:
        """As plain values, for JSON; `psi_over_parent_ratio` is the figure by load, then by processes."""
        ratios: dict[str, dict[str, float]] = {}
        for row in self.rows:
            ratios.setdefault(row.load.name, {})[str(row.processes)] = row.over_parent.value
        return {
            "psi_over_parent_ratio": ratios,
            "kept": self.kept,
            "seconds": self.seconds,
            "repetitions": self.repetitions,
            "steal_ratio": self.steal,
            "machine": machine.describe(),
            "rows": [row.describe() for row in self.rows],
        }

    def to_markdown(self) -> str:
        """As a table for people."""
        return to_markdown(self.describe())


def to_markdown(found: dict[str, Any]) -> str:
    """Lay `Result.describe` out as a table."""
    text = (
        f"Each figure: the median of {found['repetitions']} runs of {found['seconds']:g} s [its 95 % interval], "
        "with the sampler inside the group. Promised: "
        f"PSI ÷ unread parent ≥ {PROMISED_RATIO}, or < {PROMISED_LOSS_MS:g} ms a minute lost; "
        f"PSI ÷ reclaim by tracepoints ≥ {PROMISED_TRUTH} of what it is without a sampler.\n\n"
        "| load | processes | CPU | in reclaim, ms/min | PSI ÷ unread parent | lost, ms/min | PSI ÷ truth, with ÷ without | "
        "PSI reads/min | kept | full rate: ÷ parent, ÷ truth | read every ms: ÷ parent |\n" + "|---" * 11 + "|\n"
    )
    return text + "".join(_line(row) for row in found["rows"])


def _line(row: dict[str, Any]) -> str:
    kept = "yes" if row["psi_over_parent_kept"] and row["psi_over_truth_kept"] else "no"
    fixed, naive = row["fixed_rate"], row["naive_1khz"]
    cells = [
        f"{row['load']}: {row['title']}",
        str(row["processes"]),
        f"{row['group_cpu_ratio']:.1%}",
        f"{row['stall_ms_per_minute']:.0f}",
        _figure(row["psi_over_parent_ratio"]),
        f"{row['lost_ms_per_minute']:.1f}",
        _figure(row["psi_over_truth_ratio"]),
        f"{row['psi_reads_per_minute']:.0f}",
        kept if row["promised"] else f"{kept} (none promised)",
        f"{fixed['psi_over_parent_ratio']:.2f}, {fixed['psi_over_truth_ratio']:.2f}" if fixed else "",
        f"{naive['psi_over_parent_ratio']:.3f}" if naive else "",
    ]
    return "| " + " | ".join(cells) + " |\n"


def _figure(found: dict[str, float]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _describe(found: Estimate) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _spread(values: Sequence[float]) -> Estimate:
    return estimate(values) if len(values) > 1 else Estimate(values[0], values[0], values[0], 1)


def _beside(runs: Sequence[Run], unsampled: Sequence[Run]) -> dict[str, float] | None:
    if not runs:
        return None
    without = median(run.over_truth for run in unsampled)
    return {
        "psi_over_parent_ratio": median(run.over_parent for run in runs),
        "psi_over_truth_ratio": median(run.over_truth for run in runs) / without if without else 1.0,
        "psi_reads_per_minute": sum(run.reads for run in runs) / sum(run.seconds for run in runs) * 60,
    }
