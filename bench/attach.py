# SPDX-License-Identifier: Apache-2.0
"""What readers in other processes cost the sampler: `python -m bench.attach`.

CPU time of the tick thread a tick, with eight readers that take the new rows a hundred times a second, in interleaved pairs:
beside that with these readers stopped, and beside that with eight others that do the same with a ring that nobody writes. A
line of memory that a reader has looked at must come back to the writer's CPU: the second ratio is of that alone, the first is
also of eight more processes that run on the writer's CPUs and in their caches, whatever they do.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pymemcg
from pymemcg.bench.pairs import interleave, ratio
from pymemcg.child import ChildGroup

READERS = 8
READER = """
import sys, time, pymemcg
seen, live = pymemcg.attach(sys.argv[1]), sys.argv[2] == "live"
cursor = seen.usage.head - 10
print("!", flush=True)
while True:
    new, after, _ = seen.usage.read(cursor)
    new["usage_bytes"].max(initial=0), seen.usage.window(seconds=1)["usage_bytes"].max()
    cursor = after if live else cursor
    time.sleep(0.01)
"""
WRITER = """
import sys, time, pymemcg
with pymemcg.Sampler(sys.argv[1], adaptive=False) as sampler:
    print(sampler.role, flush=True)
    sys.stdin.read()
"""


@contextmanager
def child(*argv):
    """A Python process that has said its first line."""
    process = subprocess.Popen([sys.executable, "-c", *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        process.said = process.stdout.readline().strip()
        yield process
    finally:
        process.kill()
        process.wait()


def writer(stack, name):
    """A process that samples a group of its own, which it is in."""
    group = stack.enter_context(ChildGroup(name))
    process = stack.enter_context(child(WRITER, group.spec))
    group.add(process.pid)
    if process.said != "sampling":
        sys.exit(f"bench.attach: {group.spec} cannot be sampled: {process.said}")
    time.sleep(2)
    return process


def readers(stack, of, kind):
    """Processes that read the ring of another, stopped."""
    processes = [stack.enter_context(child(READER, f"pid:{of.pid}", kind)) for _ in range(READERS)]
    signalled(processes, signal.SIGSTOP)
    return processes


def signalled(processes, number):
    """Send all of them a signal."""
    for process in processes:
        os.kill(process.pid, number)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.attach", description=__doc__)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    with ExitStack() as stack:
        live, still = (writer(stack, name) for name in ("live", "still"))
        here, elsewhere = readers(stack, live, "live"), readers(stack, still, "still")
        signalled([still], signal.SIGSTOP)
        seen = pymemcg.attach(f"pid:{live.pid}")

        def a_tick(running):
            signalled(running, signal.SIGCONT)
            before = seen.state()
            time.sleep(args.seconds)
            after = seen.state()
            signalled(running, signal.SIGSTOP)
            return (after["tick_cpu_ns"] - before["tick_cpu_ns"]) / (after["ticks"] - before["ticks"])

        def told(what, others):
            looked_on, without = interleave(lambda: a_tick(here), lambda: a_tick(others), args.pairs)
            cost = ratio(looked_on, without)
            interval = f"{cost.value:.3f} ({cost.low:.3f} to {cost.high:.3f})"
            print(f"a tick with {READERS} readers / {what}: {interval}, {cost.pairs} pairs of {args.seconds:g} s")
            return without

        a_tick([])
        alone = told("without", [])
        told(f"with {READERS} of a ring that nobody writes", elsewhere)
        print(f"a tick without: {statistics.median(alone) / 1000:.2f} us")


if __name__ == "__main__":
    main()
