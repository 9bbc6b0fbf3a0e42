# SPDX-License-Identifier: Apache-2.0
"""How much of a group's stall time is left when its PSI is read at various intervals; prints the table of docs/psi.md.

    python bench/psi_by_interval.py >docs/psi-by-interval.md

Needs root, as `pymemcg bench fidelity` does, and some minutes on a machine that does little else.
"""

from __future__ import annotations

import statistics
import sys

from pymemcg.bench import fidelity, machine
from pymemcg.bench.loads import LOADS
from pymemcg.bench.swap import ZramSwap

INTERVALS_S = (None, 1.0, 0.1, 0.02, 0.01, 0.004, 0.001)
LOAD_NAMES = ("flat-out", "light", "drizzle")
SECONDS = 10.0
REPETITIONS = 3
SWAP_BYTES = 1 << 30


def measure() -> dict[tuple[str, float | None], list[fidelity.Run]]:
    """All intervals in turn, several times over, so that a change of the machine's mood meets all of them."""
    found: dict[tuple[str, float | None], list[fidelity.Run]] = {}
    with ZramSwap(SWAP_BYTES):
        for number in range(REPETITIONS):
            for load in LOADS:
                for interval_s in INTERVALS_S if load.name in LOAD_NAMES else ():
                    print(f"{number + 1} of {REPETITIONS}: {load.name}, read every {interval_s} s", file=sys.stderr)
                    run = fidelity.measure(load, 1, "naive" if interval_s else None, SECONDS, naive_s=interval_s or 1.0)
                    found.setdefault((load.name, interval_s), []).append(run)
    return found


def figure(values: list[float]) -> str:
    """The median and the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def main() -> None:
    """Measure and print."""
    steal = machine.Steal()
    found = measure()
    loads = [load for load in LOADS if load.name in LOAD_NAMES]
    print("| PSI read every", end="")
    for load in loads:
        busy = statistics.median(run.group_cpu_us / 1e6 / run.seconds for i in INTERVALS_S for run in found[load.name, i])
        print(f" | {load.title} ({busy:.1%} busy)", end="")
    print(" | the unread group above |\n|---|" + "---|" * (len(loads) + 1))
    for interval_s in INTERVALS_S:
        print("| never" if interval_s is None else f"| {interval_s * 1000:g} ms", end="")
        for load in loads:
            print(f" | {figure([run.over_truth for run in found[load.name, interval_s]])}", end="")
        above = [run.parent_us / run.truth_us for load in loads for run in found[load.name, interval_s]]
        print(f" | {figure(above)} |")
    about = machine.describe()
    print(
        f"\nPSI (`some`) ÷ time in reclaim by tracepoints; median and range of {REPETITIONS} runs of {SECONDS:g} s. "
        f"Linux {about['kernel']}, HZ={about['hz']}, {about['cpus']} CPUs ({about['processor']}), steal {steal.ratio():.1%}."
    )


if __name__ == "__main__":
    main()
