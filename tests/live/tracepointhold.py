# SPDX-License-Identifier: Apache-2.0
"""Keeps the tracepoints of reclaim in use, so that no sampler is the last to let go of them."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from pymemcg import tracepoints
from pymemcg.errors import NotSupported

_SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_PERF_TYPE_TRACEPOINT = 2
_DISABLED = 1 << 0
_PERF_FLAG_FD_CLOEXEC = 1 << 3
_ANY_CPU, _NO_GROUP = -1, -1
_libc = ctypes.CDLL(None, use_errno=True)
_held: list[int] = []


def hold() -> None:
    """Open each of them, for this thread and switched off: nothing is traced, but the kernel has them ready.

    Who comes first waits while it patches its own code, and who goes last until no CPU can be in the probes any more: with
    tests that start a sampler each, this is most of what they take. Where they may not be opened, no sampler can do it either.
    """
    number = _SYS_PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        return
    try:
        ids = tracepoints.event_ids().values()
    except NotSupported:
        return
    for ident in ids:
        # type, size, config, sample_period, sample_type, read_format, flags, wakeup_events, bp_type, config1
        attributes = struct.pack("IIQQQQQIIQ", _PERF_TYPE_TRACEPOINT, 64, ident, 1, 0, 0, _DISABLED, 0, 0, 0)
        fd = _libc.syscall(number, attributes, 0, _ANY_CPU, _NO_GROUP, _PERF_FLAG_FD_CLOEXEC)
        if fd >= 0:
            _held.append(fd)


def let_go() -> None:
    """From now on the last sampler to stop lets go of them."""
    while _held:
        os.close(_held.pop())


@contextmanager
def let_go_meanwhile() -> Iterator[None]:
    """While the block runs."""
    held = bool(_held)
    let_go()
    try:
        yield
    finally:
        if held:
            hold()
