# SPDX-License-Identifier: Apache-2.0
"""Something to swap to: what the machine has, or else of our own making."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import facts
import pytest

from pymemcg.bench.swap import ZramSwap


@contextmanager
def swap_of(size_bytes: int) -> Iterator[None]:
    """So much swap while the block runs; where there is none and none can be made, the test skips."""
    if _free_bytes() >= size_bytes:
        yield
        return
    if why := facts.no_zram():
        pytest.skip(why)
    with ZramSwap(size_bytes):
        yield


def _free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("SwapFree:"))
