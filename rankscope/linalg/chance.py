"""What chance alone gives: the overlap φ of independent uniformly random subspaces."""

from __future__ import annotations

from functools import lru_cache
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from rankscope.linalg.quadrature import legendre

__all__ = [
    "adjusted_p_values",
    "expected_overlap",
    "overlap_p_value",
    "overlap_sd",
    "random_subspace",
]

_Array = NDArray[np.float64]
_SLACK = 1e-5  # an overlap computed in float32 may leave [0, 1] by this much
_SAMPLED_BELOW = 16  # in smaller spaces the moment-matched tail is wrong by factors of 2 to 4
_N_SAMPLES = 49_999


@overload
def expected_overlap(i: int, j: int, d: int) -> float: ...
@overload
def expected_overlap(i: ArrayLike, j: ArrayLike, d: int) -> _Array: ...
def expected_overlap(i: ArrayLike, j: ArrayLike, d: int) -> float | _Array:
    """Return the mean overlap of two random subspaces, ``max(i, j) / d``.

    The overlap is φ = ‖UᵀV‖²_F / min(i, j), with U and V orthonormal bases of independent
    Haar subspaces of R^d of dimensions i and j. If either is all of R^d, φ is always 1.

    Parameters
    ----------
    i, j, d : int
        Dimensions of the subspaces, from 1 to `d`, and of the space; arrays i, j broadcast.

    Returns
    -------
    float or ndarray
        In (0, 1]; a float for integers.

    Raises
    ------
    ValueError
        If a dimension is below 1 or above `d`.

    Examples
    --------
    >>> expected_overlap(1, 4, 16)
    0.25
    """
    low, high = _dimensions(i, j, d)
    return _plain(high / d + 0 * low)


@overload
def overlap_sd(i: int, j: int, d: int) -> float: ...
@overload
def overlap_sd(i: ArrayLike, j: ArrayLike, d: int) -> _Array: ...
def overlap_sd(i: ArrayLike, j: ArrayLike, d: int) -> float | _Array:
    """Return the standard deviation of the overlap φ of two random subspaces.

    Exact: var φ = 2 i j (d−i)(d−j) / (d²(d−1)(d+2)) / min(i, j)². A diagonal entry of VVᵀ
    is Beta(j/2, (d−j)/2); their sum being fixed correlates two of them by −1/(d−1).

    Parameters
    ----------
    i, j, d : int
        Dimensions of the subspaces, from 1 to `d`, and of the space; arrays i, j broadcast.

    Returns
    -------
    float or ndarray
        At least 0; 0 where `i` or `j` equals `d`.

    Raises
    ------
    ValueError
        If a dimension is below 1 or above `d`.

    Examples
    --------
    Two lines in the plane: φ = cos² of a uniform angle, with variance 1/8.

    >>> round(overlap_sd(1, 1, 2) ** 2, 12)
    0.125
    """
    low, high = _dimensions(i, j, d)
    variance = 2 * high * (d - low) * (d - high) / (low * d**2 * max(d - 1, 1) * (d + 2))
    return _plain(np.sqrt(variance))


@overload
def overlap_p_value(phi: float, i: int, j: int, d: int, seed: int = 0) -> float: ...
@overload
def overlap_p_value(phi: ArrayLike, i: int, j: int, d: int, seed: int = 0) -> _Array: ...
def overlap_p_value(phi: ArrayLike, i: int, j: int, d: int, seed: int = 0) -> float | _Array:
    """Return the probability that two random subspaces overlap by `phi` or more.

    Where i + j > d the orthogonal complements decide, by the identity
    tr PQ = i + j − d + tr (1−P)(1−Q). With p ≤ q the dimensions after that step:

    * p = 0, one subspace is all of R^d: 1;
    * p = 1: exact, φ ~ Beta(q/2, (d−q)/2);
    * p = 2: exact, by a quadrature over the product of the two cosines;
    * p ≥ 3, d < 16: Monte Carlo of the exact law, (1 + #{≥}) / 50,000, never below 2e-5;
    * else a Beta law with the exact mean and variance. Where it says 0.001 the truth is
      0.0007 to 0.0013 for d ≥ 64, 0.0006 to 0.0022 for 16 ≤ d < 64, largest at p + q = d.
      Of far smaller values the exponent alone means something, right to about 10 %.

    Parameters
    ----------
    phi : float or array
        Observed overlap, in [0, 1] up to rounding; NaN gives NaN.
    i, j, d : int
        Dimensions of the subspaces, from 1 to `d`, and of the space.
    seed : int
        Seed of the Monte Carlo; the other cases do not use it.

    Returns
    -------
    float or ndarray
        In [0, 1], of the shape of `phi`; 0 where too small for a double.

    Raises
    ------
    ValueError
        If a dimension is below 1 or above `d`, or `phi` lies outside [0, 1].

    Examples
    --------
    A random line and plane in R³: φ = 1 − z² with z uniform on [0, 1].

    >>> round(overlap_p_value(0.75, 1, 2, 3), 12)
    0.5
    """
    _dimensions(i, j, d)
    seen = np.asarray(phi, dtype=np.float64)
    if np.any((seen < -_SLACK) | (seen > 1 + _SLACK)):
        raise ValueError(f"overlaps lie in [0, 1]; got {np.nanmin(seen)} to {np.nanmax(seen)}")
    p, q = sorted((int(i), int(j)))
    excess = 1 - np.clip(np.nan_to_num(seen), 0, 1)
    if p + q > d:
        excess, p, q = excess * p / max(d - q, 1), d - q, d - p
    tail = _upper_tail(np.clip(1 - excess, 0, 1), p, q, d, seed)
    return _plain(np.where(np.isnan(seen), np.nan, np.minimum(tail, 1)))


