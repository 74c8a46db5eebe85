r"""Intruder dimensions: directions of the tuned weight that the base does not have.

A singular vector of W + ΔW is an intruder if its largest absolute cosine with *any* singular
vector of W is below ε [1]_. It measures delocalisation, not distance from W's span: a direction
spread evenly over four base vectors scores 1/2, and so does every random direction of a large
matrix at ε = 0.5. Hence `chance_closeness`, what a random direction reaches.

References
----------
.. [1] R. Shuttleworth et al., "LoRA vs full fine-tuning: an illusion of equivalence", 2024.
   arXiv:2410.21228
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import beta
from torch import Tensor

__all__ = ["chance_closeness", "closeness", "intruder_energy_share"]

_DRAWS = 4000
_FEW = 64
_NUMBERS = 20_000_000  # drawn at a time


def closeness(
    tuned: Float[Tensor, "d k"],
    base: Float[Tensor, "d q"],
    values: Float[Tensor, " q"],
    tolerance: float = 1e-6,
) -> Float[Tensor, " k"]:
    """Return the largest absolute cosine of each tuned direction with one of the base's.

    Base directions of equal singular values are one choice among many, so a block of them
    counts as a span: the cosine is then with the direction's projection onto it.

    Parameters
    ----------
    tuned, base : (d, k), (d, q) Tensor
        Orthonormal columns: singular vectors of W + ΔW and all of W, of one side.
    values : (q,) Tensor
        W's singular values, descending.
    tolerance : float
        Relative distance from a block's first value up to which others count as equal to it.

    Returns
    -------
    (k,) Tensor
        In [0, 1]; 0 where the base has no direction.

    Examples
    --------
    >>> turned = torch.tensor([[0.6], [0.8], [0.0]])
    >>> [round(closeness(turned, torch.eye(3), torch.tensor(s)).item(), 6)
    ...  for s in ([3.0, 2.0, 1.0], [2.0, 2.0, 1.0])]
    [0.8, 1.0]
    """
    if not base.shape[1]:
        return tuned.new_zeros(tuned.shape[1], dtype=torch.float64)
    squares = (base.double().T @ tuned.double()).square()
    block = torch.tensor(_blocks(values, tolerance), device=squares.device)
    sums = squares.new_zeros(int(block[-1]) + 1, squares.shape[1]).index_add_(0, block, squares)
    return sums.max(dim=0).values.sqrt().clamp_(max=1.0)


def intruder_energy_share(s: Float[Tensor, " k"], intruders: Float[Tensor, " k"]) -> float:
    """Return the share of the energy of W + ΔW's first k directions that intruders hold.

    Parameters
    ----------
    s : (k,) Tensor
        Singular values of W + ΔW.
    intruders : (k,) Tensor
        1 for an intruder, 0 for another.

    Examples
    --------
    >>> intruder_energy_share(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
    0.36
    """
    energies = s.double().square()
    total = energies.sum().item()
    return (energies * intruders.double()).sum().item() / total if total else math.nan


@lru_cache(maxsize=256)
def chance_closeness(d: int, q: int, quantile: float = 0.01, seed: int = 0) -> float:
    """Return a quantile of the largest absolute cosine of a random direction with q others.

    The largest of q coordinates of a uniformly random unit vector in d dimensions, exact for
    q = 1, otherwise by a seeded Monte Carlo: right to about 1 %, 3 % for q below 16.

    Parameters
    ----------
    d : int
        The dimension.
    q : int
        How many orthonormal directions the base has, at most d.
    quantile : float
        1 % unless given: nearly every random direction lies above it.

    Returns
    -------
    float
        NaN without any direction.

    Examples
    --------
    >>> chance_closeness(1, 1)
    1.0
    """
    if not q:
        return math.nan
    if q == 1:
        return math.sqrt(beta.ppf(quantile, 0.5, (d - 1) / 2)) if d > 1 else 1.0
    rng = np.random.default_rng([seed, d, q])
    largest: list[float] = []
    draws = _DRAWS if q > _FEW else 10 * _DRAWS
    while len(largest) < draws:
        count = min(draws - len(largest), max(1, _NUMBERS // q))
        squares = rng.standard_normal((count, q)) ** 2
        rest = rng.chisquare(d - q, count) if d > q else 0.0
        largest.extend(squares.max(axis=1) / (squares.sum(axis=1) + rest))
    return math.sqrt(float(np.quantile(largest, quantile)))


def _blocks(values: Float[Tensor, " q"], tolerance: float) -> list[int]:
    """Return the number of the block of equal values that each value is in."""
    blocks, first = [0], values[0].item()
    for value in values[1:].tolist():
        new = first - value > tolerance * first
        blocks.append(blocks[-1] + new)
        first = value if new else first
    return blocks
