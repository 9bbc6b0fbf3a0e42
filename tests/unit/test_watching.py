# SPDX-License-Identifier: Apache-2.0
"""The thread that feeds streams and callbacks: it goes on, whatever happens to the sampler."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from dataclasses import replace

import pytest
from madestalls import MS, stall, until
from ringwriter import ROWS, RingWriter

import pymemcg
from pymemcg import Sampler, watching
from pymemcg._ffi import NONE
from pymemcg._streams import StallStream
from pymemcg._watch import Glance, Kills, Source
from pymemcg.channel import Channel, Channels
from pymemcg.detecting import Stall
from pymemcg.errors import NotStarted
from pymemcg.ring import ChannelSpec

MIB = 1 << 20
UNITS = {"t_ns": "ns", "usage_bytes": "bytes", "limit_hits": "events", "oom_kills": "events"}
LIMITS = {"t_ns": "ns", "level": "", "limit_bytes": "bytes"}
SPECS = (
    ChannelSpec("usage", MS, ROWS, UNITS),
    ChannelSpec("limits", 0, ROWS, LIMITS),
    ChannelSpec("pressure", 0, ROWS, {"t_ns": "ns", "some_us": "us"}),
    ChannelSpec("node", 100 * MS, ROWS, {"t_ns": "ns", "allocstall_normal": "events"}),
)


def watchers() -> int:
    return sum(thread.name == "pymemcg-watch" for thread in threading.enumerate())


class Written(Channels):
    """Channels of a ring that the test writes."""

    def __init__(self) -> None:
        self.writer = RingWriter(SPECS)
        for name in ("usage", "limits", "pressure", "node"):
            setattr(self, name, self.writer.channel(name))
        for name in ("reclaim", "events"):
            setattr(self, name, Channel(name, None, None))

    def tick(self, t_ns: int, *, usage: int = MIB, hits: int = 0, kills: int = 0) -> None:
        self.writer.put("usage", {"t_ns": t_ns, "usage_bytes": usage, "limit_hits": hits, "oom_kills": kills})


class TestGlance:
    def test_sees_what_can_be_a_stall_and_nothing_else(self):
        source = Written()
        glance = Glance(source)
        source.tick(1)
        assert glance.changed()
        assert not glance.changed()
        source.tick(2, usage=2 * MIB)
        source.writer.put("pressure", {"t_ns": 2, "some_us": 0})
        glance.changed()
        source.tick(3, usage=3 * MIB, kills=1)
        source.writer.put("pressure", {"t_ns": 3, "some_us": 0})
        source.writer.put("node", {"t_ns": 3, "allocstall_normal": 1})
        assert not glance.changed()
        for change in (
            lambda: source.tick(4, hits=1),
            lambda: source.writer.put("pressure", {"t_ns": 4, "some_us": 1}),
            lambda: source.writer.put("limits", {"t_ns": 4, "level": 0, "limit_bytes": 64 * MIB}),
        ):
            change()
            assert glance.changed()
            assert not glance.changed()


class TestKills:
    def test_each_rise_with_what_was_known_before(self):
        source = Written()
        source.writer.put("limits", {"t_ns": 0, "level": 0, "limit_bytes": NONE})
        source.writer.put("limits", {"t_ns": 0, "level": 1, "limit_bytes": 5})
        source.tick(10, kills=3)
        kills = Kills(source)
        assert kills.news() == []
        source.tick(20, usage=60 * MIB, kills=3)
        source.writer.put("limits", {"t_ns": 25, "level": 0, "limit_bytes": 64 * MIB})
        source.tick(30, usage=20 * MIB, kills=4)
        source.tick(40, usage=63 * MIB, kills=4)
        source.tick(50, usage=30 * MIB, kills=6)
        first, second = kills.news()
        assert (first.t_ns, first.since_ns, first.kills, first.oom_kills) == (30, 20, 1, 4)
        assert (first.usage_bytes, first.limit_bytes) == (60 * MIB, 64 * MIB)
        assert (second.t_ns, second.since_ns, second.kills, second.oom_kills) == (50, 40, 2, 6)
        assert kills.news() == []

    def test_one_that_came_before_the_first_row_after(self):
        source = Written()
        source.tick(10, usage=50 * MIB)
        kills = Kills(source)
        source.tick(20, usage=MIB, kills=1)
        (kill,) = kills.news()
        assert (kill.since_ns, kill.usage_bytes, kill.limit_bytes) == (10, 50 * MIB, None)

    def test_of_a_ring_that_was_overrun(self):
        source = Written()
        source.tick(1)
        kills = Kills(source)
        for n in range(3 * ROWS):
            source.tick(2 + n, kills=5)
        (kill,) = kills.news()
        assert (kill.kills, kill.since_ns) == (5, 1), "when it happened is lost, that it did is not"

    def test_where_they_are_not_counted(self):
        source = Written()
        source.usage = Channel("usage", None, None)
        kills = Kills(source)
        assert not kills.counted
        assert kills.news() == []


class FakeDetector:
    """Tells what a test makes it tell; what the real one finds is told by its own tests."""

    made: list[FakeDetector]

    def __init__(self, source, *, evidence) -> None:
        assert evidence == "auto"
        self.source = source
        self.news: list = []
        self.rest: list = []
        self.finished = False
        self.final_until_ns = 0
        FakeDetector.made.append(self)

    def advance(self):
        news, self.news = self.news, []
        for one in news:
            if isinstance(one, Exception):
                raise one
        return news

    def finish(self):
        self.finished = True
        return self.advance() + self.rest


@pytest.fixture
def detectors(monkeypatch):
    FakeDetector.made = []
    monkeypatch.setattr("pymemcg.detecting.Detector", FakeDetector)
    monkeypatch.setattr(watching, "RESTING_NS", 0)
    monkeypatch.setattr(watching, "LOOK_S", 0.001)
    monkeypatch.setattr(watching, "IDLE_LOOK_S", 0.001)
    monkeypatch.setattr(watching, "RETRY_S", (0.0, 0.0))
    yield FakeDetector.made
    until(lambda: not watchers())


@pytest.fixture
def start(detectors):
    """Starts samplers of this process's own group: `start(on_stall=…)`."""
    started = []

    def start(**options) -> Sampler:
        sampler = Sampler(history_s=1, **options)
        try:
            started.append(sampler.start())
        except pymemcg.MemcgError as error:
            pytest.skip(f"nothing can be sampled here: {error}")
        return sampler

    yield start
    for sampler in started:
        sampler.stop()


