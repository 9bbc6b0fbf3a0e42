# SPDX-License-Identifier: Apache-2.0
"""Spans of a service's work: written without a lock, a system call or a call that releases the GIL.

A span costs two looks at a clock, one at the thread's own storage, and an append, all of it in csrc/span.c. Everything else,
numpy included, happens when somebody looks at the spans.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import weakref
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

from pymemcg import _span
from pymemcg._ffi import NONE
from pymemcg._hit import Hit, Hits, SpanSummary, Summary
from pymemcg._spanlog import SpanLog
from pymemcg._watch import native_lock

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pymemcg._hitting import Finder
    from pymemcg.sampler import Sampler

    Call = TypeVar("Call", bound=Callable[..., Any])

__all__ = ["Hit", "Hits", "Marked", "Span", "SpanSummary", "Summary"]

Ref: TypeAlias = "str | int | None"

THREAD: Final = 1
POOL: Final = 2
LOOP: Final = 3
"""What `attribution` says: how the thread is known that did a span's work; see `schema.SPAN_ATTRIBUTIONS`."""


def _in_loop() -> bool:
    """Whether this thread does other work while what now runs in it waits: asyncio, uvloop, or greenlets."""
    asyncio, greenlet = sys.modules.get("asyncio"), sys.modules.get("greenlet")
    if asyncio is not None and asyncio._get_running_loop() is not None:  # noqa: SLF001 - made for frameworks
        return True
    return greenlet is not None and greenlet.getcurrent().parent is not None


# ---- A span --------------------------------------------------------------------------------------------------------


class Span(_span.Span):
    """One stretch of work: a context manager that is good for one time, or a decorator; made by `Sampler.span`.

    Attributes:
        name: It may be set until the span ends, for instance when the route is known.
        ref: The caller's own reference, likewise.
        start_ns: CLOCK_MONOTONIC.
        end_ns: Likewise; 0 before it ended.

    It belongs to the thread that began it.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def __enter__(self) -> Span: ...

    def ran_on(self, tid: int, start_ns: int | None = None, end_ns: int | None = None) -> None:
        """Say before its end that the span's work was done by another thread, of a pool: that thread's reclaim is its own.

        Args:
            tid: Native id (`threading.get_native_id`) of that thread.
            start_ns: From when on it did this work (CLOCK_MONOTONIC); None = from the span's beginning.
            end_ns: Until when; None = until the span's end.
        """
        self._tid, self._attribution = tid, POOL
        self._ran_start_ns, self._ran_end_ns = start_ns or 0, NONE if end_ns is None else end_ns

    def in_loop(self) -> None:
        """Say before its end that other work ran on the span's thread while it waited, which need not be said of asyncio."""
        self._attribution, self._ran_start_ns, self._ran_end_ns = LOOP, 0, NONE

    def __call__(self, function: Call) -> Call:
        """Decorate a function or coroutine function: each call is a span of this name and reference."""
        return _decorated(function, self.name, self.ref, _span.Marker(Span, _in_loop, self._note).span)

    def __repr__(self) -> str:
        return f"<Span {self.name!r}{'' if self.ref is None else f' of {self.ref}'}>"


def _decorated(function: Call, name: str, ref: Ref, begin: Callable[[str, Ref], Span]) -> Call:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def waits(*args: Any, **named: Any) -> Any:
            with begin(name, ref) as span:
                span.in_loop()
                return await function(*args, **named)

        return cast("Call", waits)

    @functools.wraps(function)
    def runs(*args: Any, **named: Any) -> Any:
        with begin(name, ref):
            return function(*args, **named)

    return cast("Call", runs)


class _NoSpan:
    """The span of a sampler that is disabled."""

    __slots__ = ("name", "ref")

    def __enter__(self) -> _NoSpan:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def ran_on(self, tid: int, start_ns: int | None = None, end_ns: int | None = None) -> None:
        pass

    def in_loop(self) -> None:
        pass

    def __call__(self, function: Call) -> Call:
        return function


_NO_SPAN: Final = _NoSpan()


def no_span(name: str, ref: Ref = None) -> _NoSpan:  # noqa: ARG001 - as `Marked.span`
    """`Marked.span` of a disabled sampler."""
    return _NO_SPAN


# ---- On a sampler -----------------------------------------------------------------------------------------------------


