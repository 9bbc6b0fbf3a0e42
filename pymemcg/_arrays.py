# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on samples that numpy's own would get wrong: what `pymemcg.metrics` stands on."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array: TypeAlias = npt.NDArray[Any]
    Floats: TypeAlias = npt.NDArray[np.float64]

_INT64_MAX: Final = np.uint64(2**63 - 1)


def exact(numbers: npt.ArrayLike) -> Array:
    """Make numbers signed, so that a difference can be negative: int64 for integers (cut to its range), else float64.

    numpy would make float64 of uint64 - int64, which cannot hold a clock in ns beyond 104 days, and would let
    uint64 - uint64 wrap around.
    """
    array = np.asarray(numbers)
    if array.dtype.kind == "u":
        cut: Array = np.minimum(array.astype(np.uint64), _INT64_MAX)
        return cut.astype(np.int64)
    if array.dtype.kind == "i":
        return array.astype(np.int64, copy=False)
    if array.dtype.kind == "f":
        return array.astype(np.float64, copy=False)
    raise TypeError(f"numbers are wanted, not {array.dtype}")


def exact_rows(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Array, Array]:
    """Make two columns of one window exact; ValueError if they are not."""
    pair = exact(first), exact(second)
    if pair[0].ndim != 1 or pair[0].shape != pair[1].shape:
        raise ValueError(f"two 1-D arrays of one length are wanted, not of shapes {pair[0].shape} and {pair[1].shape}")
    return pair


def clamped(array: Array) -> Array:
    """Raise what is negative to 0; NaN stays."""
    result: Array = np.maximum(array, 0)
    return result


def scalar(array: Array) -> Array:
    """Turn a 0-d array into numpy's scalar, as numpy's own functions do; others pass."""
    result: Array = array[()] if array.ndim == 0 else array
    return result


def increase(counter: Array) -> Floats:
    """Give each row's rise over the row before; NaN in the first row and where the counter fell."""
    rises = np.full(counter.shape, np.nan)
    step = np.diff(counter)
    np.copyto(rises[1:], step, where=step >= 0)
    return rises


def quotient(dividend: Floats, divisor: Floats) -> Floats:
    """Divide where the divisor is positive; NaN elsewhere, without a warning."""
    result = np.full(dividend.shape, np.nan)
    np.divide(dividend, divisor, out=result, where=divisor > 0)
    return result


def block_medians(seconds: Floats, values: Floats, count: int) -> tuple[Floats, Floats]:
    """Thin rows out to the medians of `count` blocks of equal duration; empty blocks are left out."""
    edges = np.linspace(seconds[0], seconds[-1], count + 1)[1:-1]
    bounds = [0, *np.searchsorted(seconds, edges).tolist(), seconds.size]
    blocks = [slice(start, end) for start, end in pairwise(bounds) if start < end]
    return (
        np.array([np.median(seconds[block]) for block in blocks]),
        np.array([np.median(values[block]) for block in blocks]),
    )


def distinct(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The different numbers, sorted: shape (n,). numpy's own `unique` imports `numpy.ma`, 2 MiB that nothing else needs."""
    ordered: npt.NDArray[np.int64] = np.sort(numbers)
    new = np.append(True, ordered[1:] != ordered[:-1])[: ordered.size]
    different: npt.NDArray[np.int64] = ordered[new]
    return different


def numbered(numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The different numbers, sorted, and which of them each is, in the shape of `numbers`."""
    different = distinct(numbers)
    return different, np.searchsorted(different, numbers)
