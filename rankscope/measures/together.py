r"""Many updates of one module at once: all their pairs, and what all of them share.

The directions of all N updates on one side stand next to each other, (d, K) with K = Σ kₐ;
their Gram matrix, one product, holds every overlap. `sizes` are the kₐ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.linalg.edges import cosine_edge

__all__ = ["common_directions", "common_edge", "pair_containment", "pair_cosines", "pair_phi"]

_DRAWS, _LEAST = 2000, 300
_WORK = 6e8  # of all draws, in operations times about ten


def pair_phi(gram: Float[Tensor, "K K"], sizes: Sequence[int]) -> Float[Tensor, "N N"]:
    """Return φ of all directions of every two updates; NaN where one has none.

    Parameters
    ----------
    gram : (K, K) Tensor
        Of orthonormal directions, update after update.
    sizes : sequence of int
        How many directions each update has.

    Examples
    --------
    >>> two_and_one = torch.eye(3)[:, [0, 1, 0]]
    >>> pair_phi(two_and_one.T @ two_and_one, [2, 1]).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    count = torch.tensor(sizes, dtype=torch.float64)
    least = torch.minimum(count[:, None], count)
    sums = _block_sums(gram.double().square(), sizes) / least
    return torch.where(least > 0, sums.clamp(0.0, 1.0), torch.nan)


def pair_containment(
    gram: Float[Tensor, "K K"], s: Float[Tensor, " K"], sizes: Sequence[int]
) -> Float[Tensor, "N N"]:
    """Return how much of row a's energy lies in the span of column b's directions.

    Examples
    --------
    >>> two_and_one = torch.eye(3)[:, [0, 1, 0]]
    >>> shares = pair_containment(two_and_one.T @ two_and_one, torch.ones(3), [2, 1])
    >>> shares.round(decimals=9).tolist()
    [[1.0, 0.5], [1.0, 1.0]]
    """
    shares = torch.cat([_shares(part) for part in _parts(s, sizes)])
    sums = _block_sums(gram.double().square() * shares[:, None], sizes).clamp(0.0, 1.0)
    sums[[not part.any() for part in _parts(s, sizes)]] = torch.nan
    return sums


