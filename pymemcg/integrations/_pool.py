# SPDX-License-Identifier: Apache-2.0
"""In which thread of the pool an endpoint runs that is a plain function.

Starlette and FastAPI hand such endpoints to `anyio.to_thread.run_sync`, and nothing of ours runs in that thread. But the
request's coroutine waits for it in a function of anyio's that knows its worker thread, and Python lets anybody look at what a
suspended coroutine waits for (`cr_await`, `cr_frame`). So that is what is done when a request begins to wait: nothing is
patched, and should anyio come to look otherwise, the thread is not known any more, and nothing else happens.
"""

from __future__ import annotations

import functools
import inspect
from time import monotonic_ns
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator, MutableMapping

_RUNS_IN_THREAD: Final = "run_sync_in_worker_thread"
_WORKER: Final = "worker"
_FUNCTION: Final = "func"


def pool_thread(coroutine: CoroutineType[Any, Any, Any], endpoint: Any) -> tuple[int | None, bool]:
    """The native id of the thread of anyio's pool that a suspended coroutine waits for, or None; whether it runs `endpoint`."""
    inner = coroutine
    while isinstance(awaited := inner.cr_await, CoroutineType):
        inner = awaited
    if inner.cr_code.co_name != _RUNS_IN_THREAD or inner.cr_frame is None:
        return None, False
    known = inner.cr_frame.f_locals
    function = known.get(_FUNCTION)
    named = (function,)
    if isinstance(function, functools.partial):  # of the endpoint, or of a function that is to call it
        named = (function.func, *function.args, *function.keywords.values())
    return getattr(known.get(_WORKER), "native_id", None), any(one is endpoint for one in named)


class Watched:
    """Awaits the call of an ASGI application, and notes in which thread of the pool its endpoint ran.

    Args:
        call: The application's coroutine; any other awaitable is awaited as it is.
        scope: The request's, in which the router leaves the endpoint.

    Attributes:
        tid: That thread's native id; where only other things ran in the pool, such as dependencies, that of the last one's.
            None where nothing did, or in a pool that is not known.
        start_ns: When the thread was given the work (CLOCK_MONOTONIC).
        end_ns: When the request went on; before that the thread is given no other work.
    """

    __slots__ = ("_call", "_scope", "end_ns", "start_ns", "tid")

    def __init__(self, call: Awaitable[None], scope: MutableMapping[str, Any]) -> None:
        self._call = call
        self._scope = scope
        self.tid: int | None = None
        self.start_ns = self.end_ns = 0

    def __await__(self) -> Generator[Any, Any, None]:
        call = self._call
        if not isinstance(call, CoroutineType):
            yield from call.__await__()
            return
        looking, thrown = True, None
        while True:
            if not looking and thrown is None:
                yield from call.__await__()
                return
            try:
                waits_for = call.send(None) if thrown is None else call.throw(thrown)
            except StopIteration:
                return
            tid = None
            if looking:
                tid, looking = self._look(call)
            thrown = None
            try:
                yield waits_for  # what is sent back is always None, by asyncio, uvloop and trio alike
            except BaseException as error:  # noqa: BLE001 - a cancellation, for the application to see
                thrown = error
            if tid is not None:
                self.end_ns = monotonic_ns()

    def _look(self, call: CoroutineType[Any, Any, Any]) -> tuple[int | None, bool]:
        """Which thread of the pool is waited for, and whether to look again when this is over."""
        endpoint = self._scope.get("endpoint")
        if inspect.iscoroutinefunction(endpoint):
            return None, False  # it runs in the loop's own thread
        tid, is_endpoint = pool_thread(call, endpoint)
        if tid is not None:
            self.tid, self.start_ns = tid, monotonic_ns()
        return tid, not is_endpoint
