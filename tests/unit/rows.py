# SPDX-License-Identifier: Apache-2.0
"""Captured and made-up rows for tests of formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pymemcg import schema

DATA = Path(__file__).parents[1] / "data"
V2 = "sys/fs/cgroup/pmc-parent/pmc-child"
V1 = "sys/fs/cgroup/memory/pmc-parent/pmc-child"
MIB = 1 << 20
S = 1_000_000_000
# A clock beyond what float64 can hold exactly: 104 days after boot and later.
LATE = 2**60 + 1
V2_NONE, V1_NONE, RING_NONE = 2**64 - 1, 2**63 - 4096, 2**63 - 1


def captured(kernel, group):
    lines = (DATA / kernel / group / "memory.stat").read_text().splitlines()
    raw = {key: int(value) for key, value in map(str.split, lines)}
    fields = schema.stat_fields(raw, 2 if kernel.endswith("v2") else 1)
    return {field.name: raw[field.key] for field in fields}, raw


def number(kernel, path):
    return int((DATA / kernel / path).read_text())


def floats(*values):
    return np.array(values, dtype=np.float64)


SIZES = st.integers(0, 2**53)
COLUMNS = hnp.array_shapes(max_dims=1, min_side=0, max_side=40)


def sizes(dtype="uint64"):
    return hnp.arrays(dtype, COLUMNS, elements=st.integers(0, 2**53))


@st.composite
def windows(draw, min_rows=0, max_rows=150, min_step=1):
    """Rows of an ascending clock, anywhere a clock in ns can stand."""
    steps = draw(st.lists(st.integers(min_step, 10**10), min_size=min_rows, max_size=max_rows))
    return np.cumsum(np.array([draw(st.integers(0, LATE)), *steps], dtype=np.int64))[1:]
