# SPDX-License-Identifier: Apache-2.0
"""Stalls for tests of what is done with them."""

from __future__ import annotations

import time

from pymemcg.detecting import Stall

MS = 1_000_000
UNKNOWN = dict.fromkeys(Stall.__dataclass_fields__)


def stall(start_ns: int, state: str = "closed", **known) -> Stall:
    values = UNKNOWN | {"cause": "limit", "evidence": ("trace",), "tids": (), "end_ns": start_ns + MS, "longest_ns": MS}
    return Stall(**values | {"start_ns": start_ns, "state": state} | known)


def until(true, seconds: float = 10):
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)
    return value