def pair_cosines(
    left: Float[Tensor, "K K"],
    right: Float[Tensor, "K K"],
    s: Float[Tensor, " K"],
    sizes: Sequence[int],
) -> Float[Tensor, "N N"]:
    r"""Return the cosines ⟨ΔWₐ, ΔW_b⟩/(‖ΔWₐ‖‖ΔW_b‖) of every two updates.

    Exact where all directions are there. NaN where an update is zero.

    Parameters
    ----------
    left, right : (K, K) Tensor
        Gram matrices of both sides.
    s : (K,) Tensor
        Singular values.
    sizes : sequence of int

    Examples
    --------
    >>> one = torch.ones(2, 2)  # the same direction twice
    >>> pair_cosines(one, -one, torch.tensor([2.0, 3.0]), [1, 1]).abs().tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    weights = torch.cat([_unit(part) for part in _parts(s, sizes)])
    products = left.double() * right.double() * weights[:, None] * weights
    sums = _block_sums(products, sizes).clamp(-1.0, 1.0)
    empty = torch.tensor([not part.any() for part in _parts(s, sizes)])
    sums[empty[:, None] | empty] = torch.nan
    return sums


def common_directions(gram: Float[Tensor, "K K"], count: int) -> Float[Tensor, " m"]:
    r"""Return how common the most common directions of all updates are, largest first.

    Eigenvalues of the mean projector :math:`\frac1N \sum_a U_a U_a^\top`: 1 for a direction
    that lies in all N spans, 1/N for one that lies in a single span.

    Parameters
    ----------
    gram : (K, K) Tensor
    count : int
        N, the number of updates.

    Examples
    --------
    >>> both = torch.eye(3)[:, [0, 1, 0, 2]]
    >>> [round(x, 9) for x in common_directions(both.T @ both, 2).tolist()]
    [1.0, 0.5, 0.5, 0.0]
    """
    if not len(gram):
        return gram.new_zeros(0, dtype=torch.float64)
    values: Tensor = torch.linalg.eigvalsh(gram.double() / count)
    return values.flip(0).clamp(0.0, 1.0)


@lru_cache(maxsize=1024)
def common_edge(sizes: tuple[int, ...], d: int, quantile: float = 0.999, seed: int = 0) -> float:
    """Return a chance quantile of the first of `common_directions`.

    For random subspaces of the given sizes in d dimensions. Of two it is exact, (1 + c)/2 with
    c the edge of their largest cosine; of more a seeded Monte Carlo with a Cornish-Fisher
    quantile, as the law is skew: passed about once in a thousand, within a factor of two.

    Returns
    -------
    float
        In (0, 1]; NaN where any such subspaces share a direction, since Σk > (N − 1)·d.

    Examples
    --------
    >>> common_edge((2, 2), 3)  # two planes in space share a line
    nan
    >>> round(common_edge((1, 1), 4), 3)
    0.996
    """
    total = sum(sizes)
    if total > (len(sizes) - 1) * d:
        return math.nan
    if len(sizes) == 2:
        return (1 + cosine_edge(*sizes, d, quantile)) / 2
    rng = np.random.default_rng([seed, d, *sizes])
    count = int(min(_DRAWS, max(_LEAST, _WORK / total**3)))
    draws = np.array([_first_common(sizes, d, rng) for _ in range(count)])
    mean, sd = float(draws.mean()), float(draws.std())
    if not sd:
        return min(mean, 1.0)
    skew = float(((draws - mean) ** 3).mean()) / sd**3
    z = _normal_quantile(quantile)
    return min(1.0, mean + sd * (z + (z * z - 1) * skew / 6))


def _first_common(sizes: tuple[int, ...], d: int, rng: np.random.Generator) -> float:
    """Draw the first of `common_directions` of random subspaces.

    Bartlett: the Gram matrix of Gaussian columns is L @ L.T, a chi variable of d − i degrees
    on the diagonal of L and normal ones below, without the columns themselves. Block by block
    it is then made that of orthonormal ones.
    """
    total = sum(sizes)
    factor = np.tril(rng.standard_normal((total, min(total, d))), -1)
    places = np.arange(min(total, d))
    factor[places, places] = np.sqrt(rng.chisquare(d - places))
    ends = np.cumsum([0, *sizes])
    rows = [np.linalg.qr(factor[a:b].T)[0] for a, b in pairwise(ends)]
    bases = np.hstack(rows)
    return float(np.linalg.eigvalsh(bases.T @ bases)[-1] / len(sizes))


def _block_sums(matrix: Float[Tensor, "K K"], sizes: Sequence[int]) -> Float[Tensor, "N N"]:
    owner = torch.repeat_interleave(torch.tensor(list(sizes)))
    rows = matrix.new_zeros(len(sizes), len(matrix)).index_add_(0, owner, matrix)
    sums: Tensor = matrix.new_zeros(len(sizes), len(sizes)).index_add_(1, owner, rows)
    return sums


def _parts(s: Float[Tensor, " K"], sizes: Sequence[int]) -> Sequence[Float[Tensor, " _"]]:
    parts: Sequence[Tensor] = torch.split(s.double(), list(sizes))
    return parts


def _shares(s: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    return _unit(s).square()


def _unit(s: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Return the values over their norm; zeros where all are zero."""
    largest = s.max().item() if len(s) else 0.0
    scaled = s / largest if largest else s
    norm = float(torch.linalg.vector_norm(scaled))
    return scaled / norm if norm else scaled


def _normal_quantile(quantile: float) -> float:
    return math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * quantile - 1).double()))
