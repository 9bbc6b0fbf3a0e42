# SPDX-License-Identifier: Apache-2.0
"""Streams of stalls and callbacks: whatever a user does with them, the others go on, and what is lost is said."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest
from madestalls import MS, stall, until

from pymemcg import Sampler, _streams
from pymemcg._streams import StallStream
from pymemcg._watch import Callbacks


@pytest.fixture
def stream():
    return StallStream(Sampler(), 0)


class TestStream:
    def test_takes_in_order_and_ends_after_the_last(self, stream):
        for n in range(3):
            stream._put(stall(n))
        stream._end()
        assert [one.start_ns for one in stream] == [0, 1, 2]
        assert list(stream) == []

    def test_waits_for_what_comes(self, stream):
        taken = []
        thread = threading.Thread(target=lambda: taken.extend(stream))
        thread.start()
        for n in range(100):
            stream._put(stall(n))
        until(lambda: len(taken) == 100)
        assert thread.is_alive()
        stream.close()
        thread.join(10)
        assert not thread.is_alive()

    def test_several_threads_share_one(self, stream):
        taken = []
        threads = [threading.Thread(target=lambda: taken.extend(stream)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for n in range(200):
            stream._put(stall(n))
        until(lambda: len(taken) == 200)
        stream.close()
        for thread in threads:
            thread.join(10)
        assert sorted(one.start_ns for one in taken) == list(range(200))

    def test_drops_the_oldest_and_says_so(self, stream, caplog):
        for n in range(_streams.QUEUE_STALLS + 5):
            stream._put(stall(n))
        assert stream.missed == 5
        stream._end()
        assert [one.start_ns for one in stream] == list(range(5, _streams.QUEUE_STALLS + 5))
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 2, "at the first one, and how many at the end"
        assert "missed 5" in told[1]

    def test_leaves_out_what_is_too_short_or_of_unknown_length(self):
        stream = StallStream(Sampler(), 5 * MS)
        for n, longest in enumerate((None, 4 * MS, 5 * MS, 6 * MS)):
            stream._put(stall(n, longest_ns=longest))
        stream._end()
        assert [one.start_ns for one in stream] == [2, 3]

    def test_leaves_out_what_was_over_before_it_began(self, stream):
        stream._since_ns = 10 * MS
        stream._put(stall(8 * MS))
        stream._put(stall(9 * MS))
        stream._put(stall(9 * MS, end_ns=None))
        stream._end()
        assert len(list(stream)) == 2

    def test_what_was_told_as_open_is_told_as_closed(self, stream):
        both = [stall(MS, "open"), stall(MS)]
        stream._begin(both[:1])
        stream._put(both[1])
        stream._put(stall(MS))
        stream._end()
        assert list(stream) == both, "although it was over before it was asked for"


class TestAsync:
    def test_several_tasks_get_all(self):
        async def main():
            streams = [StallStream(Sampler(), 0) for _ in range(3)]

            async def take(stream):
                return [one.start_ns async for one in stream]

            tasks = [asyncio.create_task(take(stream)) for stream in streams]

            def put():
                for n in range(500):
                    for stream in streams:
                        stream._put(stall(n))
                for stream in streams:
                    stream._end()

            thread = threading.Thread(target=put)
            thread.start()
            taken = await asyncio.wait_for(asyncio.gather(*tasks), 10)
            thread.join()
            return taken

        assert asyncio.run(main()) == [list(range(500))] * 3

    def test_a_timeout_loses_nothing(self, stream):
        async def main():
            for _ in range(3):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(stream.__anext__(), 0.01)
            assert stream._waiting == []
            stream._put(stall(1))
            return await asyncio.wait_for(stream.__anext__(), 10)

        assert asyncio.run(main()).start_ns == 1

    def test_its_loop_may_be_gone(self, stream):
        async def main():
            task = asyncio.create_task(stream.__anext__())
            await asyncio.sleep(0)
            stream._waiting *= 2  # it did not get to take itself off
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert stream._waiting
        stream._put(stall(1))
        assert next(stream).start_ns == 1


class TestCallbacks:
    def test_what_is_raised_is_logged_once_of_a_kind(self, caplog):
        errors = iter([ValueError("one"), ValueError("two"), KeyError("three"), SystemExit(4), ValueError("five")])
        told = []

        def on_stall(event):
            told.append(event)
            raise next(errors)

        callbacks = Callbacks(on_stall=on_stall, on_oom=None)
        for n in range(5):
            callbacks.tell("on_stall", n)
        callbacks.tell("on_oom", 6)
        assert told == [0, 1, 2, 3, 4]
        assert [record.name for record in caplog.records] == ["pymemcg"] * 3
        assert [record.exc_info[0] for record in caplog.records] == [ValueError, KeyError, SystemExit]
        assert "on_stall" in caplog.records[0].getMessage()

    def test_a_slow_one_is_told_of(self, caplog, monkeypatch):
        monkeypatch.setattr("pymemcg._watch.SLOW_S", 0.0)
        callbacks = Callbacks(on_stall=lambda _: time.sleep(0.001))
        callbacks.tell("on_stall", 1)
        callbacks.tell("on_stall", 2)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "on_stall took" in record.getMessage()

    @pytest.mark.parametrize("callback", [7, asyncio.sleep])
    def test_only_ordinary_functions(self, callback):
        with pytest.raises(TypeError, match="on_stall"):
            Sampler(on_stall=callback)
