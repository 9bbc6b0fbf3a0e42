# SPDX-License-Identifier: Apache-2.0
"""Long recordings of real rows: a short recording's, again and again with shifted clocks and counters that go on rising."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rowwriter import write

import pymemcg
from pymemcg._ffi import NONE

Ints = npt.NDArray[np.int64]

COUNTED = ("_hits", "oom_kill", "pg", "workingset_", "allocstall", "pswp", "thp_", "compact_stall", "_us")
"""What the names of cumulative columns begin or end with."""
CHANNELS = ("usage", "stat", "pressure", "limits", "reclaim", "clock")


def replayed(
    path: Path, source: pymemcg.Recording, seconds: float, change: Callable[[str, dict[str, Ints]], None] | None = None
) -> pymemcg.Recording:
    """A recording of so many seconds.

    Args:
        path: Where to.
        source: Whose rows.
        seconds: How long it is to be.
        change: Is told each channel's name and columns before they are written.
    """
    times = source.usage.window()["t_ns"]
    lasts = int(times[-1] - times[0]) + int(np.median(np.diff(times)))
    rounds = -(-int(seconds * 1e9) // lasts)
    channels = {}
    for name in CHANNELS:
        window = getattr(source, name).read()[0]
        if len(window):
            again = 1 if name in ("clock", "limits") else rounds  # what holds from the beginning on
            columns = {column: _again(column, window[column], again, lasts) for column in window}
            if change is not None:
                change(name, columns)
            channels[name] = columns
    return write(path, channels, source.info)


def _again(name: str, values: Ints, rounds: int, lasts: int) -> Ints:
    step = 0
    if name in ("t_ns", "since_ns", "start_ns", "end_ns"):
        step = lasts
    elif name.startswith(COUNTED) or name.endswith(COUNTED):
        step = int(values[-1] - values[0]) if NONE not in (values[0], values[-1]) else 0
    tiled = np.tile(values, rounds)
    shifted = tiled + np.repeat(np.arange(rounds) * step, values.size)
    return np.where(tiled == NONE, NONE, shifted)
