# SPDX-License-Identifier: Apache-2.0
"""What is left of a ring file after SIGKILL at any moment: `python -m bench.kills FILE --target GROUP`.

A process is forked for each kill, and samples at a fixed 10 kHz into FILE; a ring of half a second, so that the longer-lived go
round in it. What is told of each is not what the sampler thinks of itself but what its file holds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
import traceback

import numpy as np

import pymemcg
from pymemcg import Sampler, schema, sharing

RATE_HZ = 10_000
HISTORY_S = 0.5
LONGEST_S = 1.2  # twice round
NAMES = 50


def sample(target, path, tell):
    """Sample until killed; in a child of its own."""
    try:
        with Sampler(target, ring_file=path, rate_hz=RATE_HZ, history_s=HISTORY_S, adaptive=False) as sampler:
            os.write(tell, b"!")
            for number in range(10**6):
                with sampler.span(f"name {number % NAMES}", ref=number):
                    time.sleep(0.0002)
    except BaseException:  # noqa: BLE001 - nothing else may run here of what is the parent's
        traceback.print_exc()
    finally:
        os._exit(1)


def kill_one(target, path, seconds):
    """Let one sample for a while: when it had started and when it was killed, by CLOCK_MONOTONIC in ns."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        sample(target, path, tell)
    os.close(tell)
    started = os.read(told, 1)
    os.close(told)
    started_ns = time.monotonic_ns()
    time.sleep(seconds)
    killed_ns = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not started or not os.WIFSIGNALED(status):
        sys.exit("bench.kills: the sampler did not start")
    return started_ns, killed_ns


def wrong(recording):
    """What must not be in a file: a row that is half one and half another, or not in order."""
    found = [f"{what}: {why}" for what, why in recording.missing.items()]
    for name in schema.CHANNELS:
        channel = getattr(recording, name)  # rows of `reclaim` are in no order, see docs/file-format.md
        if name != "reclaim" and channel.head and (np.diff(channel.window()[channel.time]) < 0).any():
            found.append(f"{name} is not in order")
    usage = recording.usage.window()
    # At a fixed rate deadlines are multiples of the period apart: a torn row's is not. The first row of all has none.
    deadlines = (usage["t_ns"] - usage["late_ns"])[1 if usage.first_row == 0 else 0 :]
    torn = (deadlines - deadlines[-1:]) % (10**9 // RATE_HZ) != 0
    if torn.any():
        found.append(f"{torn.sum()} rows of usage are torn")
    if (np.diff(usage["t_ns"]) <= 0).any():
        found.append("a row of usage is there twice")
    said, spans = recording.info["spans"], recording.spans.window()
    numbers = [said["refs"][at] for at in spans["ref_id"].tolist()]
    if numbers != list(range(len(numbers))):
        found.append("spans are missing, or not in order")
    if any(said["names"][name] != f"name {n % NAMES}" for name, n in zip(spans["name_id"].tolist(), numbers, strict=True)):
        found.append("a span has another's name")
    return found


def last_ns(path, otherwise):
    """When the newest row of a file was sampled."""
    newest = pymemcg.open(path).usage.window(rows=1)["t_ns"]
    return int(newest[0]) if len(newest) else otherwise


def main():
    """Kill, look, and tell as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.kills", description=__doc__)
    parser.add_argument("path", metavar="FILE")
    parser.add_argument("--target", default="self")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    moments = random.Random(args.seed)
    ring = sharing.ring_path(os.stat(pymemcg.resolve(args.target).directory), os.geteuid())
    for _ in range(args.kills):
        started_ns, killed_ns = kill_one(args.target, args.path, moments.uniform(0.02, LONGEST_S))
        recording = pymemcg.open(args.path)
        last = last_ns(args.path, started_ns)
        told = {"rows": len(recording.usage.window()), "wrong": wrong(recording), "missing_ns": killed_ns - last}
        # On a disk the ring itself is still in /dev/shm, as its writer left it, if no other sampler has swept there.
        left = sharing.file_of(ring)
        if os.path.exists(left):
            told["behind_ring_ns"] = last_ns(left, started_ns) - last
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
