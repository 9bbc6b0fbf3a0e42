# SPDX-License-Identifier: Apache-2.0
"""What a consumer of stalls holds: a bounded queue that can be waited for with and without an event loop."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from pymemcg.detecting import Stall
    from pymemcg.sampler import Sampler

QUEUE_STALLS = 1024
"""What waits for a consumer at most. Some 100 s of the densest stalls there can be, and half a megabyte."""


class StallStream:
    """Stalls as they become known: for `for`, in a thread that may wait, and for `async for`, under asyncio and uvloop.

    Each stall comes twice, with `state` "open" when it is first known and "closed" when it is over. A stall that goes on when
    the stream is made comes as well. It ends when the sampler stops, or what it samples is gone, after the last stall. In a
    forked child an inherited stream goes on with the stalls from its first use there.

    Attributes:
        missed: Records that were dropped, the oldest first, since more than 1,024 waited to be taken; a warning says so, too.

    Thread-safe; whoever takes a record takes it from the others who use the same stream.
    """

    def __init__(self, sampler: Sampler, min_ns: int) -> None:
        self._sampler = sampler  # it runs for as long as somebody listens
        self._min_ns = min_ns
        self._since_ns = 0
        self._begun: set[int] = set()
        self._stalls: deque[Stall] = deque()
        self._waiting: list[Callable[[], object]] = []
        self._over = False
        self._orphaned = False
        self.missed = 0

    # One thread puts and any may take. There is no lock here: whoever waits first says so and then looks again, and a signal's
    # handler may end the stream in the middle of anything.

    def _begin(self, going_on: list[Stall]) -> None:
        """From now on; with what goes on now."""
        self._since_ns = 0
        for stall in going_on:
            self._put(stall)
        self._since_ns = time.monotonic_ns()

    def _put(self, stall: Stall) -> None:
        if stall.end_ns is not None and stall.end_ns < self._since_ns and stall.start_ns not in self._begun:
            return
        (self._begun.add if stall.state == "open" else self._begun.discard)(stall.start_ns)
        if not stall.reaches(self._min_ns):
            return
        if len(self._stalls) >= QUEUE_STALLS:
            with contextlib.suppress(IndexError):  # it was taken in this very moment
                self._stalls.popleft()
                self.missed += 1
                if self.missed == 1:
                    self._say("%d stalls wait to be taken from stalls(): the oldest are dropped", QUEUE_STALLS)
        self._stalls.append(stall)
        self._wake()

    def _end(self) -> None:
        if not self._over and self.missed:
            self._say("a slow consumer of stalls() missed %d records", self.missed)
        self._over = True
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            with contextlib.suppress(IndexError, RuntimeError):  # another wakes them too, or its event loop is closed
                self._waiting.pop()()

    def _orphan(self) -> None:
        """In a forked child: what waits is the parent's, and so is whoever fed it."""
        self._stalls.clear()
        self._waiting.clear()
        self._begun.clear()
        self._orphaned, self.missed = True, 0

    @staticmethod
    def _say(text: str, *values: object) -> None:
        import logging

        logging.getLogger("pymemcg").warning("pymemcg: %s", text % values)

    def _take(self) -> Stall | None:
        if self._orphaned and not self._over:
            self._sampler._watcher.feed(self)  # noqa: SLF001 - one room
            self._orphaned = False
        with contextlib.suppress(IndexError):
            return self._stalls.popleft()
        return None

    def close(self) -> None:
        """End it; what has come already can still be taken. Nothing to do the second time."""
        self._end()

    def __iter__(self) -> StallStream:
        return self

    def __next__(self) -> Stall:
        """Wait for the next one."""
        while True:
            over = self._over  # before looking: the last ones come before the end
            if (stall := self._take()) is not None:
                return stall
            if over:
                raise StopIteration
            gate = threading.Lock()  # gevent's where it has taken over: other greenlets must run
            gate.acquire()
            self._waiting.append(gate.release)
            if self._stalls or self._over:
                continue
            gate.acquire()

    def __aiter__(self) -> StallStream:
        return self

    async def __anext__(self) -> Stall:
        """Await the next one. Nothing is lost when it is cancelled."""
        import asyncio

        while True:
            over = self._over
            if (stall := self._take()) is not None:
                return stall
            if over:
                raise StopAsyncIteration
            loop = asyncio.get_running_loop()
            come: asyncio.Future[None] = loop.create_future()
            wake = functools.partial(loop.call_soon_threadsafe, _arrive, come)
            self._waiting.append(wake)
            try:
                if not (self._stalls or self._over):
                    await come
            finally:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(wake)

    def __repr__(self) -> str:
        return f"<StallStream: {len(self._stalls)} waiting{', over' if self._over else ''}>"


def _arrive(come: asyncio.Future[None]) -> None:
    if not come.done():
        come.set_result(None)
