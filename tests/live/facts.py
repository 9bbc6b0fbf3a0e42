# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of this place, and who one is: from that tests know what must work, not from what pymemcg says of it."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import time
from functools import cache
from pathlib import Path

WHO = os.environ.get("PYMEMCG_AS", "")
"""Whom tests/vm/as has made of us; empty where it was not asked."""
CONFINED = WHO in ("container", "beside")
MACHINE_IS_OURS = bool(os.environ.get("PYMEMCG_VM"))
"""Whether it was booted for these tests."""
EMULATED = MACHINE_IS_OURS and os.environ["PYMEMCG_VM"] != "uml"
"""Whether its processor is a program: Python is 16 times slower there."""
PATIENCE_S = 300.0 if EMULATED else 90.0
"""How long to wait for what must come; how long it takes is not what is asserted."""
UNLIMITED = 1 << 62
"""v1 has no word for it, but a number near 2^63."""

_CAP_SYS_ADMIN, _CAP_PERFMON = 21, 38
_NO_SECCOMP_FILTER = "0"
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""Its inode: PROC_PID_INIT_INO in the kernel's include/linux/proc_ns.h."""


def read(path: str | Path) -> str | None:
    """A file of the kernel's, or None where it is not there or may not be read."""
    try:
        return Path(path).read_text()
    except OSError:
        return None


@cache
def _status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _capable(number: int) -> bool:
    """Of the whole machine, and not only of what a user namespace owns."""
    whole = Path("/proc/self/uid_map").read_text().split() == ["0", "0", str((1 << 32) - 1)]
    return whole and bool(int(_status()["CapEff"], 16) & 1 << number)


def is_root() -> bool:
    """Whether we may do all that root may outside of containers."""
    return os.geteuid() == 0 and not CONFINED and _capable(_CAP_SYS_ADMIN)


def pids_are_the_kernels() -> bool:
    """Whether a process has the same number here as in the kernel's log, which knows no pid namespaces."""
    return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE


def own_group() -> tuple[str | None, str | None]:
    """The directories of our own memory group and of our cgroup2 group: the same where memory is on v2; None = not there."""
    paths = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths["memory" if "memory" in controllers.split(",") else controllers] = path
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        root, point = head.split()[3:5]
        kind, _, options = tail.split()[:3]
        key = "" if kind == "cgroup2" else "memory" if kind == "cgroup" and "memory" in options.split(",") else None
        if key in paths and f"{paths[key]}/".startswith(f"{root.rstrip('/')}/"):
            found.setdefault(key, f"{point}/{paths[key].removeprefix(root).strip('/')}".rstrip("/"))
    return found.get("memory", None if "memory" in paths else found.get("")), found.get("")


def groups_can_be_made() -> bool:
    """Whether we can make groups with limits ourselves, and move our processes there."""
    if WHO:
        return WHO in ("root", "owner")
    memory, unified = own_group()
    if memory is None:
        return False
    if memory != unified:
        return all(directory is None or os.access(directory, os.W_OK) for directory in (memory, unified))
    if not is_root():
        return False  # systemd may be asked, or may not
    above = [Path(memory), *Path(memory).parents]
    hands_down = any("memory" in (read(place / "cgroup.subtree_control") or "").split() for place in above)
    return os.access(memory, os.W_OK) and (hands_down or _is_true_root(memory))


def _is_true_root(directory: str) -> bool:
    """Of cgroup2, and not only where a cgroup namespace begins."""
    return not os.path.exists(f"{directory}/cgroup.events")


def no_tracepoints() -> str | None:
    """Why tracepoints cannot be opened here, or None where they can."""
    if not (is_root() and _capable(_CAP_PERFMON)):
        return "only root may open tracepoints"
    if _status()["Seccomp"] != _NO_SECCOMP_FILTER:
        return "a seccomp filter may deny perf_event_open"
    if "tracefs" not in Path("/proc/filesystems").read_text().split():
        return "this kernel has no tracepoints"
    if not any(os.path.isdir(f"{place}/events/vmscan") for place in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")):
        return "tracefs is not mounted, or not any more: other tests on this machine have unmounted it"
    return None


def counts_cpu_time_finely() -> bool:
    """Whether CPU time is counted as it passes, and not in ticks of the kernel's timer, as user-mode Linux does."""
    return len({time.thread_time_ns() for _ in range(1000)}) > 100


def no_zram() -> str | None:
    """Why no swap in memory can be made here, or None where it can."""
    if not is_root():
        return "only root may make something to swap to"
    return None if os.path.exists("/sys/class/zram-control/hot_add") else "this kernel has no zram, or it is not loaded"


def counts_oom_kills(memory: str) -> bool:
    """Whether the kernel counts them by group."""
    files = (read(f"{memory}/{name}") for name in ("memory.events", "memory.oom_control"))
    return any("oom_kill " in text for text in files if text)


def _pressure_file(unified: str) -> str:
    return "/proc/pressure/memory" if _is_true_root(unified) else f"{unified}/memory.pressure"


def no_psi(memory: str, unified: str | None) -> str | None:
    """Why nothing tells of a group's pressure, or None where something does."""
    if unified is None:
        return "cgroup v1 has no PSI, and there is no cgroup2 beside it"
    file = _pressure_file(unified)
    if not os.path.exists("/proc/pressure/memory"):
        return "this kernel has no PSI"
    if (read(f"{unified}/cgroup.pressure") or "1").strip() == "0":
        return "the group's PSI is switched off"
    if not (os.access(file, os.R_OK) and os.access(f"{unified}/cpu.stat", os.R_OK)):
        return f"{file}, or cpu.stat of the group, cannot be read"
    if memory != unified and not _is_true_root(unified) and _members(unified) - _members(memory):
        return "the cgroup2 group holds others, too"
    return None


def psi_is_free(memory: str | None, unified: str | None) -> bool:
    """Whether nobody holds the right to read it, as somebody may who samples another group that has it, too."""
    if memory is None or unified is None or no_psi(memory, unified):
        return True
    with open(_pressure_file(unified)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def evidence(memory: str, unified: str | None) -> set[str]:
    """By what stalls of a group, told by its directories, must be known here."""
    on_v2 = memory == unified
    works = {
        "trace": no_tracepoints() is None,
        "psi": no_psi(memory, unified) is None,
        "wchan": on_v2 and os.path.exists(f"{memory}/memory.high"),
        "counters": os.path.exists(f"{memory}/memory.events") if on_v2 else _counts_on_v1(memory),
    }
    return {name for name in works if works[name]}


def _counts_on_v1(memory: str) -> bool:
    """memory.failcnt stays where the limit on memory and swap is not higher; whose counter went silent with 6.15."""

    def number(name: str) -> int | None:
        text = read(f"{memory}/memory.{name}")
        return None if text is None else int(text)

    limit, both, hits_of_both = number("limit_in_bytes"), number("memsw.limit_in_bytes"), number("memsw.failcnt")
    shadowed = limit is not None and both is not None and both <= limit < UNLIMITED
    version = re.match(r"(\d+)\.(\d+)", platform.release())
    assert version is not None
    old = (int(version[1]), int(version[2])) < (6, 15)
    return (number("failcnt") is not None and not shadowed) or (hits_of_both is not None and (old or hits_of_both > 0))


def _members(directory: str) -> set[str]:
    return set((read(f"{directory}/cgroup.procs") or "").split())
