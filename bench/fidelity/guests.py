# SPDX-License-Identifier: Apache-2.0
"""The same workloads on other kernels: each boots in a guest (tests/vm), whose recordings and truths are judged here."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.fidelity.judging import judge
from bench.fidelity.keeping import kept, kept_others
from bench.fidelity.table import Report

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "tests/vm"))

from rig import processes  # noqa: E402 - it is not in the packages' path

SECONDS = 3.0
"""Of each run. A guest's clock counts instructions, so a second in which much is done takes ten and more."""
TIMEOUT_S = 7200
_LOG = "guest.log"


def name_of(kernel: str) -> str:
    """What a kernel is called, and its folder among those that are kept: one that is given by a path has another there."""
    return Path(kernel).resolve().name if "/" in kernel else kernel


def measure(
    kernels: Iterable[str], folder: str, options: Sequence[str], progress: Callable[[str], None]
) -> tuple[list[Report], list[tuple[str, str]]]:
    """Run the workloads in a guest of each kernel, at the same time, and keep what there was in `folder`.

    They end with this process, however that ends, if `processes.exit_on_signals` was called.

    Args:
        kernels: As tests/vm/run names them.
        folder: With a folder for each kernel afterwards.
        options: More of `python -m bench.fidelity`, for the guests.
        progress: Is told what is being done.

    Returns:
        What was measured; and which kernels failed, with the reason, while the others went on.
    """
    reports, failed = [], []
    with ExitStack() as stack:
        started = []
        for kernel in kernels:
            place = Path(folder, name_of(kernel))
            place.mkdir(parents=True, exist_ok=True)
            progress(f"{kernel} (see {place / _LOG})")
            log = stack.enter_context((place / _LOG).open("wb"))
            command = _command(kernel, place, options)
            process = stack.enter_context(processes.running(*command, dies_by="TERM", stdout=log, stderr=log))
            started.append((kernel, place, process))
        for kernel, place, process in started:
            if (status := process.wait()) == 0:
                reports.append(kept_report(place))
            else:
                failed.append((f"the guest with {name_of(kernel)}", _why(place / _LOG, status)))
                progress(f"{kernel} failed: {failed[-1][1]}")
    return reports, failed


def kept_reports(folder: str, names: Iterable[str] | None) -> list[Report]:
    """Of all kernels that were kept there: the oldest first, after those whose names have no number."""
    found = sorted(
        Path(folder).glob("*/others.json"), key=lambda path: [int(part) for part in re.findall(r"\d+", path.parent.name)]
    )
    return [kept_report(path.parent, names) for path in found]


def kept_report(folder: Path, names: Iterable[str] | None = None) -> Report:
    """What a folder of recordings comes to."""
    report = Report("", {}, 0)
    kept_others(str(folder), report)
    report.judged = [judge(*each) for each in kept(str(folder)) if not names or each[0].name in names]
    return report


def _command(kernel: str, folder: Path, options: Sequence[str]) -> list[str]:
    return [
        str(CHECKOUT / "tests/vm/run"), kernel, "--icount", "--timeout", str(TIMEOUT_S), "--workdir", str(CHECKOUT),
        "--out", str(folder), "--",
        "env", "TMPDIR=/scratch", sys.executable, "-m", "bench.fidelity", "--keep", "/out", *options,
    ]  # fmt: skip


def _why(log: Path, status: int) -> str:
    last = " ".join(line.strip() for line in log.read_text(errors="replace").splitlines()[-5:])
    return f"it ended with status {status}: {last or 'it said nothing'}"
