# SPDX-License-Identifier: Apache-2.0
"""What it costs to turn the kernel's text into numbers, beside bare preads of the same files.

The functions run where the sampler is, in a worker.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from pymemcg import _ffi
from pymemcg._ffi import Source, check, ffi, lib
from pymemcg.cgroup import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

_ROUNDS = 50
_CHURN_BYTES = 1 << 18
"""64 pages of 4 KiB: about what the kernel gathers on a CPU before memory.stat moves."""
_PYTHON_ROUNDS = 20


def sample_files(*, pressure: bool) -> list[tuple[str, int]]:
    """The files of one full sample of this process's group, and their forms.

    Args:
        pressure: Also memory.pressure; reading it destroys what it says, so only where nobody else reads it.
    """
    target = resolve("self")
    own = target.levels[0]
    files = [(f"{own.directory}/{own.files['usage']}", _ffi.VALUE)] if "usage" in own.files else []
    if "hits" in own.files:
        keyed = own.files["hits"].startswith("memory.events")
        files.append((f"{own.directory}/{own.files['hits']}", _ffi.KEYED if keyed else _ffi.VALUE))
    files.append((f"{target.directory}/memory.stat", _ffi.KEYED))
    files.append((f"/proc/{os.getpid()}/statm", _ffi.STATM))
    if pressure and target.pressure_file is not None and target.pressure_scope == "group":
        files.append((target.pressure_file, _ffi.PSI))
    return files


def compare(*, pairs: int, pressure: bool) -> dict[str, Any]:
    """Read the files of a full sample as the sampler does, barely, in plain Python and with psutil.

    Returns:
        files: their names; source_ns, pread_ns: a full sample, a value a pair; changed_ratio: how often memory.stat was
        another text than the time before; python_ns, python_pread_ns; psutil_ns, psutil_pread_ns: of statm alone.
    """
    files = sample_files(pressure=pressure)
    sources = [Source(path, form) for path, form in files]
    array = ffi.new("struct memcg_source *[]", [source._source for source in sources])  # noqa: SLF001 - the core's own object
    result: dict[str, Any] = {"files": [os.path.basename(path) for path, _ in files], "source_ns": [], "pread_ns": []}
    source_ns, pread_ns, changed = ffi.new("uint64_t *"), ffi.new("uint64_t *"), ffi.new("uint32_t *")
    moved = 0
    for _ in range(pairs):
        rc = lib.memcg_bench_read(array, len(sources), _ROUNDS, _CHURN_BYTES, source_ns, pread_ns, changed)
        check(rc, "a file of this group")
        result["source_ns"].append(source_ns[0] / _ROUNDS)
        result["pread_ns"].append(pread_ns[0] / _ROUNDS)
        moved += changed[0]
    result["changed_ratio"] = moved / (pairs * _ROUNDS)
    return result | _compare_python(files, pairs // 4 + 2)


def _compare_python(files: list[tuple[str, int]], pairs: int) -> dict[str, list[float]]:
    import psutil

    process = psutil.Process()
    readers = [PythonReader(path) for path, _ in files]
    statm = PythonReader(f"/proc/{os.getpid()}/statm")
    measured: dict[str, Callable[[], object]] = {
        "python_ns": lambda: [reader.read() for reader in readers],
        "python_pread_ns": lambda: [reader.pread() for reader in readers],
        "psutil_ns": process.memory_info,
        "psutil_pread_ns": statm.pread,
    }
    times: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(pairs):
        for name, read in measured.items():
            begun = time.perf_counter_ns()
            for _ in range(_PYTHON_ROUNDS):
                read()
            times[name].append((time.perf_counter_ns() - begun) / _PYTHON_ROUNDS)
    for reader in [*readers, statm]:
        reader.close()
    return times


class PythonReader:
    """What one would write in plain Python: a descriptor that stays open, pread, split, int."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def pread(self) -> bytes:
        """The text."""
        return os.pread(self._fd, 16384, 0)

    def read(self) -> dict[str, int] | list[int]:
        """The numbers, by key where there are keys."""
        text = self.pread().decode("ascii")
        if text[:1].isdigit():
            return [int(field) for field in text.split()]
        if text == "max\n":  # no limit, on cgroup v2
            return []
        lines = text.splitlines()
        if text.startswith("some "):
            return {line.split()[0]: int(line.rpartition("=")[2]) for line in lines}
        return {key: int(value) for key, _, value in (line.partition(" ") for line in lines)}

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)
