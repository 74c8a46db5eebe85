r"""What of a LoRA factor is still its random start, told from the factor alone.

The singular values of an r × n matrix of independent entries of variance v fill
:math:`\sqrt v(\sqrt n \pm \sqrt r)`, whatever the entries' law. Training that adds
:math:`d^2` to the energy of a direction lifts its :math:`s^2` by that much, out of the bulk once
it is more than about :math:`2 v \sqrt{rn}`; what was not trained stays below, close together.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.linalg.edges import tracy_widom

__all__ = ["init_residue", "shared_init"]

_LEVEL = 0.9975  # of each edge of the whole bulk
_FLAT = 1e-4  # of the spread of random rows: orthonormal ones, rounded to bfloat16, have less


def init_residue(factor: Float[Tensor, "r n"]) -> float:
    r"""Return the share of a factor's directions that look like its random start.

    The k weakest singular values are taken for untouched if all of them lie in the bulk of a
    k × n random matrix, :math:`\sqrt v(\sqrt n \pm \sqrt k)`; all r are, if they keep to the
    99.75 % quantiles (Tracy–Widom [1]_ [2]_) of both ends. The share is k/r with the largest
    such k. The variance v is one of those that libraries start from: 1/(3n), Kaiming's uniform
    law with a = √5 (PEFT, loralib, kohya, MLX, torchtune, LitGPT); 1/r² (PEFT's gaussian,
    diffusers); 1 (the factor of an embedding that is drawn). Scale is evidence: the noise that
    an optimiser walks into every entry is random as well, and larger.

    Parameters
    ----------
    factor : (r, n) Tensor
        LoRA's A as it is stored; of B its transpose.

    Returns
    -------
    float
        In [0, 1]. At least 99 % of untouched matrices have 1, uniform or normal; one whose
        values all have left the bulk has 0. Directions in the bulk may have moved by less than
        it is wide. Where the factors were rescaled or mixed (another gauge), nothing of the
        start is seen. NaN where the spectrum does not tell: rows that are orthogonal and of one
        length, an orthogonal start or the vectors of an SVD; and a spectrum that is random,
        but of no usual scale.

    References
    ----------
    .. [1] I. M. Johnstone, "On the distribution of the largest eigenvalue in principal
       components analysis", Ann. Statist. 29 (2001) 295.
    .. [2] Z. Ma, "Accuracy of the Tracy–Widom limits for the extreme eigenvalues in white
       Wishart matrices", Bernoulli 18 (2012) 322.

    Examples
    --------
    One direction of two was trained; the other has the length √(1/3) of its start.

    >>> init_residue(torch.eye(2, 300) * torch.tensor([[4.0], [3**-0.5]]))
    0.5
    """
    r, n = factor.shape
    s = torch.linalg.svdvals(factor.double())
    if not r or r >= n or not s[0] > 0 or _orthonormal(s, n):
        return math.nan
    variances = (1 / (3 * n), 1 / r**2, 1.0)
    untouched = max(_untouched((s / math.sqrt(v)).tolist(), n) for v in variances)
    if not untouched and _random_of_another_scale(s, n):
        return math.nan
    return untouched / r


def _untouched(s: list[float], n: int) -> int:
    """Return how many of the weakest values lie in the bulk of that many rows of variance 1."""
    r = len(s)
    low, high = _edges(r, n)
    if s[-1] < low:
        return 0
    highs = [math.sqrt(n) + math.sqrt(k) for k in range(1, r)] + [high]
    return max((k for k in range(1, r + 1) if s[r - k] <= highs[k - 1]), default=0)


def _random_of_another_scale(s: Tensor, n: int) -> bool:
    """Whether all values lie together as random ones do; fewer than 4 always may."""
    low, high = _edges(len(s), n)
    return len(s) >= 4 and float(s[0] / s[-1]) <= high / low


def shared_init(one: Float[Tensor, "r n"], other: Float[Tensor, "q n"]) -> bool | None:
    """Return whether two factors seem to have started from the same numbers.

    They do where corresponding rows point the same way, the median cosine above 0.5 (0.9 for
    fewer than 4 rows or 64 columns), and rows that do not correspond much less so: factors that
    were drawn anew have cosines of either sign, about 1/√n, and what training made all rows
    share shows between any two of them.

    Returns
    -------
    bool or None
        None where the ranks differ or a row is zero, so that nothing corresponds.

    Examples
    --------
    >>> start = torch.eye(4, 64)
    >>> shared_init(start, start + 0.1), shared_init(start, start.flip(0))
    (True, False)
    """
    rows = [_unit_rows(factor.double()) for factor in (one, other)]
    if rows[0].shape != rows[1].shape or not all(part.any(1).all() for part in rows):
        return None
    cosines = rows[0] @ rows[1].T
    r, n = rows[0].shape
    own = float(cosines.diagonal().median())
    others = cosines[~torch.eye(r, dtype=torch.bool, device=cosines.device)].abs()
    told = own > (0.5 if r >= 4 and n >= 64 else 0.9)
    return told and (r == 1 or own > 2 * float(others.median()))


def _unit_rows(factor: Tensor) -> Tensor:
    return torch.nn.functional.normalize(factor, dim=1, eps=1e-300)


def _orthonormal(s: Tensor, n: int) -> bool:
    """Whether the values are too equal for independent entries: relative variance (r + 1)/n."""
    energies = s.square()
    if len(s) == 1:
        return False
    spread = float(energies.var(correction=0) / energies.mean().square())
    return spread < _FLAT * (len(s) + 1) / n


@lru_cache(maxsize=4096)
def _edges(r: int, n: int) -> tuple[float, float]:
    """Return what the singular values of r × n independent entries of variance 1 keep to."""
    long, short = math.sqrt(n - 0.5), math.sqrt(r - 0.5)
    reach = tracy_widom(_LEVEL)
    top = (long + short) ** 2 + reach * (long + short) * math.cbrt(1 / long + 1 / short)
    # The logarithm of the smallest eigenvalue converges faster than the value (Ma).
    scale = math.cbrt(1 / short - 1 / long) / (long - short)
    return (long - short) * math.exp((scale**2 / 8 - scale * reach) / 2), math.sqrt(top)