def adjusted_p_values(p: ArrayLike) -> _Array:
    """Return the p-values adjusted for multiplicity by Benjamini and Hochberg.

    The k-th smallest of m values becomes the least of p₍ₗ₎·m/l over l ≥ k; rejecting those
    up to α keeps the expected share of false rejections below α (J. R. Statist. Soc. B 57, 289).

    Parameters
    ----------
    p : array
        P-values of any shape, adjusted together. NaN is undefined: it is not counted.

    Returns
    -------
    ndarray
        Of the same shape, in [0, 1]; NaN where `p` is NaN.

    Raises
    ------
    ValueError
        If a value lies outside [0, 1].

    Examples
    --------
    >>> adjusted_p_values([0.25, float("nan"), 0.125])
    array([0.25,  nan, 0.25])
    """
    values = np.array(p, dtype=np.float64)
    defined = ~np.isnan(values)
    if defined.any():
        values[defined] = stats.false_discovery_control(values[defined])
    return values


def random_subspace(d: int, k: int, rng: np.random.Generator) -> _Array:
    """Return an orthonormal basis of a uniformly random `k`-dimensional subspace of R^d.

    The Q of a Gaussian matrix, signed so that R has a positive diagonal: the basis itself is
    then Haar distributed, not only its span.

    Parameters
    ----------
    d, k : int
        Dimensions of the space and, from 1 to `d`, of the subspace.
    rng : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    (d, k) ndarray
        Orthonormal columns, float64.

    Raises
    ------
    ValueError
        If `k` is below 1 or above `d`.

    Examples
    --------
    >>> basis = random_subspace(5, 2, np.random.default_rng(0))
    >>> np.allclose(basis.T @ basis, np.eye(2))
    True
    """
    _dimensions(k, k, d)
    q, r = np.linalg.qr(rng.standard_normal((d, k)))
    return np.asarray(q * np.copysign(1.0, np.diagonal(r)))


def _dimensions(i: ArrayLike, j: ArrayLike, d: int) -> tuple[_Array, _Array]:
    """Return the smaller and the larger dimension as floats, checked."""
    first, second = np.asarray(i, dtype=np.float64), np.asarray(j, dtype=np.float64)
    low, high = np.minimum(first, second), np.maximum(first, second)
    if np.any(low < 1) or np.any(high > d):
        raise ValueError(f"subspaces of R^{d} have dimensions 1 to {d}; got {i!r} and {j!r}")
    return low, high


def _plain(values: _Array) -> float | _Array:
    return values if np.ndim(values) else float(values)


def _upper_tail(phi: _Array, p: int, q: int, d: int, seed: int) -> _Array:
    """P(Φ ≥ phi) for p ≤ q and p + q ≤ d."""
    if p == 0:
        return np.ones_like(phi)
    if p == 2:
        return _pair_tail(phi, q, d)
    if p > 2 and d < _SAMPLED_BELOW:
        null = _null_overlaps(p, q, d, seed)
        reached = null.size - np.searchsorted(null, phi)
        return np.asarray((1 + reached) / (1 + null.size), dtype=np.float64)
    mean = q / d
    weight = mean * (1 - mean) / overlap_sd(p, q, d) ** 2 - 1  # d/2 for p = 1: the exact law
    return np.asarray(special.betaincc(mean * weight, (1 - mean) * weight, phi))


def _pair_tail(phi: _Array, q: int, d: int) -> _Array:
    """P(Φ ≥ phi) for p = 2, from the joint density of the two cosines' product and mean square.

    The product g is Beta(q−1, d−q); given g < φ the event has the probability
    ((1 + g² − 2φ) / (1 − g)²)^((d−q−1)/2), given g ≥ φ it is certain.
    """
    nodes, weights, _ = legendre(100)
    room = (1 - phi) ** 2
    start = np.sqrt(np.maximum(2 * phi - 1, 0))
    length = np.where(start > 0, room / np.maximum(phi + start, 0.5), phi)  # φ − start
    # The integrand grows towards g = φ, at a rate near d: the fourth power bunches nodes there.
    below = length[..., None] * nodes**4
    gap = room[..., None] - below * (2 * phi[..., None] - below)
    log_density = special.xlogy(q - 2, phi[..., None] - below) - special.betaln(q - 1, d - q)
    log_density += special.xlogy((d - q - 1) / 2, np.maximum(gap, 0))
    uncertain = length * (np.exp(log_density) @ (4 * nodes**3 * weights))
    return np.asarray(special.betaincc(q - 1, d - q, phi) + uncertain)


@lru_cache(maxsize=64)
def _null_overlaps(p: int, q: int, d: int, seed: int) -> _Array:
    """Sorted draws of Φ: a random subspace against the first q coordinates."""
    bases, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((_N_SAMPLES, d, p)))
    return np.asarray(np.sort(np.square(bases[:, :q]).sum(axis=(1, 2)) / p), dtype=np.float64)
