# SPDX-License-Identifier: Apache-2.0
"""The sampler of a service: when it starts and stops, what a request costs it, and the line that a hit becomes."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from pymemcg.integrations._requests import Names
from pymemcg.sampler import Sampler
from pymemcg.spans import no_span

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymemcg._hit import Hit

_MS: Final = 1_000_000

_log = logging.getLogger("pymemcg.hits")


class Service:
    """What both middlewares have in common, one of it in each worker.

    Args:
        log_above_ms: See the middlewares.
        options: For the `Sampler`.

    Attributes:
        sampler: Made at once, since that takes no thread, no file and no memory to speak of, and started by `begin`.
        span: Makes the span of a request; one that tells nobody where nothing can be sampled.
        names: Of requests.
        began: Whether this process has begun.

    Thread-safe.
    """

    def __init__(self, log_above_ms: float, options: dict[str, Any]) -> None:
        self._log_above_ns = round(log_above_ms * _MS)
        self._also: Callable[[Hit], object] | None = options.pop("on_hit", None)
        self.sampler = Sampler(**options, on_hit=self._on_hit)
        self.span: Callable[[str], Any] = self.sampler.span
        self.names = Names()
        self.began = False
        _services.add(self)

    # ---- Life cycle ----

    def begin(self) -> None:
        """Start sampling, and say so once if that cannot be; nothing is raised and nothing else happens then."""
        self.began = True
        try:
            self.sampler.start()
        except Exception as error:  # noqa: BLE001 - a service does not fail for lack of a sampler
            self.span = no_span
            logging.getLogger("pymemcg").warning("pymemcg: memory is not sampled, and no request is marked: %s", error)

    def begin_beside(self) -> None:
        """Start sampling from a thread of its own: a request is under way, and it need not wait."""
        if not self.began:
            self.began = True
            # No daemon: a worker that ends at once must not leave half of a start behind.
            threading.Thread(target=self.begin, name="pymemcg-start", daemon=False).start()

    def end(self) -> None:
        """Stop sampling; the last hits are logged."""
        self.sampler.stop()

    def _forked(self) -> None:
        self.began = False  # threads do not survive a fork: the first request starts anew
        self.span = self.sampler.span

    # ---- Hits ----

    def _on_hit(self, hit: Hit) -> None:
        """In the thread that watches the stalls."""
        lost_ns = hit.lost_ns if hit.lost_ns is not None else hit.hi_ns
        if lost_ns >= self._log_above_ns:
            _log.warning("%s", line(hit), extra={"hit": hit})
        if self._also is not None:
            self._also(hit)


def line(hit: Hit) -> str:
    """A hit for people: `GET /checkout trace=4bf92f… 14.2 ms, 12.9 ms in reclaim (limit, psi 11–15 ms)`."""
    trace = f" trace={hit.ref}" if hit.ref is not None else ""
    evidence = "+".join(hit.evidence)
    if hit.evidence != ("trace",):
        evidence += f" {_ms(hit.lo_ns)}–{_ms(hit.hi_ns)} ms"
    lost = f"{hit.lost_ns / _MS:.1f} ms" if hit.lost_ns is not None else "some of it"
    why = f"{hit.cause}, {evidence}" if hit.cause is not None else evidence
    return f"{hit.name}{trace} {(hit.end_ns - hit.start_ns) / _MS:.1f} ms, {lost} in reclaim ({why})"


def _ms(ns: int) -> str:
    """With as many digits as such a bound is worth."""
    return f"{ns / _MS:.0f}" if ns >= 9.95 * _MS or ns == 0 else f"{ns / _MS:.1f}"


_services: weakref.WeakSet[Service] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for service in list(_services):
        service._forked()  # noqa: SLF001 - one room


os.register_at_fork(after_in_child=_after_fork_in_child)