class Marked(_span.Marker):
    """What a sampler knows of the work that the service marks."""

    _spans: SpanLog
    _sink: _span.Sink | None
    _finder: Finder | None
    _finding: Any
    _disabled: bool

    def _mark(self, *, disabled: bool, keeps: bool) -> None:
        self._spans = SpanLog()
        self._sink = _span.Sink(self._spans.note) if keeps else None
        self._note: Callable[[Span], object] = self._spans.note if self._sink is None else self._sink
        _span.Marker.__init__(self, Span, _in_loop, self._note)
        self._finder, self._finding = None, native_lock()
        if disabled:
            self.span = no_span  # type: ignore[method-assign,assignment]
        _all[id(self)] = self

    def _open_sink(self, ring_fd: int) -> str | None:
        """From here on spans are rows of that ring, too, if it is to stay; or why they are not."""
        try:
            if self._sink is None or self._sink.open(ring_fd):
                return None
        except OSError as error:
            return f"spans cannot be written to the ring: {error.strerror}"
        return "spans are not in the ring file: the process that made the ring has none, and no room for them"

    if TYPE_CHECKING:  # it is in csrc/span.c

        def span(self, name: str, ref: Ref = None) -> Span:
            """Mark a stretch of work: `with sampler.span("checkout", ref=trace_id):`, or `@sampler.span("checkout")`.

            Args:
                name: What kind of work it is, of at most 1,024 kinds.
                ref: The caller's own reference of this very piece, such as a trace's id.

            Costs less than half a microsecond; nothing where the sampler is disabled. Thread-safe, without a lock.
            """

    def add_span(
        self,
        name: str,
        ref: Ref = None,
        *,
        start_ns: int,
        end_ns: int,
        attribution: str = "thread",
        tid: int | None = None,
        ran_start_ns: int | None = None,
        ran_end_ns: int | None = None,
    ) -> None:
        """Add a span that is over, from the thread that it belongs to.

        Args:
            name: As of `span`.
            ref: Likewise.
            start_ns: CLOCK_MONOTONIC, as `time.monotonic_ns` gives it.
            end_ns: Likewise.
            attribution: "thread"; "loop": the thread did other work, too, while this waited; "pool": thread `tid` did the work.
            tid: Native id of the thread that did the work; None = the present one.
            ran_start_ns: From when on `tid` did it; None = from the beginning.
            ran_end_ns: Until when; None = to the end.

        Raises:
            ValueError: There is no such attribution.
        """
        if self._disabled:
            return
        span = self.span(name, ref)
        if attribution not in _ATTRIBUTIONS:
            raise ValueError(f"attribution={attribution!r}: expected one of {', '.join(_ATTRIBUTIONS)}")
        span.ran_on(span._tid if tid is None else tid, ran_start_ns, ran_end_ns)  # noqa: SLF001 - one room
        span._attribution = _ATTRIBUTIONS[attribution]  # noqa: SLF001 - one room
        span.start_ns, span.end_ns = start_ns, end_ns
        self._note(span)

    def hits(self, *, min_ns: int = 0) -> Hits:
        """The spans that fell together with reclaim, of those that are remembered: the last 16,384 and those of 60 s.

        Args:
            min_ns: Only those that lost at least that much, by `Hit.lost_ns`.

        Evidence comes after the fact: `Hits.final_until_ns` says up to when nothing will change any more. Thread-safe.
        """
        return self._found().hits(min_ns=min_ns)

    def _hits_since(self, since_ns: int, min_ns: int) -> Hits:
        """`hits`, where only spans matter that ended after `since_ns`: for much less memory and time."""
        return self._found(since_ns).hits(min_ns=min_ns)

    def summary(self) -> Summary:
        """How long the remembered spans took, by name, with and without what they lost to reclaim. Thread-safe."""
        return self._found().summary()

    def _found(self, since_ns: int = 0) -> Hits:
        from pymemcg import _hitting

        sampler = cast("Sampler", self)
        with self._finding:
            self._finder = _hitting.finder(sampler, self._finder)
            return self._finder.find(since_ns) if self._finder is not None else _hitting.nothing()


_ATTRIBUTIONS: Final = {"thread": THREAD, "pool": POOL, "loop": LOOP}
_all: weakref.WeakValueDictionary[int, Marked] = weakref.WeakValueDictionary()


def _after_fork_in_child() -> None:
    _span.forget_thread()
    for marked in list(_all.values()):
        marked._spans.forget()  # noqa: SLF001 - one room
        if marked._sink is not None:  # noqa: SLF001 - one room
            marked._sink.forked(monotonic_ns())  # noqa: SLF001 - one room
        marked._finder, marked._finding = None, native_lock()  # noqa: SLF001 - one room


os.register_at_fork(after_in_child=_after_fork_in_child)
