"""The edge of unstructured noise in a matrix, by surrogates of its entries."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.linalg.blocks import by_rows, cached_rows
from rankscope.linalg.rounding import leading, own_generator, spectral_norm

__all__ = ["Leading", "Profile", "noise_edge"]

_LARGE = 2**20  # entries from which one surrogate does: its norm varies by half a percent
# Tracy-Widom scales between one norm and another that fewer than 1 in 400 exceed, over √2: both
# vary, the mean of several surrogates the less.
_TAIL = 4.1
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

    def rest(self, k: int) -> Tensor:
        """Return the matrix less its first `k` directions, each entry scaled up for them.

        They take a share of the noise along: that of its row (column) is the leverage, the sum
        of the squares of its k left (right) coordinates.
        """
        left, right, rows, columns = self._cut(k)
        return by_rows(
            lambda x, left, rows: torch.addmm(x, left, right.T, alpha=-1).div_(rows).div_(columns),
            self.matrix,
            left,
            rows[:, None],
        )

    def at(self, k: int, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return, at some entries, what the first `k` directions hold and what is the rest."""
        left, right, over_rows, over_columns = self._cut(k)
        part = (left[rows] * right[columns]).sum(1)
        rest = self.matrix[rows, columns] - part
        return part, rest / over_rows[rows] / over_columns[columns]

    def _cut(self, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return k directions, scaled on the left, and the roots of what remains beside them."""
        right = self.right[:, :k]
        left = self.matrix @ right
        rows, columns = (
            (1 - x.square().sum(1)).clamp_min(_FREE).sqrt()
            for x in (left / self.values[:k], right)
        )
        return left, right, rows, columns


class Profile:
    """How the energy of a matrix lies in its rows, columns and entries.

    Parameters
    ----------
    matrix : (m, n) Tensor
        float32, of moderate size (squares neither overflow nor vanish).

    Attributes
    ----------
    rows, columns : (m,), (n,) Tensor
        Energy of each, float64.
    fourth : float
        Sum of the fourth powers.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.columns = matrix.new_zeros(matrix.shape[1], dtype=torch.float64)
        rows, self.fourth = [], 0.0
        for part in cached_rows(matrix):
            squares = matrix[part].square()
            rows.append(squares.sum(1).double())
            self.columns += squares.sum(0)
            self.fourth += torch.dot(squares.flatten(), squares.flatten()).item()
        self.rows = torch.cat(rows)

    @property
    def energy(self) -> float:
        """The squared Frobenius norm."""
        return self.rows.sum().item()

    @property
    def bound(self) -> float:
        """The largest norm of matrices of independent entries with these deviations."""
        return self.rows.max().sqrt().item() + self.columns.max().sqrt().item()

    def longest(self) -> Profile:
        """Return the profile of the row or the column of most energy."""
        row, column = self.rows.argmax(), self.columns.argmax()
        by_row = self.rows[row] >= self.columns[column]
        return Profile(self.matrix[row][None] if by_row else self.matrix[:, column][None])

    def edge_tail(self) -> float:
        """Return how far above the mean norm of surrogates, relatively, few matrices reach.

        The edge √m + √n of unit noise varies on the scale ½(1/√m + 1/√n)^⅓ [1]_; uneven entries
        count as the fewer rows and columns that hold their energy.

        .. [1] I. M. Johnstone, Ann. Statist. 29 (2001) 295.
        """
        m, n = (_participation(energy) for energy in (self.rows, self.columns))
        scale: float = (1 / math.sqrt(m) + 1 / math.sqrt(n)) ** (1 / 3) / 2
        return (
            _TAIL * math.sqrt(1 + 1 / _draws(self.matrix)) * scale / (math.sqrt(m) + math.sqrt(n))
        )

    def length_tail(self) -> float:
        """Return four relative standard deviations of the length of uniform errors.

        Var e² is 4/5 (E e²)²; a matrix and the mean of its surrogates both vary. No error is
        longer than √3 of its standard deviations.
        """
        if not self.energy:
            return 0.0
        deviation = math.sqrt(0.8 * self.fourth) / self.energy / 2
        return min(4 * deviation, math.sqrt(3) - 1)


def noise_edge(found: Leading, deviation: Float[Tensor, "m n"], *, seed: int = 0) -> float:
    """Return the largest singular value that unstructured noise gives in a matrix.

    It is the smaller of two surrogates, each the mean norm of random matrices plus what fewer
    than 1 % of matrices exceed:

    * the given deviations with random signs. Entries are uneven, and one deviation for all
      gives far too low an edge: half of it where columns are log-normal;
    * the matrix itself with random signs [1]_, less the directions that stand above the edge,
      starting from those above the first. What is left is scaled up, entry by entry, for the
      noise that those directions take along: a share ``1 - leverage`` remains of a row's or
      column's variance.

    Parameters
    ----------
    found : Leading
        Of the matrix.
    deviation : (m, n) Tensor
        The most that the standard deviation of the noise of each entry can be; float32.
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
    highest = _rounding_edge(deviation, seed)
    above = found.above(highest)
    k = above if above < found.limit else 0
    while True:
        rest = found.rest(k)
        edge = min(highest, _flipped_norm(rest, seed, 3) * (1 + Profile(rest).edge_tail()))
        above = found.above(edge)
        if above <= k or above == found.limit:
            return edge
        k = above


def _rounding_edge(deviation: Tensor, seed: int) -> float:
    """Return the edge of uniform errors with these deviations."""
    profile = Profile(deviation)
    # Where few rows or columns hold the noise the edge is the length of the longest.
    tail = max(profile.edge_tail(), profile.longest().length_tail())
    edge = _flipped_norm(deviation, seed, 2) * (1 + tail)
    return min(edge, math.sqrt(profile.energy) * (1 + profile.length_tail()))


def _flipped_norm(matrix: Tensor, seed: int, use: int) -> float:
    """Return the mean norm of a matrix with random signs."""
    generator = own_generator(seed, use)
    draws = _draws(matrix)
    return sum(spectral_norm(_flipped(matrix, generator), seed=seed) for _ in range(draws)) / draws


def _draws(matrix: Tensor) -> int:
    return 1 if matrix.numel() >= _LARGE else 2


def _flipped(matrix: Tensor, generator: torch.Generator) -> Tensor:
    """Return the matrix with random signs, eight to a random byte."""
    bits = torch.arange(256, dtype=torch.uint8)[:, None] >> torch.arange(8, dtype=torch.uint8)
    signs = 1.0 - 2.0 * (bits & 1)

    def flip(x: Tensor) -> Tensor:
        drawn = torch.randint(256, (-(-x.numel() // 8),), generator=generator)
        return x * signs[drawn].flatten()[: x.numel()].view_as(x).to(x.device)

    return by_rows(flip, matrix)


def _participation(energy: Tensor) -> float:
    total = energy.sum().item()
    return total**2 / energy.square().sum().item() if total else 1.0
