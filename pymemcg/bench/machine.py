# SPDX-License-Identifier: Apache-2.0
"""What was measured on: figures without the machine are no figures."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

_STEAL = 7  # position in the "cpu" line of /proc/stat: user nice system idle iowait irq softirq steal


class Steal:
    """The share of CPU time that the hypervisor gave to somebody else, from here to `ratio`."""

    def __init__(self) -> None:
        self._before = _cpu_ticks()

    def ratio(self) -> float:
        """Stolen CPU time ÷ all CPU time since this object was made; 0 where none has passed."""
        spent = [now - before for now, before in zip(_cpu_ticks(), self._before, strict=True)]
        return spent[_STEAL] / sum(spent) if sum(spent) > 0 else 0.0


def _cpu_ticks() -> list[int]:
    with open("/proc/stat", encoding="ascii") as stat:
        # cpu  10132153 290696 3084719 46828483 16683 0 25195 0 175628 0
        return [int(field) for field in stat.readline().split()[1 : _STEAL + 2]]


def describe() -> dict[str, Any]:
    """Kernel, processor, CPUs that this process may use, HZ, and the load at this moment."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        # CONFIG_HZ: CLOCK_MONOTONIC_COARSE (6) moves once a jiffy. sysconf(SC_CLK_TCK) is USER_HZ, which is always 100.
        "hz": round(1 / time.clock_getres(6)),
        "page_bytes": os.sysconf("SC_PAGESIZE"),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as cpuinfo:
        for line in cpuinfo:
            name, _, value = line.partition(":")
            if name.strip() == "model name":  # x86; others name it in ways of their own
                return value.strip()
    return platform.machine()
