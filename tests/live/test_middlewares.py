# SPDX-License-Identifier: Apache-2.0
"""The middlewares around applications of all sorts, without a server: when they start and stop, and what they leave alone."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from typing import Any

import pytest
from actor import leaves_nothing, until

import pymemcg

pytestmark = pytest.mark.live

HEADERS = [(b"host", b"x"), (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]


def scope(kind: str = "http", **more: Any) -> dict[str, Any]:
    return {"type": kind, "method": "GET", "path": "/checkout", "headers": HEADERS, "root_path": ""} | more


async def nothing() -> Any:
    raise AssertionError("it was not to be asked")


async def ignore(message: Any) -> None:
    pass


class Lifespan:
    """A server that starts an application, and stops it when it is told to."""

    def __init__(self) -> None:
        self.started, self.stop = asyncio.Event(), asyncio.Event()
        self.told: list[str] = []
        self._messages = iter(("lifespan.startup", "lifespan.shutdown"))

    async def receive(self) -> dict[str, str]:
        message = next(self._messages)
        if message == "lifespan.shutdown":
            await self.stop.wait()
        return {"type": message}

    async def send(self, message: dict[str, str]) -> None:
        self.told.append(message["type"])
        self.started.set()


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for expected in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{expected}"
            await send({"type": f"lifespan.{expected}.complete"})


def starting() -> bool:
    """Whether a first request's thread is at it."""
    return any(thread.name == "pymemcg-start" for thread in threading.enumerate())


def sampler_of(middleware: Any) -> pymemcg.Sampler:
    return middleware._service.sampler


