# SPDX-License-Identifier: Apache-2.0
"""What exists between a sampler's start and its stop: a seat, a ring, and the native threads."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from pymemcg import ringfile, sharing
from pymemcg._ffi import check, ffi, lib
from pymemcg.plan import NativeConfig
from pymemcg.ring import Ring, create

if TYPE_CHECKING:
    from pymemcg.plan import Plan

_ANOTHERS = "another process reads this group's PSI: a second reader would destroy it"
_PATIENCE_S = 1.0
"""How long to wait for another process's first sample; should it have died before, the next takes over meanwhile."""


def _native_lock() -> threading.Lock:
    """A lock for moments, and until the threads have ended. gevent's own do not work reliably between native threads."""
    monkey = sys.modules.get("gevent.monkey")
    lock: threading.Lock = monkey.get_original("_thread", "allocate_lock")() if monkey else threading.Lock()
    return lock


def _stop(handle: Any, using: threading.Lock, copy: ringfile.Copy | None, seat: sharing.Seat, _config: NativeConfig) -> None:
    """End the threads, which were using the configuration, and give up the seat; what of it is done is not done again."""
    with using:
        sampler, handle[0] = handle[0], ffi.NULL
        if sampler != ffi.NULL:
            lib.memcg_sampler_stop(sampler)
        if copy is not None:  # last: how the sampler ended belongs into the file
            copy.stop()
    seat.leave()


class Running:
    """What exists between start and stop. When it is dropped, or the interpreter ends, it stops.

    Args:
        plan: What is sampled.
        ring_file: The absolute path of a file that outlives it; None = none.

    Raises:
        SourceError: A file cannot be read, or there is no room for the ring.
    """

    def __init__(self, plan: Plan, ring_file: str | None = None) -> None:
        self.plan = plan
        self._using = _native_lock()  # one thread may stop, or the interpreter end, while another asks
        self._handle = ffi.new("struct memcg_sampler **")
        self.seat = sharing.take_seat(
            plan.target.directory,
            lambda fd: create(fd, plan.channels, plan.info(), align=os.sysconf("SC_PAGESIZE"), reserve=True),
            at=ring_file if ring_file and ringfile.on_tmpfs(ring_file) else None,
        )
        self._copy: ringfile.Copy | None = None
        try:
            self.ring = Ring(self.seat.ring_fd, self.seat.path or "memfd:pymemcg")
            config = NativeConfig(
                plan,
                ring_fd=self.seat.ring_fd,
                lock_fd=self.seat.lock_fd,
                attached=self.seat.role == "attached",
            )
            if ring_file and not ringfile.is_at(ring_file, self.seat.ring_fd):  # on a disk, or another's ring
                self._copy = ringfile.Copy(ring_file, self.ring)
        except BaseException:
            self.seat.leave()
            raise
        # Before there are threads, which use memory that belongs to Python: Ctrl-C may come at any line from here on.
        self._parts = (self._handle, self._using, self._copy, self.seat, config)
        self._end = weakref.finalize(self, _stop, *self._parts)
        try:
            failed = ffi.new("char[4096]")
            rc = lib.memcg_sampler_start(config.struct, self._handle, failed, len(failed))
            check(rc, os.fsdecode(ffi.string(failed)), "cannot be sampled")
            if self._copy is not None:
                self._copy.start(self.seat.ring_fd)
        except BaseException:
            self.stop()  # at once: who looks at the traceback keeps `self`
            raise

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

    def previous(self) -> str | None:
        """Where the ring file of the life before went; None where there was none."""
        return self._copy.previous if self._copy else self.seat.previous

    def copy_error(self) -> str | None:
        """Why the ring file gets no more rows, or None."""
        with self._using:
            return self._copy.error() if self._copy else None

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
            return bool(self._handle[0] != ffi.NULL and lib.memcg_sampler_writes(self._handle[0]))

    def held_bytes(self) -> int:
        """What is held for sampling beside the ring."""
        with self._using:
            return lib.memcg_sampler_held_bytes(self._handle[0]) if self._handle[0] != ffi.NULL else 0

    def stop(self) -> None:
        """End the threads, and give up the seat; nothing to do where that is done."""
        _stop(*self._parts)  # should Ctrl-C come in it, the rest is done when this is dropped
        self._end.detach()

    def forget(self) -> None:
        """In a forked child: the parent's threads, locks and files stay the parent's."""
        self._end.detach()
        lib.memcg_sampler_forget(self._handle[0])
        if self._copy is not None:
            self._copy.forget()
        self.seat.abandon()
