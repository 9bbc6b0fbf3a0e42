# SPDX-License-Identifier: Apache-2.0
"""What a request is called, which trace it belongs to, and in which thread of a pool its endpoint ran."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import threading

import pydantic
import pytest

from pymemcg.integrations._pool import Watched
from pymemcg.integrations._requests import MAX_PATH_CHARS, MAX_PATHS, OTHER_METHOD, OTHER_PATH, Names, trace_id

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "header",
    [
        f"00-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-00",
        f"cc-{TRACE}-{PARENT}-01",  # of a version to come: read as 00 is
        f"cc-{TRACE}-{PARENT}-01-what the future will be like",
    ],
)
def test_a_traceparent(header):
    assert trace_id(header) == TRACE


@pytest.mark.parametrize(
    "header",
    [
        "",
        TRACE,
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01.",
        f"cc-{TRACE}-{PARENT}-01.more",
        f"00-{TRACE}-{PARENT}-01\n",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"0x-{TRACE}-{PARENT}-01",
        f"00-{TRACE[:-1]}٣-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01,00-{TRACE}-{PARENT}-01",
    ],
)
def test_no_traceparent(header):
    assert trace_id(header) is None


class TestNames:
    def test_a_name_is_made_once(self):
        names = Names()
        assert names.name("GET", "/checkout/{cart}", template=True) == "GET /checkout/{cart}"
        assert names.name("GET", "/checkout/{cart}", template=True) is names.name("GET", "/checkout/{cart}", template=True)

    def test_random_paths_are_bounded_and_leave_the_services_own_routes_room(self):
        names = Names()
        made = {names.name("GET", f"/{i}", template=False) for i in range(3 * MAX_PATHS)}
        assert len(made) == MAX_PATHS + 1
        assert f"GET {OTHER_PATH}" in made
        assert names.name("GET", "/checkout", template=True) == "GET /checkout"
        assert names.name("GET", "/0", template=False) == "GET /0"

    def test_so_are_templates_below_a_mount_with_parameters(self):
        names = Names()
        assert len({names.name("GET", f"/{i}/{{x}}", template=True) for i in range(3 * MAX_PATHS)}) == MAX_PATHS + 1

    def test_and_methods_and_lengths(self):
        names = Names()
        made = {names.name(f"M{i}", "/" + "x" * i, template=False) for i in range(10 * MAX_PATH_CHARS)}
        assert all(name.startswith(OTHER_METHOD) for name in made)
        assert len(made) == MAX_PATH_CHARS + 1
        assert max(map(len, made)) == len(OTHER_METHOD) + 1 + MAX_PATH_CHARS

    def test_a_path_writes_no_line_of_its_own_into_a_log(self):
        assert names_one("/a\nWARNING: /b\x1b[0m") == "GET /a\\nWARNING: /b\\x1b[0m"
        assert names_one("/größe") == "GET /größe"


def names_one(path: str) -> str:
    return Names().name("GET", path, template=False)


def run_watched(app, scope=None):
    async def serve():
        watched = Watched(app(), scope if scope is not None else {})
        await watched
        return watched.tid

    return asyncio.run(serve())


@pytest.mark.skipif(importlib.util.find_spec("anyio") is None, reason="anyio is not installed")
class TestPool:
    def test_each_of_many_requests_knows_its_thread(self):
        import anyio.to_thread

        ran: dict[int, int] = {}
        together = threading.Barrier(20)

        def endpoint(number: int) -> None:
            ran[number] = threading.get_native_id()
            together.wait(10)

        async def app(number: int) -> None:
            await asyncio.sleep(0)
            await anyio.to_thread.run_sync(functools.partial(endpoint, number))
            await asyncio.sleep(0.001)

        async def serve() -> dict[int, int | None]:
            watched = {number: Watched(app(number), {}) for number in range(20)}

            async def one(number: int) -> None:
                await watched[number]

            await asyncio.gather(*map(one, watched))
            return {number: one.tid for number, one in watched.items()}

        assert asyncio.run(serve()) == ran
        assert len(set(ran.values())) == 20

    def test_through_fastapi_and_not_the_thread_of_what_else_runs_in_the_pool(self):
        fastapi = pytest.importorskip("fastapi")
        ran: dict[str, int] = {}
        together = {part: threading.Barrier(4) for part in ("dependency", "endpoint", "answer")}

        class Answer(pydantic.BaseModel):
            name: str

            @pydantic.field_validator("name")
            @classmethod
            def check(cls, name: str) -> str:
                together["answer"].wait(10)
                return name

        def dependency() -> None:
            together["dependency"].wait(10)

        app = fastapi.FastAPI()

        @app.get("/x/{name}", dependencies=[fastapi.Depends(dependency)], response_model=Answer)
        def endpoint(name: str) -> dict[str, str]:
            ran[name] = threading.get_native_id()
            together["endpoint"].wait(10)
            return {"name": name}

        async def one(name: str) -> int | None:
            scope = request_scope(f"/x/{name}")
            watched = Watched(app(scope, no_body, ignore), scope)
            await watched
            assert watched.start_ns < watched.end_ns
            return watched.tid

        async def serve() -> dict[str, int | None]:
            return dict(zip("abcd", await asyncio.gather(*map(one, "abcd")), strict=True))

        assert asyncio.run(serve()) == ran
        assert len({threading.get_native_id(), *ran.values()}) == 5

    def test_through_starlette(self):
        applications, routing, responses = (
            pytest.importorskip(f"starlette.{name}") for name in ("applications", "routing", "responses")
        )
        ran = []

        def endpoint(request):
            ran.append(threading.get_native_id())
            return responses.PlainTextResponse("x")

        app = applications.Starlette(routes=[routing.Mount("/a", routes=[routing.Route("/x", endpoint)])])
        scope = request_scope("/a/x")
        assert run_watched(lambda: app(scope, no_body, ignore), scope) == ran[0] != threading.get_native_id()

    def test_an_endpoint_of_the_loop_has_none_even_when_it_uses_the_pool_later(self):
        import anyio.to_thread

        async def app() -> None:
            await asyncio.sleep(0)
            await anyio.to_thread.run_sync(threading.get_native_id)

        assert run_watched(app, {"endpoint": app}) is None
        assert run_watched(app, {"endpoint": print}) is not None


class TestWatched:
    """It awaits as `await` does."""

    def test_exceptions_come_out(self):
        async def app() -> None:
            await asyncio.sleep(0)
            raise KeyError("x")

        with pytest.raises(KeyError, match="x"):
            run_watched(app)

    @pytest.mark.parametrize("in_loop", [False, True])
    def test_a_cancellation_gets_in_and_may_be_survived(self, in_loop):
        seen = []

        async def app() -> None:
            await asyncio.sleep(0)
            for _ in range(2):
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    seen.append("cancelled")
            await asyncio.sleep(0)
            seen.append("done")

        async def one() -> None:
            await Watched(app(), {"endpoint": app} if in_loop else {})

        async def serve() -> None:
            task = asyncio.create_task(one())
            for _ in range(2):
                await asyncio.sleep(0.01)
                task.cancel()
            await task

        asyncio.run(serve())
        assert seen == ["cancelled", "cancelled", "done"]

    @pytest.mark.parametrize("waits", [0, 1, 5])
    def test_a_call_that_is_dropped_is_closed(self, waits):
        seen = []

        async def app() -> None:
            try:
                for _ in range(100):
                    await asyncio.sleep(0)
            finally:
                seen.append("closed")

        coroutine = app()
        steps = Watched(coroutine, {}).__await__()
        for _ in range(waits):
            steps.send(None)
        steps.close()
        coroutine.close()
        assert seen == (["closed"] if waits else [])

    def test_what_is_no_coroutine_is_awaited_as_it_is(self):
        async def serve() -> None:
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.001, future.set_result, None)
            await Watched(future, {})

        asyncio.run(serve())


def request_scope(path: str) -> dict:
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "root_path": "",
        "http_version": "1.1",
        "scheme": "http",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }


async def no_body() -> dict:
    return {"type": "http.request", "body": b"", "more_body": False}


async def ignore(message: dict) -> None:
    pass
