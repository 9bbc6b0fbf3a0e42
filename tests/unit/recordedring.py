# SPDX-License-Identifier: Apache-2.0
"""A ring whose every row is known, as a recorder sees a sampler, and what its rows must be in a recording."""

from __future__ import annotations

import os

from ringwriter import RingWriter, tick

from pymemcg import schema
from pymemcg.channel import Channel
from pymemcg.ring import ChannelSpec

INFO = {"target": {"spec": "test"}, "absent": {"high": "cgroup v1 has no memory.high"}}
EXTRA = (
    ChannelSpec("limits", 0, 10, {"t_ns": "ns", "level": "", "limit_bytes": "bytes"}),
    ChannelSpec("events", 0, 10, {"t_ns": "ns", "since_ns": "ns", "kind": "", "value": ""}),
    ChannelSpec("node", 100_000_000, 10, {"t_ns": "ns", "pswpin": "pages"}),
)


class Live:
    """What a recorder needs of a sampler: its channels, here over a ring that the test writes, and its description."""

    def __init__(self, writer: RingWriter):
        for name in schema.CHANNELS:
            setattr(self, name, Channel(name, writer.ring, writer.ring.tables.get(name)))

    def describe(self):
        return INFO


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def rows_of(window) -> list[int]:
    rows = window["late_ns"].tolist()
    assert window["t_ns"].tolist() == [tick(row)["t_ns"] for row in rows]
    assert window["usage_bytes"].tolist() == [-row for row in rows]
    return rows
