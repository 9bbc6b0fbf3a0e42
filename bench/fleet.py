# SPDX-License-Identifier: Apache-2.0
"""A fleet of hosts: whether both engines find what the detector finds in each recording, and what a second process gains.

`python -m bench.fleet`. Services are sampled for some seconds in groups of their own, at limits that they live at; each host's
history is one of these recordings again and again, with its clocks shifted and its counters going on. Two worker processes and
one take turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pymemcg
from pymemcg.bench.machine import Steal, describe
from pymemcg.bench.pairs import interleave, ratio
from pymemcg.child import ChildGroup
from pymemcg.fleet import ENGINES, report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))
from fleetset import put
from replay import replayed

S = 10**9
SERVICES = {
    "import": (1 << 20, 0.02, 96),
    "search": (4 << 20, 0.2, 96),
    "thumbnails": (256 << 10, 0.005, 80),
    "mail": (1, 0.05, 96),
}
"""Name to the bytes that it writes at once, how long it pauses (s), and its limit in MiB."""
SERVICE = """
import os, sys, tempfile, time
import pymemcg
from pymemcg.recorder import Recorder
path, seconds, size, pause = sys.argv[1], *map(float, sys.argv[2:])
kept = bytearray(b"x") * (16 << 20)
until = time.monotonic() + seconds
with pymemcg.Sampler(adaptive=False) as sampler, Recorder(sampler, path) as recorder:
    with tempfile.TemporaryFile(dir=".") as file:
        while time.monotonic() < until:
            file.write(os.urandom(int(size)))
            if file.tell() > 128 << 20:
                file.seek(0)
            time.sleep(pause)
            recorder.write()
"""


def sampled(folder: Path, name: str, seconds: float) -> pymemcg.Recording:
    """A recording of a service that runs for so long in a group of its own."""
    size, pause, limit = SERVICES[name]
    path = folder / f"{name}.memcg"
    words = [sys.executable, "-c", SERVICE, path, seconds, size, pause]
    shell = ["/bin/sh", "-c", 'read line; exec "$@"', "sh", *map(str, words)]
    with ChildGroup("fleet", limit_bytes=limit << 20) as group:
        with subprocess.Popen(shell, cwd=folder, stdin=subprocess.PIPE) as service:
            group.add(service.pid)
            service.communicate(b"\n")
        if service.returncode != 0:
            sys.exit(f"bench.fleet: {name} failed")
    return pymemcg.open(path)


class Fleet:
    """A data set of so many hosts.

    Args:
        folder: For it, and for the recordings that it is made of.
        hosts: How many.
        sample_s: For how long each service is sampled.
        history_s: How long each host's history is.
    """

    def __init__(self, folder: Path, hosts: int, sample_s: float, history_s: float) -> None:
        self.dataset = folder / "set"
        self.recordings = {
            name: replayed(folder / f"{name}-long.memcg", sampled(folder, name, sample_s), history_s) for name in SERVICES
        }
        self._hosts = [(f"node-{number}", list(SERVICES)[number % len(SERVICES)], number) for number in range(hosts)]
        for host, name, number in self._hosts:
            info = {"target": {**self.recordings[name].info["target"], "levels": [{"name": f"/system.slice/{name}.service"}]}}
            # A day back, or the end of a history is in the future, of which reports say by how much, less each time.
            clocks = {"shift_ns": number * 977 * S, "wall_ns": -(86_400 + number * 3661) * S}
            put(self.dataset, self.recordings[name], host=host, run=f"{number:012x}", info=info, **clocks)

    @property
    def size_bytes(self) -> int:
        """Of its Parquet files."""
        return sum(path.stat().st_size for path in self.dataset.glob("**/*.parquet"))

    @property
    def rows(self) -> int:
        """Of `usage`, of all hosts."""
        return sum(self.recordings[name].usage.head for _, name, _ in self._hosts)

    def plain(self) -> list[dict]:
        """What `pymemcg.stalls` finds in each recording, as rows of a report."""
        found = {name: pymemcg.stalls(recording).to_dicts() for name, recording in self.recordings.items()}
        rows = []
        for host, name, number in sorted(self._hosts):
            for stall in found[name]:
                moved = {key: stall[key] and stall[key] + number * 977 * S for key in ("start_ns", "end_ns")}
                rows.append({"host": host, **stall, **moved})
        return rows


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--sample", type=float, default=8, metavar="S", help="how long each service is sampled")
    parser.add_argument("--history", type=float, default=120, metavar="S", help="how long each host's history is")
    parser.add_argument("--pairs", type=int, default=3, help="0 = only compare the results")
    args = parser.parse_args()
    print(describe())
    with tempfile.TemporaryDirectory(prefix="pymemcg-fleet-") as folder:
        fleet = Fleet(Path(folder), args.hosts, args.sample, args.history)
        print(f"{args.hosts} hosts, {fleet.rows:,} rows of usage, {fleet.size_bytes / 1e6:,.0f} MB of Parquet")
        kept = compare(fleet)
        if args.pairs:
            kept &= measure(fleet, args.pairs)
    sys.exit(not kept)


def compare(fleet: Fleet) -> bool:
    """Whether all three find the same."""
    told = {engine: report(fleet.dataset, engine=engine) for engine in ENGINES}
    one, other = told.values()
    plain = fleet.plain()
    mine = [{key: row[key] for key in plain[0] if key != "state"} for row in one.stalls.to_pylist()] if plain else []
    same = {
        "on both engines": one.to_dict() == other.to_dict() and one.stalls.equals(other.stalls),
        "as pymemcg.stalls of each recording": mine == [{key: row[key] for key in row if key != "state"} for row in plain],
    }
    print(
        f"{len(plain):,} stalls and episodes; "
        + "; ".join(f"{what}: {'yes' if is_so else 'NO'}" for what, is_so in same.items())
    )
    return all(same.values())


def measure(fleet: Fleet, pairs: int) -> bool:
    """Whether two processes take at most 1/1.6 of the time of one."""

    def taking(workers: int) -> float:
        begun = time.perf_counter()
        report(fleet.dataset, workers=workers)
        return time.perf_counter() - begun

    steal = Steal()
    one, two = interleave(lambda: taking(1), lambda: taking(2), pairs)
    gain = ratio(one, two)
    print(f"one process: {', '.join(f'{t:.1f}' for t in one)} s; two: {', '.join(f'{t:.1f}' for t in two)} s")
    print(f"gain of the second: {gain.value:.2f} ({gain.low:.2f} to {gain.high:.2f}), wanted 1.6; steal {steal.ratio():.1%}")
    return gain.value >= 1.6


if __name__ == "__main__":
    main()
