"""How large the largest principal cosine of two independent random subspaces is."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from rankscope.linalg.quadrature import legendre

__all__ = ["cosine_edge", "tracy_widom"]

_Array = NDArray[np.float64]
_EXACT_UP_TO = 128  # the exact law costs the cube of the number of cosines
_RESOLVED = 1e-8  # probabilities nearer to 0 or 1 drown in the rounding of a determinant
_NEGLIGIBLE = 12.0  # Tracy-Widom scales from the edge to where the density is below rounding


def cosine_edge(i: int, j: int, d: int, level: float = 0.999) -> float:
    """Return the quantile of the largest principal cosine of two random subspaces.

    Chance stays below it with probability `level`. The squared cosines are the roots of a
    Jacobi (MANOVA) ensemble; with p = min(i, j) and q = max(i, j):

    * i + j > d: 1, the subspaces always meet;
    * p = 1: exact, cos² ~ Beta(q/2, (d−q)/2);
    * p ≤ 128: exact, the Pfaffian of de Bruijn [2]_ in orthonormal Jacobi polynomials;
    * p > 128: Johnstone's Tracy–Widom limit [1]_ taken on the angle. It is conservative:
      the true exceedance is 0.8 to 1 times 1 − `level`, and less than that near i + j = d.

    Cached; a first call takes some p³ operations, 10 ms for p = 64.

    Parameters
    ----------
    i, j, d : int
        Dimensions of the subspaces, from 1 to `d`, and of the space.
    level : float
        Probability, between 1e-8 and 1 − 1e-8.

    Returns
    -------
    float
        A cosine in (0, 1].

    Raises
    ------
    ValueError
        If a dimension is below 1 or above `d`, or `level` is within 1e-8 of 0 or 1.

    References
    ----------
    .. [1] I. M. Johnstone, "Multivariate analysis and Jacobi ensembles: largest eigenvalue,
       Tracy–Widom limits and rates of convergence", Ann. Statist. 36 (2008) 2638.
    .. [2] M. Chiani, "Distribution of the largest root of a matrix for Roy's test in
       multivariate analysis of variance", J. Multivariate Anal. 143 (2016) 467.

    Examples
    --------
    Two lines in the plane: the angle between them is uniform on [0, π/2].

    >>> round(cosine_edge(1, 1, 2, level=0.5) ** 2, 12)
    0.5
    """
    if not 1 <= min(i, j) <= max(i, j) <= d:
        raise ValueError(f"subspaces of R^{d} have dimensions 1 to {d}; got {i} and {j}")
    if not _RESOLVED <= level <= 1 - _RESOLVED:
        raise ValueError(f"a level lies in [{_RESOLVED}, 1 − {_RESOLVED}]; got {level}")
    return _edge(min(i, j), max(i, j), d, level)


@lru_cache(maxsize=4096)
def _edge(p: int, q: int, d: int, level: float) -> float:
    if p + q > d:
        return 1.0
    if p == 1:
        return math.sqrt(special.betaincinv(q / 2, (d - q) / 2, level))
    if p > _EXACT_UP_TO:
        return math.sin(_soft_edge(p, q, d, tracy_widom(level)))
    high = _soft_edge(p, q, d, _NEGLIGIBLE)
    low = math.pi / 2 - _soft_edge(p, d - q, d, _NEGLIGIBLE)
    total = _log_pfaffian(low, high, p, q, d)

    def excess(angle: float) -> float:
        # On this scale the tail is nearly straight: half the steps of a plain search.
        deficit = total - _log_pfaffian(low, angle, p, q, d)
        return math.log(min(max(deficit, 1e-12), 1e3) / -math.log(level))

    return math.sin(optimize.brentq(excess, low, high, xtol=1e-11))


def _soft_edge(p: int, q: int, d: int, scales: float) -> float:
    """Johnstone's centre plus so many scales, as the angle whose sine is the largest cosine."""
    first, second = (math.asin(math.sqrt((k - 0.5) / (d - 1))) for k in (p, q))
    centre = min(first + second, math.pi / 2)
    width = math.sin(2 * first) * math.sin(2 * second) * 4 * (d - 1) ** 2
    return min(centre + scales * math.cbrt(math.sin(2 * centre) / width), math.pi / 2)


def _log_pfaffian(low: float, high: float, p: int, q: int, d: int) -> float:
    """Log of P(every angle in [low, high]), up to a constant: density ∏w(x)·∏|x_k − x_l|.

    De Bruijn: the integral is the Pfaffian of ∬ sgn(y − x) f_k(x) f_l(y) dx dy.
    """
    nodes, weights, primitive = legendre(3 * p + 64)
    width = high - low
    f = _jacobi_functions(low + width * nodes, p, q - p, d - p - q)
    half = width**2 * (f @ primitive.T * weights) @ f.T
    skew = half - half.T
    if p % 2:
        mass = width * (f @ weights)[:, None]
        skew = np.block([[skew, mass], [-mass.T, np.zeros((1, 1))]])
    return 0.5 * float(np.linalg.slogdet(skew)[1])


def _jacobi_functions(angle: _Array, n: int, a: int, b: int) -> _Array:
    """Jacobi polynomials in x = sin², orthonormal for xᵃ(1−x)ᵇ, times the root of that weight."""
    x = -np.cos(2 * angle)
    k = np.arange(n + 1.0)
    s = 2 * k + a + b
    centre = (a * a - b * b) / (np.maximum(s, 1) * (s + 2))
    s = np.maximum(s, 2)
    step = np.sqrt(4 * k * (k + a) * (k + b) * (k + a + b) / (s**2 * (s + 1) * (s - 1)))
    log_weight = special.xlogy(a, np.sin(angle)) + special.xlogy(b, np.cos(angle))
    rows = [np.zeros_like(x), np.exp(log_weight - special.betaln(a + 1, b + 1) / 2)]
    for m in range(n - 1):
        rows.append(((x - centre[m]) * rows[-1] - step[m] * rows[-2]) / step[m + 1])
    return np.stack(rows[1:])


@lru_cache(maxsize=64)
def tracy_widom(level: float) -> float:
    """Return a quantile of the Tracy–Widom law (β = 1).

    The law of the largest singular value of real noise, and of the largest principal cosine.
    Its distribution function is the Fredholm determinant det(1 − Ai(x + y + s)) on (0, ∞).

    Parameters
    ----------
    level : float
        Probability, between 1e-8 and 1 − 1e-8.

    Examples
    --------
    >>> round(tracy_widom(0.95), 3)
    0.979
    """
    nodes, weights, _ = legendre(64)
    sums, root = 16 * (nodes[:, None] + nodes), np.sqrt(16 * weights)

    def missing(s: float) -> float:
        kernel = root[:, None] * special.airy(sums + s)[0] * root
        return float(np.linalg.det(np.eye(nodes.size) - kernel)) - level

    return float(optimize.brentq(missing, -8, 14))
