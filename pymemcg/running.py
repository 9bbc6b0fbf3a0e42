# SPDX-License-Identifier: Apache-2.0
"""What exists between a sampler's start and its stop: a seat, a ring, and the native threads."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from pymemcg import sharing
from pymemcg._ffi import check, ffi, lib
from pymemcg.plan import NativeConfig
from pymemcg.ring import Ring, create

if TYPE_CHECKING:
    from pymemcg.plan import Plan

_ANOTHERS = "another process reads this group's PSI: a second reader would destroy it"
_PATIENCE_S = 1.0
"""How long to wait for another process's first sample; should it have died before, the next takes over meanwhile."""


def _native_lock() -> threading.Lock:
    """A lock for moments in which nothing waits. gevent's own do not work reliably between native threads."""
    monkey = sys.modules.get("gevent.monkey")
    lock: threading.Lock = monkey.get_original("_thread", "allocate_lock")() if monkey else threading.Lock()
    return lock


class Running:
    """What exists between start and stop."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        out = ffi.new("struct memcg_sampler **")
        self.seat = sharing.take_seat(
            plan.target.directory,
            lambda fd: create(fd, plan.channels, plan.info(), align=os.sysconf("SC_PAGESIZE"), reserve=True),
        )
        try:
            self.ring = Ring(self.seat.ring_fd, self.seat.path or "memfd:pymemcg")
            self.config = NativeConfig(
                plan,
                ring_fd=self.seat.ring_fd,
                lock_fd=self.seat.lock_fd,
                attached=self.seat.role == "attached",
            )
            failed = ffi.new("char[4096]")
            rc = lib.memcg_sampler_start(self.config.struct, out, failed, len(failed))
            check(rc, os.fsdecode(ffi.string(failed)), "cannot be sampled")
        except BaseException:
            if out[0] != ffi.NULL:  # Ctrl-C came when the threads ran already, in memory that is about to go
                lib.memcg_sampler_stop(out[0])
            self.seat.leave()
            raise
        self._handle = out[0]
        self._using = _native_lock()  # one thread may stop, or the interpreter end, while another asks

    def await_first_row(self) -> None:
        """The ring of another process can be found a moment before its first sample is in it."""
        usage, deadline = self.ring.tables["usage"], time.monotonic() + _PATIENCE_S
        while self.ring.head(usage) == 0 and time.monotonic() < deadline:
            time.sleep(0.001)

    def pressure_is_anothers(self) -> bool:
        """Whether the channel is closed since another process reads the group's PSI."""
        table = self.ring.tables.get("pressure")
        closed = self.ring.closed(table) if table else None
        return closed is not None and closed[1] == errno.EBUSY

    def evidence(self) -> dict[str, str | None]:
        """What the ring's writer has; it may be another process than this one."""
        found = dict(self.plan.evidence)
        for name, channel in (("trace", "reclaim"), ("psi", "pressure")):
            table = self.ring.tables.get(channel)
            closed = self.ring.closed(table) if table else None
            if table is None:
                found[name] = found[name] or "the process that samples has none"
            elif closed is not None:
                found[name] = _ANOTHERS if closed[1] == errno.EBUSY else f"closed: {os.strerror(closed[1])}"
            elif name == "trace":
                why = found[name] or "the process that samples has none"
                found[name] = None if self.ring.header.state.trace_ns else why
            else:
                found[name] = None
        return found

    def writes(self) -> bool:
        """Whether this process writes the ring."""
        with self._using:
            return self._handle is not None and lib.memcg_sampler_writes(self._handle) != 0

    def held_bytes(self) -> int:
        """What is held for sampling beside the ring."""
        with self._using:
            return lib.memcg_sampler_held_bytes(self._handle) if self._handle is not None else 0

    def stop(self) -> None:
        """End the threads, and give up the seat."""
        with self._using:
            handle, self._handle = self._handle, None
        lib.memcg_sampler_stop(handle)
        self.seat.leave()

    def forget(self) -> None:
        """In a forked child: the parent's threads, locks and files stay the parent's."""
        lib.memcg_sampler_forget(self._handle)
        self.seat.abandon()
