r"""Where a spectrum ends and noise begins: thresholds on singular values, and shrinkage.

An m × n matrix of independent noise of standard deviation :math:`\eta` has singular values up to
the edge :math:`\eta (\sqrt m + \sqrt n)`. Where :math:`\eta` is not known it is taken from the
median singular value: as long as fewer than half of the directions carry signal, the median is
one of noise.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.linalg.edges import tracy_widom
from rankscope.linalg.marchenko import noise_median

__all__ = [
    "bulk_edge",
    "bulk_edge_rank",
    "bulk_scale",
    "entry_scale",
    "hard_threshold",
    "hard_threshold_rank",
    "hard_threshold_ratio",
    "shrunk",
]

# The median of |x| for a standard normal x.
_NORMAL_MEDIAN = 0.6744897501960817
_LEVEL = 0.999  # pure noise stays below the edge in so many of its draws


def bulk_scale(s: Float[Tensor, " k"], shape: tuple[int, int]) -> float:
    r"""Return the noise level :math:`\eta` that the median singular value tells.

    :math:`\mathrm{median}(s) / \sqrt{\max(m, n)\, \mu_\beta}` with the median
    :math:`\mu_\beta` of the Marchenko–Pastur law.

    Parameters
    ----------
    s : (k,) Tensor
        Singular values, descending; those that are not listed are zero.
    shape : (int, int)
        Of the matrix, ``(out, in)``.

    Returns
    -------
    float
        Standard deviation of the noise of one entry, in the unit of the weight; 0 where half
        of the spectrum or more is zero, as for an adapter: there is no bulk to read.

    Examples
    --------
    >>> bulk_scale(torch.tensor([5.0, 0.0, 0.0]), (3, 3))
    0.0
    """
    short, long = sorted(shape)
    padded = torch.zeros(short, dtype=torch.float64)
    padded[: len(s)] = s.double()
    upper, lower = padded[(short - 1) // 2].item(), padded[short // 2].item()
    median = (upper + lower) / 2 if lower else 0.0
    return median / math.sqrt(long * noise_median(short / long))


def entry_scale(matrix: Float[Tensor, "out in"]) -> float:
    """Return the standard deviation of the typical entry, ``median(|x|) / 0.6745``.

    Of a normal matrix the standard deviation itself; a few large entries or strong directions
    change it little.

    Examples
    --------
    >>> round(entry_scale(torch.tensor([[0.6745, -0.6745, 100.0]])), 3)
    1.0
    """
    return matrix.abs().median().item() / _NORMAL_MEDIAN


def bulk_edge(noise: float, shape: tuple[int, int]) -> float:
    r"""Return the edge of the singular values of pure noise.

    :math:`\eta (\sqrt m + \sqrt n)` with its finite-size correction: the largest singular
    value of normal noise stays below it in 999 of a thousand draws (Tracy and Widom's law,
    centred and scaled as in [1]_).

    Parameters
    ----------
    noise : float
        Standard deviation of an entry, in the unit of the weight.
    shape : (int, int)
        Of the matrix.

    References
    ----------
    .. [1] Z. Ma, "Accuracy of the Tracy–Widom limits for the extreme eigenvalues in white
       Wishart matrices", Bernoulli 18 (2012) 322.

    Examples
    --------
    >>> round(bulk_edge(1.0, (1_000_000, 1_000_000)), -1)
    2000.0
    """
    m, n = (math.sqrt(d - 0.5) for d in shape)
    spread = (m + n) * math.cbrt(1 / m + 1 / n)
    return noise * math.sqrt((m + n) ** 2 + spread * tracy_widom(_LEVEL))


def bulk_edge_rank(
    s: Float[Tensor, " k"], shape: tuple[int, int], noise: float | None = None
) -> int | None:
    """Return the number of singular values beyond the edge of their own noise.

    Parameters
    ----------
    s : (k,) Tensor
        Singular values, descending; those that are not listed are zero.
    shape : (int, int)
        Of the matrix.
    noise : float, optional
        Standard deviation of the noise of an entry; `bulk_scale` unless given.

    Returns
    -------
    int or None
        None where no noise is given and half of the spectrum is zero: there is no bulk. An
        update of few strong directions on white noise has their number, if each is well above
        ``noise * (m * n) ** 0.25``.

    Examples
    --------
    >>> bulk_edge_rank(torch.tensor([9.0, 2.0, 1.0]), (3, 3), noise=1.0)
    1
    >>> bulk_edge_rank(torch.tensor([9.0]), (3, 3)) is None
    True
    """
    noise = bulk_scale(s, shape) if noise is None else noise
    return int((s > bulk_edge(noise, shape)).sum()) if noise else None


def hard_threshold_ratio(beta: float) -> float:
    r"""Return Gavish and Donoho's :math:`\lambda_*(\beta)`, 4/√3 for a square matrix.

    Parameters
    ----------
    beta : float
        ``min(m, n) / max(m, n)``, in (0, 1].

    Examples
    --------
    >>> round(hard_threshold_ratio(1.0), 6)
    2.309401
    """
    root = math.sqrt(beta**2 + 14 * beta + 1)
    return math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + root))


def hard_threshold(noise: float, shape: tuple[int, int]) -> float:
    r"""Return the threshold below which dropping a singular value lowers the expected error.

    :math:`\lambda_*(\beta) \sqrt{\max(m, n)}\, \eta`, the optimal hard threshold of [1]_ for
    denoising in the Frobenius norm. With :math:`\eta` from `bulk_scale` it is their
    :math:`\omega(\beta)` times the median singular value, by the exact median and not by their
    cubic.

    Parameters
    ----------
    noise : float
        Standard deviation of an entry.
    shape : (int, int)
        Of the matrix.

    References
    ----------
    .. [1] M. Gavish and D. L. Donoho, "The optimal hard threshold for singular values is
       4/√3", IEEE Trans. Inf. Theory 60 (2014) 5040.

    Examples
    --------
    >>> round(hard_threshold(1.0, (3, 3)), 12)  # 4/√3 times √3
    4.0
    """
    short, long = sorted(shape)
    return hard_threshold_ratio(short / long) * math.sqrt(long) * noise


def hard_threshold_rank(
    s: Float[Tensor, " k"], shape: tuple[int, int], noise: float | None = None
) -> int | None:
    """Return the number of singular values above Gavish and Donoho's hard threshold.

    Parameters
    ----------
    s, shape, noise
        As for `bulk_edge_rank`.

    Returns
    -------
    int or None
        None where no noise is given and half of the spectrum is zero.

    Examples
    --------
    >>> hard_threshold_rank(torch.tensor([9.0, 4.1, 1.0]), (3, 3), noise=1.0)
    2
    """
    noise = bulk_scale(s, shape) if noise is None else noise
    return int((s > hard_threshold(noise, shape)).sum()) if noise else None


def shrunk(s: Float[Tensor, " k"], shape: tuple[int, int], noise: float) -> Float[Tensor, " k"]:
    r"""Return the singular values that denoise best in the Frobenius norm.

    In units of :math:`\eta \sqrt{\max(m, n)}` a value y becomes
    :math:`\sqrt{(y^2 - \beta - 1)^2 - 4\beta} / y`, and 0 up to :math:`1 + \sqrt\beta` [1]_.

    Parameters
    ----------
    s : (k,) Tensor
        Singular values of signal and noise.
    shape : (int, int)
        Of the matrix.
    noise : float
        Standard deviation of the noise of an entry; at 0 nothing is shrunk.

    References
    ----------
    .. [1] M. Gavish and D. L. Donoho, "Optimal shrinkage of singular values", IEEE Trans.
       Inf. Theory 63 (2017) 2137.

    Examples
    --------
    >>> [round(x, 12) for x in shrunk(torch.tensor([5.0, 3.0]), (4, 4), 1.0).tolist()]
    [3.0, 0.0]
    """
    s = s.double()
    short, long = (math.sqrt(d) for d in sorted(shape))
    inner, outer = noise * (long - short), noise * (long + short)
    # The square root factorised, so that no fourth power overflows.
    y = s.clamp_min(outer)
    kept = (1 - outer / y) * (1 + outer / y) * (1 - inner / y) * (1 + inner / y)
    return torch.where(s > outer, s * kept.sqrt(), 0.0)
