# SPDX-License-Identifier: Apache-2.0
"""Ratios of interleaved pairs and how sure they are: machines are noisy, two neighbouring measurements are so alike."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

CONFIDENCE = 0.95
_RESAMPLES = 4999
"""The ends of the interval then move by about 1/100 of its width from run to run."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median, or a mean, with its 95 % interval.

    Attributes:
        value: The median or mean.
        low: The interval's lower end.
        high: Its upper end.
        pairs: How many values it is of.
    """

    value: float
    low: float
    high: float
    pairs: int

    @property
    def width(self) -> float:
        """Of the interval."""
        return self.high - self.low

    def holds(self, value: float) -> bool:
        """Whether the interval holds a value, its ends included."""
        return self.low <= value <= self.high


def estimate(values: Sequence[float], *, mean: bool = False) -> Estimate:
    """Estimate the median of a measurement.

    Args:
        values: One a pair, at least two.
        mean: The mean instead, where what is rare is what counts.

    Returns:
        The median (or the mean) and the 95 % interval of the percentile bootstrap (Efron 1979), as `scipy.stats.bootstrap` does
        it: it supposes nothing about how the values spread, which preemption and steal time skew.

    Raises:
        ValueError: Fewer than two values, or one that is no finite number.
    """
    from scipy.stats import bootstrap

    sample = np.asarray(values, dtype=float)
    if sample.ndim != 1 or sample.size < 2 or not np.isfinite(sample).all():
        raise ValueError(f"at least two finite values are wanted, not {values!r}")
    middle = np.mean if mean else np.median
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that all values are equal is no reason to warn of
        result = bootstrap(
            (sample,), middle, confidence_level=CONFIDENCE, n_resamples=_RESAMPLES, batch=500, method="percentile"
        )
    low, high = result.confidence_interval
    return Estimate(float(middle(sample)), float(low), float(high), int(sample.size))


def interleave(first: Callable[[], T], second: Callable[[], T], pairs: int) -> tuple[list[T], list[T]]:
    """Measure two things in turn, each pair in the other order than the one before.

    Args:
        first: Measures one thing once.
        second: Measures the other once.
        pairs: How often.

    Returns:
        What `first` gave and what `second` gave; the values of one pair have the same index.
    """
    firsts: list[T] = []
    seconds: list[T] = []
    for i in range(pairs):
        if i % 2:
            seconds.append(second())
            firsts.append(first())
        else:
            firsts.append(first())
            seconds.append(second())
    return firsts, seconds


def ratio(dividends: Sequence[float], divisors: Sequence[float]) -> Estimate:
    """Estimate the median of the ratios of pairs.

    Raises:
        ValueError: Not two sequences of one length of two or more, or a divisor that is not positive.
    """
    above, below = np.asarray(dividends, dtype=float), np.asarray(divisors, dtype=float)
    if above.shape != below.shape or not (below > 0).all():
        raise ValueError(f"pairs with a positive divisor are wanted, not {dividends!r} and {divisors!r}")
    return estimate((above / below).tolist())
