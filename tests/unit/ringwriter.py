# SPDX-License-Identifier: Apache-2.0
"""A ring that a test writes itself, by the layout in memcg_abi.h, so that what readers must see is known to the last row."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from pymemcg._ffi import ffi
from pymemcg.channel import Channel
from pymemcg.ring import ChannelSpec, Ring, create

PAGE = os.sysconf("SC_PAGESIZE")
ROWS = PAGE // 8
"""The smallest capacity: one page a column."""
SPECS = (
    ChannelSpec("usage", 1_000_000, ROWS, {"t_ns": "ns", "late_ns": "ns", "usage_bytes": "bytes"}),
    ChannelSpec("clock", 60_000_000_000, 1, {"t_ns": "ns", "realtime_ns": "ns"}),
)

_ENTRY = ffi.typeof("struct memcg_channel_header")


def tick(row: Any) -> dict[str, Any]:
    """What row `row` of `usage` holds: each column tells which row it is of."""
    return {"t_ns": 1000 * row + 7, "late_ns": row, "usage_bytes": -row}


class RingWriter:
    """A ring in a memfd. `put` publishes rows as the sampler's writer does: values first, the head after them."""

    def __init__(self, specs: Sequence[ChannelSpec] = SPECS, info: dict[str, object] | None = None):
        self.fd = os.memfd_create("pymemcg-test")
        create(self.fd, specs, info or {}, align=PAGE, reserve=True)
        self.ring = Ring(self.fd, "memfd")
        self.heads = dict.fromkeys(self.ring.tables, 0)

    def channel(self, name: str = "usage") -> Channel:
        return Channel(name, self.ring, self.ring.tables[name])

    def put(self, name: str, row: dict[str, int]) -> None:
        table = self.ring.tables[name]
        slot = self.heads[name] % table.capacity
        for column, value in row.items():
            os.pwrite(self.fd, ffi.buffer(ffi.new("int64_t *", value))[:], table.offsets[column] + 8 * slot)
        self.heads[name] += 1
        self._word(name, "head", self.heads[name])

    def tick(self, rows: int) -> None:
        """So many rows at once, for tests in which nobody reads meanwhile."""
        table, head = self.ring.tables["usage"], self.heads["usage"]
        new = np.arange(head + max(0, rows - table.capacity), head + rows)
        for column, values in tick(new).items():
            whole = np.frombuffer(os.pread(self.fd, 8 * table.capacity, table.offsets[column]), np.int64).copy()
            whole[new % table.capacity] = values
            os.pwrite(self.fd, whole.tobytes(), table.offsets[column])
        self.heads["usage"] = head + rows
        self._word("usage", "head", head + rows)

    def begin_row(self, name: str, row: dict[str, int]) -> None:
        """Store a row without publishing it: the writer is in the middle of it."""
        self.put(name, row)
        self.heads[name] -= 1
        self._word(name, "head", self.heads[name])

    def close(self, name: str, when_ns: int, error: int) -> None:
        self._word(name, "closed_errno", error)
        self._word(name, "closed_ns", when_ns)

    def _word(self, name: str, word: str, value: int) -> None:
        at = self.ring.header.channels_offset + self.ring.tables[name].index * ffi.sizeof(_ENTRY) + ffi.offsetof(_ENTRY, word)
        os.pwrite(self.fd, ffi.buffer(ffi.new("uint64_t *", value))[:], at)
