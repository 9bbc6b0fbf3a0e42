# SPDX-License-Identifier: Apache-2.0
"""What is known of a cell of tests/vm/matrix: one small file in tests/vm/results each, by file of tests.

The whole takes days, so that each run adds to what others have found, and replaces only what it has run anew.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rig import pytests

FOLDER = Path(__file__).resolve().parents[1] / "results"
WORDS = ("passed", "skipped", "failed", "error")
FAILED = 1  # pytest's exit status, which failed tests tell as well
ONE_LINE = 160
# Whole lines as pytest writes them while it runs (-vv): tests/live/test_a.py::test_b[c] SKIPPED (why) [ 3%]
TESTS = re.compile(
    r"^\S*?tests/(\w+/test_\w+\.py)(::\S.*?) (PASSED|SKIPPED|FAILED|ERROR)(?: \((.*)\))?[ \t]*(?:\[ *\d+%\])?\r?$", re.MULTILINE
)
BEGUN = re.compile(r"^\S*?tests/(\w+/test_\w+\.py)::\S", re.MULTILINE)
TOLD = re.compile(r"^(?:FAILED|ERROR) \S*?tests/(\w+/test_\w+\.py::\S.*?) - (.*)$", re.MULTILINE)
OF_THIS_RUN = re.compile(
    r"/(?:sys/fs/cgroup|tmp|scratch|var/tmp)/[^\s:,;'\")]+"
)  # groups and files, with numbers in their names


@dataclass
class Result:
    """Of one kernel and one user.

    Attributes:
        files: By file of tests: how many passed, skipped, failed, and where that is from: release, commit, date; `unfinished`
            says why it did not come to its end.
        skipped: By reason, how many tests of each file.
        failed: Names of tests, with the first line of what they say.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, dict[str, int]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, output: str, status: int, asked: list[str], about: dict[str, str]) -> Result:
        """Read what pytest said of these files."""
        found = cls()
        told = dict(reversed(TOLD.findall(output)))  # the first of what is said of each
        for file, name, word, reason in TESTS.findall(output):
            known = found.files.setdefault(file, dict(about))
            known[word.lower()] = known.get(word.lower(), 0) + 1
            if word == "SKIPPED":
                at = found.skipped.setdefault(_plain(reason), {})
                at[file] = at.get(file, 0) + 1
            elif word != "PASSED":
                found.failed[f"{file}{name}"] = _plain(told.get(f"{file}{name}", ""))[:ONE_LINE]
        ended = bool(pytests.LAST_LINE.search(output))
        for file in asked if ended else dict.fromkeys(BEGUN.findall(output)):
            found.files.setdefault(file, dict(about))
        if found.files and status not in (0, pytests.NO_TEST, FAILED if found.failed and ended else 0):
            last = asked[-1] if ended else BEGUN.findall(output)[-1]
            found.files[last]["unfinished"] = pytests.Said.of(output, status).complaint()
        return found

    def with_newer(self, newer: Result) -> Result:
        """What another run says of its files stands in place of what this one does."""
        older = self.only(set(self.files) - set(newer.files))
        reasons = sorted({*older.skipped, *newer.skipped})
        skipped = {reason: older.skipped.get(reason, {}) | newer.skipped.get(reason, {}) for reason in reasons}
        return Result(older.files | newer.files, skipped, older.failed | newer.failed)

    def only(self, files: set[str]) -> Result:
        """What is of these files."""
        skipped = {reason: {file: at[file] for file in at if file in files} for reason, at in self.skipped.items()}
        return Result(
            {file: known for file, known in self.files.items() if file in files},
            {reason: at for reason, at in skipped.items() if at},
            {name: said for name, said in self.failed.items() if name.partition("::")[0] in files},
        )

    @property
    def counts(self) -> dict[str, int]:
        """Of all files."""
        return {word: sum(known.get(word, 0) for known in self.files.values()) for word in WORDS}

    @property
    def unfinished(self) -> dict[str, str]:
        """Files that did not come to their end, and why."""
        return {file: known["unfinished"] for file, known in self.files.items() if "unfinished" in known}

    @property
    def is_good(self) -> bool:
        return self.counts["passed"] > 0 and not (self.failed or self.unfinished)

    @property
    def summary(self) -> str:
        """`3 passed, 1 skipped, 2 files unfinished`."""
        counts = [f"{self.counts[word]} {word}" for word in WORDS if self.counts[word]]
        if number := len(self.unfinished):
            counts.append(f"{number} file{'s' if number > 1 else ''} unfinished")
        return ", ".join(counts) or "no test ran"


def _plain(text: str) -> str:
    """Without what is another in each run."""
    return OF_THIS_RUN.sub("…", text).strip()


def load(name: str) -> Result:
    """What is kept; of nothing, nothing."""
    path = FOLDER / f"{name}.json"
    return Result(**json.loads(path.read_text())) if path.exists() else Result()


def save(name: str, result: Result) -> None:
    """One line for each file, reason and failure, sorted, so that a change shows what has changed."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    sections = []
    for title, entries in (("files", result.files), ("skipped", result.skipped), ("failed", result.failed)):
        lines = [f"{_json(key)}: {_json(value)}" for key, value in sorted(entries.items())]
        sections.append(f"{_json(title)}: {{\n" + ",\n".join(lines) + "\n}")
    (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(sections) + "\n}\n")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
