# SPDX-License-Identifier: Apache-2.0
"""Requests of an ASGI application as spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymemcg.integrations._pool import Watched
from pymemcg.integrations._requests import trace_id
from pymemcg.integrations._service import Service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class ASGIMiddleware:
    """Makes a span of every HTTP request, and logs those that the kernel held for memory.

    `app.add_middleware(pymemcg.ASGIMiddleware)` in Starlette and FastAPI, `app = pymemcg.ASGIMiddleware(app)` anywhere. The
    sampler starts in each worker, when the server announces its start (lifespan) or at the first request, and stops with it;
    where nothing can be sampled, one warning says why and the service goes on. `scope["pymemcg.sampler"]` is the sampler, for
    `hits()` and `summary()`.

    Args:
        app: The application.
        log_above_ms: Log requests that lost at least so many milliseconds to reclaim, as warnings of the logger "pymemcg.hits".
        options: For the `Sampler`.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(self, app: Application, *, log_above_ms: float = 1.0, **options: Any) -> None:
        self.app = app
        self._service = Service(log_above_ms, options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, as ASGI has it."""
        if scope["type"] != "http":
            await (self._lifespan if scope["type"] == "lifespan" else self.app)(scope, receive, send)
            return
        service = self._service
        if not service.began:
            service.begin_beside()
        scope["pymemcg.sampler"] = service.sampler
        root = scope.get("root_path", "")
        with service.span("") as span:
            call = Watched(self.app(scope, receive, send), scope)
            try:
                await call
            finally:
                span.name, span.ref = _name(service, scope, root), _reference(scope["headers"])
                if call.tid is not None:
                    span.ran_on(call.tid, call.start_ns, call.end_ns)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        ending = False

        async def listen() -> Message:
            nonlocal ending
            message = await receive()
            ending = ending or message["type"] == "lifespan.shutdown"
            return message

        self._service.begin()
        try:
            await self.app(scope, listen, send)
        finally:
            if ending:  # an application without a lifespan raises here, and requests come all the same
                self._service.end()


def _reference(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The trace's id from the header `traceparent`, which may not come twice."""
    found = None
    for name, value in headers:
        if name == b"traceparent":
            if found is not None:
                return None
            found = value
    return trace_id(found.decode("latin-1")) if found is not None else None


def _name(service: Service, scope: Scope, root: str) -> str:
    route = scope.get("route")
    # FastAPI's routers that are included in others know their own part of the path only.
    route = scope.get("fastapi", {}).get("effective_route_context", route)
    template = getattr(route, "path", None)
    if template is None:
        return service.names.name(scope["method"], scope["path"], template=False)
    # A mounted application's routes know nothing of where it is mounted.
    mount = scope.get("root_path", "").removeprefix(root)
    return service.names.name(scope["method"], mount + template, template=True)
