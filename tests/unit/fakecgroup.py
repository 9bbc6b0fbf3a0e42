# SPDX-License-Identifier: Apache-2.0
"""Machines to resolve targets on: /proc and /sys/fs/cgroup below a temporary directory.

machine = FakeMachine(tmp_path, "hybrid")
machine.group("/web", limit=64 << 20)
machine.process(100, "/web", unified="/web")
machine.become(100)
target = resolve("self", root=machine.root)
"""

from __future__ import annotations

import shutil
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "data"
KERNELS = ["6.1-v1", "6.1-v2", "6.12-v2", "6.18-hybrid", "uml-6.1-v2"]
"""Those that were captured."""

PSI = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
V1_UNLIMITED = 9223372036854771712


def mount_line(point: str, kind: str, options: str = "rw", *, root: str = "/", number: int = 40, parent: int = 20) -> str:
    """A line of a mountinfo file; fields are written as they come, so the caller escapes them."""
    return f"{number} {parent} 0:{number} {root} {point} rw,nosuid master:7 - {kind} {kind} {options}\n"


class FakeMachine:
    """A machine of one layout, "v1", "v2" or "hybrid", without a process.

    With `true_root=False` what is mounted are not the hierarchies' roots but the tops of a cgroup namespace.
    """

    def __init__(self, tmp_path: Path, layout: str = "v2", *, psi: bool = True, true_root: bool = True):
        self.path = tmp_path
        self.root = str(tmp_path)
        self.layout = layout
        top = tmp_path / "sys/fs/cgroup"
        self.memory = top if layout == "v2" else top / "memory"
        self.unified = {"v1": None, "v2": top, "hybrid": top / "unified"}[layout]
        self.mounts = mount_line("/", "ext4", number=20, parent=1)
        if layout != "v2":
            self.mounts += mount_line("/sys/fs/cgroup", "tmpfs", number=30)
            self.mounts += mount_line("/sys/fs/cgroup/memory", "cgroup", "rw,memory", number=31, parent=30)
        if layout == "hybrid":
            self.mounts += mount_line("/sys/fs/cgroup/unified", "cgroup2", number=32, parent=30)
        if layout == "v2":
            self.mounts += mount_line("/sys/fs/cgroup", "cgroup2", "rw,nsdelegate", number=33)
        self._write(tmp_path / "proc", {"version": "Linux version 6.12.0 (builder@fake) (gcc) #1 SMP"})
        if psi:
            self._write(tmp_path / "proc/pressure", {"memory": PSI, "cpu": PSI, "io": PSI})
        self.psi = psi
        self.true_root = true_root
        self.group("/")
        if layout == "hybrid":
            self.unified_group("/")

    @staticmethod
    def _write(directory: Path, files: dict[str, object]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name).write_text(str(content) if str(content).endswith("\n") or content == "" else f"{content}\n")

    def group(self, path: str, *, usage: int = 4096, limit: int | None = None, hits: int = 0, **files: object) -> Path:
        """Make a memory group, its parents first; `files` are further ones, a dot in the name written as two underscores."""
        directory = self.memory / path.strip("/")
        parent = path.rstrip("/").rpartition("/")[0] or "/"
        if path != "/" and not (self.memory / parent.strip("/") / "cgroup.procs").exists():
            self.group(parent)
        if self.layout == "v2":
            root = path == "/" and self.true_root
            self._unified_files(directory, root=root)
            if not root:
                events = f"low 0\nhigh 0\nmax {hits}\noom 0\noom_kill 0\noom_group_kill 0"
                content = {"memory.current": usage, "memory.max": limit or "max", "memory.high": "max"}
                self._write(directory, content | {"memory.events": events, "memory.events.local": events})
            self._write(directory, {"memory.stat": "anon 0\nfile 0"})
        else:
            bytes_ = limit or V1_UNLIMITED
            content = {"memory.usage_in_bytes": usage, "memory.limit_in_bytes": bytes_, "memory.failcnt": hits}
            content |= {"memory.memsw.limit_in_bytes": V1_UNLIMITED, "memory.memsw.failcnt": 0, "memory.use_hierarchy": 1}
            self._write(directory, content | {"memory.stat": "cache 0\nrss 0", "cgroup.procs": "", "tasks": ""})
        self._write(directory, {name.replace("__", "."): content for name, content in files.items()})
        return directory

    def unified_group(self, path: str) -> Path:
        """Make a cgroup2 group on a hybrid machine."""
        assert self.unified
        directory = self.unified / path.strip("/")
        self._unified_files(directory, root=path == "/" and self.true_root)
        return directory

    def _unified_files(self, directory: Path, *, root: bool) -> None:
        files: dict[str, object] = {"cgroup.procs": "", "cgroup.controllers": "cpu memory", "cpu.stat": "usage_usec 0"}
        if not root:
            files["cgroup.events"] = "populated 1\nfrozen 0"
        if self.psi:
            files |= {"memory.pressure": PSI, "cgroup.pressure": 1}
        self._write(directory, files)

    def process(
        self,
        pid: int,
        group: str,
        *,
        unified: str = "/",
        shown: str | None = None,
        shown_unified: str | None = None,
        state: str = "S",
        mounts: str | None = None,
    ) -> None:
        """Start a process in a memory group, on a hybrid machine with its cgroup2 path; `shown` is what /proc calls them."""
        shown, shown_unified = shown or group, shown_unified or unified
        lines = {"v1": f"4:memory:{shown}", "v2": f"0::{shown}", "hybrid": f"4:memory:{shown}\n0::{shown_unified}"}
        self._write(
            self.path / f"proc/{pid}",
            {
                "cgroup": lines[self.layout],
                "mountinfo": self.mounts if mounts is None else mounts,
                "stat": f"{pid} (a name) with) brackets) {state} 1 1 1 0 -1 4194304 0 0 0 0 0 0 0 0",
                "statm": "1000 100 50 1 0 200 0",
            },
        )
        self._join(self.memory / group.strip("/"), pid)
        if self.layout == "hybrid":
            assert self.unified
            self._join(self.unified / unified.strip("/"), pid)

    @staticmethod
    def _join(directory: Path, pid: int) -> None:
        with (directory / "cgroup.procs").open("a") as file:
            file.write(f"{pid}\n")

    def root_of(self, pid: int, directory: str) -> Path:
        """Give a process a root directory of its own, at another path of the machine, as /proc/<pid>/root."""
        place = self.path / directory.strip("/")
        place.mkdir(parents=True, exist_ok=True)
        (self.path / f"proc/{pid}/root").symlink_to(place)
        return place

    def become(self, pid: int) -> None:
        """Make a process the one that resolves."""
        link = self.path / "proc/self"
        link.unlink(missing_ok=True)
        link.symlink_to(str(pid))


def machine_with_self(tmp_path: Path, layout: str, group: str = "/web", **kwargs: str) -> FakeMachine:
    """A machine on which this process, 100, lives in a group limited to 64 MiB, with a cgroup2 group of its own."""
    machine = FakeMachine(tmp_path, layout)
    machine.group(group, limit=64 << 20)
    if layout == "hybrid":
        machine.unified_group("/web")
        kwargs.setdefault("unified", "/web")
    machine.process(100, group, **kwargs)
    machine.become(100)
    return machine


def has_psi(kernel: str) -> bool:
    """Whether a captured kernel has PSI."""
    return (DATA / kernel / "proc/pressure/memory").exists()


def captured(name: str, tmp_path: Path) -> tuple[str, int]:
    """Copy a captured kernel's files; its workload is the process that resolves.

    Returns:
        The machine's root, and the workload's pid.
    """
    root = tmp_path / name
    shutil.copytree(DATA / name, root)
    pid = int((root / "proc/PID/stat").read_text().split()[0])
    (root / "proc/PID").rename(root / f"proc/{pid}")
    (root / "proc/self").symlink_to(str(pid))
    return str(root), pid
