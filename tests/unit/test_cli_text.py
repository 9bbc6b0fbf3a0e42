# SPDX-License-Identifier: Apache-2.0
"""How the commands write numbers, and read arguments."""

from __future__ import annotations

import argparse
import math
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymemcg._words import number, plain, share, size, span
from pymemcg.cli._arguments import duration, rate
from pymemcg.cli._text import aligned, bar, elided, spark, wrapped


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (64 << 20, "64.0 MiB"),
        (-(3 << 29), "-1.5 GiB"),
        (2**60, "1024.0 PiB"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_sizes_have_the_binary_unit_that_suits(count, text):
    assert size(count) == text


def test_a_sign_is_for_growth():
    assert size(1 << 20, sign=True) == "+1.0 MiB"
    assert size(0, sign=True) == "0 B"


@given(st.lists(st.text("ab-.", min_size=1, max_size=14)), st.sampled_from(" \n\t"), st.integers(3, 12))
def test_lines_are_those_of_textwrap(words, gap, width):
    text = gap.join(words)
    expected = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False, tabsize=1)
    assert wrapped(text, width) == expected


def test_gaps_stay():
    assert wrapped("  a  b ", 10) == ["  a  b"]
    assert wrapped(" ", 10) == []


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 s"),
        (999, "999 ns"),
        (1_000, "1.0 µs"),
        (12_900_000, "12.9 ms"),
        (340_000, "340 µs"),
        (999_499_000, "999 ms"),
        (999_600_000, "1.0 s"),
        (59_400_000_000, "59 s"),
        (200e9, "3 min 20 s"),
        (5 * 3600e9 + 185e9, "5 h 3 min"),
        (None, "–"),
    ],
)
def test_spans_have_the_unit_that_suits(ns, text):
    assert span(ns) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (1234567, "1,234,567"), (2.5, "2.5"), (12.5, "12"), (math.nan, "–")])
def test_numbers(count, text):
    assert number(count) == text


@pytest.mark.parametrize(("ratio", "text"), [(0.0, "0 %"), (0.0184, "1.8 %"), (0.97, "97 %"), (1.0, "100 %"), (None, "–")])
def test_shares(ratio, text):
    assert share(ratio) == text


@pytest.mark.parametrize(
    ("ratio", "text"), [(0, "    "), (0.5, "██  "), (1 / 32, "▏   "), (1, "████"), (7, "████"), (None, "    ")]
)
def test_a_bar_is_as_wide_as_it_is_told(ratio, text):
    assert bar(ratio, 4) == text


def test_in_a_sparkline_the_least_that_is_more_than_nothing_stands_out():
    assert spark([0, 1, 500, 1000], 0, 1000) == "▁▂▅█"


def test_a_sparkline_leaves_out_what_is_not_known_and_survives_a_flat_line():
    assert spark([math.nan, 5, 5], 5, 5) == " ▁▁"


def test_what_a_terminal_would_obey_is_told_and_not_done():
    assert plain("a\x1b[31m\x07\r\n\t\x9b\u202e\udc80b – µ") == r"a\x1b[31m\x07\r\n\t\x9b\u202e\udc80b – µ"
    assert aligned([["a\x1b[2J", "1"], ["b", "2"]]) == "  a\\x1b[2J  1\n  b         2"


def test_columns_are_aligned():
    assert aligned([["usage", "4,210 rows"], ["events", "0 rows"]]) == "  usage   4,210 rows\n  events      0 rows"


def test_the_end_of_a_long_path_is_what_tells_groups_apart():
    assert elided("/a/b", 10) == "/a/b"
    assert elided("/docker/abc", 5) == "…/abc"


@pytest.mark.parametrize(
    ("text", "seconds"), [("10s", 10), ("500ms", 0.5), ("5m", 300), ("1h", 3600), ("90", 90), ("1.5s", 1.5)]
)
def test_durations(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-1s", "10x", "s", "1e3", "nan", "10 s"])
def test_what_is_no_duration(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no duration"):
        duration(text)


def test_rates():
    assert rate(20_000)("1000") == 1000


@pytest.mark.parametrize("text", ["0", "-1", "20001", "nan", "inf", "fast"])
def test_what_is_no_rate(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no rate"):
        rate(20_000)(text)


def test_what_is_to_be_copied_is_not_cut():
    path = "/scratch/as-a-long-name/of-a-folder/it.memcg"
    lines = wrapped(f"recorded to {path} (mount -t tracefs tracefs /sys/kernel/tracing)", 30)
    assert path in lines
    assert all(len(line) <= 30 for line in lines if line != path)
