# SPDX-License-Identifier: Apache-2.0
"""Spans in a ring file: which requests a process served before it was killed, and which of them reclaim hit."""

from __future__ import annotations

import os
import resource
import signal
from collections import Counter

import pytest
from actor import MIB, start, until

import pymemcg
from pymemcg import schema
from pymemcg.cli import main
from pymemcg.postmortem import postmortem, running_boot_id

pytestmark = pytest.mark.live

MS = 1_000_000
REFS = (None, 7, -(1 << 63), 1 << 70, True, "", "trace-1", "ä" * 20, "x" * 40, "y" * 41, "z" + "ä" * 30)
KEPT = (None, 7, -(1 << 63), str(1 << 70), 1, "", "trace-1", "ä" * 20, "x" * 40, "y" * 40 + "…", "z" + "ä" * 19 + "…")


@pytest.fixture(params=["tmpfs", "scratch"])
def path(request):
    """A ring file in memory and one on a disk."""
    return request.getfixturevalue(request.param) / "ring"


def marked(path) -> list[tuple[str, object]]:
    """Names and references of the spans in a file."""
    recording = pymemcg.open(path)
    assert recording.missing == {}
    said, window = recording.info["spans"], recording.spans.window()
    refs = [said["refs"][i] if i >= 0 else None for i in window["ref_id"].tolist()]
    return list(zip((said["names"][i] for i in window["name_id"].tolist()), refs, strict=True))


def mark(actor, name: str, count: int) -> None:
    actor.do(f"for i in range({count}):\n with s.span({name!r}, ref=i): pass")


def wait_for_copy(path, count: int) -> None:
    until(lambda: pymemcg.open(path).spans.head >= count)


class TestAfterAKill:
    def test_names_and_references(self, path, group, make_actor):
        actor = make_actor(group)
        start(actor, f"ring_file={str(path)!r}")
        actor.do(f"for ref in {REFS!r}:\n with s.span('request', ref=ref): pass")
        actor.do("class Name(str): pass")
        actor.do("for name in ('n' * 70, 'ü' * 40, Name('own'), 5, '\\ud800'):\n with s.span(name): pass")
        own = actor.do("s.spans.window().to_numpy().tolist()")
        wait_for_copy(path, len(own))
        actor.kill()
        told = marked(path)
        assert told[: len(REFS)] == [("request", ref) for ref in KEPT]
        assert [name for name, _ in told[len(REFS) :]] == ["n" * 64, "ü" * 32, "own", "(other)", "(other)"]
        window = pymemcg.open(path).spans.window()
        names = [name for name in schema.SPANS_UNITS if name not in ("name_id", "ref_id")]
        at = list(schema.SPANS_UNITS)
        assert [window[name].tolist() for name in names] == [[row[at.index(name)] for row in own] for name in names]
        assert set(window["pid"].tolist()) == {actor.pid}

    def test_more_than_there_is_room_for(self, path, group, make_actor):
        actor = make_actor(group)
        start(actor, f"ring_file={str(path)!r}")
        mark(actor, "many", 50_000)
        actor.do("for i in range(2000):\n with s.span(f'name {i}'): pass")
        actor.do("with s.span('name 0', ref='last'): pass")
        until(lambda: marked(path)[-1:] == [("name 0", "last")])
        actor.kill()
        told = marked(path)[:-1]
        assert 16_000 < len(told) <= 16_384
        assert told[-2_001] == ("many", 49_999)
        assert [ref for name, ref in told if name == "many"] == list(range(50_000 - len(told) + 2_000, 50_000))
        names = Counter(name for name, _ in told)
        assert 900 < names["(other)"] < 1_100, "there is room for a thousand"
        assert names["name 0"] == 1

    def test_which_requests_were_hit(self, path, make_group, make_actor, swap, capsys):
        group = make_group("hit", limit_bytes=64 * MIB)
        actor = make_actor(group)
        start(actor, f"ring_file={str(path)!r}")
        mark(actor, "quiet", 100)
        actor.do("for i in range(3):\n with s.span('squeezed', ref=i): kept = b'x' * (90 << 20); del kept")
        wait_for_copy(path, 103)
        until(lambda: pymemcg.open(path).usage.window()["t_ns"][-1] > pymemcg.open(path).spans.window()["end_ns"][-1])
        seen = actor.do("[(h.name, h.ref) for h in s.hits()]")
        actor.kill()
        recording = pymemcg.open(path)
        hits = recording.hits()
        assert [(hit.name, hit.ref) for hit in hits] == [tuple(hit) for hit in seen]
        assert {hit.name for hit in hits} == {"squeezed"}
        harmed = recording.hits(min_ns=MS)
        known = [name for name in ("trace", "psi") if recording.info["evidence"][name] is None]
        assert len(harmed) > 0 or not known, "counters alone know of no time"
        told = postmortem(recording, boot_id=running_boot_id())
        assert (told.hits.count, told.hits.spans) == (len(harmed), 103)
        assert set(told.hits.worst) == {hit.name for hit in harmed}
        assert main(["postmortem", str(path)]) == 0
        assert f"{len(harmed)} of 103 lost" in capsys.readouterr().out or not harmed


