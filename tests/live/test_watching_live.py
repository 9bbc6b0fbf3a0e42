# SPDX-License-Identifier: Apache-2.0
"""Stalls told as they happen, in a real service at a real limit: to iterators, tasks and callbacks, in workers and forks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import facts
import pytest
from actor import MIB, Actor, until
from swapping import swap_of

from pymemcg import Sampler

pytestmark = pytest.mark.live

# told: what callbacks heard. burst(): some 50 ms of reclaim that stalls, since what is touched has to be swapped out; more on
# a slow machine, which must have come to the limit by then. What is imported there would be swapped out, too.
SERVICE = """
import asyncio, gc, threading
import numpy, pymemcg._detect
from pymemcg import Sampler, resolve
from pymemcg.bench.loads import CHUNK_BYTES, anon_toucher
told, kills, own = [], [], resolve().levels[0]
touch = anon_toucher(96 << 20)
for _ in range((96 << 20) // CHUNK_BYTES): touch()
def hits():
    with open(f"{own.directory}/{own.files['hits']}") as file: words = file.read().split()
    return int(words[words.index("max") + 1] if "max" in words else words[0])
def burst(seconds=0.05):
    until, least = time.monotonic() + seconds, hits() + 4
    while time.monotonic() < until or hits() < least: touch()
    return time.monotonic_ns()
def wait(true, seconds=60):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.01)
def watchers(): return sum(t.name == "pymemcg-watch" for t in threading.enumerate())
def follows(heard, stream):  # told in that order, perhaps less what was over before it listened
    owed = [s for s in told if s.end_ns is None or s.end_ns >= stream._since_ns]
    return [s for s in told if s in heard] == heard and [s for s in heard if s in owed] == owed and len(heard) > 0
def closed(since, stalls=told):
    return [s for s in list(stalls) if s.state == "closed" and s.harmless is not True and (s.end_ns or since) >= since]
"""


@pytest.fixture(scope="module")
def _swap() -> Iterator[None]:
    with swap_of(500 * MIB):
        yield


@pytest.fixture
def limited(_swap, make_group):
    return make_group("limited", limit_bytes=64 * MIB)


@pytest.fixture
def service(limited, make_actor) -> Actor:
    """A process at its group's limit."""
    actor = make_actor(limited)
    actor.do(SERVICE)
    return actor


class TestCallback:
    def test_open_then_closed(self, service):
        before = service.do("time.monotonic_ns()")
        service.do("s = Sampler(on_stall=told.append).start()")
        service.do("for _ in range(5): burst(0.3); time.sleep(0.3)")
        service.do(f"wait(lambda: closed({before}))")
        service.do("s.stop()")
        assert service.do("watchers()") == 0
        assert service.do(f"any(s.cause == 'limit' for s in closed({before}))")
        assert service.do(f"all(s.longest_ns >= 1_000_000 for s in closed({before}) if s.longest_ns)")
        assert service.do(f"all(s.end_ns >= {before} for s in told if s.end_ns)")
        opened, shut = (
            service.do(f"sorted({{s.start_ns for s in told if s.state == {state!r} and not s.harmless}})")
            for state in ("open", "closed")
        )
        assert set(opened) <= set(shut), "what was told as open is told as closed, at the latest at the end"
        assert service.do("len({(s.start_ns, s.harmless, s.evidence) for s in told if s.state == 'closed'})") == service.do(
            "sum(s.state == 'closed' for s in told)"
        ), "and once"

    def test_the_same_as_in_the_recording(self, service, tmp_path):
        path = str(tmp_path / "run.memcg")
        service.do("import pymemcg; from pymemcg.recorder import Recorder")
        service.do("s = Sampler(on_stall=told.append).start()")
        if service.do("s.evidence['trace']") is not None:
            pytest.skip("what PSI said live depends on when it was read")
        service.do("s.stop(); told.clear(); s = Sampler(on_stall=told.append, evidence='trace').start()")
        service.do(
            f"time.sleep(0.2); since = time.monotonic_ns()\nwith Recorder(s, {path!r}) as recorder:\n"
            "    for _ in range(3): burst(0.1); time.sleep(0.2)\n"
            "    s.stop(); recorder.write()"
        )
        live = service.do("[(s.start_ns, s.stall_ns) for s in closed(0) if s.start_ns > since]")
        service.do(f"found = pymemcg.stalls(pymemcg.open({path!r}), evidence='trace')")
        later = service.do("[(s.start_ns, s.stall_ns) for s in closed(0, found) if s.start_ns > since]")
        assert live
        assert sorted(map(tuple, live)) == sorted(map(tuple, later))

    def test_stop_within_it(self, service):
        service.do("def stop(stall): told.append(stall); s.stop()")
        service.do("s = Sampler(on_stall=stop).start(); stream = s.stalls()")
        service.do("wait(lambda: burst(0.1) and told)")
        service.do("wait(lambda: not watchers())")
        assert service.do("s.role") == "stopped"
        assert service.do("follows(list(stream), stream)")

    def test_what_it_raises_is_logged_and_the_service_goes_on(self, service):
        service.do("def fail(stall): told.append(stall); raise KeyError('mine')")
        service.do("s = Sampler(on_stall=fail).start()")
        service.do("wait(lambda: burst(0.1) and len(told) > 2)")
        assert service.do("watchers()") == 1
        assert service.errors().count("KeyError: 'mine'") == 1
        assert "on_stall" in service.errors()

    def test_the_interpreter_ends_in_the_middle(self, service):
        service.do("s = Sampler(on_stall=lambda stall: print('told', stall.state)).start()")
        service.do("burst(0.3)")
        assert service.end() == 0
        assert "told closed" in service.errors(), "the last are told even then"
        assert "Traceback" not in service.errors()


