"""The edge of unstructured noise in a matrix, by surrogates of its entries."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.linalg.rounding import leading, own_generator, spectral_norm

__all__ = ["Leading", "noise_edge"]

_DRAWS = 2
_TAIL = 5.0  # Tracy-Widom scales from the mean of the surrogates to where 1 in 400 lies beyond
_MOST = 256  # directions that are ever taken off a matrix
_FREE = 0.02  # the least share of a row or column that is taken to be left over


class Leading:
    """The leading directions of a matrix, as many as are asked for.

    Parameters
    ----------
    matrix : (m, n) Tensor
        float32.
    seed : int
        Of the random start.

    Attributes
    ----------
    limit : int
        How many are ever found: half of the short side, and 256 at most.

    Examples
    --------
    >>> found = Leading(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])), seed=0)
    >>> found.limit, found.above(3.5)
    (2, 1)
    """

    def __init__(self, matrix: Tensor, seed: int) -> None:
        self.matrix = matrix
        self.limit = max(min(*matrix.shape, 2 * _MOST) // 2, 1)
        self.seed = seed
        self._extend(min(16, self.limit))

    def _extend(self, k: int) -> None:
        self.values, self.right = leading(self.matrix, k, seed=self.seed)

    def above(self, edge: float) -> int:
        """Return how many singular values lie above `edge`, at most `limit`."""
        while self.values[-1] > edge and len(self.values) < self.limit:
            self._extend(min(2 * len(self.values), self.limit))
        return int((self.values > edge).sum())

    def part(self, k: int) -> Tensor:
        """Return the matrix on its first `k` directions."""
        return self.matrix @ self.right[:, :k] @ self.right[:, :k].T

    def rest(self, k: int) -> Tensor:
        """Return the matrix without them, each entry at the size it would have with them.

        They take a share of the noise along: that of its row (column) is the leverage, the sum
        of the squares of its k left (right) coordinates.
        """
        right = self.right[:, :k]
        left = self.matrix @ right / self.values[:k]
        rows, columns = ((1 - x.square().sum(1)).clamp_min(_FREE) for x in (left, right))
        rest: Tensor = (self.matrix - self.part(k)) / (rows[:, None] * columns).sqrt()
        return rest


def noise_edge(found: Leading, variance: Float[Tensor, "m n"], *, seed: int = 0) -> float:
    """Return the largest singular value that unstructured noise gives in a matrix.

    It is the smaller of two surrogates, each the mean norm of random matrices plus what fewer
    than 1 % of matrices exceed:

    * uniform errors of the given variances. Entries are uneven, and one variance for all gives
      far too low an edge: half of it where columns are log-normal;
    * the matrix itself with random signs [1]_, less the directions that stand above the edge,
      starting from none. What is left is scaled up, entry by entry, for the noise that those
      directions take along: a share ``1 - leverage`` remains of a row's or column's variance.

    Parameters
    ----------
    found : Leading
        Of the matrix.
    variance : (m, n) Tensor
        The most that the noise of each entry can have.
    seed : int
        Of the surrogates.

    References
    ----------
    .. [1] D. Hong, Y. Sheng and E. Dobriban, "Selecting the number of components in PCA via
       random signflips", arXiv:2012.02985.

    Examples
    --------
    Nothing is noise in a matrix that is all zero:

    >>> noise_edge(Leading(torch.zeros(4, 4), seed=0), torch.ones(4, 4))
    0.0
    """
    highest = _rounding_edge(variance, seed)
    k = 0
    while True:
        edge = min(highest, _flipped_edge(found.rest(k), seed))
        above = found.above(edge)
        if above <= k or above == found.limit:
            return edge
        k = above


def _rounding_edge(variance: Tensor, seed: int) -> float:
    """Return the edge of uniform errors with these variances."""
    generator = own_generator(seed, 2)
    width = (12 * variance).sqrt()
    norms = [
        spectral_norm(
            width * (torch.rand(width.shape, generator=generator).to(width.device) - 0.5),
            seed=seed,
        )
        for _ in range(_DRAWS)
    ]
    # Where few rows or columns hold the noise the edge is the length of the longest.
    longest = max((x[x.sum(1).argmax()] for x in (variance, variance.T)), key=torch.sum)
    edge = sum(norms) / _DRAWS * (1 + max(_tail(variance), _length_tail(longest)))
    return min(edge, variance.double().sum().sqrt().item() * (1 + _length_tail(variance)))


def _flipped_edge(rest: Tensor, seed: int) -> float:
    """Return the edge of a matrix with random signs."""
    generator = own_generator(seed, 3)
    norms = []
    for _ in range(_DRAWS):
        signs = torch.randint(2, rest.shape, generator=generator, dtype=torch.int8)
        norms.append(spectral_norm(rest * (2 * signs - 1).to(rest.device), seed=seed))
    return sum(norms) / _DRAWS * (1 + _tail(rest.square()))


def _tail(energy: Tensor) -> float:
    """Return the relative distance from the mean of an edge to where few matrices reach.

    The edge √m + √n of unit noise varies on the scale ½(1/√m + 1/√n)^⅓ [1]_; uneven entries
    count as the fewer rows and columns that hold their energy.

    .. [1] I. M. Johnstone, Ann. Statist. 29 (2001) 295.
    """
    m, n = (_participation(energy.sum(axis)) for axis in (1, 0))
    scale: float = (1 / math.sqrt(m) + 1 / math.sqrt(n)) ** (1 / 3) / 2
    return _TAIL * scale / (math.sqrt(m) + math.sqrt(n))


def _length_tail(variance: Tensor) -> float:
    """Return four relative standard deviations of the length of uniform errors.

    Var e² is 4/5 (E e²)²; a matrix and the mean of its surrogates both vary. No error is longer
    than √3 of its standard deviations.
    """
    if not variance.any():
        return 0.0
    deviation = math.sqrt(0.8 * _energy(variance)) / variance.double().sum().item() / 2
    return min(4 * deviation, math.sqrt(3) - 1)


def _participation(energy: Tensor) -> float:
    total = energy.double().sum().item()
    return total**2 / _energy(energy) if total else 1.0


def _energy(x: Tensor) -> float:
    return x.double().square().sum().item()
