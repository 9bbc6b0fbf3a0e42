# SPDX-License-Identifier: Apache-2.0
"""A day at 1 kHz as Parquet: rows a second beside pyarrow's own writer, and how much anonymous memory it takes.

The rows are those of a real recording of a service at its limit, half a minute of it again and again with shifted clocks and
counters that go on rising. The recording and the files that are made of it need 8 GB of TMPDIR's disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pymemcg
from pymemcg._ffi import NONE, ffi
from pymemcg.bench.machine import Steal, describe
from pymemcg.child import ChildGroup
from pymemcg.ring import RECORDING_ALIGN, ChannelSpec, Ring, create

ROWS = 86_400_000
SECONDS = 30
ROUNDS = 2
SERVICE = """
import os, sys, tempfile, time
import pymemcg
from pymemcg.recorder import Recorder
kept = bytearray(b"x") * (16 << 20)
until = time.monotonic() + float(sys.argv[2])
with pymemcg.Sampler(adaptive=False) as sampler, Recorder(sampler, sys.argv[1]) as recorder:
    with tempfile.TemporaryFile(dir=".") as file:
        while time.monotonic() < until:
            file.write(os.urandom(1 << 20))
            if file.tell() > 128 << 20:
                file.seek(0)
            time.sleep(0.02)
            recorder.write()
"""
EXPORT = """
import json, sys, threading, time
begun, cpu = time.perf_counter(), time.process_time()
import pymemcg
from pymemcg.export import export
most, over = 0, threading.Event()
def watch():
    global most
    while not over.wait(0.02):
        status = open("/proc/self/status").read()
        most = max(most, int(status.partition("RssAnon:")[2].split()[0]) << 10)
thread = threading.Thread(target=watch)
thread.start()
(one,) = export(pymemcg.open(sys.argv[1]), "parquet", sys.argv[2], channel="usage")
over.set(); thread.join()
print(json.dumps({"wall_s": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu, "anon_mib": most / 2**20,
                  "bytes": one.size_bytes, "rows": one.rows}))
"""
PYARROW = """
import json, os, sys, time
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
import pymemcg
usage = pymemcg.open(sys.argv[1]).usage
window = usage.window()
columns = {"time": pa.array(usage.realtime_ns(window["t_ns"])).cast(pa.timestamp("ns", "UTC"))}
columns |= {name: pa.array(window[name]) for name in window}
table = pa.table(columns)
options = {}
if sys.argv[3] == "same":
    options = {"use_dictionary": False, "compression": "zstd", "compression_level": 1, "row_group_size": 1 << 18,
               "column_encoding": dict.fromkeys(columns, "DELTA_BINARY_PACKED")}
begun, cpu = time.perf_counter(), time.process_time()
with open(sys.argv[2], "wb") as file:
    pq.write_table(table, file, **options)
    file.flush()
    os.fsync(file.fileno())  # as an export does
print(json.dumps({"wall_s": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu,
                  "bytes": os.path.getsize(sys.argv[2]), "rows": len(table)}))
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pymemcg-export-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def day(folder: Path) -> Path:
    """The recording of a day."""
    source = folder / "source.memcg"
    shell = ["/bin/sh", "-c", 'read line; exec "$@"', "sh", sys.executable, "-c", SERVICE, str(source), str(SECONDS)]
    try:
        group = ChildGroup("export", limit_bytes=96 << 20)
    except pymemcg.NotSupported as error:
        pytest.skip(str(error))
    with group, subprocess.Popen(shell, cwd=folder, stdin=subprocess.PIPE) as service:
        group.add(service.pid)
        service.communicate(b"\n")
    assert service.returncode == 0
    print(f"\n{pymemcg.open(source)}, {len(pymemcg.open(source).stalls())} stalls and episodes")
    _replay(pymemcg.open(source), folder / "day.memcg")
    return folder / "day.memcg"


def _replay(source: pymemcg.Recording, path: Path) -> None:
    window = source.usage.window()
    rows = len(window)
    lasts = int(window["t_ns"][-1] - window["t_ns"][0]) + 1_000_000
    with open(path, "w+b") as file:
        create(
            file.fileno(),
            [
                ChannelSpec("usage", 1_000_000, ROWS, dict(source.usage.units)),
                ChannelSpec("clock", 0, 1, dict(source.clock.units)),
            ],
            source.info,
            align=RECORDING_ALIGN,
            reserve=False,
        )
        ring = Ring(file.fileno(), str(path))
        for number, first in enumerate(range(0, ROWS, rows)):
            for name, at in ring.tables["usage"].offsets.items():
                values = window[name][: ROWS - first]
                rises = name == "t_ns" or name.endswith(("_hits", "_kills"))
                step = lasts if name == "t_ns" else int(window[name][-1] - window[name][0]) if rises else 0
                if NONE not in values:
                    values = values + number * step
                os.pwrite(file.fileno(), values.tobytes(), at + 8 * first)
        for name, at in ring.tables["clock"].offsets.items():
            os.pwrite(file.fileno(), source.clock.window()[name][:1].tobytes(), at)
        # Its end is yet to come: so it is of another boot, and was written then.
        end_ns = int(window["t_ns"][0]) + lasts * (ROWS // rows + 1)
        for word, data in (("created_ns", np.uint64(end_ns).tobytes()), ("boot_id", bytes(40))):
            os.pwrite(file.fileno(), data, ffi.offsetof("struct memcg_ring_header", word))
        entry = ffi.typeof("struct memcg_channel_header")
        for name, count in (("usage", ROWS), ("clock", 1)):
            at = ring.header.channels_offset + ring.tables[name].index * ffi.sizeof(entry) + ffi.offsetof(entry, "head")
            os.pwrite(file.fileno(), np.uint64(count).tobytes(), at)


def _run(code: str, *words: str | Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    took: dict[str, Any] = json.loads(done.stdout)
    return took


def test_a_day_as_parquet(day: Path) -> None:
    steal, machine = Steal(), describe()
    ratios: dict[str, list[tuple[float, float]]] = {"pyarrow's defaults": [], "pyarrow, same settings": []}
    print(f"\n{os.stat(day).st_size / 1e9:.1f} GB; {machine}")
    for _ in range(ROUNDS):
        out = day.parent / "out.parquet"
        ours = _run(EXPORT, day, out)
        print("pymemcg:", _says(ours), f"anonymous memory {ours['anon_mib']:.0f} MiB")
        assert ours["rows"] == ROWS
        assert ours["anon_mib"] < 300e6 / 2**20
        for name, settings in zip(ratios, ("default", "same"), strict=True):
            theirs = _run(PYARROW, day, out, settings)
            ratios[name].append((theirs["wall_s"] / ours["wall_s"], theirs["cpu_s"] / ours["cpu_s"]))
            print(f"{name}: {_says(theirs)}")
    print(f"steal {steal.ratio():.1%}, load {os.getloadavg()[0]:.2f} at the end")
    for name, found in ratios.items():
        told = ", ".join(f"{wall:.2f} (by CPU time {cpu:.2f})" for wall, cpu in found)
        print(f"rows/s ÷ those of {name}: {told}")


def _says(took: dict[str, Any]) -> str:
    rows, wall, cpu = took["rows"], took["wall_s"], took["cpu_s"]
    return f"{rows / wall / 1e6:.2f} M rows/s, {wall:.1f} s, {cpu:.1f} s of CPU, {took['bytes'] / rows:.2f} B/row;"
