"""Storage acted out again: the rank that explains every direction above the noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rankscope.linalg.blocks import by_rows
from rankscope.linalg.rounding import leading, spectral_norm
from rankscope.measures.stored import Pair

__all__ = ["least_rank"]

_COHERENT = 1.2  # the largest ratio of a measured singular value to a re-rounded one
_HOPELESS = 2.5  # a ratio that no correction brings below that
_CORRECTIONS = 2
_STEPS = 14  # of Lanczos: the norm of a random matrix to 0.3 %
_TINY = 1e-30


def least_rank(pair: Pair, values: list[float], seed: int) -> int | None:
    """Return the least rank that, rounded again, explains the next singular value.

    Parameters
    ----------
    pair : Pair
        Of which the base lies on the grid of the tuned weight.
    values : list of float
        Singular values of the difference, in the unit of the pair: one more than the highest
        rank that is tried, at least two.
    seed : int
        Of the random starts.

    Returns
    -------
    int or None
        None where the highest is not enough.
    """
    highest = len(values) - 1
    _, right = leading(pair.difference, highest, seed=seed)

    def enough(k: int) -> bool:
        return _enough(k, values[k], pair, right[:, :k], seed)

    # The rank below the largest step is the likeliest.
    guess = max(range(1, highest + 1), key=lambda k: values[k - 1] / values[k])
    if enough(guess):
        return _search(enough, 1, guess, guess - 1)
    if guess == highest or not enough(highest):
        return None
    return _search(enough, guess + 1, highest, guess + 1)


def _search(enough: Callable[[int], bool], low: int, high: int, first: int) -> int:
    """Return the least rank from `low` on that is enough; `high` is."""
    middle = first
    while low < high:
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
        # Small ranks are both the likely and the cheap ones.
        middle = min(2 * low, (low + high) // 2)
    return low


def _enough(k: int, value: float, pair: Pair, right: Tensor, seed: int) -> bool:
    """Say whether `k` directions, rounded again, leave as large a next value as measured."""
    left = pair.difference @ right
    for correction in range(_CORRECTIONS + 1):
        again = _stored(pair, left, right)
        ratio = value / max(_next(again, right, seed), _TINY)
        if ratio <= _COHERENT or ratio > _HOPELESS or correction == _CORRECTIONS:
            break
        gain = (left * (again @ right)).sum() / left.square().sum()
        target = _corrected(pair, again, gain.clamp(0.02, 1), left, right)
        _, right = leading(target, k, start=right, seed=seed)
        left = target @ right
    return ratio <= _COHERENT


def _stored(pair: Pair, left: Tensor, right: Tensor) -> Tensor:
    """Return what storage leaves of the update ``left @ right.T``."""

    def stored(base: Tensor, left: Tensor) -> Tensor:
        return pair.tuned_grid.rounded(torch.addmm(base, left, right.T)).sub_(base)

    return by_rows(stored, pair.base, left)


def _corrected(pair: Pair, again: Tensor, gain: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return the update ``left @ right.T`` and what the gain made of the difference's rest."""

    def corrected(x: Tensor, again: Tensor, left: Tensor) -> Tensor:
        return torch.sub(x, again).div_(gain).addmm_(left, right.T)

    return by_rows(corrected, pair.difference, again, left)


def _next(matrix: Tensor, right: Tensor, seed: int) -> float:
    """Return the singular value after those of the directions near `right`."""
    _, right = leading(matrix, right.shape[1], start=right, seed=seed)
    left = matrix @ right
    rest = by_rows(lambda x, left: torch.addmm(x, left, right.T, alpha=-1), matrix, left)
    return spectral_norm(rest, steps=_STEPS, seed=seed)