class TestHits:
    def test_each_once_when_it_is_final(self, service):
        service.do("heard = []; s = Sampler(on_hit=heard.append).start(); n = iter(range(10**6))")
        service.do(
            "def work():\n"
            "    with s.span('work', ref=next(n)): burst(0.03)\n"
            "    with s.span('rest', ref=next(n)): time.sleep(0.02)\n"
            "    return True\n"
            "wait(lambda: work() and len(heard) > 5)"
        )
        # Counters alone know of no duration: then all hits are told.
        service.do("least = 1_000_000 if None in (s.evidence['trace'], s.evidence['psi']) else 0; s.stop()")
        service.do("told = [hit.ref for hit in heard]; known = [hit.ref for hit in s.hits(min_ns=least)]")
        assert service.do("len(told) == len(set(told))")
        assert service.do("set(known) == set(told)"), "those that were told early had nothing to become"
        assert service.do("sum(hit.name == 'work' for hit in heard)") > 5

    def test_of_its_own_process_only(self, service, limited, make_actor):
        other = make_actor(limited)
        for actor in (service, other):
            actor.do("from pymemcg import Sampler; heard = []; s = Sampler(on_hit=heard.append).start()")
        assert other.do("s.role") == "attached"
        with_span = "def work(name):\n    with s.span(name): return burst(0.05)"
        service.do(with_span)
        other.do("with s.span('idle'): time.sleep(0.01)")
        service.do("wait(lambda: work('mine') and len(heard) > 2)")
        assert service.do("{hit.name for hit in heard} == {'mine'}")
        other.do("s.stop()")
        assert other.do("'mine' not in {hit.name for hit in heard}")


ASYNC = """
async def hear(stalls, heard):
    async for stall in stalls: heard.append(stall)
async def main():
    loop = asyncio.get_running_loop()
    heard = [], []
    with Sampler() as s:
        streams = [s.stalls() for _ in heard]
        tasks = [asyncio.create_task(hear(stream, one)) for stream, one in zip(streams, heard)]
        await asyncio.sleep(0)
        since = time.monotonic_ns()
        while not all(closed(since, one) for one in heard):
            assert time.monotonic_ns() < since + 60_000_000_000, "it did not come"
            await loop.run_in_executor(None, burst, 0.2)
            await asyncio.sleep(0.2)
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    since = max(stream._since_ns for stream in streams)  # one of them may have listened to the end of one before
    first, second = ([stall for stall in one if stall.end_ns is None or stall.end_ns >= since] for one in heard)
    assert first == second
    return [type(loop).__module__, watchers()]
"""


class TestIterating:
    def test_asyncio(self, service):
        service.do(ASYNC)
        module, running = service.do("asyncio.run(main())")
        assert module.startswith("asyncio")
        assert running == 0

    def test_uvloop(self, service):
        pytest.importorskip("uvloop")
        service.do(ASYNC)
        service.do("import uvloop; loop = uvloop.new_event_loop()")
        module, running = service.do("loop.run_until_complete(main())")
        assert module.startswith("uvloop")
        assert running == 0

    def test_threads_and_callback_hear_the_same(self, service):
        service.do(
            "heard = [], []; s = Sampler(on_stall=told.append).start(); streams = [s.stalls() for _ in heard]\n"
            "threads = [threading.Thread(target=lambda a, b: a.extend(b), args=x) for x in zip(heard, streams)]\n"
            "for t in threads: t.start()\n"
            "wait(lambda: burst(0.1) and len(closed(0)) > 1)\n"
            "s.stop()\n"
            "for t in threads: t.join(20)"
        )
        assert service.do("all(map(follows, heard, streams))")

    def test_of_a_group_from_outside_until_it_is_gone(self, service, limited):
        with Sampler(limited.spec, history_s=5) as sampler:
            stalls = sampler.stalls()
            service.do("for _ in range(3): burst(0.2); time.sleep(0.1)")
            service.close()
            limited.close()
            told = list(stalls)
            assert any(stall.state == "closed" and not stall.harmless for stall in told)
            assert sampler.role != "stopped"
            assert list(sampler.stalls()) == []


# What becomes of a worker that wants more memory than there is.
KILL = """
def worker():
    child = os.fork()
    if child == 0:
        with open("/proc/self/oom_score_adj", "w") as file: file.write("1000")
        hog = [os.urandom(1 << 20) for _ in range(1 << 14)]
        os._exit(0)
    return os.waitpid(child, 0)[1]
"""


