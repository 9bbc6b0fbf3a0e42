# SPDX-License-Identifier: Apache-2.0
"""What the middlewares add to a request; prints the table of docs/services.md.

    python bench/middleware.py >docs/services-cost.md

Real servers on this machine's loopback, with the middleware and without, asked in turn: blocks of requests, interleaved pairs.
It needs root, for groups and for swap that it makes for itself, and takes some minutes.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pymemcg
from pymemcg.bench import machine
from pymemcg.bench.pairs import Estimate, estimate, interleave, ratio
from pymemcg.bench.swap import ZramSwap
from pymemcg.child import ChildGroup

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "live"))

from servers import MIB, Server, until

MAPPING_BYTES = 96 * MIB
WARM_UP = 200
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@dataclass(frozen=True)
class Scene:
    """What is measured.

    Attributes:
        title: For people.
        command: The server's.
        path: What is asked for.
        clients: How many ask at once.
        limit_bytes: The group's.
        requests: In a block.
        pairs: Of blocks.
    """

    title: str
    command: str
    path: str
    clients: int = 1
    limit_bytes: int = 2048 * MIB
    requests: int = 240
    pairs: int = 60


GUNICORN = "-m gunicorn -b fd://{fd} --no-control-socket"
UVICORN = "-m uvicorn asgi_service:app --host 127.0.0.1 --port {port} --log-level warning"
"""Of a socket that it is handed it does not know that it is TCP, and lets it wait for acknowledgements (Nagle)."""
PRELOADED = f"{GUNICORN} asgi_service:app -k uvicorn_worker.UvicornWorker -w 3 --preload"
SCENES = (
    Scene("uvicorn, `async def`", UVICORN, "/loop/0"),
    Scene("uvicorn, `def` in the pool", UVICORN, "/api/v1/pool/0"),
    Scene("gunicorn, gthread", f"{GUNICORN} wsgi_service:app -k gthread --threads 4 -w 1 --keep-alive 60", "/touch/0"),
    Scene("gunicorn, 3 uvicorn workers, preload, 8 clients", PRELOADED, "/loop/0", clients=8),
    Scene("the same, at the limit, swapping", PRELOADED, "/loop/128", clients=8, limit_bytes=3 * 104 * MIB),
)


@contextmanager
def serving(scene: Scene, options: dict[str, Any] | None) -> Iterator[Server]:
    """A server in a group of its own, warm."""
    with ChildGroup("with" if options is not None else "without", limit_bytes=scene.limit_bytes) as group:
        server = Server(scene.command.split(), group, MAPPING_BYTES, options)
        try:
            until(lambda: answers(server))
            ask(server, scene, WARM_UP)
            yield server
        finally:
            server.close()


def answers(server: Server) -> bool:
    """Whether it is up."""
    try:
        socket.create_connection(server.address[:2]).close()
    except ConnectionRefusedError:
        return False
    return True


def ask(server: Server, scene: Scene, requests: int) -> list[int]:
    """Ask, each client one after the other over one connection; how long each request took."""

    def client(_: int) -> list[int]:
        connection = http.client.HTTPConnection(*server.address[:2], timeout=60)
        took = []
        for _ in range(requests // scene.clients):
            begun = time.perf_counter_ns()
            connection.request("GET", scene.path, headers={"traceparent": TRACEPARENT})
            response = connection.getresponse()
            response.read()
            took.append(time.perf_counter_ns() - begun)
            if response.status != 200:
                raise RuntimeError(f"{scene.path}: {response.status}")
        connection.close()
        return took

    with ThreadPoolExecutor(scene.clients) as pool:
        return [took for each in pool.map(client, range(scene.clients)) for took in each]


@dataclass(frozen=True)
class Found:
    """What a scene gave: without, p50 and p99; added at the median; p99 with ÷ without."""

    p50_us: float
    p99_us: float
    added_us: Estimate
    p99_ratio: Estimate


def measure(scene: Scene) -> Found:
    """Run a scene."""
    with ExitStack() as stack:
        sampled = stack.enter_context(serving(scene, {}))
        bare = stack.enter_context(serving(scene, None))
        pairs = interleave(lambda: ask(sampled, scene, scene.requests), lambda: ask(bare, scene, scene.requests), scene.pairs)
    with_us, without_us = (np.asarray(blocks) / 1e3 for blocks in pairs)
    p50 = np.median(with_us, axis=1) - np.median(without_us, axis=1)
    p99 = [np.percentile(blocks, 99, axis=1).tolist() for blocks in (with_us, without_us)]
    return Found(float(np.median(without_us)), float(np.median(p99[1])), estimate(p50.tolist()), ratio(*p99))


def alone(calls: int = 2000, pairs: int = 100) -> tuple[Estimate, Estimate]:
    """What a call of each middleware adds to that of an application that does nothing, in us: no server, no socket."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    def wsgi_app(environ: Any, start_response: Any) -> Sequence[bytes]:
        return ()

    headers = [(b"host", b"x"), (b"accept", b"*/*"), (b"user-agent", b"x"), (b"traceparent", TRACEPARENT.encode())]
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/checkout", "HTTP_TRACEPARENT": TRACEPARENT}

    async def run_asgi(app: Any) -> float:
        begun = time.perf_counter_ns()
        for _ in range(calls):
            await app({"type": "http", "method": "GET", "path": "/checkout", "headers": headers}, None, None)
        return (time.perf_counter_ns() - begun) / calls / 1e3

    def run_wsgi(app: Any) -> float:
        begun = time.perf_counter_ns()
        for _ in range(calls):
            app(dict(environ), None)
        return (time.perf_counter_ns() - begun) / calls / 1e3

    found = []
    for middleware, bare, run in (
        (pymemcg.ASGIMiddleware(app), app, lambda app: asyncio.run(run_asgi(app))),
        (pymemcg.WSGIMiddleware(wsgi_app), wsgi_app, run_wsgi),
    ):
        run(middleware)  # starts its sampler
        time.sleep(1)
        with_us, without_us = interleave(lambda: run(middleware), lambda: run(bare), pairs)  # noqa: B023 - called at once
        found.append(estimate([a - b for a, b in zip(with_us, without_us, strict=True)]))
    return found[0], found[1]


def with_interval(found: Estimate, digits: int) -> str:
    """For people."""
    return f"{found.value:.{digits}f} ({found.low:.{digits}f}–{found.high:.{digits}f})"


def main() -> None:
    """Measure and print."""
    steal = machine.Steal()
    asgi, wsgi = alone()
    print("| service | p50, p99 without | added at p50 | p99 with ÷ without |\n|---|---|---|---|")
    with ZramSwap(2 << 30):
        for scene in SCENES:
            print(f"… {scene.title}", file=sys.stderr)
            found = measure(scene)
            print(
                f"| {scene.title} | {found.p50_us:.0f} µs, {found.p99_us:.0f} µs | {with_interval(found.added_us, 0)} µs "
                f"| {with_interval(found.p99_ratio, 2)} |",
                flush=True,
            )
    about = machine.describe()
    print(
        f"\nA call of the middleware itself, around an application that does nothing: ASGI {with_interval(asgi, 1)} µs, WSGI "
        f"{with_interval(wsgi, 1)} µs. Medians of interleaved pairs with their 95 % intervals. Linux {about['kernel']}, "
        f"{about['cpus']} CPUs ({about['processor']}), Python {sys.version.split()[0]}, steal {steal.ratio():.1%}."
    )


if __name__ == "__main__":
    main()
