# SPDX-License-Identifier: Apache-2.0
"""What sampling costs: ratios of interleaved pairs in one run, beside the least that could do the same."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from pymemcg.bench.machine import Steal
from pymemcg.bench.pairs import estimate, interleave, ratio
from pymemcg.bench.report import Measure, Report, Row
from pymemcg.bench.scene import AT_LIMIT, EIGHT, FAR, Scene
from pymemcg.bench.ticking import refuse_coarse_clock
from pymemcg.bench.worker import Worker
from pymemcg.cgroup import resolve
from pymemcg.child import ChildGroup
from pymemcg.errors import MemcgError, NotSupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pymemcg.bench.scene import Setting

MIB = 1 << 20
_NARROW = 0.05
"""An interval that holds 1.00 and is wider says nothing."""
_COMPANY_PERIOD_S = 0.001
_EIGHT_PERIOD_S = 0.02
_BESIDE = 4
"""Of what is only shown beside a figure, so many values do."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much is measured.

    Attributes:
        reading: Pairs of a full sample and bare preads, each of 50 rounds.
        cpu: Pairs of a sampler at 1 kHz and a bare loop, each of `slice_s`.
        adaptive: Pairs of adaptive and full rate.
        kept: Pairs at 10 kHz, each of `kept_s`.
        late: Pairs of a sampler in a group at its limit, and beside it.
        victim: Pairs of a service with and without a sampler, each of `serve_s`, in each row.
        held: Starts of a sampler.
        ticks: Without sleeping.
        slice_s: How long one measurement takes.
        kept_s: As above.
        serve_s: As above.
    """

    reading: int = 200
    cpu: int = 40
    adaptive: int = 8
    kept: int = 16
    late: int = 8
    victim: int = 14
    held: int = 4
    ticks: int = 1_000_000
    slice_s: float = 0.3
    kept_s: float = 0.2
    serve_s: float = 0.25


SHORT = Budget()
FULL = Budget(reading=600, cpu=100, adaptive=30, kept=60, late=30, victim=150, held=12, ticks=10_000_000)


def run(full: bool = False, *, budget: Budget | None = None, progress: Callable[[str], None] = lambda _text: None) -> Report:
    """Measure.

    Args:
        full: About ten minutes instead of two.
        budget: Or how much exactly.
        progress: Is told what comes next.

    Returns:
        What was found. Where no groups can be made, all is measured in this process's own group, without PSI, which fast
        reading would destroy, and the report says what was left out.

    Raises:
        NotSupported: The kernel's count of CPU time is too coarse; or no groups can be made and this one's own has no usage.
    """
    refuse_coarse_clock()
    return _Run(budget or (FULL if full else SHORT), progress).report()


@dataclass
class _Run:
    budget: Budget
    progress: Callable[[str], None]
    found: Report = field(default_factory=Report)

    def report(self) -> Report:
        steal = Steal()
        reason = ChildGroup.possible()
        own = resolve("self")
        if reason is not None and "usage" in own.absent:
            raise NotSupported(f"{own.absent['usage']}; and none can be made: {reason}", path=own.directory)
        if reason is not None:
            self.found.left_out["groups of its own"] = f"everything was measured in this process's group: {reason}"
            self.found.left_out[AT_LIMIT.name] = "it takes a group of its own"
        with self._scene(FAR, own=reason is not None) as scene:
            self._read(scene)
            self._tick(scene)
            self._adapt(scene)
            self._keep(scene)
            self._hold(scene)
            self._serve(FAR, scene)
        if reason is None:
            self._elsewhere(AT_LIMIT)
        self._elsewhere(EIGHT, own=reason is not None)
        self._sum_up_victims()
        self.found.steal_ratio = steal.ratio()
        return self.found

    @contextmanager
    def _scene(self, setting: Setting, *, own: bool = False) -> Iterator[Scene]:
        self.progress(f"a group {setting.name}")
        with Scene(setting, own=own) as scene:
            yield scene

    def _elsewhere(self, setting: Setting, *, own: bool = False) -> None:
        try:
            with self._scene(setting, own=own) as scene:
                if setting.churning:
                    self._be_late(scene)
                self._serve(setting, scene)
        except MemcgError as error:
            self.found.left_out[setting.name] = str(error)

    # ---- Figure by figure -----------------------------------------------------------------------------------------------

    def _read(self, scene: Scene) -> None:
        self.progress("reading a full sample, and the same files barely")
        steal = Steal()
        result = scene.workers[0].call("reading.compare", pairs=self.budget.reading, pressure=scene.group is not None)
        value = ratio(result["source_ns"], result["pread_ns"])
        beside = {
            "native_ns": median(result["source_ns"]),
            "preads_ns": median(result["pread_ns"]),
            "python_over_pread_ratio": ratio(result["python_ns"], result["pread_ns"][: len(result["python_ns"])]).value,
            "python_ns": median(result["python_ns"]),
            "psutil_over_pread_of_statm_ratio": ratio(result["psutil_ns"], result["psutil_pread_ns"]).value,
            "psutil_ns": median(result["psutil_ns"]),
            "memory_stat_changed_ratio": result["changed_ratio"],
        }
        on = f"{', '.join(result['files'])}; memory is touched before each reading, so that memory.stat is new"
        self.found.add(Measure("sample_over_pread_ratio", value, on, steal.ratio(), "≤ 1.10", value.value <= 1.10, beside))

    def _tick(self, scene: Scene) -> None:
        self.progress("a fixed 1 kHz, beside a bare loop")
        steal, worker = Steal(), scene.workers[0]
        full, bare = self._against_bare(worker, 1000, self.budget.cpu, self.budget.slice_s)
        value = ratio([found["cpu_ratio"] for found in full], [found["cpu_ratio"] for found in bare])
        beside = {"sampler_of_a_core": _median(full, "cpu_ratio"), "bare_loop_of_a_core": _median(bare, "cpu_ratio")}
        for name in ("plain_python", "with_psutil"):
            found = [
                worker.call(f"ticking.{name}", rate_hz=1000, seconds=self.budget.slice_s)["cpu_ratio"] for _ in range(_BESIDE)
            ]
            beside[f"{name}_of_a_core"] = median(found)
        on = "CPU time of both threads ÷ that of a thread that sleeps (slack 1 ns) and preads the same files at the same rates"
        self.found.add(Measure("cpu_over_bare_loop_ratio", value, on, steal.ratio(), "≤ 1.10", value.value <= 1.10, beside))
        self._add_kept("ticks_kept_1khz", full, bare, steal)

    def _adapt(self, scene: Scene) -> None:
        self.progress("far from the limit, adaptive and not")
        steal, worker = Steal(), scene.workers[0]
        with Worker(scene.group) as company:  # an idle group would be yielded to, which is another saving
            company.begin("serving.serve", seconds=86400, sampled=False, period_s=_COMPANY_PERIOD_S)
            values = interleave(
                lambda: self._sampled(worker, adaptive=True)["cpu_ratio"],
                lambda: self._sampled(worker, adaptive=False)["cpu_ratio"],
                self.budget.adaptive,
            )
        value = ratio(*values)
        beside = {"adaptive_of_a_core": median(values[0]), "full_of_a_core": median(values[1])}
        on = "CPU time of both threads, in a group with a service that uses about a third of a core"
        self.found.add(Measure("adaptive_over_full_ratio", value, on, steal.ratio(), "≤ 0.35", value.value <= 0.35, beside))

    def _keep(self, scene: Scene) -> None:
        self.progress("10 kHz, beside a bare loop")
        steal = Steal()
        full, bare = self._against_bare(scene.workers[0], 10_000, self.budget.kept, self.budget.kept_s)
        self._add_kept("ticks_kept_10khz", full, bare, steal)

    def _hold(self, scene: Scene) -> None:
        self.progress("memory held")
        steal, worker = Steal(), scene.workers[0]
        stated, charged = [], []
        for _ in range(self.budget.held):
            found = worker.call("holding.start")
            stated.append(float(found["held_bytes"]))
            charged.append(float(found["charged_bytes"]))
            worker.call("holding.stop")
        ticks = worker.call("holding.tick", ticks=self.budget.ticks)
        value = estimate(stated)
        beside = {
            "charged_bytes": median(charged),
            "ticks_without_sleep": float(self.budget.ticks),
            "anonymous_growth_bytes": float(ticks["growth_bytes"]),
            "tick_without_sleep_ns": ticks["ns"],
        }
        on = "rings, buffers and touched stacks of a default sampler, by its own account; beside it what the kernel charges"
        kept = max(value.high, beside["charged_bytes"]) <= 8 * MIB
        self.found.add(Measure("held_bytes", value, on, steal.ratio(), "≤ 8 MiB", kept, beside, unit="bytes"))

    def _be_late(self, scene: Scene) -> None:
        self.progress("punctual in a group that reclaims, and beside it")
        steal, worker = Steal(), scene.workers[0]
        assert scene.group is not None
        target = scene.group.spec
        with Worker() as outside:
            inside_ns, outside_ns = interleave(
                lambda: self._sampled(worker, adaptive=False)["late_p99_ns"],
                lambda: self._sampled(outside, adaptive=False, target=target)["late_p99_ns"],
                self.budget.late,
            )
        value = ratio(inside_ns, outside_ns)
        beside = {"inside_p99_ns": median(inside_ns), "outside_p99_ns": median(outside_ns)}
        on = "how late ticks come at 1 kHz, p99 inside the group ÷ p99 outside of it, while it reclaims at its limit"
        self.found.add(Measure("late_p99_at_limit_ratio", value, on, steal.ratio(), "≤ 1.5", value.value <= 1.5, beside))

    def _serve(self, setting: Setting, scene: Scene) -> None:
        self.progress(f"a service with and without a sampler, {setting.name}")
        steal = Steal()
        sampling: list[dict[str, Any]] = []
        period_s = _EIGHT_PERIOD_S if len(scene.workers) > 1 else 0.0

        def p99(*, sampled: bool) -> float:
            for i, worker in enumerate(scene.workers):
                options = {"sampled": sampled, "period_s": period_s, "phase": i / len(scene.workers)}
                worker.begin("serving.serve", seconds=self.budget.serve_s, **options)
            found = [worker.end() for worker in scene.workers]
            if sampled:
                sampling.append({"cpu_ratio": sum(one["cpu_ratio"] for one in found), "rate": found[0]["rate"]})
            return float(np.percentile(np.concatenate([one["took_ns"] for one in found]), 99))

        sampled_ns, bare_ns = interleave(lambda: p99(sampled=True), lambda: p99(sampled=False), self.budget.victim)
        row = Row(
            setting=setting.name if scene.group else f"{len(scene.workers)} in this process's group, as it is",
            victim_p99=ratio(sampled_ns, bare_ns),
            victim_p99_ns=median(bare_ns),
            cpu_of_a_core=_median(sampling, "cpu_ratio"),
            ticks_per_s=_median(sampling, "rate"),
            held_bytes=self._held_by_all(scene),
            steal_ratio=steal.ratio(),
        )
        self.found.rows.append(row)

    def _held_by_all(self, scene: Scene) -> float:
        """What the group is charged for samplers in all its workers."""
        charged = []
        for _ in range(max(2, self.budget.held // 2)):
            charged.append(sum(worker.call("holding.start")["charged_bytes"] for worker in scene.workers))
            for worker in reversed(scene.workers):
                worker.call("holding.stop")
        return float(median(charged))

    def _sum_up_victims(self) -> None:
        first = self.found.rows[0]
        found = [row.victim_p99 for row in self.found.rows]
        kept: bool | None = all(one.holds(1.0) for one in found)
        if kept and any(one.width > _NARROW for one in found):
            kept = None
        beside = {row.setting: row.victim_p99.value for row in self.found.rows[1:]}
        on = f"requests that touch 512 KiB and compute; {first.setting}; every row of the table counts for whether it is kept"
        promise = "95 % interval holds 1.00, width ≤ 0.05"
        self.found.add(Measure("victim_p99_ratio", first.victim_p99, on, first.steal_ratio, promise, kept, beside))

    # ---- What several figures share -------------------------------------------------------------------------------------

    def _sampled(self, worker: Worker, *, adaptive: bool, target: str = "self") -> dict[str, Any]:
        options = {"rate_hz": 1000, "seconds": self.budget.slice_s, "adaptive": adaptive, "target": target}
        result: dict[str, Any] = worker.call("ticking.sampled", **options)
        return result

    def _against_bare(
        self, worker: Worker, rate_hz: int, pairs: int, seconds: float
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return interleave(
            lambda: worker.call("ticking.sampled", rate_hz=rate_hz, seconds=seconds, adaptive=False),
            lambda: worker.call("ticking.bare", rate_hz=rate_hz, seconds=seconds),
            pairs,
        )

    def _add_kept(self, key: str, full: list[dict[str, Any]], bare: list[dict[str, Any]], steal: Steal) -> None:
        """Points are compared, not ratios: both are near 100 %."""
        pairs = zip(full, bare, strict=True)
        fewer = estimate([100 * (below["kept_ratio"] - above["kept_ratio"]) for above, below in pairs], mean=True)
        value = estimate([found["kept_ratio"] for found in full], mean=True)
        beside = {
            "bare_loop": float(np.mean([found["kept_ratio"] for found in bare])),
            "points_fewer": fewer.value,
            "points_fewer_low": fewer.low,
            "points_fewer_high": fewer.high,
            "late_p99_ns": _median(full, "late_p99_ns"),
            "bare_loop_late_p99_ns": _median(bare, "late_p99_ns"),
        }
        # Somebody else's few milliseconds on a CPU are worth more than 0.1 points: then it cannot be told here.
        kept = fewer.value <= 0.1 or (None if fewer.low <= 0.1 else False)
        on = "share of the deadlines that were met within a period; the bare loop in turn with it"
        promise = "at most 0.1 points fewer than a bare loop"
        self.found.add(Measure(key, value, on, steal.ratio(), promise, kept, beside, unit="share"))


def _median(found: list[dict[str, Any]], name: str) -> float:
    return float(median(one[name] for one in found))
