# SPDX-License-Identifier: Apache-2.0
"""Kubernetes nodes made of captured kernels: pods and containers as folders of a kernel's own files, in a copy."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"
GUARANTEED_UID, BURSTABLE_UID, BEST_EFFORT_UID = (f"{digit * 8}-0000-4000-8000-{digit * 12}" for digit in "abc")


def identifier(digit: str) -> str:
    """A container's."""
    return digit * 64


class NodeTree:
    """A captured kernel in which groups and processes are copies of the captured ones.

    Args:
        tmp_path: Where to.
        kernel: Which kernel.
    """

    def __init__(self, tmp_path: Path, kernel: str):
        self.root = tmp_path / kernel
        shutil.copytree(DATA / kernel, self.root)
        self.version = 1 if (self.root / "sys/fs/cgroup/memory").is_dir() else 2
        self.top = self.root / ("sys/fs/cgroup/memory" if self.version == 1 else "sys/fs/cgroup")
        self._sample = self.root / "sample"
        shutil.move(self.top / "pmc-parent/pmc-child", self._sample)
        shutil.rmtree(self.top / "pmc-parent")
        for file in self._sample.iterdir():
            if not file.name.startswith(("memory.", "cgroup.")):
                file.unlink()
        (self.root / "proc/PID").rename(self.root / "proc/1000")

    def write(self, path: str, text: object) -> None:
        """Write a file of the machine."""
        (self.root / path.strip("/")).write_text(f"{text}\n")

    def group(self, path: str, **files: object) -> None:
        """Make a group, its parents first; of the files a dot is written as two underscores."""
        directory = self.top / path.strip("/")
        if directory.parent != self.top and not directory.parent.exists():
            self.group(path.rpartition("/")[0])
        if not directory.exists():
            shutil.copytree(self._sample, directory)
            (directory / "cgroup.procs").write_text("")
            self.limit(path, None)
        for name, value in files.items():
            (directory / name.replace("__", ".")).write_text(f"{value}\n")

    def limit(self, path: str, count: int | None, **v2: object) -> None:
        """Limit a group, and on v2 set what else is given ("high", "min", "low")."""
        if self.version == 1:
            self.group(path, memory__limit_in_bytes=9223372036854771712 if count is None else count)
            self.group(path, memory__memsw__limit_in_bytes=9223372036854771712)
        else:
            self.group(path, memory__max="max" if count is None else count)
            for name, value in v2.items():
                self.group(path, **{f"memory__{name}": value})

    def usage(self, path: str, count: int, inactive_file: int = 0) -> None:
        """Have a group use so much, of which so much is file cache that was not used lately."""
        name = "memory.usage_in_bytes" if self.version == 1 else "memory.current"
        self.group(path, **{name: count})
        stat = self.top / path.strip("/") / "memory.stat"
        key = "total_inactive_file" if self.version == 1 else "inactive_file"
        stat.write_text(re.sub(rf"^{key} \d+$", f"{key} {inactive_file}", stat.read_text(), flags=re.MULTILINE))

    def process(self, pid: int, path: str, adj: int, *, shown: str | None = None, name: str = "python3") -> None:
        """Start a copy of the captured process in a group; `shown` is the group's path as the process sees it."""
        at = self.root / f"proc/{pid}"
        if not at.exists():
            shutil.copytree(self.root / "proc/1000", at)
        line = f"4:memory:{shown or path}\n0::/" if self.version == 1 else f"0::{shown or path}"
        self.write(f"proc/{pid}/cgroup", line)
        self.write(f"proc/{pid}/oom_score_adj", adj)
        status = re.sub(r"^Name:.*$", f"Name:\t{name}", (at / "status").read_text(), flags=re.MULTILINE)
        (at / "status").write_text(re.sub(r"^NSpid:.*\n", "", status, flags=re.MULTILINE))
        with (self.top / path.strip("/") / "cgroup.procs").open("a") as file:
            file.write(f"{pid}\n")

    def become(self, pid: int) -> str:
        """Make a process the one that looks.

        Returns:
            The tree's root.
        """
        link = self.root / "proc/self"
        link.unlink(missing_ok=True)
        link.symlink_to(str(pid))
        return str(self.root)
