r"""Intruder dimensions: directions of the tuned weight that the base does not have.

A singular vector of W + ΔW is an intruder if its largest absolute cosine with *any* singular
vector of W is below ε [1]_. It measures delocalisation, not distance from W's span: a direction
spread evenly over four base vectors scores 1/2, and every random direction of a large matrix
is an intruder at ε = 0.5. Hence `chance_closeness`, what a random direction reaches.

References
----------
.. [1] R. Shuttleworth et al., "LoRA vs full fine-tuning: an illusion of equivalence", 2024.
   arXiv:2410.21228
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import beta
from torch import Tensor

__all__ = ["chance_closeness", "closeness", "intruder_energy_share"]

_Array = NDArray[np.float64]
_Places = NDArray[np.intp]

# Singular values so near to each other, relatively, can count as equal, and always do.
_NEAR, _EQUAL = 0.01, 1e-6
_DRAWS = 4000
_FEW = 64
_NUMBERS = 20_000_000  # drawn at a time


def closeness(
    tuned: Float[Tensor, "d k"],
    base: Float[Tensor, "d q"],
    values: Float[Tensor, " q"],
    reach: Float[Tensor, " k"] | None = None,
    *,
    blocks: bool = True,
) -> Float[Tensor, " k"]:
    r"""Return the largest cosine of each tuned direction with what counts as one of the base's.

    Base directions of equal singular values are one choice among many, and those of nearly
    equal ones are after an update larger than their gap: then they mix freely though hardly
    anything has changed. So the cosine is with the projection onto all base directions whose
    singular value is as near to one of them, :math:`|σ_k - σ_i| \le \min(r, σ_i/100)`, as the
    update reaches. With a tuned direction y, its partner p on the other side and singular value
    τ, Wedin's r is :math:`\max(\|ΔW y\|, \|ΔW^\top p\|)`: directions of W whose singular
    value is δ away from τ can hold no more than r/δ of y [1]_. Values more than 1 % apart are
    never near: to a large update all would be, and nothing an intruder.

    Parameters
    ----------
    tuned, base : (d, k), (d, q) Tensor
        Orthonormal columns: singular vectors of W + ΔW and all of W, of one side.
    values : (q,) Tensor
        W's singular values, descending.
    reach : (k,) Tensor, optional
        The r of every tuned direction, in the unit of `values`; 0 unless given, which leaves
        blocks of equal values (to 1e-6).
    blocks : bool
        Whether near values count as one; otherwise the cosine is with single directions.

    Returns
    -------
    (k,) Tensor
        In [0, 1]; 0 where the base has no direction.

    References
    ----------
    .. [1] P.-A. Wedin, "Perturbation bounds in connection with singular value decomposition",
       BIT 12 (1972) 99.

    Examples
    --------
    >>> turned, values = torch.tensor([[0.6], [0.8], [0.0]]), torch.tensor([2.0, 1.9999, 1.0])
    >>> [round(closeness(turned, torch.eye(3), values, torch.tensor([r])).item(), 6)
    ...  for r in (0.00001, 0.001)]
    [0.8, 1.0]
    """
    if not base.shape[1]:
        return tuned.new_zeros(tuned.shape[1], dtype=torch.float64)
    squares = (base.double().T @ tuned.double()).square()
    if not blocks:
        return squares.max(dim=0).values.cpu().sqrt().clamp_(max=1.0)
    reach = values.new_zeros(squares.shape[1]) if reach is None else reach
    found = [
        max(_largest_block(square, *_windows(values, r))[0], float(square.max()))
        for square, r in zip(squares.T.cpu().numpy(), reach.tolist(), strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64).sqrt_().clamp_(max=1.0)


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


def chance_closeness(
    d: int,
    values: Float[Tensor, " q"],
    quantiles: Sequence[float] = (0.01, 0.99),
    seed: int = 0,
) -> tuple[float, ...]:
    """Return quantiles of a random direction's `closeness`, where the update reaches far.

    The direction is uniform in d dimensions. Exact for one base direction, otherwise by a
    seeded Monte Carlo: right to about 1 %, 3 % for fewer than 16 directions.

    Parameters
    ----------
    d : int
        The dimension.
    values : (q,) Tensor
        W's singular values, descending, at most d: nearly equal ones count as one block.
    quantiles : sequence of float
        At 1 % nearly every random direction lies above, at 99 % below.
    seed : int
        Of the draws.

    Returns
    -------
    tuple of float
        NaN without any direction.

    Examples
    --------
    >>> chance_closeness(1, torch.ones(1))
    (1.0, 1.0)
    """
    q = len(values)
    if not q:
        return (math.nan,) * len(quantiles)
    if q == 1:
        return tuple(_one_cosine(d, quantile) for quantile in quantiles)
    rng = np.random.default_rng([seed, d, q])
    first, end = _windows(values, math.inf)
    largest: list[float] = []
    draws = _DRAWS if q > _FEW else 10 * _DRAWS
    while len(largest) < draws:
        count = min(draws - len(largest), max(1, _NUMBERS // q))
        squares = rng.standard_normal((count, q)) ** 2
        rest = rng.chisquare(d - q, count) if d > q else 0.0
        largest.extend(_largest_block(squares, first, end) / (squares.sum(axis=1) + rest))
    found = np.quantile(np.minimum(largest, 1.0), quantiles)
    return tuple(math.sqrt(one) for one in found.tolist())


def _one_cosine(d: int, quantile: float) -> float:
    return math.sqrt(beta.ppf(quantile, 0.5, (d - 1) / 2)) if d > 1 else 1.0


def _windows(values: Float[Tensor, " q"], reach: float) -> tuple[_Places, _Places]:
    """Return where the values near each value begin and end, in their descending order."""
    s = values.double().cpu().numpy()
    near = np.maximum(np.minimum(reach, _NEAR * s), _EQUAL * s)
    return (
        np.searchsorted(-s, -(s + near), side="left"),
        np.searchsorted(-s, -(s - near), side="right"),
    )


def _largest_block(squares: _Array, first: _Places, end: _Places) -> _Array:
    """Return the largest sum of the squares in any window, row by row."""
    rows = np.atleast_2d(squares)
    sums = np.zeros((len(rows), rows.shape[1] + 1))
    np.cumsum(rows, axis=1, out=sums[:, 1:])
    found: _Array = (sums[:, end] - sums[:, first]).max(axis=1)
    return found
