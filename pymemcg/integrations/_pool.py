# SPDX-License-Identifier: Apache-2.0
"""In which thread of the pool an endpoint runs that is a plain function.

Starlette and FastAPI hand such endpoints to `anyio.to_thread.run_sync`, and nothing of ours runs in that thread. But the
request's coroutine waits for it in a function of anyio's that knows its worker thread, and Python lets anybody look at what a
suspended coroutine waits for (`cr_await`, `cr_frame`). So that is what is done when a request begins to wait: nothing is
patched, and should anyio come to look otherwise, the thread is not known any more, and nothing else happens.
"""

from __future__ import annotations

import inspect
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator, MutableMapping

_RUNS_IN_THREAD: Final = "run_sync_in_worker_thread"
_WORKER: Final = "worker"


def pool_thread(coroutine: CoroutineType[Any, Any, Any]) -> int | None:
    """The native id of the thread of anyio's pool that a suspended coroutine waits for, or None."""
    inner = coroutine
    while isinstance(awaited := inner.cr_await, CoroutineType):
        inner = awaited
    if inner.cr_code.co_name != _RUNS_IN_THREAD or inner.cr_frame is None:
        return None
    return getattr(inner.cr_frame.f_locals.get(_WORKER), "native_id", None)


class Watched:
    """Awaits the call of an ASGI application, and notes in which thread of the pool its endpoint ran.

    Args:
        call: The application's coroutine; any other awaitable is awaited as it is.
        scope: The request's, in which the router leaves the endpoint.

    Attributes:
        tid: That thread's native id, of several the last; None where the endpoint ran in no pool, or in one that is not known.
    """

    __slots__ = ("_call", "_scope", "tid")

    def __init__(self, call: Awaitable[None], scope: MutableMapping[str, Any]) -> None:
        self._call = call
        self._scope = scope
        self.tid: int | None = None

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
            if inspect.iscoroutinefunction(self._scope.get("endpoint")):
                looking = False  # it runs in the loop's own thread: there is nothing to look for any more
            else:
                self.tid = pool_thread(call) or self.tid
            thrown = None
            try:
                yield waits_for  # what is sent back is always None, by asyncio, uvloop and trio alike
            except BaseException as error:  # noqa: BLE001 - a cancellation, for the application to see
                thrown = error
