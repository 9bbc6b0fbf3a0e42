# SPDX-License-Identifier: Apache-2.0
"""The rings of a sampler in another process, as they grow."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from pymemcg import _spanring, schema
from pymemcg._ffi import ffi
from pymemcg._stall import POLICY
from pymemcg.channel import Channel, Channels
from pymemcg.detecting import stalls
from pymemcg.errors import MemcgError, RecordingError, TargetError
from pymemcg.ring import Ring, is_used

if TYPE_CHECKING:
    from pymemcg._hit import Hits, Summary
    from pymemcg.detecting import Policy, Stalls


class Attached(Channels):
    """The channels of a sampler in another process, without a copy, as they grow.

    The writer never waits for a reader: one that is slow or stopped loses rows, and `Channel.read` and `Window.valid` tell of
    it. `spans` has columns where the sampler has a ring file: those of all processes that use the ring, told apart by `pid`.

    Attributes:
        path: Where the ring was found.
        info: What it says of itself: target, kernel, host, what is absent and why.

    Thread-safe. Arrays keep the ring mapped, also after the sampler's end.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.path = path
        self._ring = Ring(fd, path)
        self.info: dict[str, Any] = self._ring.info
        tables = self._ring.tables
        self._full_spans = Channel("spans", self._ring, tables["spans"]) if {"spans", "names"} <= tables.keys() else None
        shown = tables | {"spans": _spanring.shown(tables["spans"])} if self._full_spans else tables
        for name in schema.CHANNELS:
            setattr(self, name, Channel(name, self._ring, shown.get(name)))

    @property
    def writer_pid(self) -> int | None:
        """The process that samples, in its own pid namespace; None after it has stopped.

        One that was killed is told until another takes over.
        """
        return self._ring.header.state.writer_pid or None

    def state(self) -> dict[str, int]:
        """What sampling does and costs now: the words of `struct memcg_state`, see docs/file-format.md."""
        words = (name for name, _ in ffi.typeof("struct memcg_state").fields if name != "cost_ns")
        return {name: getattr(self._ring.header.state, name) for name in words}

    def hits(self, *, min_ns: int = 0) -> Hits:
        """The spans in the ring that fell together with reclaim; see `Sampler.hits`."""
        from pymemcg import _hitting

        return _hitting.recorded(self).hits(min_ns=min_ns)

    def summary(self) -> Summary:
        """How long the spans in the ring took, by name, with and without what they lost to reclaim."""
        from pymemcg import _hitting

        return _hitting.recorded(self).summary()

    def _marked(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Columns of the spans that the ring has now, copied, and what they mean; None without spans."""
        if self._full_spans is None:
            return None
        import numpy as np

        window = self._full_spans.window().copy()
        rows = {name: window[name] for name in window.names}
        rows["ref_id"] = np.arange(len(window))
        table = self._ring.tables["names"]
        count = self._ring.head(table)
        named = {name: self._ring.column(table, name)[:count] for name in table.units}
        return rows, _spanring.texts(rows, rows["ref_id"], named, self._ring.lost(self._ring.tables["spans"]))

    def stalls(self, *, min_ns: int = 0, evidence: str = "auto", policy: Policy = POLICY) -> Stalls:
        """Find the stalls that the rings still have; see `pymemcg.stalls`. `pymemcg.Detector` tells of them as they come."""
        return stalls(self, min_ns=min_ns, evidence=evidence, policy=policy)

    def __repr__(self) -> str:
        return f"<Attached {self.path!r}: {self.usage.head} rows of usage so far>"


def attach(source: str | os.PathLike[str]) -> Attached:
    """Look on while another process samples.

    Args:
        source: A ring file, or `pid:N`: a process with a sampler.

    Raises:
        TargetError: There is no such file or process, it may not be looked at, or it has no sampler, or several.
        RecordingError: The file is no ring, is damaged, of another version, or nobody writes it any more.
    """
    name = os.fspath(source)
    path = _ring_of(name[4:]) if name.startswith("pid:") else name
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        hint = "its owner, or root, can" if isinstance(error, PermissionError) else None
        raise TargetError(f"cannot be opened: {error.strerror}", path=path, hint=hint) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise RecordingError("is no file", path=path)
        attached = Attached(fd, path)
        if not is_used(fd):
            raise RecordingError("is written by nobody now", path=path, hint="pymemcg.open(PATH) reads what is there")
    finally:
        os.close(fd)
    return attached


def _ring_of(pid: str) -> str:
    """Where the ring of a process is: a descriptor of it, since a memfd has no other name."""
    folder, target = f"/proc/{pid}/fd", f"pid:{pid}"
    if not pid.isdecimal():
        raise TargetError(f"{target!r}: expected the number of a process after pid:")
    try:
        found = [path for fd in sorted(os.listdir(folder), key=int) if _may_be_ring(path := f"{folder}/{fd}")]
    except FileNotFoundError as error:
        raise TargetError("there is no such process here", path=target) from error
    except PermissionError as error:
        hint = "the same user can, if the process is dumpable (prctl PR_SET_DUMPABLE) and in no other user namespace"
        raise TargetError("its files may not be looked at", path=target, hint=hint) from error
    rings: dict[int, str] = {}
    for path in found:
        for created_ns, is_copy in _identity(path):
            if not is_copy or created_ns not in rings:
                rings[created_ns] = path
    if not rings:
        raise TargetError("has no sampler", path=target)
    if len(rings) > 1:
        raise TargetError(f"has {len(rings)} samplers", path=target, hint=f"name one of {', '.join(rings.values())}")
    return next(iter(rings.values()))


def _may_be_ring(path: str) -> bool:
    """Whether it is a file that is large enough; pipes, devices and sockets are not opened."""
    try:
        status = os.stat(path)
    except OSError:  # closed meanwhile
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size >= ffi.sizeof("struct memcg_ring_header")


def _identity(path: str) -> list[tuple[int, bool]]:
    """When a ring was made, and whether this is its copy on a disk; nothing for what is no ring."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        ring = Ring(fd, path)
    except MemcgError:
        return []
    finally:
        os.close(fd)
    is_live = ring.header.state.writer_started_ns != 0  # else a recording that the process writes
    return [(ring.header.created_ns, ring.is_copy)] if is_live else []