def now(**known) -> Stall:
    return stall(time.monotonic_ns(), **known)


class TestThread:
    def test_runs_only_when_somebody_asks(self, start):
        sampler = start()
        assert watchers() == 0
        stream = sampler.stalls()
        assert watchers() == 1
        assert sampler.stalls() is not stream
        assert watchers() == 1
        del stream
        until(lambda: not watchers())
        assert isinstance(sampler.stalls(), StallStream)
        assert watchers() == 1, "and again when somebody asks again"

    def test_tells_everybody_everything_from_their_start_on(self, start, detectors):
        told = []
        sampler = start(on_stall=told.append)
        until(lambda: detectors)
        early = sampler.stalls()
        begun = now(state="open", end_ns=None)
        first = [begun, replace(begun, state="closed", end_ns=time.monotonic_ns()), now(state="open", end_ns=None)]
        detectors[0].news = [stall(5), *first]
        until(lambda: len(told) == 3)
        late = sampler.stalls()
        last = replace(first[2], state="closed", end_ns=time.monotonic_ns())
        detectors[0].rest = [last]
        sampler.stop()
        assert told == [*first, last]
        assert list(early) == [*first, last]
        assert list(late) == [first[2], last], "what goes on when it begins, and what comes"
        assert detectors[0].finished
        assert watchers() == 0

    def test_after_an_error_it_goes_on_with_a_new_detector(self, start, detectors, caplog):
        told = []
        sampler = start(on_stall=told.append)
        until(lambda: detectors)
        one = now(state="open")
        detectors[0].news = [one]
        until(lambda: told)
        detectors[0].news = [ZeroDivisionError()]
        until(lambda: len(detectors) == 2)
        closed = replace(one, state="closed")
        detectors[1].news = [one, closed]
        until(lambda: len(told) == 2)
        detectors[1].news = [ZeroDivisionError()]
        until(lambda: len(detectors) == 3)
        assert told == [one, closed], "what was told is not told again"
        (record,) = [record for record in caplog.records if record.exc_info]
        assert record.exc_info[0] is ZeroDivisionError
        assert sampler.role != "stopped"

    def test_a_callback_may_use_and_stop_the_sampler(self, start, detectors):
        told = []

        def on_stall(one):
            told.append((sampler.role, one, len(sampler.usage.window(rows=1)), sampler.stalls()))
            sampler.stop()
            told.append(sampler.role)

        sampler = start(on_stall=on_stall)
        stream = sampler.stalls()
        until(lambda: detectors)
        one = now()
        detectors[0].news = [one]
        assert list(stream) == [one]
        until(lambda: not watchers())
        (role, stalled, rows, inner), after = told
        assert (stalled, rows, after) == (one, 1, "stopped")
        assert role in ("sampling", "attached", "alone")
        assert list(inner) == []

    def test_a_callback_that_never_ends_does_not_hold_stop_up(self, start, detectors, monkeypatch, caplog):
        monkeypatch.setattr(watching, "PATIENCE_S", 0.05)
        held, may_go = threading.Event(), threading.Event()

        def on_stall(_one):
            held.set()
            may_go.wait(30)

        sampler = start(on_stall=on_stall)
        stream = sampler.stalls()
        until(lambda: detectors)
        detectors[0].news = [now(), now()]
        assert held.wait(10)
        sampler.stop()
        assert len(list(stream)) == 1, "and the stream ends"
        assert "still runs" in caplog.text
        sampler.start()
        until(lambda: len(detectors) == 2)
        assert watchers() == 2, "a new start has a new thread"
        may_go.set()
        until(lambda: watchers() == 1)
        assert not detectors[0].finished

    def test_started_again_it_tells_again(self, start, detectors):
        told = []
        sampler = start(on_stall=told.append)
        until(lambda: detectors)
        sampler.stop()
        sampler.start()
        until(lambda: len(detectors) == 2)
        one = now()
        detectors[1].news = [one]
        until(lambda: told == [one])

    def test_stop_from_many_threads(self, start):
        sampler = start(on_stall=print)
        threads = [threading.Thread(target=sampler.stop) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert watchers() == 0

    def test_a_dropped_sampler_takes_it_along(self, start):
        class Service:
            def __init__(self) -> None:
                self.sampler = Sampler(history_s=1, on_stall=self.hear)
                self.sampler.start()

            def hear(self, one) -> None: ...

        start().stop()  # skips where nothing can be sampled
        service = Service()
        gone = weakref.ref(service.sampler)
        assert watchers() == 1
        del service
        until(lambda: (gc.collect(), gone())[1] is None)  # its thread may just hold it for a look
        until(lambda: not watchers())

    def test_a_sampler_lives_for_as_long_as_somebody_listens(self, start, detectors):
        stream = start().stalls()
        gc.collect()
        until(lambda: detectors)
        one = now()
        detectors[0].news = [one]
        assert next(stream) is one

    def test_the_source_outlives_neither_run_nor_sampler(self, start):
        sampler = start()
        source = Source(sampler)
        usage = sampler.usage
        sampler.stop()
        sampler.start()
        assert source.usage._ring is usage._ring is not sampler.usage._ring
        assert source.role == sampler.role


class TestNotSampling:
    def test_before_start(self):
        with pytest.raises(NotStarted):
            Sampler().stalls()

    def test_after_stop(self, start):
        sampler = start()
        sampler.stop()
        assert list(sampler.stalls()) == []
        assert watchers() == 0

    def test_disabled(self, monkeypatch):
        monkeypatch.setenv("PYMEMCG_DISABLE", "1")

        async def main(sampler):
            return [one async for one in sampler.stalls()]

        with Sampler(on_stall=print) as sampler:
            assert list(sampler.stalls()) == []
            assert asyncio.run(main(sampler)) == []
            assert watchers() == 0
