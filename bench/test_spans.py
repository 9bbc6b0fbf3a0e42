# SPDX-License-Identifier: Apache-2.0
"""What a span costs, beside an empty Python `with`; with a ring file; and beside a thread that never lets the GIL go willingly.

`python bench/test_spans.py` prints the figures of the Python that runs it, from interleaved pairs, and needs no pytest.
"""

from __future__ import annotations

import platform
import random
import statistics
import sys
import tempfile
import threading
import time

from pymemcg import Sampler

REF = "4bf92f3577b34da6a3ce929d0e0e4736"
BATCH, PAIRS = 500, 400
TAIL_ROUNDS, TAIL = 40, 5000


class Empty:
    """A context manager that does nothing."""

    __slots__ = ()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        pass


def batch_empty(count):
    """Time a batch of empty `with`s, in ns."""
    begin = time.perf_counter_ns()
    for _ in range(count):
        with Empty():
            pass
    return time.perf_counter_ns() - begin


def batch_spans(count, sampler):
    """Time a batch of spans, in ns."""
    begin = time.perf_counter_ns()
    for _ in range(count):
        with sampler.span("checkout", ref=REF):
            pass
    return time.perf_counter_ns() - begin


def alone(sampler):
    """Time of a span and of an empty `with`: least and median over interleaved batches, in ns."""
    spans, empties = [], []
    for _ in range(PAIRS):
        spans.append(batch_spans(BATCH, sampler) / BATCH)
        empties.append(batch_empty(BATCH) / BATCH)
    return min(spans), statistics.median(spans), min(empties), statistics.median(empties)


def p99_beside_a_thread(sampler):
    """The 99th percentile of single spans and of single empty `with`s while another thread computes, of each pair, in ns."""
    stop = threading.Event()

    def compute():
        while not stop.is_set():
            sum(range(200))

    other = threading.Thread(target=compute)
    other.start()
    pairs = []
    try:
        for _ in range(TAIL_ROUNDS):
            first = random.random() < 0.5
            found = {}
            for which in (first, not first):
                times = [batch_spans(1, sampler) if which else batch_empty(1) for _ in range(TAIL)]
                found[which] = sorted(times)[int(0.99 * TAIL)]
            pairs.append((found[True], found[False]))
    finally:
        stop.set()
        other.join()
    return pairs


def test_span(benchmark):
    """Promised: < 500 ns on a quiet machine; `test_empty_with` says how quiet this one is."""
    benchmark(batch_spans, 1, Sampler())


def test_empty_with(benchmark):
    benchmark(batch_empty, 1)


def main():
    """Print the figures of this Python."""
    sampler = Sampler()
    batch_spans(20_000, sampler)  # the queue is full: from here on each span overwrites one
    least, median, empty_least, empty_median = alone(sampler)
    with tempfile.TemporaryDirectory(prefix="pymemcg-", dir="/dev/shm") as folder, Sampler(ring_file=f"{folder}/ring") as kept:
        kept_least, kept_median, _, _ = alone(kept)
    pairs = p99_beside_a_thread(sampler)
    above = statistics.median(span - empty for span, empty in pairs)
    tails = [statistics.median(pair[i] for pair in pairs) for i in range(2)]
    print(
        f"{platform.python_implementation()} {platform.python_version()}: a span {least:.0f} ns (median {median:.0f}), "
        f"with a ring file {kept_least:.0f} ns (median {kept_median:.0f}), "
        f"an empty `with` {empty_least:.0f} ns (median {empty_median:.0f}); "
        f"beside a thread p99 {tails[0]:.0f} ns, empty {tails[1]:.0f} ns, median of differences {above:.0f} ns"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
