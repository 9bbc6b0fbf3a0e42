# SPDX-License-Identifier: Apache-2.0
"""What is run: each workload is one question to the detector."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bench.fidelity.work import Turns
from pymemcg.bench.loads import MIB

LIMIT_BYTES = 64 * MIB
PROCESS_BYTES = 12 * MIB
"""More of the limit for each process, or interpreters would be what is squeezed."""
FAR_BYTES = 1024 * MIB

Schedule = Callable[[float, int], Turns]
"""(seconds, number of the toucher) → turns."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What the processes of a group do, and what happens to them.

    Attributes:
        name: In the table.
        title: For people.
        kind: What `work.prepare` prepares.
        turns: When each toucher is at work.
        over: Size of what is touched, in limits of the group, shared by the processes.
        limit_bytes: Of the group, before each process's part.
        threads: Touchers of a process.
        spinners: Threads of a process that compute and never reclaim.
        wander: Whether threads run on any CPU.
        file: What kind of file the load needs: "holes" costs no disk, "data" does.
        storm: Pause of `work.fork_storm` in ms, which takes the place of `work.run`.
        beside: A workload for a group beside the sampled one.
        above: Whether the limit is the parent group's.
        high: Whether the limit is `memory.high`, which only cgroup v2 has.
        outside: What an administrator does meanwhile.
        touch_ns: Where no tracepoint tells: a touch of a page that takes longer had to wait, by the load's own log. Where all
            is there, a page of memory takes 1 µs and a page of a file, read twice, 3 to 5; where the machine is slower,
            `running` lets it take so much longer.
        swap: Whether the group may swap.
        processes: How many processes there may be; more than one only where that asks something new.
        cpus: How many it needs to be a question of its own.
        true_stalls: Whether there should be any stall of a millisecond; where not, any that is told of is wrong.
    """

    name: str
    title: str
    kind: str
    turns: Schedule
    over: float = 2.0
    limit_bytes: int = LIMIT_BYTES
    threads: int = 1
    spinners: int = 0
    wander: bool = False
    file: Literal["holes", "data"] | None = None
    storm: float | None = None
    beside: Workload | None = None
    above: bool = False
    high: bool = False
    outside: Literal["lower the limit", "force_empty"] | None = None
    touch_ns: int | None = None
    swap: bool = True
    processes: tuple[int, ...] = (1, 3)
    cpus: int = 1
    true_stalls: bool = True


def steady(busy_ms: float, period_ms: float) -> Schedule:
    """So long of every period; several touchers have their turns evenly apart."""
    return lambda seconds, number: [
        [period_ms * (i + number % 4 / 4), busy_ms] for i in range(round(seconds * 1000 / period_ms) - 1)
    ]


def mixed(shortest_ms: float, longest_ms: float, pause_ms: float) -> Schedule:
    """Turns of any length, evenly spread over the logarithm, after pauses of any length around `pause_ms`."""

    def turns(seconds: float, number: int) -> Turns:
        dice, at, found = random.Random(number), 0.0, []
        while at < seconds * 1000:
            at += dice.uniform(0.3, 1.7) * pause_ms
            length = shortest_ms * (longest_ms / shortest_ms) ** dice.random()
            found.append([at, length])
            at += length
        return found

    return turns


def always(seconds: float, _number: int) -> Turns:
    """Without a pause."""
    return [[0, seconds * 1000]]


def never(_seconds: float, _number: int) -> Turns:
    """Not at all."""
    return []


_FLAT_OUT = Workload("flat out", "", "anon", always)

WORKLOADS = (
    Workload(
        "cache",
        "page cache read at the limit, 0.5 ms of each 4 ms",
        "cache",
        steady(0.25, 4),
        file="holes",
        swap=False,
        true_stalls=False,
    ),
    Workload("bursts", "anonymous memory over the limit, 60 ms of each 300 ms", "anon", steady(60, 300)),
    Workload("mixed", "anonymous memory over the limit, 0.1–20 ms after pauses of 20–120 ms", "anon", mixed(0.1, 20, 70)),
    Workload("wandering", "as mixed, but on any CPU", "anon", mixed(0.1, 20, 70), wander=True, cpus=2),
    Workload("light", "anonymous memory over the limit, 0.5–10 ms after pauses of 150–850 ms", "anon", mixed(0.5, 10, 500)),
    Workload("one of four", "as mixed in one thread, beside three that compute", "anon", mixed(0.1, 20, 70), spinners=3),
    Workload("threads", "as mixed in each of four threads", "anon", mixed(0.1, 20, 200), threads=4),
    Workload("ancestor", "as mixed, the limit being the parent's", "anon", mixed(0.1, 20, 70), above=True),
    Workload("writeback", "a file written at the limit, 40 ms of each 200 ms", "write", steady(40, 200), file="data"),
    Workload("fork storm", "children that touch 2 MiB each, at the limit", "anon", never, storm=10, processes=(1,)),
    Workload(
        "thrash",
        "1.3 limits of anonymous memory in any order, 40 ms of each 200 ms",
        "again",
        steady(40, 200),
        over=1.3,
        touch_ns=3_000,
    ),
    Workload(
        "refault",
        "1.3 limits of a file in any order, 40 ms of each 200 ms",
        "pages",
        steady(40, 200),
        over=1.3,
        file="data",
        touch_ns=15_000,
    ),
    Workload(
        "high",
        "anonymous memory that cannot be swapped out, to 4 % above memory.high, 100 ms of each 400 ms",
        "above",
        steady(100, 400),
        over=0.04,
        high=True,
        touch_ns=10_000,
        swap=False,
    ),
    Workload(
        "sibling",
        "nothing, beside a group that reclaims without a pause",
        "none",
        always,
        over=0.5,
        beside=_FLAT_OUT,
        cpus=2,
        true_stalls=False,
    ),
    Workload(
        "cpu",
        "five threads that compute, far from the limit",
        "none",
        always,
        spinners=5,
        limit_bytes=FAR_BYTES,
        true_stalls=False,
    ),
    Workload(
        "cpu and cache",
        "as cache, beside four threads that compute",
        "cache",
        steady(0.25, 4),
        file="holes",
        spinners=4,
        swap=False,
        true_stalls=False,
    ),
    Workload(
        "lowered limit",
        "page cache read below the limit, while that is lowered and raised",
        "cache",
        steady(5, 50),
        over=0.8,
        file="holes",
        outside="lower the limit",
        swap=False,
        true_stalls=False,
    ),
    Workload(
        "force_empty",
        "page cache read below the limit, while it is emptied",
        "cache",
        steady(5, 50),
        over=0.5,
        file="holes",
        outside="force_empty",
        swap=False,
        true_stalls=False,
    ),
)
