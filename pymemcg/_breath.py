# SPDX-License-Identifier: Apache-2.0
"""Lets the service's threads go on while a thread of ours works out what held them.

That is a lot of numpy on small arrays, and a thread that goes from one call to the next keeps the GIL: whoever wants it waits
until the interpreter takes it away, 5 ms later. A thread that works in the background pauses now and then instead.
"""

from __future__ import annotations

import sys
import time
from _thread import get_ident
from typing import Final

SLICE_NS: Final = 400_000
"""So long it works at a stretch, and no longer than one step of the work more."""
PAUSE_S: Final = 50e-6
"""Long enough for another thread to wake up and to take the GIL; who only offers it has it back before."""

_due_ns: dict[int, int] = {}
"""When each thread that works in the background is to pause next, by its id."""


def in_background() -> None:
    """The present thread works in the background from now on.

    Not where gevent makes greenlets of threads: our locks are a native thread's, and none of its greenlets may come in between.
    """
    if "gevent.monkey" not in sys.modules:
        _due_ns[get_ident()] = 0


def over() -> None:
    """The present thread ends."""
    _due_ns.pop(get_ident(), None)


def breathe() -> None:
    """Pause if it is time to. For a tenth of a microsecond in any other thread."""
    if not _due_ns:
        return
    me = get_ident()
    due = _due_ns.get(me)
    if due is not None and time.monotonic_ns() >= due:
        time.sleep(PAUSE_S)
        _due_ns[me] = time.monotonic_ns() + SLICE_NS
