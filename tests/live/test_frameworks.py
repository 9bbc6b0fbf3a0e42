# SPDX-License-Identifier: Apache-2.0
"""Under asyncio, uvloop, gevent and pools of threads."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from actor import leaves_nothing, ring_file, until

from pymemcg import Sampler

pytestmark = pytest.mark.live


async def consume(sampler: Sampler, rows: int) -> list[int]:
    """Read rows as a service would, between other tasks."""
    _, cursor, _ = sampler.usage.read()
    seen: list[int] = []
    while len(seen) < rows:
        window, cursor, lost = sampler.usage.read(cursor)
        assert lost == 0
        seen += window["t_ns"].tolist()
        await asyncio.sleep(0.002)
    return seen


async def service(group: Any) -> None:
    loop = asyncio.get_running_loop()
    sampler = Sampler(group.spec, adaptive=False, history_s=2)
    await loop.run_in_executor(None, sampler.start)
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.001)

    heart = asyncio.create_task(beat())
    try:
        for seen in await asyncio.gather(*(consume(sampler, 100) for _ in range(5))):
            assert sorted(set(seen)) == seen
        assert beats > 10, "the loop went on"
        assert sampler.role == "sampling"
    finally:
        heart.cancel()
        await asyncio.to_thread(sampler.stop)
    sampler._channels.clear()


async def started_in_the_loop(group: Any) -> None:
    """Nothing of it waits for other tasks, so a coroutine may just use it."""
    with Sampler(group.spec, history_s=2) as sampler:
        await consume(sampler, 5)
    sampler._channels.clear()


def loops() -> list[Any]:
    missing = importlib.util.find_spec("uvloop") is None
    return [
        pytest.param(asyncio.new_event_loop, id="asyncio"),
        pytest.param(
            lambda: importlib.import_module("uvloop").new_event_loop(),
            id="uvloop",
            marks=pytest.mark.skipif(missing, reason="uvloop is not installed"),
        ),
    ]


@pytest.mark.parametrize("new_loop", loops())
@pytest.mark.parametrize("use", [service, started_in_the_loop])
def test_event_loops(use: Callable[[Any], Any], new_loop: Callable[[], asyncio.AbstractEventLoop], group: Any) -> None:
    loop = new_loop()
    loop.run_until_complete(started_in_the_loop(group))  # what loops and pools open once, they keep
    try:
        loop.run_until_complete(use(group))
        assert not ring_file(group.directory).exists()
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def test_a_pool_of_threads(group: Any) -> None:
    with leaves_nothing(group.directory):
        with Sampler(group.spec, adaptive=False, history_s=2) as sampler, ThreadPoolExecutor(8) as pool:

            def request(_: int) -> int:
                window = sampler.usage.window(seconds=0.05)
                assert window.valid()
                assert (window["t_ns"][1:] > window["t_ns"][:-1]).all()
                return int(window["usage_bytes"].max())

            until(lambda: sampler.usage.head > 50)
            assert all(peak >= 0 for peak in pool.map(request, range(200)))
        sampler._channels.clear()


GEVENT = """
import gevent
from pymemcg import Sampler
def consume(rows):
    _, cursor, _ = s.usage.read(); seen = []
    while len(seen) < rows:
        w, cursor, lost = s.usage.read(cursor); assert lost == 0
        seen += w["t_ns"].tolist()
        gevent.sleep(0.002)
    return sorted(set(seen)) == seen
beats = 0
def beat():
    global beats
    while True: beats += 1; gevent.sleep(0.001)
"""


@pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed")
class TestGevent:
    @pytest.fixture(params=["patched first", "imported first"])
    def monkey(self, request, group, make_actor):
        actor = make_actor(group)
        if request.param == "imported first":
            actor.do("import pymemcg")
        actor.do("import warnings; from gevent import monkey; warnings.simplefilter('ignore'); monkey.patch_all()")
        actor.do(GEVENT)
        return actor

    def test_greenlets_read_and_the_hub_goes_on(self, monkey):
        # Slow enough for five readers on a slow machine, too: what they lose would be true.
        monkey.do("s = Sampler(rate_hz=100, adaptive=False, history_s=20).start(); heart = gevent.spawn(beat)")
        monkey.do("jobs = [gevent.spawn(consume, 100) for _ in range(5)]; gevent.joinall(jobs, raise_error=True)")
        assert monkey.do("[job.value for job in jobs]") == [True] * 5
        assert monkey.do("beats") > 10
        assert monkey.do("s.role") == "sampling"
        monkey.do("heart.kill(); s.stop()")
        assert monkey.end() == 0
        assert monkey.errors() == ""

    def test_greenlets_start_and_stop_one_sampler(self, monkey):
        monkey.do(
            "s = Sampler(history_s=1); done = []\n"
            "def churn():\n"
            "    for _ in range(20): s.start(); gevent.sleep(0); s.role; s.stats(); s.stop(); gevent.sleep(0)\n"
            "jobs = [gevent.spawn(churn) for _ in range(4)]; gevent.joinall(jobs, raise_error=True)"
        )
        assert monkey.do("s.role") == "stopped"
        assert monkey.end() == 0

    def test_native_threads_beside_greenlets(self, monkey):
        monkey.do(
            "s = Sampler(adaptive=False, history_s=2).start(); from gevent.threadpool import ThreadPool; pool = ThreadPool(4)"
        )
        monkey.do("found = pool.map(lambda _: [s.role, s.usage.head > 0, s.stats()['role'], bool(s.absent)], range(40))")
        assert monkey.do("found") == [["sampling", True, "sampling", True]] * 40
        monkey.do("s.stop()")

    def test_a_forked_worker(self, monkey):
        """As gunicorn's gevent workers."""
        monkey.do(
            "import json; s = Sampler(history_s=2).start()\n"
            "here, there = os.pipe(); pid = os.fork()\n"
            "if pid == 0:\n"
            "    jobs = [gevent.spawn(lambda: s.role) for _ in range(3)]; gevent.joinall(jobs, raise_error=True)\n"
            "    os.write(there, json.dumps([job.value for job in jobs]).encode()); s.stop(); os._exit(0)\n"
            "told = os.read(here, 4096); status = os.waitpid(pid, 0)[1]"
        )
        assert monkey.do("[status, json.loads(told)]") == [0, ["attached"] * 3]
        assert monkey.do("s.role") == "sampling"

    def test_without_stop(self, monkey, group):
        monkey.do("s = Sampler().start(); w = s.usage.window(); a = w['t_ns']")
        assert monkey.end() == 0
        assert monkey.errors() == ""
        assert not ring_file(group.directory).exists()