class TestSeveral:
    """Workers share one file, and their spans one channel."""

    def test_each_with_its_own_pid_whoever_is_killed(self, path, group, make_actor):
        workers = [make_actor(group) for _ in range(3)]
        for worker in workers:
            start(worker, f"ring_file={str(path)!r}")
        for n, worker in enumerate(workers):
            mark(worker, f"of {n}", 10 + n)
        victim = next(worker for worker in workers if worker.do("s.role") == "sampling")
        victim.kill()
        left = [worker for worker in workers if worker is not victim]
        for worker in left:
            mark(worker, "after", 5)
        wait_for_copy(path, 43)
        for worker in left:
            worker.kill()
        counted = Counter(name for name, _ in marked(path))
        assert counted == {"of 0": 10, "of 1": 11, "of 2": 12, "after": 10}
        pids = Counter(pymemcg.open(path).spans.window()["pid"].tolist())
        assert pids == {w.pid: 10 + n + (0 if w is victim else 5) for n, w in enumerate(workers)}

    def test_all_at_once(self, path, group, make_actor):
        workers = [make_actor(group) for _ in range(4)]
        for worker in workers:
            start(worker, f"ring_file={str(path)!r}")
        for n, worker in enumerate(workers):
            worker.send(f"for i in range(2999):\n with s.span('of {n}', ref=i): pass")
        for worker in workers:
            worker.answer()
        for n, worker in enumerate(workers):  # with it goes what had to wait for others
            worker.do(f"with s.span('of {n}', ref=2999): pass")
        until(lambda: [ref for _, ref in marked(path)].count(2999) == 4)
        told = marked(path)
        window = pymemcg.open(path).spans.window()
        lost = pymemcg.open(path).info["spans"]["lost"]
        assert len(told) + lost == 12_000, "so tight a loop leaves no room where another loses its processor with the lock"
        for n, worker in enumerate(workers):
            refs = [ref for name, ref in told if name == f"of {n}"]
            assert refs == sorted(set(refs)), "each in its order"
            assert refs[-1] == 2999
            assert len(refs) == (window["pid"] == worker.pid).sum()

    def test_forked_children(self, path, group, make_actor):
        """As a preloading server's: they go on with their parent's ring, before and after their first use of the sampler."""
        actor = make_actor(group)
        start(actor, f"ring_file={str(path)!r}")
        mark(actor, "parent", 3)
        actor.do(
            "def work():\n"
            "    with s.span('before'): pass\n"
            "    s.usage\n"
            "    with s.span('after'): pass\n"
            "    os._exit(0)\n"
            "with s.span('parent'):\n"
            "    children = [os.fork() or work() for _ in range(3)]\n"
        )
        assert actor.do("[os.waitpid(child, 0)[1] for child in children]") == [0, 0, 0]
        mark(actor, "parent", 2)
        wait_for_copy(path, 12)
        assert Counter(name for name, _ in marked(path)) == {"parent": 6, "before": 3, "after": 3}
        window = pymemcg.open(path).spans.window()
        by_pid = Counter(window["pid"].tolist())
        assert by_pid == {actor.pid: 6} | dict.fromkeys(actor.do("children"), 2)

    def test_a_ring_that_has_no_room_for_them(self, tmpfs, group, make_actor):
        """Who made it has no ring file."""
        first, second = make_actor(group), make_actor(group)
        start(first)
        start(second, f"ring_file={str(tmpfs / 'ring')!r}")
        mark(second, "kept by Python alone", 3)
        assert second.do("s.spans.head") == 3
        assert "no room" in second.do("s.absent['ring_file_spans']")
        second.do("s.stop()")
        recording = pymemcg.open(tmpfs / "ring")
        assert recording.spans.names == ()
        assert list(recording.hits()) == []
        assert postmortem(recording).hits is None


