"""Tests for few runs: exact where runs are exchanged, by simulation where chance has a law."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rankscope.experiments.measured import Pair

__all__ = [
    "falling_p_value",
    "first_overlap_draws",
    "labels_p_value",
    "noninferior_p_value",
    "reached_p_value",
    "sign_flip_p_value",
]

_Array = NDArray[np.float64]
_DRAWS = 1999
_ENUMERATED = 16  # units whose signs are all gone through
_CHUNK = 8_000_000  # numbers drawn at a time
_ROUNDING = 1e-12


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """Return the one-sided p of a mean above 0, by flipping the sign of every unit.

    The null is that each difference, independently of the others, is as likely as its negative:
    so units are runs or seeds, never pairs that share runs. Exact up to 16 units, and never
    below 2⁻ⁿ; of more, by 1,999 seeded draws of the signs.

    Examples
    --------
    >>> sign_flip_p_value([1.0, 2.0, 3.0])
    0.125
    """
    values = np.asarray(differences, dtype=np.float64)
    least = values.sum() - _ROUNDING * np.abs(values).sum()
    if len(values) > _ENUMERATED:
        drawn = np.random.default_rng(len(values)).choice((1, -1), size=(_DRAWS, len(values)))
        return reached_p_value(float(least), drawn @ values)
    signs = np.array(list(product((1, -1), repeat=len(values))))
    return float(np.mean(signs @ values >= least))


def noninferior_p_value(losses: Sequence[float], margin: float) -> float:
    """Return the one-sided p of a mean loss below `margin`, by Student's t over paired units.

    The null is a mean loss of `margin` or more, so that a small p says "not worse by that much".
    It takes two units; differences that do not vary have no p: NaN.

    Examples
    --------
    >>> noninferior_p_value([0.0, 0.0, 0.0], 0.01)
    nan
    >>> round(noninferior_p_value([-1.0, 1.0], 0.0), 9)
    0.5
    """
    values = np.asarray(losses, dtype=np.float64) - margin
    if np.ptp(values) <= _ROUNDING:
        return math.nan
    error = float(values.std(ddof=1)) / np.sqrt(len(values))
    return float(stats.t.cdf(values.mean() / error, len(values) - 1))


def falling_p_value(values: Sequence[Sequence[float]]) -> float:
    """Return Page's exact p of columns that fall from left to right, a row per unit.

    The null is that within a row any order is as likely as any other.

    Examples
    --------
    >>> round(falling_p_value([[3.0, 2.0, 1.0], [9.0, 5.0, 1.0]]), 9)  # one of 3!² orders
    0.027777778
    """
    rows = np.asarray(values, dtype=np.float64)[:, ::-1]
    return float(stats.page_trend_test(rows, method="exact").pvalue)


def labels_p_value(
    runs: Sequence[str], first: Sequence[str], statistic: Callable[[frozenset[str]], float]
) -> float:
    """Return the p of a statistic as large as that of `first`, over all relabellings of the runs.

    The null is that which runs are in the group says nothing. All groups of that size are gone
    through; those whose statistic is undefined do not count, so that the p is exact where there
    are none.

    Examples
    --------
    >>> labels_p_value("abc", "a", lambda group: float("a" in group)) == 1 / 3
    True
    """
    observed = statistic(frozenset(first))
    drawn = [statistic(frozenset(group)) for group in combinations(runs, len(first))]
    known = [value for value in drawn if not np.isnan(value)]
    return float(np.mean([value >= observed - _ROUNDING for value in known]))


def reached_p_value(observed: float, draws: NDArray[np.floating[Any]]) -> float:
    """Return the p of a value at least as large as `observed` among seeded draws of chance.

    It is never below 1/(1 + the number of draws), and NaN if `observed` is.

    Examples
    --------
    >>> reached_p_value(2.0, np.array([0.0, 1.0, 2.0]))
    0.5
    """
    if math.isnan(observed):
        return math.nan
    return float((1 + np.sum(draws >= observed)) / (1 + len(draws)))


def first_overlap_draws(
    pairs: Sequence[Pair], modules: int, d: int, seed: int = 0, draws: int = _DRAWS
) -> _Array:
    """Draw the mean φ(1, 1) over `pairs` and modules where every direction is random.

    Each run has one uniformly random direction per module; pairs that share a run share it, as
    the observed ones do.

    Parameters
    ----------
    pairs : sequence of Pair
    modules : int
        How many modules each run has.
    d : int
        The dimension.
    seed : int
    draws : int

    Returns
    -------
    (draws,) ndarray
        Their mean is about 1/d.

    Examples
    --------
    >>> drawn = first_overlap_draws([Pair("a", "b"), Pair("a", "c")], modules=4, d=64)
    >>> len(drawn), round(float(drawn.mean()) * 64)
    (1999, 1)
    """
    runs = {name: place for place, name in enumerate(dict.fromkeys(sum(pairs, ())))}
    a, b = np.array([[runs[one], runs[other]] for one, other in pairs]).T
    rng = np.random.default_rng([seed, modules, d, len(pairs)])
    found: list[_Array] = []
    size = max(1, _CHUNK // (modules * len(runs) * d))
    for first in range(0, draws, size):
        count = min(size, draws - first)
        vectors = rng.standard_normal((count, modules, len(runs), d))
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        cosines = (vectors[:, :, a] * vectors[:, :, b]).sum(-1)
        found.append((cosines**2).mean(axis=(1, 2)))
    return np.concatenate(found)