class TestOomKill:
    @pytest.fixture
    def small(self, make_group):
        return make_group("small", limit_bytes=96 * MIB)

    def test_a_worker_is_killed_and_the_others_live_on(self, small, make_actor):
        """In another process that shares the rings, too."""
        first, other = make_actor(small), make_actor(small)
        for actor in (first, other):
            actor.do("from pymemcg import Sampler; kills = []; s = Sampler(on_oom=kills.append, history_s=5).start()")
        if not facts.counts_oom_kills(small.directory):
            pytest.skip("the kernel does not count them here")
        assert [first.do("s.role"), other.do("s.role")] == ["sampling", "attached"]
        before = first.do("time.monotonic_ns()")
        first.do(KILL)
        assert first.do("worker()") == 9
        for actor in (first, other):
            until(lambda actor=actor: actor.do("len(kills)"))
            kill = actor.do("[kills[0].since_ns, kills[0].t_ns, kills[0].kills, kills[0].usage_bytes, kills[0].limit_bytes]")
            assert before - 1_000_000_000 < kill[0] < kill[1]
            assert kill[2:3] + kill[4:] == [1, 96 * MIB]
            # On user-mode Linux the sampler has no CPU while the victim takes it all.
            assert kill[3] > 48 * MIB or os.environ.get("PYMEMCG_VM") == "uml"
            assert actor.do("len(kills)") == 1
        assert first.do("s.role") == "sampling"

    def test_where_it_is_not_counted_it_is_said(self, limited, service):
        if facts.counts_oom_kills(limited.directory):
            pytest.skip("the kernel counts them here")
        service.do("s = Sampler(on_oom=kills.append).start()")
        assert "on_oom will not be called" in service.errors()


FORK = """
import json
def tasks(): return len(os.listdir("/proc/self/task"))
def forked(use):
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(here)
        try: answer = use()
        except BaseException as error: answer = repr(error)
        os.write(there, json.dumps(answer).encode())
        os._exit(0)
    os.close(there)
    with os.fdopen(here) as file: answer = json.loads(file.read())
    return [os.waitpid(pid, 0)[1], answer]
def inherit():
    del told[:]
    idle = watchers()
    role = s.role
    wait(lambda: burst(0.1) and closed(0))
    return [idle, role, watchers()]
def take():
    del told[:]
    since = time.monotonic_ns()
    threading.Thread(target=lambda: [burst(0.1) for _ in range(50)], daemon=True).start()
    return [next(stream).state in ("open", "closed"), watchers(), s.role]
"""


class TestFork:
    def test_the_callbacks_belong_to_the_child_too(self, service):
        service.do(FORK)
        service.do("s = Sampler(on_stall=told.append).start(); wait(lambda: burst(0.1) and closed(0))")
        status, (idle, role, running) = service.do("forked(inherit)")
        assert (status, idle, role, running) == (0, 0, "attached", 1), "from its first use there on"
        assert service.do("watchers()") == 1
        service.do("del told[:]; wait(lambda: burst(0.1) and closed(0))")

    def test_an_inherited_stream_goes_on_with_what_happens_there(self, service):
        service.do(FORK)
        service.do("s = Sampler().start(); stream = s.stalls(); wait(lambda: burst(0.1) and stream._stalls)")
        assert service.do("forked(take)") == [0, [True, 1, "attached"]]
        assert service.do("next(stream).state") in ("open", "closed"), "the parent's are still the parent's"

    def test_unused_it_ends_as_any_child(self, service):
        service.do(FORK)
        service.do("s = Sampler(on_stall=told.append).start(); stream = s.stalls()")
        assert service.do("forked(watchers)") == [0, 0]
        service.do("child = os.fork()\nif child == 0: sys.exit(3)")
        assert service.do("os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])") == 3

    def test_within_a_callback(self, service):
        service.do(FORK)
        service.do("def fork(stall): told.append(forked(lambda: [tasks(), s.stop()])) if not told else None")
        service.do("s = Sampler(on_stall=fork).start(); wait(lambda: burst(0.1) and told)")
        assert service.do("told") == [[0, [1, None]]], "the thread that forked is all there is of the child"
        assert service.do("watchers()") == 1


GEVENT = """
from gevent import monkey; monkey.patch_all()
import gevent
"""


def test_gevent(limited, make_actor):
    """The thread is a greenlet, and so is whoever iterates: all of them get their turns."""
    pytest.importorskip("gevent")
    actor = make_actor(limited)
    actor.do(GEVENT)
    actor.do(SERVICE)
    actor.do(
        "heard = []; turns = []; s = Sampler(on_stall=told.append).start(); stream = s.stalls()\n"
        "listener = gevent.spawn(lambda: heard.extend(stream))\n"
        "def turn():\n"
        "    while True: turns.append(1); gevent.sleep(0.001)\n"
        "other = gevent.spawn(turn)\n"
        "wait(lambda: burst(0.02) and len(turns) > 9 and len(heard) > 1)\n"
        "s.stop(); listener.join(20); other.kill()"
    )
    assert actor.do("follows(heard, stream)")
    assert actor.do("watchers()") == 0
    assert "Traceback" not in actor.errors()
