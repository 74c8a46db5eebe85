r"""Distances between subspaces: one function of the principal angles each.

With angles :math:`0 \le \theta_1 \le \dots \le \theta_p \le \pi/2` between spans of dimensions
i and j, :math:`p = \min(i, j)`. Where i = j all but `martin` are metrics on the Grassmannian;
where not, they measure containment, 0 where the smaller span lies in the larger, and
`padded` makes metrics of them. Names as in Ye and Lim [1]_, whose `projection` is called gap by
others, and whose `chordal` is Ham and Lee's projection metric.

References
----------
.. [1] K. Ye and L.-H. Lim, "Schubert varieties and distances between subspaces of different
   dimensions", SIAM J. Matrix Anal. Appl. 37 (2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "DISTANCES",
    "asimov",
    "binet_cauchy",
    "chordal",
    "fubini_study",
    "geodesic",
    "martin",
    "padded",
    "procrustes",
    "projection",
    "spectral",
]

Angles = Float[Tensor, " p"]


def geodesic(angles: Angles) -> float:
    r"""Return :math:`(\sum \theta^2)^{1/2}`, the length of the shortest path.

    Examples
    --------
    >>> geodesic(torch.tensor([0.375, 0.5]))
    0.625
    """
    return _norm(angles)


def chordal(angles: Angles) -> float:
    r"""Return :math:`(\sum \sin^2\theta)^{1/2} = \|P_X - P_Y\|_F / \sqrt 2` for i = j.

    φ = 1 − chordal²/p.

    Examples
    --------
    >>> round(chordal(torch.tensor([math.pi / 6], dtype=torch.float64)), 12)
    0.5
    """
    return _norm(angles.sin())


def projection(angles: Angles) -> float:
    r"""Return :math:`\sin\theta_p = \|P_X - P_Y\|_2`, the gap, for i = j.

    Examples
    --------
    >>> round(projection(torch.tensor([0.1, math.pi / 6], dtype=torch.float64)), 12)
    0.5
    """
    return math.sin(asimov(angles))


def procrustes(angles: Angles) -> float:
    r"""Return :math:`2 (\sum \sin^2(\theta/2))^{1/2} = \min_R \|X R - Y\|_F`.

    Examples
    --------
    >>> round(procrustes(torch.tensor([math.pi / 3], dtype=torch.float64)), 12)
    1.0
    """
    return 2 * _norm((angles / 2).sin())


def spectral(angles: Angles) -> float:
    r"""Return :math:`2 \sin(\theta_p / 2)`, the Procrustes distance in the spectral norm.

    Examples
    --------
    >>> round(spectral(torch.tensor([0.1, math.pi / 3], dtype=torch.float64)), 12)
    1.0
    """
    return 2 * math.sin(asimov(angles) / 2)


def asimov(angles: Angles) -> float:
    r"""Return :math:`\theta_p`, the largest angle.

    Examples
    --------
    >>> asimov(torch.tensor([0.25, 0.5]))
    0.5
    """
    return angles.max().item() if len(angles) else 0.0


def binet_cauchy(angles: Angles) -> float:
    r"""Return :math:`(1 - \prod \cos^2\theta)^{1/2}`.

    Examples
    --------
    >>> round(binet_cauchy(torch.tensor([0.0, math.pi / 6], dtype=torch.float64)), 12)
    0.5
    """
    # 1 - exp(-x) loses small angles, -expm1 keeps them.
    return math.sqrt(-math.expm1(_log_cosines(angles)))


def fubini_study(angles: Angles) -> float:
    r"""Return :math:`\arccos \prod \cos\theta`.

    Examples
    --------
    >>> round(fubini_study(torch.tensor([0.0, 0.5], dtype=torch.float64)), 12)
    0.5
    """
    log = _log_cosines(angles)
    # Small distances by their sine, large ones by their cosine: each keeps its digits there.
    return math.asin(math.sqrt(-math.expm1(log))) if log > -1 else math.acos(math.exp(log / 2))


def martin(angles: Angles) -> float:
    r"""Return :math:`(-\sum \ln\cos^2\theta)^{1/2}`; infinite where an angle is right.

    Examples
    --------
    >>> round(martin(torch.tensor([math.acos(math.exp(-2))], dtype=torch.float64)), 12)
    2.0
    """
    return math.sqrt(-_log_cosines(angles))


DISTANCES: Mapping[str, Callable[[Float[Tensor, " p"]], float]] = {
    function.__name__: function
    for function in (
        geodesic, chordal, projection, procrustes, spectral, asimov, binet_cauchy, fubini_study,
        martin,
    )
}  # fmt: skip


def padded(angles: Angles, i: int, j: int) -> Float[Tensor, " q"]:
    """Return the angles with ``|i - j|`` right ones more: distances of them are metrics.

    Examples
    --------
    >>> padded(torch.zeros(1), 1, 2).tolist()
    [0.0, 1.5707963267948966]
    """
    right = angles.new_full((abs(i - j),), math.pi / 2, dtype=torch.float64)
    return torch.cat([angles.double(), right])


def _norm(values: Angles) -> float:
    return float(torch.linalg.vector_norm(values.double()))


def _log_cosines(angles: Angles) -> float:
    """Return the sum of the logarithms of the squared cosines; -inf where an angle is right."""
    angles = angles.double()
    cosines = torch.where(angles >= math.pi / 2 - 1e-15, 0.0, angles.cos())
    small = torch.log1p(-angles.sin().square())
    return torch.where(angles < math.pi / 4, small, 2 * cosines.log()).sum().item()
