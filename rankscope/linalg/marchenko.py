"""The Marchenko-Pastur law: the squared singular values of a matrix of pure noise."""

from __future__ import annotations

import math
from functools import lru_cache

from scipy import optimize

__all__ = ["noise_median", "noise_share_below"]


def noise_share_below(x: float, beta: float) -> float:
    r"""Return the share of a noise matrix's squared singular values that lie below `x`.

    The distribution function of the Marchenko–Pastur law for an m × n matrix of independent
    entries of variance 1 / max(m, n). With :math:`x = 1 + \beta + 2 \sqrt\beta \cos\theta` it is
    an elementary integral over the angle.

    Parameters
    ----------
    x : float
        A squared singular value.
    beta : float
        ``min(m, n) / max(m, n)``, in (0, 1].

    Returns
    -------
    float
        0 up to ``(1 - sqrt(beta))²``, 1 from ``(1 + sqrt(beta))²``.

    References
    ----------
    .. [1] V. A. Marchenko and L. A. Pastur, "Distribution of eigenvalues for some sets of
       random matrices", Math. USSR Sb. 1 (1967) 457.

    Examples
    --------
    >>> noise_share_below(0.0, 1.0), noise_share_below(4.0, 1.0)
    (0.0, 1.0)
    """
    _check(beta)
    cosine = (x - 1 - beta) / (2 * math.sqrt(beta))
    return _share_beyond(math.acos(min(max(cosine, -1.0), 1.0)), beta)


@lru_cache(maxsize=1024)
def noise_median(beta: float) -> float:
    """Return the median of the Marchenko–Pastur law, exact to about 1e-12.

    Parameters
    ----------
    beta : float
        ``min(m, n) / max(m, n)``, in (0, 1].

    Returns
    -------
    float
        The squared singular value that half of a noise matrix's lie below, in units of
        ``max(m, n)`` times the variance of an entry; below 1, and near it for flat matrices.

    Raises
    ------
    ValueError
        If `beta` is not in (0, 1].

    Examples
    --------
    >>> round(noise_median(1.0), 4), round(noise_median(1e-6), 4)
    (0.6528, 1.0)
    """
    _check(beta)
    angle = optimize.brentq(lambda t: _share_beyond(t, beta) - 0.5, 0.0, math.pi, xtol=1e-14)
    return 1 + beta + 2 * math.sqrt(beta) * math.cos(angle)


def _share_beyond(angle: float, beta: float) -> float:
    """(2/π) ∫ sin²t / (1 + β + 2√β cos t) dt from `angle` to π, in closed form."""
    root = math.sqrt(beta)
    # tan(π/2) is infinite and stays so: atan2 takes the limit.
    bent = math.atan2((1 - root) * math.sin(angle / 2), (1 + root) * math.cos(angle / 2))
    integral = (
        math.sin(angle) / (2 * root)
        - (1 + beta) * angle / (4 * beta)
        + (1 - beta) * bent / (2 * beta)
        + math.pi / 2
    )
    return min(max(2 / math.pi * integral, 0.0), 1.0)


def _check(beta: float) -> None:
    if not 0 < beta <= 1:
        raise ValueError(f"an aspect ratio min/max lies in (0, 1]; got {beta}")
