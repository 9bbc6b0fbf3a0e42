# SPDX-License-Identifier: Apache-2.0
"""A day at 1 kHz: how long its stalls take to find, and how much memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pymemcg import schema
from pymemcg._ffi import NONE, ffi
from pymemcg.ring import RECORDING_ALIGN, ChannelSpec, Ring, create

MS = 1_000_000
S = 1000 * MS
DAY_S = 86_400
T0 = 100 * S
BLOCK = 1 << 20

FIND = """
import json, resource, sys, time
import numpy
import pymemcg
recording = pymemcg.open(sys.argv[1])
wall, cpu = time.perf_counter(), time.process_time()
found = pymemcg.stalls(recording, evidence=sys.argv[2])
took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
took["peak_mib"] = int(status["VmHWM"].split()[0]) / 1024  # anonymous memory and mapped pages of files alike
took["stalls"] = len(found)
took["harmful"] = sum(stall.harmless is False for stall in found)
print(json.dumps(took))
"""


class Day:
    """A sparse recording of a day. Every 3 s a burst of hits takes 120 ms, in which some reclaims hold a thread for 2 ms."""

    ROWS = DAY_S * 1000

    def __init__(self, path: Path, traced: bool) -> None:
        slow = DAY_S * 10
        reclaims = DAY_S // 3 * 120 if traced else 0
        rows = {"usage": self.ROWS, "pressure": slow, "limits": slow, "node": slow, "stat": slow, "events": 1, "clock": 1}
        if traced:
            rows["reclaim"] = reclaims
        columns = {name: dict(schema.CHANNELS[name]) for name in rows}
        columns["stat"] |= {"anon": "bytes", "file": "bytes", "workingset_refault_file": "pages"}
        columns["node"] |= {"allocstall_normal": "events", "pswpin": "pages"}
        specs = [ChannelSpec(name, 0, count, columns[name]) for name, count in rows.items()]
        info = {"cpus": 2, "target": {"pressure_scope": "group"}}
        with open(path, "w+b") as file:
            self._fd = file.fileno()
            create(self._fd, specs, info, align=RECORDING_ALIGN, reserve=False)
            self._ring = Ring(self._fd, str(path))
            for first in range(0, self.ROWS, BLOCK):
                self._usage(first, min(first + BLOCK, self.ROWS))
            self._slow(slow)
            if traced:
                self._reclaim(reclaims)
            for name, count in rows.items():
                self._head(name, 0 if name in ("events", "clock") else count)

    def _put(self, name: str, column: str, first: int, values: npt.NDArray[np.int64]) -> None:
        os.pwrite(self._fd, values.astype(np.int64).tobytes(), self._ring.tables[name].offsets[column] + 8 * first)

    def _head(self, name: str, rows: int) -> None:
        entry = ffi.typeof("struct memcg_channel_header")
        at = self._ring.header.channels_offset + self._ring.tables[name].index * ffi.sizeof(entry) + ffi.offsetof(entry, "head")
        os.pwrite(self._fd, np.uint64(rows).tobytes(), at)

    def _usage(self, first: int, end: int) -> None:
        row = np.arange(first, end)
        self._put("usage", "t_ns", first, T0 + row * MS)
        self._put("usage", "limit_hits", first, row // 3000 * 120 + np.minimum(row % 3000, 120))

    def _slow(self, rows: int) -> None:
        row = np.arange(rows)
        t = T0 + row * 100 * MS
        burst = row // 30
        for name in ("pressure", "limits", "node", "stat"):
            self._put(name, "t_ns", 0, t)
        self._put("pressure", "since_ns", 0, t - 100 * MS)
        self._put("pressure", "some_us", 0, burst * 30_000 + np.minimum(row % 30, 2) * 15_000)
        self._put("pressure", "cpu_us", 0, row * 20_000)
        self._put("limits", "limit_bytes", 0, np.full(rows, 64 << 20))
        self._put("limits", "high_bytes", 0, np.full(rows, NONE))

    def _reclaim(self, rows: int) -> None:
        row = np.arange(rows)
        start = T0 + row // 120 * 3000 * MS + row % 120 * MS
        self._put("reclaim", "start_ns", 0, start)
        self._put("reclaim", "end_ns", 0, start + np.where(row % 40 == 7, 2 * MS, 20_000))
        self._put("reclaim", "tid", 0, 1000 + row % 8)
        self._put("reclaim", "kind", 0, np.ones(rows, np.int64))


@pytest.fixture(scope="module", params=["counted", "traced"])
def day(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The recording, in the working directory, which lies on a disk: the memory that it takes must not be that of a tmpfs."""
    path = Path(f"stalls-{os.getpid()}.memcg").absolute()
    try:
        Day(path, request.param == "traced")
        yield path
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("evidence", ["auto", "psi", "counters"])
def test_stalls_of_a_day(day: Path, evidence: str, request: pytest.FixtureRequest) -> None:
    if "traced" in request.node.name and evidence != "auto":
        pytest.skip("told by the recording without tracepoints")
    done = subprocess.run([sys.executable, "-c", FIND, day, evidence], capture_output=True, text=True, check=True)
    took = json.loads(done.stdout)
    print(f"\n{evidence}: {took}")
    assert took["peak_mib"] < 500
    assert took["stalls"] >= DAY_S // 3
