# SPDX-License-Identifier: Apache-2.0
"""What readers in other processes cost the sampler: `python -m bench.attach`.

CPU time of the tick thread a tick, with eight readers that take every new row a hundred times a second, beside that with the
same readers stopped, in interleaved pairs. A line of memory that a reader has looked at must come back to the writer's CPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time

import pymemcg
from pymemcg.bench.pairs import interleave, ratio

READERS = 8
READER = """
import sys, time, pymemcg
seen = pymemcg.attach(sys.argv[1])
cursor = None
print("!", flush=True)
while True:
    window, cursor, lost = seen.usage.read(cursor)
    window["usage_bytes"].max(initial=0), seen.usage.window(seconds=1)["usage_bytes"].max()
    time.sleep(0.01)
"""
WRITER = """
import sys, time, pymemcg
with pymemcg.Sampler(adaptive=False) as sampler:
    print(sampler.role, flush=True)
    sys.stdin.read()
"""


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.attach", description=__doc__)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    writer = subprocess.Popen([sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    readers = []
    try:
        if writer.stdout.readline() != "sampling\n":
            sys.exit("bench.attach: another process samples this group")
        source = f"pid:{writer.pid}"
        command = [sys.executable, "-c", READER, source]
        readers += [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(READERS)]
        for reader in readers:
            reader.stdout.readline()
        seen = pymemcg.attach(source)

        def a_tick(which):
            for reader in readers:
                os.kill(reader.pid, which)
            before = seen.state()
            time.sleep(args.seconds)
            after = seen.state()
            return (after["tick_cpu_ns"] - before["tick_cpu_ns"]) / (after["ticks"] - before["ticks"])

        a_tick(signal.SIGSTOP)
        looked_on, alone = interleave(lambda: a_tick(signal.SIGCONT), lambda: a_tick(signal.SIGSTOP), args.pairs)
        cost = ratio(looked_on, alone)
        interval = f"{cost.value:.3f} ({cost.low:.3f} to {cost.high:.3f})"
        print(f"a tick with {READERS} readers / without: {interval}, {cost.pairs} pairs of {args.seconds:g} s")
        print(f"a tick without: {statistics.median(alone) / 1000:.2f} us")
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
        writer.kill()
        writer.wait()


if __name__ == "__main__":
    main()
