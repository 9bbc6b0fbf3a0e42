# SPDX-License-Identifier: Apache-2.0
"""Stalls as they happen: to iterate over, and as callbacks, from one ordinary thread of each sampler that is asked for them."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, cast

from pymemcg import _breath
from pymemcg._streams import StallStream
from pymemcg._watch import COST_FACTOR, Callbacks, Glance, HitNews, Kills, OomKill, Source, native_lock
from pymemcg.errors import NotStarted

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymemcg._hitting import Heard
    from pymemcg.detecting import Detector, Stall
    from pymemcg.sampler import Sampler

LOOK_S = 0.05
"""Twenty glances a second while things happen: news is never older than a person notices."""
IDLE_LOOK_S = 0.2
"""And five where nothing has happened for a while. A glance takes 20 us, with all that waking a thread costs 200."""
LIVELY_NS = 2_000_000_000
"""How long that while is."""
SETTLING_NS = 250_000_000
"""After anything has changed the detector is asked at every glance for so long: an episode closes 5 ms after its last moment,
and nothing that a glance sees changes then."""
UNHEARD_NS = 1_000_000_000
"""… and so often where nobody listens to stalls: hits, for which they are looked for then, come seconds later anyway."""
PENDING_NS, PENDING_FOR_NS = 1_000_000_000, 10_000_000_000
"""Afterwards so often, and for so long, while something is open or waits for evidence: a glance sees when PSI is read."""
RESTING_NS = 15_000_000_000
"""And else so often, lest the rings outrun its cursors; more often where they are short."""
PATIENCE_S = 2.0
"""How long stop() waits for a callback that is running."""
RETRY_S = (1.0, 60.0)
"""After an error of the detector another one is made, so much later: the first time, and at most."""

__all__ = ["Callbacks", "OomKill", "StallStream", "Watched", "Watcher"]


class Watch:
    """The thread that watches from a start of the sampler to its stop, or for as long as anybody wants to know.

    While it waits, the thread holds nothing but a weak reference: a sampler that is dropped takes all this with it.
    """

    def __init__(self, sampler: Sampler, callbacks: Callbacks) -> None:
        self._sampler = weakref.ref(sampler)
        self._source = Source(sampler)
        self._callbacks = callbacks
        self._lock = native_lock()
        self._streams: list[weakref.ref[StallStream]] = []
        self._open: dict[tuple[object, ...], Stall] = {}
        self._told_before: set[tuple[object, ...]] = set()
        self._since_ns = time.monotonic_ns()
        self._glance, self._kills = Glance(self._source), Kills(self._source)
        self._hits = HitNews(self._since_ns)
        self._detector: Detector | Heard | None = None
        self._changed_ns = self._asked_ns = self._rest_ns = 0
        self._retry_s, self._retry_at_s = RETRY_S[0], 0.0
        usage = self._source.usage
        self._resting_ns = min(RESTING_NS, usage.capacity * usage.period_ns // 4)
        self._wake = threading.Lock()
        self._wake.acquire()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self.over = False
        if "on_oom" in callbacks and not self._kills.counted:
            callbacks.say(("oom_kills",), "on_oom will not be called: the kernel does not count this group's OOM kills")

    # ---- Its life ----

    def start(self) -> None:
        """Start the thread, unless it was.

        Raises:
            RuntimeError: No thread can be started.
        """
        with self._lock:
            if self._thread is not None or self.over:
                return
            self._thread = threading.Thread(
                target=_watch, args=[weakref.ref(self), self._wake], name="pymemcg-watch", daemon=True
            )
        _live.add(self)
        try:
            self._thread.start()  # outside of the lock: under gevent others run meanwhile
        except BaseException:
            self.abandon()
            raise

    def stop(self) -> None:
        """Tell the rest and end the thread; from any thread, also its own, which then ends after the callback."""
        thread = self._thread
        if thread is None or self.over:
            return
        _ending.add(self)  # or it would be gone with its sampler's interest in it
        self._stopping = True
        with contextlib.suppress(RuntimeError):  # it is awake
            self._wake.release()
        if thread is threading.current_thread():
            return
        thread.join(PATIENCE_S)
        if thread.is_alive():
            self._callbacks.say(("stop",), "a callback still runs %s s after stop(); nothing more is told", PATIENCE_S)
            self.abandon()

    def abandon(self) -> None:
        """Tell no more: end all streams."""
        with self._lock:
            self.over = True
            streams, self._streams = self._listeners(), []
        _ending.discard(self)
        for stream in streams:
            stream._end()  # noqa: SLF001 - one room

    def forget(self) -> None:
        """In a forked child: the thread is the parent's."""
        self._lock, self._thread, self.over = native_lock(), None, True
        _ending.discard(self)
        for stream in self._listeners():
            stream._orphan()  # noqa: SLF001 - one room
        self._streams = []

    def add(self, stream: StallStream) -> bool:
        """Tell it everything from now on; False where nothing is told any more."""
        with self._lock:
            if self.over:
                return False
            if stream not in self._listeners():
                stream._begin(list(self._open.values()))  # noqa: SLF001 - one room
                self._streams.append(weakref.ref(stream))
        if self._is_over():  # a signal's handler stopped it in between
            stream._end()  # noqa: SLF001 - one room
        return True

    def _is_over(self) -> bool:
        return self.over

    def _listeners(self) -> list[StallStream]:
        return [stream for ref in self._streams if (stream := ref()) is not None and not stream._over]  # noqa: SLF001

    # ---- What the thread does ----

    def look(self) -> float | None:
        """Look once and tell what is new; never raises.

        Returns:
            After how many seconds to look again, or None: it is over.
        """
        last = self._stopping or self._is_gone()
        for news in (self._kills_news, self._stalls_news, self._hits_news):
            try:
                if not self.over:
                    news(last=last)
            except ReferenceError:  # the sampler was dropped
                last = True
            except Exception as error:  # noqa: BLE001 - whatever it is, the service goes on, and so does the watching
                self._failed(news.__name__.strip("_"), error)
        with self._lock:
            self._streams = [weakref.ref(stream) for stream in self._listeners()]
            unheard = not self._streams and not self._callbacks
            self.over = self.over or unheard
        if last or self.over:
            self.abandon()
            return None
        return LOOK_S if time.monotonic_ns() - self._changed_ns < LIVELY_NS else IDLE_LOOK_S

    def _is_gone(self) -> bool:
        """Whether what is sampled has vanished, and the last rows have come."""
        closed = self._source.usage.closed_at
        return closed is not None and closed[0] + SETTLING_NS < time.monotonic_ns()

    def _kills_news(self, *, last: bool) -> None:  # noqa: ARG002 - as the others
        for kill in self._kills.news():
            self._callbacks.tell("on_oom", kill)

    def _stalls_news(self, *, last: bool) -> None:
        now = time.monotonic_ns()
        if self._glance.changed():
            self._changed_ns = now
        if last or (now >= self._retry_at_s * 1e9 and now - self._asked_ns >= self._interval_ns(now)):
            self._ask(last=last)

    def _hits_news(self, *, last: bool) -> None:
        sampler = self._sampler() if "on_hit" in self._callbacks else None
        if sampler is not None:
            for hit in self._hits.news(sampler, time.monotonic_ns(), last=last):
                self._callbacks.tell("on_hit", hit)

    def _interval_ns(self, now: int) -> int:
        if now - self._changed_ns < SETTLING_NS:
            heard = self._streams or "on_stall" in self._callbacks
            return self._rest_ns if heard else max(self._rest_ns, UNHEARD_NS)
        pending = self._open or self._detector is None or self._detector.final_until_ns < self._changed_ns
        soon = pending and now - self._changed_ns < PENDING_FOR_NS
        return max(self._rest_ns, min(PENDING_NS, self._resting_ns) if soon else self._resting_ns)

    def _ask(self, *, last: bool) -> None:
        if self._detector is None:
            self._detector = self._new_detector()
        began = time.thread_time_ns()
        stalls = self._detector.finish() if last else self._detector.advance()
        self._asked_ns = time.monotonic_ns()
        self._rest_ns = min(COST_FACTOR * (time.thread_time_ns() - began), PENDING_NS)
        self._retry_s = RETRY_S[0]
        for stall in stalls:
            self._tell(stall)

    def _new_detector(self) -> Detector | Heard:
        sampler = self._sampler() if "on_hit" in self._callbacks else None
        if sampler is not None:
            from pymemcg._hitting import Heard

            return Heard(sampler)
        from pymemcg.detecting import Detector

        return Detector(self._source, evidence=self._source.asked)

    def _tell(self, stall: Stall) -> None:
        key = _key(stall)
        with self._lock:
            if self.over or (stall.end_ns is not None and stall.end_ns < self._since_ns and key not in self._open):
                return
            # Of one kind there is one at a time: what began before and was not closed has become one with this.
            self._open = {known: one for known, one in self._open.items() if known[1:] != key[1:] or known[0] > key[0]}
            if stall.state == "open":
                self._open[key] = stall
                if key in self._told_before:
                    self._told_before.discard(key)
                    return
            streams = self._listeners()
        self._hits.stalled(stall, time.monotonic_ns())
        for stream in streams:
            stream._put(stall)  # noqa: SLF001 - one room
        self._callbacks.tell("on_stall", stall)

    def _failed(self, what: str, error: Exception) -> None:
        """Go on; with stalls by a new detector from the rings. What was told is not told again."""
        kind = type(error).__name__
        self._callbacks.say((what, kind), "no %s for now; further %s are not logged", what.replace("_", " "), kind)
        if what != self._stalls_news.__name__.strip("_"):
            return
        self._told_before = set(self._open)
        if self._detector is not None:
            self._since_ns = max(self._since_ns, self._detector.final_until_ns)
        self._detector = None
        self._retry_at_s = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, RETRY_S[1])


