# SPDX-License-Identifier: Apache-2.0
"""The pure parts of `pymemcg bench`."""

from __future__ import annotations

import json
import random

import pytest

from pymemcg.bench import overhead
from pymemcg.bench.machine import Steal, describe
from pymemcg.bench.pairs import Estimate, estimate, interleave, ratio
from pymemcg.bench.reading import PythonReader
from pymemcg.bench.report import TITLES, Measure, Report, Row
from pymemcg.cli import make_parser

pytest.importorskip("scipy")


def test_estimate_is_the_median_with_an_interval_around_it():
    numbers = random.Random(1)
    found = estimate([1.0 + numbers.gauss(0, 0.1) for _ in range(200)])
    assert found.pairs == 200
    assert found.low < found.value < found.high
    assert found.holds(1.0)
    assert found.width < 0.06  # 2 * 1.96 * 1.25 * 0.1 / sqrt(200) = 0.035


def test_interval_holds_the_truth_about_as_often_as_it_says():
    numbers = random.Random(2)
    held = sum(estimate([numbers.expovariate(1) for _ in range(40)]).holds(0.6931) for _ in range(100))
    assert 85 <= held <= 100


def test_interval_narrows_with_the_root_of_the_pairs():
    numbers = random.Random(3)

    def width(count: int) -> float:
        """The mean of several: one sample of 25 may happen to lie close together."""
        return sum(estimate([numbers.gauss(1, 0.1) for _ in range(count)]).width for _ in range(20)) / 20

    assert width(25) / width(400) == pytest.approx(4, rel=0.2)


def test_an_outlier_moves_the_mean_and_not_the_median():
    values = [1.0] * 20 + [1000.0]
    assert estimate(values).value == 1.0
    assert estimate(values, mean=True).value == pytest.approx(48.57, abs=0.01)


def test_equal_values_have_an_interval_of_no_width():
    assert estimate([2.0, 2.0, 2.0]) == Estimate(2.0, 2.0, 2.0, 3)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_estimate_refuses_what_has_no_median(values):
    with pytest.raises(ValueError, match="at least two finite values"):
        estimate(values)


def test_interleave_takes_each_pair_in_the_other_order():
    order = []

    def measure(name):
        order.append(name)
        return len(order)

    firsts, seconds = interleave(lambda: measure("a"), lambda: measure("b"), 3)
    assert "".join(order) == "abbaab"
    assert (firsts, seconds) == ([1, 4, 5], [2, 3, 6])


