"""The leading singular triplets of a large matrix, with a certificate or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.linalg.blocks import gram
from rankscope.linalg.certificate import coupled_norm, remainder_bounds, value_errors
from rankscope.linalg.krylov import Ritz, krylov, rayleigh_ritz

__all__ = ["Certified", "leading_svd"]

# From this tolerance on float32 is precise enough for the search; the result is float64.
_LOOSE = 1e-4
# Values below this share of the largest are round-off of the search.
_FLOORS = {torch.float32: 1e-5, torch.float64: 1e-12}
# What else has converged is set aside before the rest is bounded; it need not be precise.
_ASIDE = 1e-4
# The rest must be so much smaller than the last value wanted that a bound can tell them apart.
_APART = 0.97
# Convergence speeds up: so many times its present rate is hoped for.
_PATIENCE = 2.0


@dataclass(frozen=True, eq=False)
class Certified:
    """Leading singular triplets, and how far off they can be.

    Attributes
    ----------
    left, values, right : (m, k), (k,), (n, k) Tensor
        float64; columns are directions, values descend.
    tail : float
        No singular value after these is larger, but for a chance of 1e-9.
    errors : (k,) Tensor
        Bounds on the values' errors.
    cut_errors : (k,) Tensor
        Bounds on the sine of the largest angle between the first i + 1 directions found and
        the true ones, on both sides; infinite where nothing is known.
    """

    left: Float[Tensor, "m k"]
    values: Float[Tensor, " k"]
    right: Float[Tensor, "n k"]
    tail: float
    errors: Float[Tensor, " k"]
    cut_errors: Float[Tensor, " k"]


@dataclass(frozen=True, eq=False)
class _Problem:
    matrix: Float[Tensor, "m n"]
    k: int
    tolerance: float
    size: float

    @property
    def block(self) -> int:
        return 16 if self.k <= 24 else 32


def leading_svd(
    matrix: Float[Tensor, "m n"], k: int, tolerance: float, size: float
) -> Certified | None:
    """Return the first `k` singular triplets, or None where they could not be certified.

    A block Krylov space with full reorthogonalisation finds candidates. They pass if the sine
    of the largest angle between their span and the true one is at most `tolerance`: by Wedin's
    theorem that is the norm of the residuals over the gap between the k-th value and a bound
    on everything else, which random vectors unknown to the search give (`remainder_bounds`),
    or ``‖X‖_F`` where that is enough.

    Parameters
    ----------
    matrix : (m, n) Tensor
        float32 or float64, of moderate size (squares neither overflow nor vanish).
    k : int
        How many; at most a quarter of ``min(m, n)`` is ever searched.
    tolerance : float
        In (0, 1). The search is in float32 from 1e-4 on.
    size : float
        ``‖X‖_F``.

    Examples
    --------
    >>> matrix = torch.eye(256).double()
    >>> matrix[0, 0] = 4.0
    >>> leading_svd(matrix, 1, 1e-6, torch.linalg.vector_norm(matrix).item()).values.tolist()
    [4.0]
    >>> leading_svd(matrix, 2, 1e-6, torch.linalg.vector_norm(matrix).item()) is None
    True
    """
    if matrix.shape[0] < matrix.shape[1]:
        found = leading_svd(matrix.T, k, tolerance, size)
        return found and replace(found, left=found.right, right=found.left)
    problem = _Problem(matrix, k, tolerance, size)
    limit, found = matrix.shape[1] // 4, None
    if tolerance >= _LOOSE:
        narrow = matrix.float()
        found = _search(problem, narrow, krylov(narrow, problem.block, limit, torch.float32))
    if found is None:
        found = _search(problem, matrix, krylov(matrix, problem.block, limit, torch.float64))
    if found is None and limit > k:
        found = _search(problem, matrix, map(_rooted, _squared(problem, limit)))
    return found


def _squared(problem: _Problem, limit: int) -> Iterator[Ritz]:
    """Yield Krylov spaces of the Gram matrix: twice the polynomial degree for each product."""
    square = gram(problem.matrix).tril_()
    square += square.tril(-1).T
    return krylov(square, problem.block, limit, torch.float64)


def _rooted(ritz: Ritz) -> Ritz:
    roots = ritz.values.sqrt()
    residuals = ritz.residuals / roots.clamp_min(1e-300)
    return replace(ritz, values=roots, residuals=residuals)


def _search(
    problem: _Problem, searched: Float[Tensor, "m n"], spaces: Iterator[Ritz]
) -> Certified | None:
    """Return the first result that is certified, or None as soon as there is no hope for one."""
    before = None
    for ritz in spaces:
        if ritz.basis.dtype == torch.float32 and _out_of_reach(ritz, problem):
            return None
        now = (len(ritz.values), _shortfall(ritz, problem))
        if before is not None and _hopeless(before, now, ritz.room):
            return None
        before = now
        count = _aside(ritz, problem) if now[1] <= 0 else 0
        found = _certified(problem, searched, ritz, count) if count else None
        if found is not None:
            return found
    return None


def _hopeless(before: tuple[int, float], now: tuple[int, float], room: int) -> bool:
    """Whether residuals that shrink as they did will still be too large when room ends."""
    # At first residuals hardly shrink: nothing can be said of spaces that are still small.
    if not math.isfinite(before[1]) or now[1] <= 0 or now[0] < room // 2:
        return False
    rate = (before[1] - now[1]) / (now[0] - before[0])
    return rate * (room - now[0]) * _PATIENCE < now[1]


def _kept(values: Float[Tensor, " q"], k: int, dtype: torch.dtype) -> int:
    """Return how many of the first `k` values are more than round-off."""
    return int((values[:k] > _FLOORS[dtype] * values[0]).sum())


def _wanted(values: Float[Tensor, " q"], kept: int, tolerance: float) -> float:
    """Return the residual at which the directions are precise, with half of it to spare."""
    return tolerance / 2 * (values[kept - 1] - values[kept]).item()


def _out_of_reach(ritz: Ritz, problem: _Problem) -> bool:
    """Whether float32 cannot resolve what is wanted."""
    kept = _kept(ritz.values, problem.k, torch.float32)
    if kept < min(problem.k, len(ritz.values)):
        return True
    resolved = 4 * torch.finfo(torch.float32).eps * ritz.values[0].item()
    return (
        len(ritz.values) > problem.k
        and _wanted(ritz.values, problem.k, problem.tolerance) < resolved
    )


def _shortfall(ritz: Ritz, problem: _Problem) -> float:
    """Return the logarithm of the residual over what is wanted; infinite for too few values."""
    if len(ritz.values) <= problem.k:
        return math.inf
    kept = _kept(ritz.values, problem.k, ritz.basis.dtype)
    residual = torch.linalg.vector_norm(ritz.residuals[:kept]).item()
    wanted = _wanted(ritz.values, kept, problem.tolerance)
    return math.log(max(residual, 1e-300) / max(wanted, 1e-300))


def _aside(ritz: Ritz, problem: _Problem) -> int:
    """Return how many directions to set aside before the rest is bounded; 0: not yet."""
    values, residuals = ritz.values, ritz.residuals
    last = values[_kept(values, problem.k, ritz.basis.dtype) - 1]
    aside = int((residuals <= _ASIDE * last).long().cumprod(0).sum())
    count = min(max(aside, problem.k), len(values) - 1)
    return count if values[count] < _APART * last else 0


def _certified(
    problem: _Problem, searched: Float[Tensor, "m n"], ritz: Ritz, count: int
) -> Certified | None:
    left, s, right, residual = rayleigh_ritz(problem.matrix, ritz.right(count))
    dtype, k = ritz.basis.dtype, problem.k
    kept = _kept(s, k, dtype)
    inner = torch.linalg.matrix_norm(residual[:, :kept], 2).item()
    outer = torch.linalg.vector_norm(residual[:, kept:]).item()
    following = s[kept].item() if count > kept else 0.0
    slack = 2 * torch.finfo(dtype).eps * problem.size
    guess = max(ritz.values[count].item(), slack)
    bounds = remainder_bounds(searched, left.to(dtype), right.to(dtype), guess, len(ritz.values))
    for rest in chain([_frobenius(problem.size, s, residual)], bounds):
        tail = coupled_norm(following, outer, rest + slack)
        if inner <= problem.tolerance * (s[kept - 1].item() - tail):
            first = slice(0, k)
            errors = value_errors(s[:kept], inner, tail)
            return Certified(
                left[:, first],
                s[first],
                right[:, first],
                tail,
                torch.cat([errors, errors.new_full((k - kept,), tail)]),
                _cut_errors(s, residual, tail, kept, k),
            )
    return None


def _frobenius(size: float, s: Float[Tensor, " c"], residual: Float[Tensor, "n c"]) -> float:
    """Return ``‖X‖_F`` of what remains, as far as the difference of squares resolves it."""
    known = s.square().sum().item() + residual.square().sum().item()
    return math.sqrt(max(size**2 - known, 0.0) + 1e-13 * size**2)


def _cut_errors(
    s: Float[Tensor, " c"], residual: Float[Tensor, "n c"], tail: float, kept: int, k: int
) -> Float[Tensor, " k"]:
    following = torch.cat([s[1:kept], s.new_tensor([tail])])
    gaps = s[:kept] - following
    norms = residual[:, :kept].square().sum(0).cumsum(0).sqrt()
    # The spectral norm is what was asked to be small; for each cut the Frobenius norm will do.
    norms[-1] = torch.linalg.matrix_norm(residual[:, :kept], 2)
    sines = torch.where(gaps > 0, norms / gaps, torch.inf)
    return torch.cat([sines, sines.new_full((k - kept,), torch.inf)])
