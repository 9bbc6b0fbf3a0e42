# SPDX-License-Identifier: Apache-2.0
"""What a run of pytest said, read from its output: that comes from every guest, and from every user in it."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rig.kernels import UnavailableError
from rig.processes import DIED, TIMED_OUT

ROOT = Path(__file__).resolve().parents[3]
LAST_LINE = re.compile(r"^=*\s*((?:\d+ \w+,? ?)+) in ([\d.]+)s.*$", re.MULTILINE)  # == 3 passed, 1 skipped in 2.03s (0:01) ==
SKIPPED = re.compile(r"^SKIPPED \[(\d+)\] \S+: (.*)$", re.MULTILINE)
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
NO_TEST = 5  # pytest's exit status


@dataclass(frozen=True)
class Said:
    """Numbers and names of one run; `counts` is empty if it did not get to its last line."""

    status: int
    counts: dict[str, int]
    seconds: float
    reasons: Counter[str]
    failed: list[str]

    @classmethod
    def of(cls, output: str, status: int) -> Said:
        """Read it."""
        last = [*LAST_LINE.finditer(output)][-1:]
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last[0][1])} if last else {}
        reasons = Counter[str]()
        for number, reason in SKIPPED.findall(output):
            reasons[reason] += int(number)
        return cls(status, counts, float(last[0][2]) if last else 0.0, reasons, FAILED.findall(output))

    @classmethod
    def together(cls, several: list[Said]) -> Said:
        """Several runs as one."""
        counts, reasons = Counter[str](), Counter[str]()
        for one in several:
            counts.update(one.counts)
            reasons.update(one.reasons)
        status = next((one.status for one in several if one.complaint()), 0)
        failed = [name for one in several for name in one.failed]
        return cls(status, dict(counts), sum(one.seconds for one in several), reasons, failed)

    @property
    def passed(self) -> int:
        return self.counts.get("passed", 0)

    @property
    def skipped(self) -> int:
        return self.counts.get("skipped", 0)

    @property
    def summary(self) -> str:
        """`3 passed, 1 skipped`."""
        return ", ".join(f"{number} {word}" for word, number in self.counts.items() if word not in ("deselected", "warnings"))

    def complaint(self) -> str | None:
        """Why this is no success."""
        if self.status == TIMED_OUT:
            return "took too long"
        if self.status == DIED:
            return "the guest died or could not be had"
        if self.status not in (0, NO_TEST) or self.failed:
            return f"failed with exit status {self.status}"
        if self.passed == 0:
            return "no test ran"
        return None


def marked(python: Path) -> list[str]:
    """The tests that are marked `kernel`."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.kernel" in path.read_text()]
    return collected(python, "-m", "kernel", *files)  # to import the others only to find none takes long


def of_places(python: Path) -> list[str]:
    """The tests of what a process may do where it happens to be."""
    return collected(python, str(ROOT / "tests" / "live" / "test_here.py"))


def collected(python: Path, *arguments: str) -> list[str]:
    """The tests that pytest finds here, each by a name that it takes: a guest is to have the same, from the same tree."""
    done = subprocess.run(
        command(python, "--collect-only", "--quiet", *arguments), cwd="/", capture_output=True, text=True, check=False
    )
    found = [str(ROOT / line) for line in done.stdout.splitlines() if "::" in line]
    if done.returncode != 0 or not found:
        raise UnavailableError(f"no tests to run:\n{done.stdout}{done.stderr}")
    return found


def command(python: Path, *arguments: str) -> list[str]:
    """Starts pytest. `CI` lets it print whole lines; plugins that no live test uses cost more than half of its start."""
    environment = ["env", "CI=1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1"]
    # Where a test hangs is told late: Python may crash while it tells of threads that run, and what is slow here is no hang.
    options = ["-p", "no:cacheprovider", "-o", "faulthandler_timeout=1200", "--color=no"]
    return [
        *environment,
        str(python),
        "-m",
        "pytest",
        f"--rootdir={ROOT}",
        f"-c={ROOT / 'pyproject.toml'}",
        *options,
        *arguments,
    ]
