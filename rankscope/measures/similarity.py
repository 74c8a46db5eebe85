r"""Similarity of two subspaces: φ(i, j) and the principal cosines, from one overlap matrix.

With orthonormal directions U and V the overlap matrix is :math:`M = U^\top V`; everything here
is a function of M.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["ambiguous_cuts", "phi_grid", "principal_cosines", "shared_directions"]


def phi_grid(overlap: Float[Tensor, "i j"]) -> Float[Tensor, "i j"]:
    r"""Return φ(i, j) for every leading block of an overlap matrix.

    .. math:: \phi(i, j) = \|U_i^\top V_j\|_F^2 / \min(i, j)

    the mean squared cosine between the spans of the first i and the first j directions: 1 where
    the smaller span lies inside the larger, 0 where they are orthogonal. One double cumulative
    sum of the squared overlaps gives all cells.

    Parameters
    ----------
    overlap : (i, j) Tensor
        ``U.T @ V`` of orthonormal columns, strongest directions first.

    Returns
    -------
    (i, j) Tensor
        In [0, 1]; cell ``[a, b]`` is φ(a + 1, b + 1). Empty where one side has no direction.

    References
    ----------
    .. [1] E. Hu et al., "LoRA: Low-rank adaptation of large language models", 2021,
       section 7.2, equation 4. arXiv:2106.09685

    Examples
    --------
    >>> phi_grid(torch.eye(2)).tolist()  # the same two directions
    [[1.0, 1.0], [1.0, 1.0]]
    """
    energy = overlap.double().square().cumsum(0).cumsum(1)
    rows, columns = (torch.arange(1, n + 1, dtype=torch.float64) for n in overlap.shape)
    # Round-off can lift a full containment a few eps above 1.
    return (energy / torch.minimum(rows[:, None], columns)).clamp_(0.0, 1.0)


def principal_cosines(overlap: Float[Tensor, "i j"]) -> Float[Tensor, " p"]:
    """Return the cosines of the principal angles between two spans, largest first.

    Parameters
    ----------
    overlap : (i, j) Tensor
        ``U.T @ V`` of orthonormal columns.

    Returns
    -------
    (min(i, j),) Tensor
        In [0, 1], descending; absolute error about 1e-15. φ of the last cell is the mean of
        their squares. (An angle below 1e-8 cannot be read off its cosine.)

    Examples
    --------
    >>> principal_cosines(torch.tensor([[0.6, 0.0]])).tolist()
    [0.6000000238418579]
    """
    if 0 in overlap.shape:
        return overlap.new_zeros(0, dtype=torch.float64)
    cosines: Tensor = torch.linalg.svdvals(overlap.double())
    return cosines.clamp_(0.0, 1.0)


def shared_directions(cosines: Float[Tensor, " p"], edge: float) -> int:
    """Return how many principal cosines lie above `edge`.

    Parameters
    ----------
    cosines : (p,) Tensor
    edge : float
        The largest cosine that chance explains, `rankscope.linalg.chance.cosine_edge`.

    Examples
    --------
    >>> shared_directions(torch.tensor([0.9, 0.4, 0.1]), edge=0.3)
    2
    """
    return int((cosines > edge).sum())


def ambiguous_cuts(s: Float[Tensor, " k"], tolerance: float = 1e-6) -> list[int]:
    """Return the cuts i after which the next singular value is equal within `tolerance`.

    Inside a block of equal singular values the first i directions are an arbitrary choice, so
    φ at such a cut means nothing; the end of the block is well defined again.

    Parameters
    ----------
    s : (k,) Tensor
        Singular values, descending.
    tolerance : float
        Relative gap below which two values count as equal.

    Examples
    --------
    >>> ambiguous_cuts(torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0]))
    [2, 3]
    """
    gap = s[:-1] - s[1:]
    return [int(i) + 1 for i in torch.nonzero(gap <= tolerance * s[:-1]).flatten()]