class TestAsgi:
    def test_the_lifespan_starts_and_stops_it(self, group):
        async def serve() -> None:
            middleware = pymemcg.ASGIMiddleware(application, target=group.spec)
            assert sampler_of(middleware).role == "stopped"
            server = Lifespan()
            life = asyncio.create_task(middleware(scope("lifespan"), server.receive, server.send))
            await server.started.wait()
            assert sampler_of(middleware).role == "sampling"
            await middleware(scope(), nothing, ignore)
            assert sampler_of(middleware).role == "sampling"
            server.stop.set()
            await life
            assert server.told[-1] == "lifespan.shutdown.complete"
            assert sampler_of(middleware).role == "stopped"
            sampler_of(middleware)._channels.clear()

        asyncio.run(serve())  # what a loop opens once, it keeps
        gc.collect()
        with leaves_nothing(group.directory):
            asyncio.run(serve())
            gc.collect()  # the sampler calls the service that holds it

    def test_an_application_without_a_lifespan(self, group):
        async def refuses(scope: Any, receive: Any, send: Any) -> None:
            assert scope["type"] == "http"

        middleware = pymemcg.ASGIMiddleware(refuses, target=group.spec)
        with pytest.raises(AssertionError):
            asyncio.run(middleware(scope("lifespan"), nothing, ignore))
        asyncio.run(middleware(scope(), nothing, ignore))
        assert sampler_of(middleware).role == "sampling"
        sampler_of(middleware).stop()

    def test_the_first_request_starts_it_too(self, group):
        middleware = pymemcg.ASGIMiddleware(application, target=group.spec)
        asyncio.run(middleware(scope(), nothing, ignore))
        until(lambda: sampler_of(middleware).role == "sampling")
        until(lambda: not starting())
        asyncio.run(middleware(scope(), nothing, ignore))
        assert not starting()
        sampler_of(middleware).stop()

    @pytest.mark.parametrize("kind", ["websocket", "of a version to come"])
    def test_what_is_no_request_passes_through(self, kind):
        seen = []

        async def app(*arguments: Any) -> None:
            seen.append(arguments)

        middleware = pymemcg.ASGIMiddleware(app)
        passed = (scope(kind), nothing, ignore)
        asyncio.run(middleware(*passed))
        assert seen == [passed]
        assert "pymemcg.sampler" not in passed[0]
        assert sampler_of(middleware).role == "stopped"

    def test_exceptions_of_the_application_are_its_own(self, group):
        async def fails(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(0)
            raise KeyError(scope["path"])

        middleware = pymemcg.ASGIMiddleware(fails, target=group.spec)
        with pytest.raises(KeyError, match="/checkout"):
            asyncio.run(middleware(scope(), nothing, ignore))
        until(lambda: sampler_of(middleware).role == "sampling")
        sampler_of(middleware).stop()


class TestWsgi:
    ENVIRON = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": "/checkout"}  # noqa: RUF012 - copied where used

    def test_a_list_stays_what_it_is(self, group):
        body = [b"hello"]
        middleware = pymemcg.WSGIMiddleware(lambda environ, start_response: body, target=group.spec)
        assert middleware(dict(self.ENVIRON), None) is body
        until(lambda: sampler_of(middleware).role == "sampling")
        sampler_of(middleware).stop()

    def test_so_does_a_file_for_the_server_to_send(self, group):
        class Wrapper:
            pass

        body = Wrapper()
        middleware = pymemcg.WSGIMiddleware(lambda environ, start_response: body, target=group.spec)
        assert middleware(self.ENVIRON | {"wsgi.file_wrapper": Wrapper}, None) is body
        until(lambda: sampler_of(middleware).role == "sampling")
        sampler_of(middleware).stop()

    def test_a_generator_is_closed_once(self, group):
        closed = []

        def app(environ: Any, start_response: Any) -> Any:
            try:
                yield b"a"
                yield b"b"
            finally:
                closed.append(True)

        middleware = pymemcg.WSGIMiddleware(app, target=group.spec)
        whole = middleware(dict(self.ENVIRON), None)
        assert list(whole) == [b"a", b"b"]
        whole.close()
        broken_off = middleware(dict(self.ENVIRON), None)
        assert next(iter(broken_off)) == b"a"
        assert closed == [True]
        broken_off.close()
        assert closed == [True, True]
        until(lambda: sampler_of(middleware).role == "sampling")
        sampler_of(middleware).stop()


@pytest.mark.parametrize("make", [pymemcg.ASGIMiddleware, pymemcg.WSGIMiddleware])
class TestBoth:
    def test_where_nothing_can_be_sampled_the_service_goes_on_and_one_warning_says_why(self, make, caplog):
        served = []

        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            served.append(scope)

        def wsgi(environ: Any, start_response: Any) -> list[bytes]:
            served.append(environ)
            return []

        middleware = make(asgi if make is pymemcg.ASGIMiddleware else wsgi, target="cgroup:/pymemcg-there-is-no-such-group")
        for _ in range(3):
            if make is pymemcg.ASGIMiddleware:
                asyncio.run(middleware(scope(), nothing, ignore))
            else:
                middleware(dict(TestWsgi.ENVIRON), None)
            until(lambda: len(caplog.records) == 1)
        assert len(served) == 3
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("pymemcg", logging.WARNING)
        assert "pymemcg-there-is-no-such-group" in record.getMessage()

    def test_options_are_the_samplers(self, make):
        with pytest.raises(ValueError, match="rate_hz"):
            make(None, rate_hz=0)
        with pytest.raises(TypeError, match="colour"):
            make(None, colour="green")

    def test_disabled_it_only_passes_on(self, make, monkeypatch, caplog):
        monkeypatch.setenv("PYMEMCG_DISABLE", "1")

        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            assert scope["pymemcg.sampler"].role == "disabled"

        def wsgi(environ: Any, start_response: Any) -> list[bytes]:
            assert environ["pymemcg.sampler"].role == "disabled"
            return []

        if make is pymemcg.ASGIMiddleware:
            asyncio.run(make(asgi)(scope(), nothing, ignore))
        else:
            make(wsgi)(dict(TestWsgi.ENVIRON), None)
        assert caplog.records == []


def test_a_master_that_has_served_before_it_forked(make_actor, group):
    """The middleware starts anew in the child at its first request, without a word."""
    actor = make_actor(group)
    actor.do(
        "import pymemcg, json\n"
        "m = pymemcg.WSGIMiddleware(lambda environ, start_response: [])\n"
        "ask = lambda: m({'REQUEST_METHOD': 'GET', 'PATH_INFO': '/x'}, None)\n"
        "def role_is(role):\n"
        "    for _ in range(1000):\n"
        "        if m._service.sampler._role() == role: return True\n"
        "        time.sleep(0.01)\n"
        "ask(); started = role_is('sampling')\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    before = m._service.sampler._role(); ask()\n"
        "    os._exit(0 if before == 'stopped' and role_is('attached') else 1)\n"
        "status = os.waitpid(pid, 0)[1]"
    )
    assert actor.do("[started, status]") == [True, 0]
    assert actor.end() == 0
    assert actor.errors() == ""