def _key(stall: Stall) -> tuple[Any, ...]:
    """Who it is from open to closed: tracepoints and counters are told apart, and so is what is harmless."""
    return stall.start_ns, stall.harmless, "trace" in stall.evidence


def _watch(ref: weakref.ref[Watch], wake: Any) -> None:
    _breath.in_background()
    try:
        while True:
            watch = ref()
            pause = watch.look() if watch is not None else None
            del watch
            if pause is None:
                return
            wake.acquire(timeout=pause)
    finally:
        _breath.over()


_live: weakref.WeakSet[Watch] = weakref.WeakSet()
_ending: set[Watch] = set()


@atexit.register
def _at_exit() -> None:
    """The last stalls are told, and no thread is in the extension when the interpreter takes it down."""
    for watch in list(_live):
        watch.stop()


class Watcher:
    """A sampler's watch, whenever there is one.

    Thread-safe.
    """

    def __init__(self, sampler: Sampler, callbacks: Callbacks) -> None:
        self._sampler = weakref.ref(sampler)
        self._callbacks = callbacks
        self._lock = native_lock()
        self._watch: Watch | None = None
        self._on = False

    def begin(self) -> None:
        """The sampler has started."""
        self._on = True
        if self._callbacks:
            try:
                self._current().start()
            except RuntimeError:  # no more threads: the sampler is worth having without
                self._callbacks.say(("start",), "nothing is told: no thread can be started")

    def end(self) -> Callable[[], None]:
        """The sampler has stopped; what is returned waits for the thread, and is to be called without a lock."""
        with self._lock:
            self._on = False
            watch, self._watch = self._watch, None
        return watch.stop if watch is not None else lambda: None

    def forget(self) -> None:
        """In a forked child."""
        self._lock, self._on = native_lock(), False
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.forget()

    def feed(self, stream: StallStream) -> None:
        """Tell a stream from now on; where nothing is sampled, end it."""
        sampler = self._sampler()
        assert sampler is not None  # the stream holds it
        if sampler._forked:  # noqa: SLF001 - one room
            sampler._reattach()  # noqa: SLF001 - one room
        while self._on:
            watch = self._current()
            if watch.add(stream):
                watch.start()
                return
        stream._end()  # noqa: SLF001 - one room

    def _current(self) -> Watch:
        with self._lock:
            if self._watch is None or self._watch.over:
                sampler = self._sampler()
                assert sampler is not None
                self._watch = Watch(sampler, self._callbacks)
            return self._watch


class Watched:
    """What a sampler tells by itself."""

    _watcher: Watcher

    def stalls(self, *, min_ns: int = 0) -> StallStream:
        """Stalls from now on, as they happen, for `for` and `async for`. Any number of consumers; each gets all of them.

        Args:
            min_ns: Only those in which one thread was held for so long within 10 ms, by `Stall.longest_ns`; what has no known
                duration is left out then. Such a stall comes as "open" only if it was as long when it was first known.

        Returns:
            A `StallStream`, which ends with the sampler; at once where it has stopped or is disabled.

        Raises:
            NotStarted: The sampler was never started.
        """
        sampler = cast("Sampler", self)
        stream = StallStream(sampler, min_ns)
        if not (sampler._channels or sampler._forked):  # noqa: SLF001 - one room
            raise NotStarted("there are no stalls before start()", hint="use `with Sampler() as s:`")
        self._watcher.feed(stream)
        return stream
