# SPDX-License-Identifier: Apache-2.0
"""The middlewares in real servers whose group has too little memory: the right requests are named, and nobody dies."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import facts
import pytest
from actor import lock_is_free, ring_file
from servers import MIB, Asked, Server, overlap_ns, pids_of, truth, until
from swapping import swap_of

from pymemcg.child import ChildGroup

pytestmark = pytest.mark.live

MAPPING_BYTES = 96 * MIB
ROUNDS = 40 if facts.EMULATED else 60
"""Of requests: what they show is in a few of them, too."""
RECYCLING_ROUNDS = 40 if facts.EMULATED else 80
"""Until each of three workers has had its 60 requests."""
KIB = 512 if facts.EMULATED else 2048
"""That each of them touches."""
MS = 1_000_000


@dataclass(frozen=True)
class Setup:
    """How a server is started.

    Attributes:
        command: Arguments of the interpreter.
        touching: Paths that touch memory, with the names that they are to have.
        idle: A path that never does.
        worker_bytes: Of the group's limit for each process: less than it needs with the mapping.
        workers: How many processes serve.
        needs: Packages.
    """

    command: str
    touching: tuple[tuple[str, str], ...]
    idle: tuple[str, str]
    worker_bytes: int
    workers: int = 1
    needs: tuple[str, ...] = ()


ASGI = {
    "touching": ((f"/loop/{KIB}", "GET /loop/{kib}"), (f"/api/v1/pool/{KIB}", "GET /api/v1/pool/{kib}")),
    "idle": ("/idle/5", "GET /idle/{ms}"),
    "worker_bytes": 100 * MIB,
}
WSGI = {
    "touching": ((f"/touch/{KIB}", f"GET /touch/{KIB}"),),
    "idle": ("/idle/5", "GET /idle/5"),
    "worker_bytes": 72 * MIB,
}
UVICORN = "-m uvicorn asgi_service:app --fd {fd}"
GUNICORN = "-m gunicorn -b fd://{fd} --no-control-socket --graceful-timeout 10 --timeout 300"
RECYCLED = "-w 3 --preload --max-requests 60"
UVICORN_WORKER = f"{GUNICORN} asgi_service:app -k uvicorn_worker.UvicornWorker"
SETUPS = {
    "uvicorn": Setup(f"{UVICORN} --loop asyncio", **ASGI, needs=("uvicorn",)),
    "uvicorn, uvloop": Setup(f"{UVICORN} --loop uvloop", **ASGI, needs=("uvicorn", "uvloop")),
    "uvicorn, no lifespan": Setup(f"{UVICORN} --lifespan off", **ASGI, needs=("uvicorn",)),
    "gunicorn, uvicorn": Setup(f"{UVICORN_WORKER} {RECYCLED}", **ASGI, workers=3, needs=("gunicorn", "uvicorn_worker")),
    "gunicorn, sync": Setup(f"{GUNICORN} wsgi_service:app {RECYCLED}", **WSGI, workers=3, needs=("gunicorn",)),
    "gunicorn, gthread": Setup(
        f"{GUNICORN} wsgi_service:app -k gthread --threads 8 -w 2 --preload", **WSGI, workers=2, needs=("gunicorn",)
    ),
    "gunicorn, gevent": Setup(
        f"{GUNICORN} wsgi_service:app -k gevent -w 2 --preload", **WSGI, workers=2, needs=("gunicorn", "gevent")
    ),
}


@pytest.fixture(scope="module")
def swap() -> Iterator[None]:
    if why := facts.no_tracepoints():
        pytest.skip(why)
    with swap_of(1000 * MIB):
        yield


@pytest.fixture
def make_server(make_group, swap):
    servers = []

    def make(setup: Setup, group: ChildGroup | None = None, **options: Any) -> Server:
        for package in ("fastapi", *setup.needs):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed")
        if group is None:
            group = make_group("service", limit_bytes=setup.workers * setup.worker_bytes)
        servers.append(Server(setup.command.split(), group, MAPPING_BYTES, options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def fill(server: Server, setup: Setup) -> None:
    """Until every worker has filled its mapping, so that the group is at its limit, and all know of a sampler."""
    pids: set[int] = set()
    until(lambda: len(pids) >= setup.workers or pids.update(one.answer["pid"] for one in touch_some(server, setup, "64")))
    until(lambda: all(server.ask("/sampler").answer["role"] in ("sampling", "attached") for _ in range(4 * setup.workers)))


def touch_some(server: Server, setup: Setup, kib: str) -> list[Asked]:
    return server.ask_all([path.replace(str(KIB), kib) for path, _ in setup.touching] * 8, at_once=8)


def own_reclaim_ns(one: Asked, reclaim: dict[int, list[tuple[int, int]]]) -> int:
    """Of the thread that answered, while it did."""
    return overlap_ns(reclaim.get(one.answer["tid"], []), one.answer["start_ns"], one.answer["end_ns"])


def most_reclaim_ns(one: Asked, reclaim: dict[int, list[tuple[int, int]]]) -> int:
    """Of that thread from when the request was sent until it was answered: no span of it can hold more."""
    return overlap_ns(reclaim.get(one.answer["tid"], []), one.sent_ns, one.got_ns)


def named_right(server: Server, setup: Setup, asked: list[Asked], reclaim: dict[int, list[tuple[int, int]]]) -> None:
    """What was logged of these requests is what tracepoints say that their threads went through."""
    lost = {one.ref: own_reclaim_ns(one, reclaim) for one in asked}
    sure = {one.ref for one in asked if lost[one.ref] - one.answer["waited_ns"] >= 1.2 * MS}
    assert sure, "the group was not short of memory: the test would show nothing"
    # The sampler leaves out what may have been a wait for a CPU, and cannot tell one beside reclaim from one within.
    # And what a worker that is recycled was held for while another took over, nobody has seen.
    until(lambda: len(sure & server.hits().keys()) >= 0.5 * len(sure))
    names = {path.rpartition("/")[0]: name for path, name in (*setup.touching, setup.idle)}
    hits = server.hits()
    apart, by_psi, causes = 0, 0, []
    for one in asked:
        if (hit := hits.get(one.ref)) is not None:
            name = names[one.path.rpartition("/")[0]]
            assert (hit["name"], hit["pid"], hit["tid"]) == (name, one.answer["pid"], one.answer["tid"])
            causes.append(hit["cause"])
            if hit["evidence"][0] != "trace":  # it waited for a page that was dropped while in use, and reclaimed nothing
                by_psi += 1
                continue
            assert one.sent_ns <= hit["start_ns"] <= one.answer["start_ns"] <= one.answer["end_ns"] <= hit["end_ns"]
            assert hit["lost_ns"] >= MS
            if len(hit["evidence"]) == 1:  # else PSI adds waits for pages that were dropped while in use
                assert hit["lost_ns"] <= hit["own_ns"]  # the thread also waited for a CPU
            assert hit["line"].startswith(f"{name} trace={one.ref} ")
            assert re.search(r" ms in reclaim \((\w+, )?trace(\+psi [\d.]+–[\d.]+ ms)?\)$", hit["line"]), hit["line"]
            # Two that trace see a begin at a different time where the thread is preempted in between.
            apart += not 0.95 * lost[one.ref] <= hit["own_ns"] <= 1.05 * most_reclaim_ns(one, reclaim)
    assert apart <= len(causes) / 20
    assert by_psi <= len(causes) / 20
    named = [cause for cause in causes if cause]  # without: the hit was told before its stall was
    assert named.count("limit") > 0.8 * len(named)  # the others waited to be swapped in, or came while a worker took over


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_the_right_requests_are_named(setup, make_server):
    server = make_server(setup)
    fill(server, setup)
    assert server.ask("/sampler").answer["evidence"]["trace"] is None
    paths = [path for path, _ in setup.touching] * 2 + [setup.idle[0]]
    with truth(server, 30) as reclaim:
        asked = server.ask_all(paths * (RECYCLING_ROUNDS if RECYCLED in setup.command else ROUNDS))
    named_right(server, setup, asked, reclaim)
    ends_well(server, setup)


def ends_well(server: Server, setup: Setup) -> None:
    """It ends when it is asked to, nobody has died, and nothing is left."""
    pids = pids_of(server)
    assert server.end() in (0, -signal.SIGTERM)  # uvicorn dies of the signal once it has ended
    until(lambda: not pids_of(server))
    log = server.log()
    assert "Traceback" not in log
    assert not re.search(r"SIGKILL|SIGSEGV|SIGABRT|exited with code|core dumped|TIMEOUT", log), log
    assert len(pids) >= setup.workers
    directory = server.group.directory
    assert lock_is_free(directory)
    if "--lifespan off" not in setup.command:  # then it dies of the signal without a word; whoever samples next sweeps up
        assert not ring_file(directory, os.geteuid()).exists()


def some_us(group: Any) -> int:
    """Stall time so far, as PSI has it. Reading it is what this is about: once before and once after."""
    with open(f"{group.cgroup2_directory}/memory.pressure") as file:
        return int(file.readline().rpartition("total=")[2])


def test_everything_together(make_group, make_server):
    """Under gunicorn, preloaded, several workers with a sampler each, at the limit: PSI is undisturbed, and requests are named.

    The group above holds nothing else and is read by nobody, so its PSI is what the service's would be if nobody read that.
    """
    setup = SETUPS["gunicorn, uvicorn"]
    above = make_group("above")
    if why := facts.no_psi(above.directory, above.cgroup2_directory):
        pytest.skip(why)
    server = make_server(setup, above.child("service", limit_bytes=setup.workers * setup.worker_bytes))
    fill(server, setup)
    roles = {one["pid"]: one["role"] for one in (server.ask("/sampler").answer for _ in range(60))}
    assert sorted(roles.values()).count("sampling") == 1, roles

    before = some_us(above), some_us(server.group)
    with truth(server, 60) as reclaim:
        asked = [one for _ in range(6 if facts.EMULATED else 10) for one in touch_some(server, setup, "2048")]
    undisturbed, found = some_us(above) - before[0], some_us(server.group) - before[1]
    assert undisturbed > 10_000, "the group was not short of memory: the test would show nothing"
    assert found >= 0.9 * undisturbed

    named_right(server, setup, asked, reclaim)
    ends_well(server, setup)