class TestLives:
    def test_stopped_and_started_again(self, path, group):
        with pymemcg.Sampler(group.spec, ring_file=path) as sampler, sampler.span("first", ref="a"):
            pass
        with sampler.span("between"):
            pass
        with sampler, sampler.span("second"):
            pass
        assert marked(f"{path}.1") == [("first", "a")]
        assert marked(path) == [("second", None)]

    def test_spans_of_every_kind(self, path, group):
        with pymemcg.Sampler(group.spec, ring_file=path) as sampler:

            @sampler.span("decorated", ref="d")
            def decorated():
                pass

            decorated()
            sampler.add_span("added", start_ns=50, end_ns=100, attribution="pool", tid=1, ran_start_ns=10, ran_end_ns=200)
            with sampler.span("renamed") as span:
                span.name, span.ref = "route", "r"
                span.in_loop()
            with pytest.raises(ZeroDivisionError), sampler.span("failed"):
                _ = 1 / 0
            own = sampler.spans.window().to_numpy()
        assert marked(path)[:1] == [("decorated", "d")]
        window = pymemcg.open(path).spans.window()
        assert [name for name, _ in marked(path)][-2:] == ["route", "failed"]
        assert window["attribution"].tolist()[-2:] == own["attribution"].tolist()[-2:] == [3, 1]

    def test_a_reference_whose_text_stops_the_sampler(self, path, group):
        """Any code may run in it."""
        sampler = pymemcg.Sampler(group.spec, ring_file=path).start()

        class Ref:
            def __str__(self):
                sampler.stop()
                return "stopped"

        class Broken:
            def __str__(self):
                raise ValueError

        with sampler.span("first", ref=Broken()):
            pass
        with sampler.span("second", ref=Ref()):
            pass
        assert marked(path) == [("first", None)]


def test_looked_at_meanwhile(path, make_group, make_actor, swap):
    group = make_group("hit", limit_bytes=64 * MIB)
    actor = make_actor(group)
    start(actor, f"ring_file={str(path)!r}")
    mark(actor, "quiet", 100)
    until(path.exists)
    attached = pymemcg.attach(f"pid:{actor.pid}")
    cursor = attached.spans.head
    assert cursor == 100
    actor.do("for i in range(3):\n with s.span('squeezed', ref=i): kept = b'x' * (90 << 20); del kept")
    rows = attached.spans.read(cursor)[0]
    assert len(rows) == 3
    assert set(rows["pid"].tolist()) == {actor.pid}
    actor.do("s.stop()")
    seen = [tuple(hit) for hit in actor.do("[(h.name, h.ref, h.lost_ns) for h in s.hits()]")]
    assert [(hit.name, hit.ref, hit.lost_ns) for hit in attached.hits()] == seen
    assert {name for name, _, _ in seen} == {"squeezed"}
    assert {row.name: row.count for row in attached.summary()} == {"quiet": 100, "squeezed": 3}
    assert os.kill(actor.pid, 0) is None


def test_one_that_holds_the_lock_keeps_nobody_waiting(tmpfs, group, make_actor):
    """A process that is stopped in the middle of it, which no test can time, would hold it so."""
    path = tmpfs / "ring"
    with pymemcg.Sampler(group.spec, ring_file=path) as sampler:
        holder = make_actor(group)
        holder.do(
            "import ctypes, mmap, struct\n"
            f"file = open({str(path)!r}, 'r+b'); ring = mmap.mmap(file.fileno(), 0)\n"
            "at = struct.unpack_from('Q', ring, 120)[0]\n"
            "lock = (ctypes.c_char * 64).from_buffer(ring, at)\n"
        )
        assert holder.do("ctypes.CDLL(None).pthread_mutex_lock(lock)") == 0
        switches = voluntary_switches()
        for i in range(600):
            with sampler.span(f"name {i}", ref=i):
                pass
        waited = voluntary_switches() - switches
        assert pymemcg.open(path).spans.head == 0
        holder.process.send_signal(signal.SIGKILL)
        holder.process.wait()
        with sampler.span("goes on"):
            pass
        assert waited == 0, "no request gives up its processor"
        assert marked(path) == [*((f"name {i}", i) for i in range(89, 600)), ("goes on", None)]
        assert "89 spans are missing" in pymemcg.open(path).hits().incomplete


def voluntary_switches() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def test_what_ends_a_process_ends_it(tmpfs, group):
    """A signal's handler may raise while the text of a reference is made."""

    class Ref:
        def __str__(self):
            raise SystemExit

    with pymemcg.Sampler(group.spec, ring_file=tmpfs / "ring") as sampler:
        span = sampler.span("work", ref=Ref())
        with pytest.raises(SystemExit), span:
            pass
        assert sampler.spans.head == 1
    assert marked(tmpfs / "ring") == [("work", None)]
