# SPDX-License-Identifier: Apache-2.0
"""The line that a hit becomes in a service's log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pymemcg._hit import Hit
from pymemcg.integrations._service import line


def a_hit(**changes: Any) -> Hit:
    usual = Hit(
        name="GET /checkout",
        ref="4bf92f3577b34da6a3ce929d0e0e4736",
        start_ns=1_000_000_000,
        end_ns=1_014_210_000,
        tid=4711,
        attribution="thread",
        own_ns=None,
        others_ns=None,
        lost_ns=12_940_000,
        lo_ns=11_200_000,
        hi_ns=14_900_000,
        share=0.91,
        evidence=("psi",),
        stalls=(),
        cause="limit",
        final=True,
    )
    return replace(usual, **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "GET /checkout trace=4bf92f3577b34da6a3ce929d0e0e4736 14.2 ms, 12.9 ms in reclaim (limit, psi 11–15 ms)"),
        ({"ref": None, "evidence": ("trace",)}, "GET /checkout 14.2 ms, 12.9 ms in reclaim (limit, trace)"),
        (
            {"ref": None, "evidence": ("trace", "psi"), "lo_ns": 0, "hi_ns": 9_960_000},
            "GET /checkout 14.2 ms, 12.9 ms in reclaim (limit, trace+psi 0–10 ms)",
        ),
        (
            {"ref": None, "lo_ns": 120_000, "hi_ns": 3_440_000},
            "GET /checkout 14.2 ms, 12.9 ms in reclaim (limit, psi 0.1–3.4 ms)",
        ),
        (
            {"ref": None, "evidence": ("counters",), "lost_ns": None, "lo_ns": 0, "cause": None},
            "GET /checkout 14.2 ms, some of it in reclaim (counters 0–15 ms)",
        ),
    ],
)
def test_the_line_of_a_hit(changes, expected):
    assert line(a_hit(**changes)) == expected
