# SPDX-License-Identifier: Apache-2.0
"""The same workloads on other kernels: each boots in a guest (tests/vm), whose recordings and truths are judged here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.fidelity.judging import judge
from bench.fidelity.keeping import kept, kept_others
from bench.fidelity.table import Report
from pymemcg.errors import MemcgError

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = 3.0
"""Of each run. A guest's clock counts instructions, so a second in which much is done takes ten and more."""
TIMEOUT_S = 7200
_LOG = "guest.log"


def measure(kernels: Iterable[str], folder: str, options: Sequence[str], progress: Callable[[str], None]) -> list[Report]:
    """Run the workloads in a guest of each kernel, at the same time, and keep what there was in `folder`.

    Args:
        kernels: As tests/vm/run names them.
        folder: With a folder for each kernel afterwards.
        options: More of `python -m bench.fidelity`, for the guests.
        progress: Is told what is being done.

    Raises:
        MemcgError: A guest failed.
    """

    def one(kernel: str) -> Report:
        progress(f"{kernel} (see {folder}/{kernel}/{_LOG})")
        _boot(kernel, Path(folder, kernel), options)
        return kept_report(Path(folder, kernel))

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, kernels))


def kept_reports(folder: str, names: Iterable[str] | None) -> list[Report]:
    """Of all kernels that were kept there, the oldest first."""
    found = sorted(Path(folder).glob("*/others.json"), key=lambda path: [int(part) for part in path.parent.name.split(".")])
    return [kept_report(path.parent, names) for path in found]


def kept_report(folder: Path, names: Iterable[str] | None = None) -> Report:
    """What a folder of recordings comes to."""
    report = Report("", {}, 0)
    kept_others(str(folder), report)
    report.judged = [judge(*each) for each in kept(str(folder)) if not names or each[0].name in names]
    return report


def _boot(kernel: str, folder: Path, options: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        str(CHECKOUT / "tests/vm/run"), kernel, "--icount", "--timeout", str(TIMEOUT_S), "--workdir", str(CHECKOUT),
        "--out", str(folder), "--",
        "env", "TMPDIR=/scratch", sys.executable, "-m", "bench.fidelity", "--keep", "/out", *options,
    ]  # fmt: skip
    with open(folder / _LOG, "w+", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=log, check=False)
        log.seek(0)
        last = "".join(log.readlines()[-5:])
    if done.returncode != 0:
        raise MemcgError(f"the guest with {kernel} ended with status {done.returncode}: {last}")
