r"""How fast a spectrum decays: a power law fitted to its tail of large values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Decay", "spectral_decay"]

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Decay:
    r"""A power law :math:`\rho(\lambda) \propto \lambda^{-\alpha}` of the energies.

    Attributes
    ----------
    exponent : float
        :math:`\alpha > 1`; NaN where there is no tail to fit.
    distance : float
        Kolmogorov and Smirnov's: the largest difference between the fitted and the found
        distribution of the tail, in [0, 1]. About 0.01 for a true power law of a thousand
        values, 0.1 where there is none, as in pure noise.
    tail : int
        How many singular values were fitted; 0 where there is no tail.
    error : float
        Standard error of the exponent, :math:`(\alpha - 1) / \sqrt{tail}`.
    """

    exponent: float
    distance: float
    tail: int
    error: float


def spectral_decay(s: Float[Tensor, " k"]) -> Decay:
    r"""Fit a power law to the energies :math:`\lambda = s^2`, by the rule of Clauset et al.

    For a tail of the n largest energies, down to :math:`\lambda_n`, the exponent of the
    highest likelihood is :math:`1 + n / \sum_{i \le n} \ln(\lambda_i / \lambda_n)`. Of all
    tails the one is taken whose fit has the smallest distance. Singular values that fall as
    :math:`k^{-p}` have an exponent near :math:`1 + 1 / 2p`: slower decay, larger exponent.

    Parameters
    ----------
    s : (k,) Tensor
        Singular values, descending; those that are zero are left out.

    Returns
    -------
    Decay
        A number comes out whatever the spectrum: read it with its distance and its tail.
        Undefined where no two singular values differ.

    References
    ----------
    .. [1] A. Clauset, C. R. Shalizi and M. E. J. Newman, "Power-law distributions in empirical
       data", SIAM Review 51 (2009) 661.

    Examples
    --------
    >>> import torch
    >>> decay = spectral_decay(1 / torch.arange(1, 5001, dtype=torch.float64))
    >>> round(decay.exponent, 1)
    1.5
    """
    logs = 2 * np.log(s[s > 0].double().numpy())
    # A tail ends between two different values: of equal ones all belong to it, or none.
    ends = [n for n in range(2, len(logs) + 1) if n == len(logs) or logs[n - 1] > logs[n]]
    fits = [_fit(logs[:n] - logs[n - 1]) for n in ends if logs[0] > logs[n - 1]]
    return min(fits, key=lambda fit: fit.distance, default=Decay(math.nan, math.nan, 0, math.nan))


def _fit(logs: _Array) -> Decay:
    """Return the fit to one tail, given as the logs of λ over its smallest, descending."""
    n = len(logs)
    steepness = n / float(logs.sum())
    above = np.exp(-steepness * logs)  # the share of the law beyond each value
    ranks = np.arange(n + 1) / n
    distance = max(np.abs(above - ranks[1:]).max(), np.abs(above - ranks[:-1]).max())
    return Decay(1 + steepness, float(distance), n, steepness / math.sqrt(n))
