"""Proof that an approximate leading subspace is the leading one: nothing large was missed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, islice

import torch
from jaxtyping import Float
from scipy.special import gammaincinv
from torch import Tensor

from rankscope.linalg.blocks import all_finite, times, times_transposed
from rankscope.linalg.krylov import draw

__all__ = [
    "FAILURE",
    "coupled_norm",
    "cut_sines",
    "remainder_bounds",
    "root_errors",
    "turns",
    "value_errors",
]

# The probability with which a bound on what remains is wrong, each time it is asked for.
FAILURE = 1e-9
_PROBES = 16
_STEPS = 48


def remainder_bounds(
    matrix: Float[Tensor, "m n"],
    left: Float[Tensor, "m c"],
    right: Float[Tensor, "n c"],
    guess: float,
    number: int,
) -> Iterator[float]:
    r"""Yield upper bounds of ``‖(I - left left.T) X (I - right right.T)‖₂``, ever closer ones.

    Random vectors G that know nothing of the subspace are passed through the Chebyshev
    polynomials :math:`T_i(C / \nu)` of what remains, C. Its largest singular value σ, with
    direction x, leaves at least :math:`T_i(\sigma / \nu) \|x^\top G\|` in the result, and
    :math:`\|x^\top G\|^2` is χ² with 16 degrees of freedom whatever C is: it falls below
    its 1e-9 quantile t once in 10⁹ draws. Hence, but for that chance,
    :math:`\sigma \le \nu \cosh(\operatorname{arcosh}(\|T_i(C / \nu) G\|_2 / \sqrt t) / i)`.

    Parameters
    ----------
    matrix : (m, n) Tensor
    left, right : (m, c), (n, c) Tensor
        Orthonormal columns; their dtype is that of the arithmetic.
    guess : float
        ν, positive: about the norm. Any value gives true bounds, a good one close bounds.
    number : int
        Which random vectors: a new number for every subspace.

    References
    ----------
    .. [1] J. Kuczyński and H. Woźniakowski, "Estimating the largest eigenvalue by the power
       and Lanczos algorithms with a random start", SIAM J. Matrix Anal. Appl. 13 (1992).

    Examples
    --------
    >>> none = torch.empty(9, 0)
    >>> *_, bound = remainder_bounds(torch.eye(9), none, none, 1.0, 1)
    >>> 1.0 <= bound < 1.1
    True
    """
    smallest = math.sqrt(2 * float(gammaincinv(_PROBES / 2, FAILURE)))
    before: Tensor | float = 0.0
    now = _without(right, draw(len(right), _PROBES, matrix, right.dtype, number))
    for step in islice(count(1), _STEPS):
        apply, basis = (times, left) if step % 2 else (times_transposed, right)
        after = _without(basis, apply(matrix, now)) * ((1 if step == 1 else 2) / guess)
        before, now = now, after if step == 1 else after - before
        yield guess * _inverse_growth(_largest(now) / smallest, step)


def coupled_norm(first: float, coupling: float, rest: float) -> float:
    """Return the norm of ``[[first, coupling], [0, rest]]``, which bounds that of such blocks.

    Examples
    --------
    >>> coupled_norm(3.0, 0.0, 2.0)
    3.0
    """
    square = first**2 + coupling**2 + rest**2
    return math.sqrt((square + math.sqrt(max(square**2 - 4 * (first * rest) ** 2, 0.0))) / 2)


def cut_sines(
    values: Float[Tensor, " c"], residuals: Float[Tensor, " c"], rest: float, k: int
) -> Float[Tensor, " k"]:
    r"""Return bounds on the sines of the largest angles between found and true directions.

    In orthonormal bases that begin with the directions found, X is

    .. math::
        \begin{pmatrix} S_1 & 0 & E_1 \\ 0 & S_2 & E_2 \\ 0 & 0 & C \end{pmatrix}

    with the first i values found in :math:`S_1`, the others in :math:`S_2` and the residuals in
    :math:`E`. The first i true directions, in three parts, and their values
    :math:`\Sigma \ge s_i` satisfy :math:`V_3 \Sigma^2 - C^\top C V_3 = (E_1^\top U_1 +
    E_2^\top U_2) \Sigma` and :math:`U_2 \Sigma^2 - S_2^2 U_2 = E_2 V_3 \Sigma`. With f =
    ``s_i / (s_i² - ‖C‖²)`` and g = ``s_i / (s_i² - s_{i+1}²)`` that bounds :math:`\|V_3\|` by
    :math:`f \|E_1\| / (1 - f g \|E_2\|^2)` and :math:`\|U_2\|` by :math:`g \|E_2\|
    \|V_3\|`, and the other side's parts are no larger. So what counts is the gap to what was
    not found; that to the next value enters in the second order only.

    Parameters
    ----------
    values : (c,) Tensor
        All singular values found, descending; ``X right = left * values``.
    residuals : (c,) Tensor
        ``‖X.T left - right * values‖`` of each.
    rest : float
        A bound on ``‖C‖₂``, all that was not found.
    k : int
        How many sines, at least 1.

    Returns
    -------
    (k,) Tensor
        Entry i bounds that of the first i + 1 directions, on both sides; infinite where
        nothing is known, for instance between equal values.

    Examples
    --------
    >>> cut_sines(torch.tensor([2.0]), torch.tensor([0.75]), 1.0, 1)  # 0.75 * 2 / (4 - 1)
    tensor([0.5000])
    """
    squares = residuals.square()
    inner = squares.cumsum(0).sqrt()[:k]
    outer = torch.cat([squares.flip(0).cumsum(0).flip(0)[1:], squares.new_zeros(1)]).sqrt()[:k]
    first, following = values[:k], torch.cat([values[1:], values.new_zeros(1)])[:k]
    near = first / (first.square() - following.square())
    far = first / (first.square() - rest**2)
    aside = near * outer
    coupled = far * aside * outer
    sines = far * inner / (1 - coupled) * (1 + aside.square()).sqrt()
    known = (first > following) & (first > rest) & (coupled < 1)
    return torch.where(known, sines, torch.inf)


def value_errors(
    values: Float[Tensor, " k"], coupling: float, remainder: float
) -> Float[Tensor, " k"]:
    """Return how far singular values move when a block is coupled to what remains.

    Parameters
    ----------
    values : (k,) Tensor
        Singular values of the block; those not above `remainder` may be off by `coupling`.
    coupling : float
        Norm of the off-diagonal block, which is that of the residuals.
    remainder : float
        Largest singular value of the other block, or a bound on it.

    References
    ----------
    .. [1] C.-K. Li and R.-C. Li, "A note on eigenvalues of perturbed Hermitian matrices",
       Linear Algebra Appl. 395 (2005).

    Examples
    --------
    >>> value_errors(torch.tensor([4.0]), 2.0, 1.0)  # 8 / (3 + sqrt(9 + 16))
    tensor([1.])
    """
    gaps = (values - remainder).clamp_min(0)
    return 2 * coupling**2 / (gaps + (gaps.square() + 4 * coupling**2).sqrt()).clamp_min(1e-300)


def root_errors(s: Float[Tensor, " k"], blur: float) -> Float[Tensor, " k"]:
    """Return the errors of values whose squares are right to `blur`.

    ``blur / (2 s)`` where s is large, and never more than ``sqrt(blur)``.

    Examples
    --------
    >>> root_errors(torch.tensor([5.0, 0.0]), 9.0)  # from 5 to sqrt(25 - 9); from 0 to sqrt(9)
    tensor([1., 3.])
    """
    squares = s.square()
    small = torch.maximum(s, (squares + blur).sqrt() - s)
    large = blur / (s + (squares - blur).clamp_min(0).sqrt()).clamp_min(1e-300)
    return torch.where(squares > blur, large, small)


def turns(gaps: Float[Tensor, " k"], error: float) -> Float[Tensor, " k"]:
    """Return the sines by which a perturbation of norm `error` turns directions, by the gap.

    Infinite where the gap is at most twice the error, and nothing is known.

    Examples
    --------
    >>> turns(torch.tensor([5.0, 2.0]), 1.0)
    tensor([0.2500,    inf])
    """
    return torch.where(gaps > 2 * error, error / (gaps - error), torch.inf)


def _without(basis: Float[Tensor, "n c"], x: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    return x - basis @ (basis.T @ x)


def _largest(x: Float[Tensor, "n k"]) -> float:
    if not all_finite(x):  # a guess far below the norm, which proves nothing
        return math.inf
    return float(torch.linalg.matrix_norm(torch.linalg.qr(x.double())[1], 2))


def _inverse_growth(growth: float, degree: int) -> float:
    """Return the argument, at least 1, at which the Chebyshev polynomial is `growth`."""
    if not math.isfinite(growth):
        return math.inf
    return math.cosh(math.acosh(max(growth, 1.0)) / degree)
