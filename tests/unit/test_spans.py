# SPDX-License-Identifier: Apache-2.0
"""Spans as they are marked, kept and summarised, without a sampler that runs and without reclaim."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time

import pytest

from pymemcg import Sampler, _attribution, _span, _spanlog, schema
from pymemcg._hit import Hits, SpanSummary, Summary, duration
from pymemcg._spanlog import SpanChannel, Texts
from pymemcg.spans import Span


@pytest.fixture
def sampler():
    _span.forget_thread()  # what other tests did in this one
    return Sampler()


def ended(sampler):
    """What has been noted, by name: columns as dicts."""
    channel = SpanChannel(sampler._spans, None)
    count = channel.head
    columns = {name: sampler._spans.column(name)[:count].tolist() for name in schema.SPANS_UNITS if count}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    refs = sampler._spans.refs(range(count))
    return [row | {"name": sampler._spans.names[row["name_id"]], "ref": ref} for row, ref in zip(rows, refs, strict=True)]


def attributions(sampler):
    return [schema.SPAN_ATTRIBUTIONS[row["attribution"]] for row in ended(sampler)]


class TestMarking:
    def test_a_span_has_its_times_its_thread_and_its_reference(self, sampler):
        before = time.monotonic_ns()
        with sampler.span("checkout", ref="4bf92f3577b34da6a3ce929d0e0e4736") as span:
            inside = time.monotonic_ns()
        (row,) = ended(sampler)
        assert before <= row["start_ns"] <= inside <= row["end_ns"] <= time.monotonic_ns()
        assert (row["start_ns"], row["end_ns"]) == (span.start_ns, span.end_ns)
        assert (row["ran_start_ns"], row["ran_end_ns"]) == (span.start_ns, span.end_ns)
        assert row["tid"] == threading.get_native_id()
        assert (row["name"], row["ref"]) == ("checkout", "4bf92f3577b34da6a3ce929d0e0e4736")
        assert attributions(sampler) == ["thread"]

    @pytest.mark.parametrize("ref", [None, 0, 17, "", "a"])
    def test_references_are_what_they_were(self, sampler, ref):
        with sampler.span("a", ref):
            pass
        assert ended(sampler)[0]["ref"] == ref
        assert (ended(sampler)[0]["ref_id"] == -1) == (ref is None)

    def test_an_exception_ends_it_and_goes_on(self, sampler):
        with pytest.raises(KeyError), sampler.span("a"):
            raise KeyError("b")
        assert [row["name"] for row in ended(sampler)] == ["a"]

    def test_spans_within_spans(self, sampler):
        with sampler.span("outer"), sampler.span("inner"):
            pass
        inner, outer = ended(sampler)
        assert (inner["name"], outer["name"]) == ("inner", "outer")
        assert outer["start_ns"] <= inner["start_ns"] <= inner["end_ns"] <= outer["end_ns"]
        assert attributions(sampler) == ["thread", "thread"]

    def test_its_name_and_reference_may_become_known_late(self, sampler):
        with sampler.span("?") as span:
            span.name, span.ref = "GET /items/{id}", 5
        assert [(row["name"], row["ref"]) for row in ended(sampler)] == [("GET /items/{id}", 5)]

    def test_threads_are_told_apart(self, sampler):
        tids = []

        def work():
            tids.append(threading.get_native_id())
            for _ in range(100):
                with sampler.span("work"):
                    pass

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = [row["tid"] for row in ended(sampler)]
        assert sorted(found) == sorted(tids * 100)

    def test_a_function_that_is_decorated(self, sampler):
        @sampler.span("double", ref="r")
        def double(number, *, add=0):
            """Twice as much."""
            return 2 * number + add

        assert double(2, add=1) == 5
        assert double(3) == 6
        assert (double.__name__, double.__doc__) == ("double", "Twice as much.")
        assert [(row["name"], row["ref"]) for row in ended(sampler)] == [("double", "r")] * 2

    def test_a_coroutine_function_that_is_decorated(self, sampler):
        @sampler.span("wait")
        async def wait():
            await asyncio.sleep(0.002)
            return 7

        assert asyncio.run(wait()) == 7
        (row,) = ended(sampler)
        assert row["end_ns"] - row["start_ns"] >= 2_000_000
        assert attributions(sampler) == ["loop"]


class TestAttribution:
    def test_a_loop_that_runs_in_a_new_thread(self, sampler):
        async def serve():
            with sampler.span("alone"):
                await asyncio.sleep(0)

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        thread.join()
        assert attributions(sampler) == ["loop"]

    def test_a_loop_that_began_after_the_thread_s_first_span_is_told_by_what_crosses(self, sampler):
        with sampler.span("start-up"):
            pass

        async def serve(seconds):
            with sampler.span("serve"):
                await asyncio.sleep(seconds)

        async def main():
            await serve(0)
            await asyncio.gather(serve(0.001), serve(0.003), serve(0.002))

        asyncio.run(main())
        count = sampler._spans.gather()
        columns = {name: sampler._spans.column(name)[:count] for name in schema.SPANS_UNITS}
        looped = [schema.SPAN_ATTRIBUTIONS[value] for value in _attribution.looped(columns).tolist()]
        assert looped == ["thread", "thread", "loop", "loop", "loop"]

    def test_work_of_a_pool_is_its_thread_s(self, sampler):
        with sampler.span("handled") as span:
            start = time.monotonic_ns()
            time.sleep(0.001)
            span.ran_on(4242, start, time.monotonic_ns())
            time.sleep(0.001)
        with sampler.span("all of it") as span:
            span.ran_on(4243)
        part, whole = ended(sampler)
        assert (part["tid"], whole["tid"]) == (4242, 4243)
        assert part["start_ns"] < part["ran_start_ns"] < part["ran_end_ns"] < part["end_ns"]
        assert (whole["ran_start_ns"], whole["ran_end_ns"]) == (whole["start_ns"], whole["end_ns"])
        assert attributions(sampler) == ["pool", "pool"]

    def test_times_outside_of_the_span_are_cut(self, sampler):
        with sampler.span("a") as span:
            span.ran_on(1, 1, 2)
        (row,) = ended(sampler)
        assert row["start_ns"] <= row["ran_start_ns"] <= row["ran_end_ns"] <= row["end_ns"]

    def test_a_span_that_is_over_already(self, sampler):
        sampler.add_span("GET /", "ref", start_ns=1000, end_ns=2000, attribution="pool", tid=5, ran_start_ns=1500)
        sampler.add_span("GET /", start_ns=1000, end_ns=2000, attribution="loop")
        pool, loop = ended(sampler)
        assert (pool["start_ns"], pool["end_ns"], pool["tid"]) == (1000, 2000, 5)
        assert (pool["ran_start_ns"], pool["ran_end_ns"]) == (1500, 2000)
        assert loop["tid"] == threading.get_native_id()
        assert attributions(sampler) == ["pool", "loop"]
        with pytest.raises(ValueError, match="thread, pool, loop"):
            sampler.add_span("GET /", start_ns=1000, end_ns=2000, attribution="guess")

    def test_greenlets_take_turns(self):
        code = (
            "from gevent import monkey; monkey.patch_all()\n"
            "import gevent, threading\n"
            "from pymemcg import Sampler, schema\n"
            "s = Sampler()\n"
            "def work(seconds):\n"
            "    with s.span('work'): gevent.sleep(seconds)\n"
            "gevent.joinall([gevent.spawn(work, 0.001 * i) for i in range(3)], raise_error=True)\n"
            "n = s._spans.gather()\n"
            "print(set(s._spans.column('attribution')[:n].tolist()), len(set(s._spans.column('tid')[:n].tolist())))\n"
        )
        pytest.importorskip("gevent", reason="gevent is not installed")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout == "{3} 1\n", done.stderr


class TestBounds:
    def test_the_queue_overwrites_the_oldest_and_says_when(self, sampler):
        for i in range(_spanlog.ENDED + 100):
            with sampler.span("a", i):
                pass
        rows = ended(sampler)
        assert len(rows) == _spanlog.ENDED
        assert rows[-1]["ref"] == _spanlog.ENDED + 99
        ((since_ns, until_ns),) = sampler._spans.gaps
        assert since_ns < until_ns <= rows[0]["end_ns"]

    def test_a_queue_that_is_looked_at_in_time_has_no_gap(self, sampler):
        for _ in range(5):
            for _ in range(_spanlog.ENDED - 2):
                with sampler.span("a"):
                    pass
            sampler._spans.gather()
        assert not sampler._spans.gaps

    def test_the_columns_forget_at_their_beginning(self, sampler):
        total = 0
        while total < _spanlog.KEPT + 10:
            for _ in range(5000):
                with sampler.span("a", ref=total):
                    total += 1
            sampler._spans.gather()
        assert sampler._spans.gather() == total
        assert sampler._spans.refs([0, 9, total - 1, total]) == [None, None, total - 1, None]
        assert len(sampler._spans.column("tid")) == 2 * _spanlog.KEPT

    def test_names_are_bounded(self, sampler):
        for i in range(_spanlog.NAMES + 50):
            with sampler.span(f"GET /item/{i}"):
                pass
        rows = ended(sampler)
        assert len(sampler._spans.names) == _spanlog.NAMES
        assert rows[0]["name"] == "GET /item/0"
        assert rows[-1]["name"] == _spanlog.OTHER

    def test_a_recording_s_references_are_bounded_and_it_says_so(self, sampler, monkeypatch):
        monkeypatch.setattr(_spanlog, "REFS", 3)
        for ref in ("a", "b", None, "a", "c", "d", 7):
            with sampler.span("n", ref):
                pass
        texts = Texts(sampler._spans, 12)
        count = sampler._spans.gather()
        ids = sampler._spans.column("ref_id")[:count]
        assert texts.ref_ids(ids).tolist() == [0, 1, -1, 0, 2, -1, -1]
        assert texts.info() == {"pid": 12, "names": ["n"], "refs": ["a", "b", "c"], "refs_left_out": 2}

    def test_what_is_not_json_is_told_as_text(self, sampler):
        with sampler.span("n", (1, 2)):
            pass
        texts = Texts(sampler._spans, 12)
        texts.ref_ids([0] * sampler._spans.gather())
        assert texts.info()["refs"] == ["(1, 2)"]


class TestForks:
    def test_a_child_begins_empty(self, sampler):
        @sampler.span("decorated")
        def decorated():
            pass

        decorated()
        with sampler.span("over the fork"):
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    with sampler.span("in the child"):
                        pass
                    decorated()
                finally:
                    os.write(write, b"1" if len(ended(sampler)) == 2 else b"0")
                    tids = {row["tid"] for row in ended(sampler)}
                    os.write(write, b"1" if tids == {os.getpid()} else b"0")
                    os.write(write, b"0")
        if pid == 0:  # the span that its parent began has ended here, too
            os.write(write, b"1" if len(ended(sampler)) == 2 else b"0")
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(write)
        assert os.read(read, 10) == b"1101"
        os.close(read)
        assert [row["name"] for row in ended(sampler)] == ["decorated", "over the fork"]


class TestDisabled:
    def test_nothing_is_kept(self, monkeypatch):
        monkeypatch.setenv("PYMEMCG_DISABLE", "1")
        sampler = Sampler()

        def work():
            return 3

        with sampler.start():
            with sampler.span("a", ref=1) as span:
                span.name, span.ref = "b", 2
                span.ran_on(5)
                span.in_loop()
            assert not isinstance(span, Span)
            assert sampler.span("a")(work) is work
            sampler.add_span("a", start_ns=1, end_ns=2)
            assert len(sampler.hits()) == 0
            assert len(sampler.summary()) == 0
            assert len(sampler.spans.read()[0]) == 0
        assert sampler._spans.gather() == 0


def test_marking_needs_no_numpy_and_no_asyncio():
    code = (
        "import sys\n"
        "from pymemcg import Sampler\n"
        "s = Sampler()\n"
        "with s.span('a', ref=1): pass\n"
        "print('numpy' in sys.modules, 'asyncio' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "False False\n", done.stderr


def test_a_sampler_with_spans_is_freed_at_once():
    import weakref

    sampler = Sampler()
    with sampler.span("a"):
        pass
    gone = weakref.ref(sampler)
    del sampler
    assert gone() is None


class TestTold:
    ROW = SpanSummary("GET /", 1000, 12, 1_200_000, 1_200_000, 14_000_000, 5_000_000, 20_000_000, 5_500_000, 90_000_000)

    def test_a_percentile_in_words(self):
        assert self.ROW.told("p99") == "14 ms, 9 ms of it reclaim"
        assert self.ROW.told("p50") == "1.2 ms"

    def test_the_table_as_text(self):
        other = SpanSummary("static", 5, 0, 900, None, 1000, None, 1_500, None, None)
        text = str(Summary([other, self.ROW], final_until_ns=5))
        assert text.splitlines() == [
            "span    count  hits  p50     p99                        p99.9",
            "GET /   1000   12    1.2 ms  14 ms, 9 ms of it reclaim  20 ms, 14.5 ms of it reclaim",
            "static  5      0     900 ns  1 µs                       1.5 µs",
        ]

    def test_the_table_in_a_notebook_and_as_a_frame(self):
        summary = Summary([self.ROW, SpanSummary("<b>", 5, 0, 900, None, 1000, None, 1_500, None, None)], final_until_ns=5)
        assert "&lt;b&gt;" in summary._repr_html_()
        frame = summary.to_pandas()
        assert frame["p99_without_ns"].isna().tolist() == [False, True]
        assert summary.of("GET /") == self.ROW
        with pytest.raises(KeyError):
            summary.of("POST /")

    def test_no_hits(self):
        hits = Hits([], None, final_until_ns=0, select=lambda _: [], summarise=lambda: Summary([], final_until_ns=0))
        assert list(hits) == hits.to_dicts() == []
        assert hits.to_pandas().empty
        assert "<table>" in hits._repr_html_()

    @pytest.mark.parametrize(
        ("ns", "words"), [(0, "0 ns"), (999, "999 ns"), (1_500, "1.5 µs"), (14_000_000, "14 ms"), (2_500_000_000, "2.5 s")]
    )
    def test_durations(self, ns, words):
        assert duration(ns) == words
