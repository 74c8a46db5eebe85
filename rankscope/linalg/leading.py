"""The leading singular triplets of a large matrix, with a certificate or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.linalg.certificate import (
    coupled_norm,
    cut_sines,
    remainder_bounds,
    turns,
    value_errors,
)
from rankscope.linalg.krylov import (
    Ritz,
    Space,
    Triplets,
    krylov,
    lanczos,
    power_step,
    rayleigh_ritz,
)

__all__ = ["Certified", "leading_of_square", "leading_svd"]

# Below this tolerance a search in float32 leaves too much to be made good.
_LOOSE = 1e-9
# Values below this share of the largest are round-off of the search: that in float32, that in
# float64, that of the squares.
_FLOORS = (1e-5, 1e-12, 1e-6)
# What else has converged is set aside before the rest is bounded; it need not be precise.
_ASIDE = 1e-4
# The bound on the rest comes out so much larger than the rest is.
_BLUNT = 1.01
# The steps that the bound takes are about 5 over the inverse hyperbolic cosine of the gap, and
# each costs as much as six directions do.
_STEP = 30.0
# The share of a gap that round-off may take of it.
_SMALL = 0.01
# Power steps at most, which rid the result of the search's round-off.
_POLISH = 3
# The gap, as a share of the last value wanted, without which nothing is expected.
_USUAL_GAP = 0.05
# Residuals so far below what is wanted that more of them will not help.
_ENOUGH = math.log(1e-3)
# Convergence speeds up: so many times its present rate is hoped for.
_PATIENCE = 4.0


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
    floor: float  # the share of the largest value that is round-off of the search

    def kept(self, values: Float[Tensor, " q"]) -> int:
        """Return how many of the values wanted are more than round-off."""
        return int((values[: self.k] > self.floor * values[0]).sum())

    def turned(self, values: Float[Tensor, " c"], blur: float) -> Float[Tensor, " kept"]:
        """Return the sines by which round-off, in float64 and `blur`, may turn each cut."""
        kept = self.kept(values)
        error = blur + max(self.matrix.shape) * torch.finfo(torch.float64).eps * values[0].item()
        following = torch.cat([values[1:], values.new_zeros(1)])[:kept]
        return turns(values[:kept] - following, error)


def leading_svd(
    matrix: Float[Tensor, "m n"], k: int, tolerance: float, size: float
) -> Certified | None:
    """Return the first `k` singular triplets, or None where they could not be certified.

    A block Krylov space with full reorthogonalisation finds candidates. They pass if the sine
    of the largest angle between their span and the true one is at most `tolerance`. That takes
    their residuals, the next directions that were found as well, and a bound on all else
    (`cut_sines`), which random vectors unknown to the search give (`remainder_bounds`), or
    ``‖X‖_F`` where that is enough.

    From a tolerance of 1e-9 on the search is in float32 first: its round-off is spread over all
    directions, and power steps rid the result of it. Values and residuals are those of
    `matrix` in float64; only changes between steps are computed in float32, and a bound on
    what that leaves open is counted (`power_step`). Round-off of the vectors that bound the
    rest is estimated by ``2 eps ‖X‖_F``, and float32 used only where that is below a hundredth
    of the gap: no worst case, so the certificate may be off by about that share.

    Parameters
    ----------
    matrix : (m, n) Tensor
        float32 or float64, of moderate size (squares neither overflow nor vanish).
    k : int
        How many; spaces of at most a quarter of ``min(m, n)`` are searched.
    tolerance : float
        In (0, 1).
    size : float
        ``‖X‖_F``.

    Examples
    --------
    >>> matrix = torch.eye(256).double()
    >>> matrix[0, 0] = 4.0
    >>> found = leading_svd(matrix, 1, 1e-6, torch.linalg.vector_norm(matrix).item())
    >>> round(found.values.item(), 12)
    4.0
    >>> leading_svd(matrix, 2, 1e-6, torch.linalg.vector_norm(matrix).item()) is None
    True
    """
    if matrix.shape[0] < matrix.shape[1]:
        return _turned(leading_svd(matrix.T, k, tolerance, size))
    side, block = matrix.shape[1], 16 if k <= 24 else 32
    if tolerance >= _LOOSE:
        problem = _Problem(matrix, k, tolerance, size, _FLOORS[0])
        room = min(side // 4, max(128, 6 * (k + block)))
        found, resolved = _found(problem, krylov(matrix.float(), block, room, torch.float32))
        if resolved:
            return found
    problem = _Problem(matrix, k, tolerance, size, _FLOORS[1])
    return _found(problem, krylov(matrix, block, side // 4, torch.float64))[0]


def leading_of_square(
    matrix: Float[Tensor, "m n"],
    square: Float[Tensor, "p p"],
    k: int,
    tolerance: float,
    size: float,
) -> Certified | None:
    """Return what `leading_svd` does, from the Gram matrix of the short side.

    That converges far better in the bulk of a spectrum, for larger spaces are cheap. The proof
    is the same, of `matrix` itself.

    Examples
    --------
    >>> matrix = torch.diag(torch.cat([torch.tensor([90.0, 50.0]), torch.ones(254)]))
    >>> size = torch.linalg.vector_norm(matrix).item()
    >>> found = leading_of_square(matrix, (matrix @ matrix.T).double(), 2, 1e-6, size)
    >>> [round(s, 9) for s in found.values.tolist()]
    [90.0, 50.0]
    """
    if matrix.shape[0] < matrix.shape[1]:
        return _turned(leading_of_square(matrix.T, square, k, tolerance, size))
    problem = _Problem(matrix, k, tolerance, size, _FLOORS[2])
    return _found(problem, lanczos(square, 16, matrix.shape[1] // 3))[0]


def _turned(found: Certified | None) -> Certified | None:
    return found and replace(found, left=found.right, right=found.left)


def _found(problem: _Problem, spaces: Iterator[Space]) -> tuple[Certified | None, bool]:
    """Return the first result that is certified, and whether the search resolves the values.

    None as soon as there is no hope for one.
    """
    before: tuple[int, float] = (0, math.inf)
    due: float = problem.k + 1
    for space in spaces:
        size = space.basis.shape[1]
        if size < due:
            continue
        ritz = space.ritz()
        if problem.floor > _FLOORS[1] and problem.kept(ritz.values) < problem.k:
            return None, False
        now = (size, _shortfall(ritz, problem))
        rate = (before[1] - now[1]) / (size - before[0])
        if _hopeless(rate, now, space.room):
            break
        count = _aside(ritz, problem)
        found = _certified(problem, ritz, count) if count else None
        if found is not None:
            return found, True
        if now[1] < _ENOUGH:  # precise, but not separated from what follows
            break
        before, due = now, _due(rate, now)
    return None, True


def _hopeless(rate: float, now: tuple[int, float], room: int) -> bool:
    """Whether residuals that shrink at this rate will still be too large when room ends."""
    # At first residuals hardly shrink: nothing can be said of spaces that are still small.
    if now[1] <= 0 or now[0] < room // 3:
        return False
    return rate * (room - now[0]) * _PATIENCE < now[1]


def _due(rate: float, now: tuple[int, float]) -> float:
    """Return the size at which to look again: by then, at this rate, or a fifth larger."""
    size, shortfall = now
    expected = size + max(shortfall, 0.0) / rate if 0 < rate < math.inf else math.inf
    return max(1.02 * size, min(expected, 1.2 * size))


def _shortfall(ritz: Ritz, problem: _Problem) -> float:
    """Return the logarithm of the residual over what is wanted."""
    kept = problem.kept(ritz.values)
    residual = torch.linalg.vector_norm(ritz.residuals[:kept]).item()
    wanted = problem.tolerance * _USUAL_GAP * ritz.values[kept - 1].item()
    return math.log(max(residual, 1e-300) / max(wanted, 1e-300))


def _aside(ritz: Ritz, problem: _Problem) -> int:
    """Return how many directions to set aside before the rest is bounded; 0: not yet.

    Each costs time and memory in float64, and the fewer there are, the more steps the bound
    on the rest takes.
    """
    values, residuals, kept = ritz.values, ritz.residuals, problem.kept(ritz.values)
    last = values[kept - 1].item()
    converged = int((residuals <= _ASIDE * last).long().cumprod(0).sum())
    best, count, cost = 0, problem.k, math.inf
    while count <= min(converged, len(values) - 1):
        following = values[count].item()
        sines = cut_sines(values[:count], residuals[:count], _BLUNT * following, kept)
        if sines[-1] + problem.turned(values[: count + 1], 0.0)[-1] <= problem.tolerance / 2:
            now = count + _STEP / math.acosh(last / max(following, 1e-3 * last))
            best, cost = (count, now) if now < cost else (best, cost)
        count = math.ceil(1.1 * count)
    return best


def _certified(problem: _Problem, ritz: Ritz, count: int) -> Certified | None:
    following, k = ritz.values[count].item(), problem.k
    found = _polished(problem, ritz, count)
    s, norms = found.values, _norms(found)
    kept = problem.kept(s)
    dtype, slack = _arithmetic(problem, s[kept - 1].item() - following)
    left, right = found.left.to(dtype), found.right.to(dtype)
    guess, turned = max(following, slack), problem.turned(s, found.blur)
    bounds = remainder_bounds(problem.matrix, left, right, guess, len(ritz.values))
    for rest in chain([_frobenius(problem.size, s, norms)], bounds):
        sines = cut_sines(s, norms, rest + slack, kept) + turned
        if sines[-1] <= problem.tolerance:
            tail, errors = _tail_and_errors(s, norms, rest + slack, kept)
            missing = errors.new_ones(k - kept)
            return Certified(
                found.left[:, :k],
                s[:k],
                found.right[:, :k],
                tail + found.blur,
                torch.cat([errors, tail * missing]) + found.blur,
                torch.cat([sines, torch.inf * missing]),
            )
    return None


def _norms(found: Triplets) -> Float[Tensor, " c"]:
    norms: Tensor = torch.linalg.vector_norm(found.residual, dim=0) + 2 * found.blur
    return norms


def _arithmetic(problem: _Problem, gap: float) -> tuple[torch.dtype, float]:
    """Return the dtype that tells such a gap, and what its round-off may hide."""
    for dtype in (torch.float32, torch.float64):
        slack = 2 * torch.finfo(dtype).eps * problem.size
        if slack < _SMALL * gap:
            break
    return dtype, slack


def _tail_and_errors(
    s: Float[Tensor, " c"], residuals: Float[Tensor, " c"], rest: float, kept: int
) -> tuple[float, Float[Tensor, " kept"]]:
    """Return a bound on what follows the values kept, and bounds on their errors."""
    inner, outer = (
        torch.linalg.vector_norm(part).item() for part in (residuals[:kept], residuals[kept:])
    )
    following = s[kept].item() if len(s) > kept else 0.0
    tail = coupled_norm(following, outer, rest)
    first = s[:kept]
    # Coupled to all else; where what follows may be larger than a value, it may take its place.
    errors = value_errors(first, inner, tail) + (tail - first).clamp_min(0)
    # Or all that was found coupled to the rest.
    return tail, torch.minimum(errors, value_errors(first, math.hypot(inner, outer), rest))


def _polished(problem: _Problem, ritz: Ritz, count: int) -> Triplets:
    """Return triplets after as many power steps as are wanted and help."""
    rest, before = _BLUNT * ritz.values[count].item(), math.inf
    found = rayleigh_ritz(problem.matrix, ritz.right(count))
    for _ in range(_POLISH):
        sines = cut_sines(found.values, _norms(found), rest, problem.kept(found.values))
        sine = sines[-1].item() + problem.turned(found.values, found.blur)[-1].item()
        if sine <= 0.75 * problem.tolerance or sine > before / 2:
            break
        found, before = power_step(problem.matrix, found, problem.size), sine
    return found


def _frobenius(size: float, s: Float[Tensor, " c"], norms: Float[Tensor, " c"]) -> float:
    """Return ``‖X‖_F`` of what remains, as far as the difference of squares resolves it."""
    known = s.square().sum().item() + norms.square().sum().item()
    return math.sqrt(max(size**2 - known, 0.0) + 1e-13 * size**2)
