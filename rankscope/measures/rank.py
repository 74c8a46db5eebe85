r"""Rank measures: functions of the singular values of one update.

Each takes singular values `s` in descending order and returns a plain number. With
:math:`p_i = s_i / \sum s` and the energies :math:`e_i = s_i^2 / \sum s^2` the measures are
ordered: ``stable <= participation <= energy_entropy <= effective <= numerical rank``. All are
scale-free. For an update that is all zero the counts are 0 and the ratios NaN.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "effective_rank",
    "energy_entropy_rank",
    "energy_rank",
    "energy_rank_bracket",
    "numerical_rank",
    "participation_rank",
    "stable_rank",
    "top_energy",
]


def numerical_rank(s: Float[Tensor, " k"], tolerance: float) -> int:
    """Return the number of singular values above `tolerance`.

    Parameters
    ----------
    s : (k,) Tensor
        Singular values.
    tolerance : float
        In their unit; ``Spectrum.error_bound``, which is ``max(out, in) * eps * s[0]`` in
        float64.

    Examples
    --------
    >>> numerical_rank(torch.tensor([2.0, 1.0, 0.0]), tolerance=1e-15)
    2
    """
    return int((s > tolerance).sum())  # strict: an all-zero update has rank 0


def stable_rank(s: Float[Tensor, " k"], energy: float | None = None) -> float:
    r"""Return the stable rank :math:`\sum s^2 / s_1^2`, between 1 and the rank.

    Parameters
    ----------
    s : (k,) Tensor
        Singular values, descending; the first alone is enough where `energy` is given.
    energy : float, optional
        ``‖ΔW‖_F²``; the sum of squares of `s` unless given.

    References
    ----------
    .. [1] M. Rudelson and R. Vershynin, "Sampling from large matrices", J. ACM 54 (2007).

    Examples
    --------
    >>> stable_rank(torch.tensor([3.0, 1.0]))  # 10 / 9
    1.1111111111111112
    """
    squares = s.double().square()
    total = squares.sum().item() if energy is None else energy
    # Never below 1, where round-off would put a rank-one update.
    return max(total / squares[0].item(), 1.0) if total else math.nan


def participation_rank(s: Float[Tensor, " k"]) -> float:
    r"""Return the participation ratio of the energies, :math:`(\sum s^2)^2 / \sum s^4`.

    Examples
    --------
    >>> participation_rank(torch.tensor([2.0, 2.0, 0.0]))
    2.0
    """
    e = _shares(s.double().square())
    return 1 / e.square().sum().item() if len(e) else math.nan


def effective_rank(s: Float[Tensor, " k"]) -> float:
    r"""Return the effective rank :math:`\exp(-\sum p_i \ln p_i)` of the singular values.

    References
    ----------
    .. [1] O. Roy and M. Vetterli, "The effective rank: a measure of effective
       dimensionality", EUSIPCO 2007.

    Examples
    --------
    >>> round(effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])), 6)
    3.0
    """
    return _perplexity(_shares(s.double()))


def energy_entropy_rank(s: Float[Tensor, " k"]) -> float:
    r"""Return :math:`\exp(-\sum e_i \ln e_i)`, the entropy rank of the *energies*.

    Some codes call this one Roy and Vetterli's; theirs is `effective_rank`.

    Examples
    --------
    >>> round(energy_entropy_rank(torch.tensor([2.0, 2.0, 0.0])), 6)
    2.0
    """
    return _perplexity(_shares(s.double().square()))


def energy_rank(s: Float[Tensor, " k"], fraction: float, energy: float | None = None) -> int:
    """Return the smallest k whose first k directions hold `fraction` of the energy.

    Parameters
    ----------
    s : (k,) Tensor
        Singular values, descending.
    fraction : float
        In (0, 1].
    energy : float, optional
        ``‖ΔW‖_F²``; the sum of squares of `s` unless given.

    Returns
    -------
    int
        Between 1 and the rank; 0 for an update that is all zero.

    Examples
    --------
    >>> energy_rank(torch.tensor([4.0, 3.0, 2.0, 1.0]), 0.9)  # 16 + 9 + 4 of 30
    3
    """
    cumulative = s.double().square().cumsum(0)
    total = cumulative[-1].item() if energy is None and len(s) else energy
    if not total:
        return 0
    # Ten equal values hold 90 % in nine, though their running sum may miss it by a few eps.
    wanted = fraction * total * (1 - 1e-12)
    return min(int((cumulative < wanted).sum()) + 1, len(s))


def energy_rank_bracket(
    s: Float[Tensor, " k"], fraction: float, energy: float, ceiling: int
) -> tuple[int, int]:
    """Return bounds on the `energy_rank` of an update whose first singular values alone are known.

    No later value exceeds the last known one, each is at most the one before, and none of
    the energy lies beyond `ceiling`.

    Parameters
    ----------
    s : (k,) Tensor
        The first k singular values, descending.
    fraction : float
        In (0, 1].
    energy : float
        ``‖ΔW‖_F²``, of all singular values.
    ceiling : int
        The largest number of singular values that can differ from zero.

    Returns
    -------
    low, high : int
        Equal where the first k hold `fraction` of the energy; 0 and 0 for an all-zero update.

    Examples
    --------
    Of 27 the first two hold 20; two more of 4 each would do, or seven of ten of 1 each:

    >>> energy_rank_bracket(torch.tensor([4.0, 2.0]), 0.9, energy=30.0, ceiling=12)
    (4, 9)
    """
    squares = s.double().square()
    wanted = fraction * energy * (1 - 1e-12)
    known = squares.sum().item()
    if known >= wanted or len(s) >= ceiling:
        rank = energy_rank(s, fraction, energy)
        return rank, rank
    last = squares[-1].item() if len(s) else energy
    missing, rest = wanted - known, energy - known
    # Soonest complete where the next values are as large as the last one, latest where all
    # that are left are equal.
    low = len(s) + math.ceil(missing / last) if last else ceiling
    high = len(s) + math.ceil(missing / rest * (ceiling - len(s)))
    return min(low, high), min(high, ceiling)


def top_energy(s: Float[Tensor, " k"], energy: float | None = None) -> float:
    """Return the share of the energy in the first direction, the inverse of the stable rank.

    Examples
    --------
    >>> round(top_energy(torch.tensor([3.0, 1.0])), 12)
    0.9
    """
    return 1 / stable_rank(s, energy)


def _shares(weights: Float[Tensor, " k"]) -> Float[Tensor, " n"]:
    """Return the weights that are not zero, as shares of their sum; none of an all-zero row."""
    weights = weights[weights > 0]
    return weights / weights.sum()


def _perplexity(shares: Float[Tensor, " n"]) -> float:
    return torch.special.entr(shares).sum().exp().item() if len(shares) else math.nan