def test_ratio_is_of_pairs_and_not_of_medians():
    found = ratio([2.0, 20.0, 300.0], [1.0, 10.0, 100.0])
    assert found.value == 2.0
    with pytest.raises(ValueError, match="positive divisor"):
        ratio([1.0, 1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="positive divisor"):
        ratio([1.0, 1.0], [1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8192\n", [8192]),
        ("max\n", []),
        ("9223372036854771712\n", [9223372036854771712]),
        ("17\n1204\n", [17, 1204]),
        ("1604 382 301 1 0 96 0\n", [1604, 382, 301, 1, 0, 96, 0]),
        ("anon 51036160\nfile 14884864\n", {"anon": 51036160, "file": 14884864}),
        (
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=20934\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=17\n",
            {"some": 20934, "full": 17},
        ),
    ],
)
def test_plain_python_reads_the_same_numbers(tmp_path, text, expected):
    path = tmp_path / "file"
    path.write_text(text)
    reader = PythonReader(str(path))
    assert reader.read() == expected
    path.write_text(text)
    assert reader.read() == expected  # from the beginning again
    reader.close()


def test_machine_is_this_one():
    found = describe()
    assert found["hz"] in {100, 250, 300, 1000}
    assert 1 <= found["cpus_usable"] <= found["cpus"]
    assert 0.0 <= Steal().ratio() <= 1.0


def slices(*kept):
    return [{"kept_ratio": share, "late_p99_ns": 1000.0} for share in kept]


@pytest.mark.parametrize(
    ("full", "bare", "kept"),
    [
        (slices(1.0, 0.9995, 1.0), slices(1.0, 1.0, 1.0), True),
        (slices(0.99, 0.99, 0.99), slices(1.0, 1.0, 1.0), False),
        (slices(0.95, 0.99, 1.0), slices(1.0, 0.97, 0.99), None),  # fewer, but what is fewer is lost in the noise
    ],
)
def test_ticks_kept_are_compared_in_points(full, bare, kept):
    run = overhead._Run(overhead.SHORT, lambda _text: None)
    run._add_kept("ticks_kept_1khz", full, bare, Steal())
    assert run.found.measures["ticks_kept_1khz"].kept is kept


@pytest.mark.parametrize(
    ("intervals", "kept"),
    [
        ([(0.99, 1.01), (0.98, 1.02)], True),
        ([(0.99, 1.01), (0.90, 1.10)], None),  # too wide to tell
        ([(0.99, 1.01), (1.01, 1.02)], False),
        ([(0.90, 1.10), (1.01, 1.02)], False),
    ],
)
def test_no_setting_may_slow_the_service_down(intervals, kept):
    run = overhead._Run(overhead.SHORT, lambda _text: None)
    for low, high in intervals:
        run.found.rows.append(Row("", Estimate((low + high) / 2, low, high, 14), 1.0, 0.0, 1.0, 0.0, 0.0))
    run._sum_up_victims()
    assert run.found.measures["victim_p99_ratio"].kept is kept


@pytest.fixture
def report():
    found = Report()
    for key in TITLES:
        unit = {"held_bytes": "bytes", "ticks_kept_1khz": "share"}.get(key, "ratio")
        found.add(Measure(key, Estimate(1.05, 1.0, 1.25, 40), "something", 0.01, "≤ 1.10", True, {"native_ns": 1234.5}, unit))
    found.rows.append(Row("far", Estimate(1.0, 0.99, 1.02, 14), 600_000.0, 0.0042, 100.0, 5 << 20, 0.0))
    found.left_out["eight workers"] = "there is no room"
    return found


def test_json_has_the_keys_that_were_promised(report):
    found = json.loads(json.dumps(report.describe()))
    promised = {
        "sample_over_pread_ratio",
        "cpu_over_bare_loop_ratio",
        "adaptive_over_full_ratio",
        "ticks_kept_1khz",
        "ticks_kept_10khz",
        "victim_p99_ratio",
        "held_bytes",
    }
    assert promised <= found.keys()
    for key in promised:
        assert found[key]["interval"] == [1.0, 1.25]
        assert {"value", "pairs", "on", "steal_ratio", "promise", "kept"} <= found[key].keys()
    assert found["rows"][0]["setting"] == "far"
    assert {"kernel", "cpus", "hz"} <= found["machine"].keys()


def test_markdown_has_a_table_of_promises_and_one_of_settings(report):
    lines = report.to_markdown().splitlines()
    assert sum(line.startswith("|---") for line in lines) == 2
    row = next(line for line in lines if line.startswith("| CPU time at a fixed 1 kHz"))
    assert "| 1.050 | 1.000 – 1.250 | 40 | ≤ 1.10 | kept |" in row
    assert any(line.startswith("| ticks kept at 1 kHz | 105.00% |") for line in lines)
    assert any(line.startswith("| far | 1.000 | 0.990 – 1.020 | 14 | 0.42% | 100 | 5.00 MiB |") for line in lines)
    assert "Left out: eight workers: there is no room." in lines


def test_text_tells_what_stands_beside(report):
    text = report.to_text()
    assert "native_ns 1.23 µs" in text
    assert "left out: eight workers: there is no room" in text
    assert len({line.find("≤ 1.10") for line in text.splitlines() if "≤ 1.10" in line}) == 1


def test_one_broken_promise_is_one_too_many(report):
    assert report.kept
    report.add(Measure("held_bytes", Estimate(9e6, 9e6, 9e6, 4), "", 0.0, "≤ 8 MiB", None))
    assert report.kept  # what cannot be told is not broken
    report.add(Measure("held_bytes", Estimate(9e6, 9e6, 9e6, 4), "", 0.0, "≤ 8 MiB", False))
    assert not report.kept


def test_command_takes_one_form_at_a_time(capsys):
    parser = make_parser(["bench"])
    args = parser.parse_args(["bench", "overhead", "--markdown"])
    assert (args.what, args.markdown, args.json, args.full) == ("overhead", True, False, False)
    with pytest.raises(SystemExit):
        parser.parse_args(["bench", "overhead", "--markdown", "--json"])
    with pytest.raises(SystemExit):
        parser.parse_args(["bench"])
    capsys.readouterr()
