r"""Rank measures: functions of the singular values of one update.

Each takes singular values `s` in descending order and returns a plain number. With
:math:`p_i = s_i / \sum s` and the energies :math:`e_i = s_i^2 / \sum s^2` the measures are
ordered: ``stable <= participation <= energy_entropy <= effective <= numerical rank`` and
``stable <= nuclear <= effective``. All are scale-free, but for those that compare with a size
given. For an update that is all zero the counts are 0 and the ratios NaN.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "cumulative_rank",
    "effective_rank",
    "energy_entropy_rank",
    "energy_rank",
    "energy_rank_bracket",
    "frobenius_rank",
    "gap_rank",
    "nuclear_rank",
    "numerical_rank",
    "participation_rank",
    "rank_within",
    "ratio_rank",
    "stable_rank",
    "top_energy",
    "truncation_error",
]

# Ten equal values hold 90 % in nine, though their running sum may miss it by a few eps.
_SLACK = 1e-12


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


def nuclear_rank(s: Float[Tensor, " k"]) -> float:
    r"""Return the nuclear ratio :math:`(\sum s)^2 / \sum s^2`, between 1 and the rank.

    The square of nuclear over Frobenius norm; never below `stable_rank` and never above
    `effective_rank`.

    Examples
    --------
    >>> nuclear_rank(torch.tensor([3.0, 1.0]))  # 16 / 10
    1.6
    """
    s = s.double()
    energy = s.square().sum().item()
    return max(s.sum().item() ** 2 / energy, 1.0) if energy else math.nan


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
    return _first_to_reach(cumulative, fraction * total)


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
    wanted = fraction * energy * (1 - _SLACK)
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


def cumulative_rank(s: Float[Tensor, " k"], fraction: float) -> int:
    """Return the smallest k whose first k singular values make up `fraction` of their sum.

    The rule ``sv_cumulative`` of kohya's resize script as it is meant: the script keeps one
    more. Of singular values, not of energies; `energy_rank` is the rule for those.

    Parameters
    ----------
    s : (k,) Tensor
        Singular values, descending.
    fraction : float
        In (0, 1].

    Returns
    -------
    int
        Between 1 and the rank; 0 for an update that is all zero.

    Examples
    --------
    >>> cumulative_rank(torch.tensor([4.0, 3.0, 2.0, 1.0]), 0.9)
    3
    """
    cumulative = s.double().cumsum(0)
    total = cumulative[-1].item() if len(s) else 0.0
    return _first_to_reach(cumulative, fraction * total) if total else 0


def frobenius_rank(s: Float[Tensor, " k"], fraction: float) -> int:
    """Return the smallest k whose truncation keeps `fraction` of the Frobenius norm.

    The rule ``sv_fro`` of kohya's resize script as it is meant; the energy rank of
    ``fraction**2``.

    Examples
    --------
    >>> frobenius_rank(torch.tensor([4.0, 3.0, 2.0, 1.0]), 0.9)  # 25 of 30 is above 0.81
    2
    """
    return energy_rank(s, fraction**2)


def ratio_rank(s: Float[Tensor, " k"], ratio: float) -> int:
    """Return the number of singular values above ``s[0] / ratio``.

    The rule ``sv_ratio`` of kohya's resize script as it is meant.

    Parameters
    ----------
    s : (k,) Tensor
        Singular values, descending.
    ratio : float
        Above 1.

    Returns
    -------
    int
        Between 1 and the rank; 0 for an update that is all zero.

    Examples
    --------
    >>> ratio_rank(torch.tensor([4.0, 3.0, 2.0, 1.0]), 2.0)
    2
    """
    return int((s * ratio > s[0]).sum()) if len(s) else 0


def gap_rank(s: Float[Tensor, " k"]) -> int | None:
    """Return the i at which the step ``s[i] / s[i + 1]``, counted from 1, is largest.

    A heuristic: a spectrum that decays evenly has no gap worth the name, and this still
    returns the largest it has, the first of equal ones.

    Returns
    -------
    int or None
        Between 1 and ``k - 1``; None where no two singular values differ. The step to a
        singular value of zero is none: what is zero is left out.

    Examples
    --------
    >>> gap_rank(torch.tensor([9.0, 8.0, 1.0, 0.9]))
    2
    """
    s = s[s > 0].double()
    if not len(s) or s[0] == s[-1]:
        return None
    return int((s[:-1] / s[1:]).argmax()) + 1


def rank_within(s: Float[Tensor, " k"], error: float) -> int:
    """Return the smallest k whose truncation misses the update by at most `error`.

    Parameters
    ----------
    s : (k,) Tensor
        Singular values, descending; all of them.
    error : float
        In the Frobenius norm and the unit of `s`: ``0.01 * ‖W‖`` tells how many directions
        an update needs to be right to a percent of the weight it changes.

    Returns
    -------
    int
        Between 0, where the whole update is smaller than `error`, and the rank.

    Examples
    --------
    >>> rank_within(torch.tensor([12.0, 4.0, 3.0]), 5.0)  # 4² + 3² = 5²
    1
    """
    return int((_remainders(s) > error * (1 + _SLACK)).sum())


def truncation_error(s: Float[Tensor, " k"], k: int) -> float:
    """Return the share of the norm that the first `k` directions miss, ``‖ΔW − ΔW_k‖ / ‖ΔW‖``.

    Parameters
    ----------
    s : (k,) Tensor
        Singular values, descending; all of them.
    k : int
        From 0 on.

    Returns
    -------
    float
        In [0, 1]; NaN for an update that is all zero.

    Examples
    --------
    >>> truncation_error(torch.tensor([4.0, 3.0]), 1)
    0.6
    """
    remainders = torch.cat([_remainders(s), torch.zeros(1, dtype=torch.float64)])
    whole = remainders[0].item()
    return remainders[min(k, len(s))].item() / whole if whole else math.nan


def _remainders(s: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Return the norm of what is left after 0, 1, … k − 1 directions."""
    # From the smallest up: subtracting from the whole would lose a small rest.
    return s.double().square().flip(0).cumsum(0).sqrt().flip(0)


def _first_to_reach(cumulative: Float[Tensor, " k"], wanted: float) -> int:
    return min(int((cumulative < wanted * (1 - _SLACK)).sum()) + 1, len(cumulative))


def _shares(weights: Float[Tensor, " k"]) -> Float[Tensor, " n"]:
    """Return the weights that are not zero, as shares of their sum; none of an all-zero row."""
    weights = weights[weights > 0]
    return weights / weights.sum()


def _perplexity(shares: Float[Tensor, " n"]) -> float:
    return torch.special.entr(shares).sum().exp().item() if len(shares) else math.nan
