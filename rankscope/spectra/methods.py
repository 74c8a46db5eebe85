"""How a matrix is decomposed: methods that are values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.errors import UpdateError
from rankscope.linalg.blocks import gram, mirror
from rankscope.linalg.certificate import root_errors, turns
from rankscope.linalg.leading import leading_of_square, leading_svd
from rankscope.linalg.svd import gram_svd, gram_values, thin_svd, thin_values

__all__ = ["Auto", "Decomposition", "Exact", "Gram", "Leading", "Method", "following"]


@dataclass(frozen=True, eq=False)
class Decomposition:
    """What a method found of a matrix, and how far off it can be.

    Attributes
    ----------
    values : (k,) Tensor
        Singular values, descending.
    left, right : (p, k), (q, k) Tensor or None
        Directions, where they were asked for.
    tail : float
        The next singular value, or a bound on it; 0 where there is none.
    method : str
        ``exact``, ``gram`` or ``leading``.
    errors : (k,) Tensor
        What the method adds to the absolute error of float64.
    cut_errors : (k,) Tensor
        What it adds to the sines of `Spectrum.cut_errors`.
    floor : float
        The singular value up to which all is the method's own round-off.
    notes : tuple of str
        What should be known of how it was found.
    """

    values: Float[Tensor, " k"]
    left: Float[Tensor, "p k"] | None
    right: Float[Tensor, "q k"] | None
    tail: float
    method: str
    errors: Float[Tensor, " k"]
    cut_errors: Float[Tensor, " k"]
    floor: float = 0.0
    notes: tuple[str, ...] = ()


class Method(Protocol):
    """How the core of an update is decomposed."""

    def decompose(
        self, core: Float[Tensor, "p q"], k: int | None, size: float, *, vectors: bool
    ) -> Decomposition:
        """Return the first `k` singular values, all of them where it is None.

        `core` is finite, float32 or float64, neither huge nor tiny, and of norm `size`.
        """


@dataclass(frozen=True)
class Exact:
    """LAPACK's divide and conquer in float64: error ``max(out, in) * eps * s[0]``.

    About 25 seconds at 4096 x 4096 with vectors. Where it does not converge, the slower QR
    iteration takes over.
    """

    def decompose(
        self, core: Float[Tensor, "p q"], k: int | None, size: float, *, vectors: bool
    ) -> Decomposition:
        """Return the decomposition by `thin_svd`."""
        left, s, right = thin_svd(core) if vectors else (None, thin_values(core), None)
        values, tail = _cut(s, k)
        nothing = torch.zeros_like(values)
        return Decomposition(
            values, _first(left, k), _first(right, k), tail, "exact", nothing, nothing
        )


@dataclass(frozen=True)
class Gram:
    """Eigenvalues of the float64 Gram matrix of the short side.

    Their error is ``e = max(out, in) * eps * s[0]**2``; that of a singular value s is hence
    ``e / (2 s)`` where s is large, and ``sqrt(e)``, that is 1e-6 of ``s[0]`` for 4096 x 4096,
    where it is not: below that no direction is told from round-off, and a numerical rank
    cannot be read off. Four to fifteen times faster than `Exact` on large matrices.
    """

    def decompose(
        self, core: Float[Tensor, "p q"], k: int | None, size: float, *, vectors: bool
    ) -> Decomposition:
        """Return the decomposition by `gram_svd`."""
        return self.of_square(core, None, k, vectors=vectors)

    def of_square(
        self,
        core: Float[Tensor, "p q"],
        square: Float[Tensor, "n n"] | None,
        k: int | None,
        *,
        vectors: bool,
    ) -> Decomposition:
        """Return the decomposition, from the short side's Gram matrix where that is known."""
        left, s, right = gram_svd(core, k, square) if vectors else (None, gram_values(core), None)
        values, tail = _cut(s, k)
        largest = values[0].item() if len(values) else 0.0
        blur = max(core.shape) * torch.finfo(torch.float64).eps * largest**2
        return Decomposition(
            values,
            _first(left, k),
            _first(right, k),
            math.hypot(tail, math.sqrt(blur)) if len(s) > len(values) else 0.0,
            "gram",
            root_errors(values, blur),
            turns(values.square() - following(values, tail).square(), blur),
            floor=math.sqrt(blur),
        )


@dataclass(frozen=True)
class Leading:
    """The first `k` directions by a block Krylov space, certified or not at all.

    They count only with proof that the sine of the largest angle between their span and the
    true one is at most `tolerance`: their residuals, over the gap between the k-th singular
    value and a bound on all others, which random vectors that know nothing of the search give.
    (The bound fails once in 10⁹ times; a randomised subspace without one looks plausible and
    is wrong wherever the spectrum has a bulk.) Errors of the values are of second order in
    that sine. The round-off of the arithmetic is added to both as an estimate, not a bound;
    it is at most a hundredth of the gap where float32 is used, and float64 is used elsewhere.

    Where a space of the matrix finds no proof, one of its float64 Gram matrix goes on, up to a
    third of the short side; where that finds none either, because the values are not separated
    at `k`, `Gram` takes over and a note says so.

    Parameters
    ----------
    k : int
        At least 1. Worthwhile up to about an eighth of the short side.
    tolerance : float
        In (0, 1). From 1e-9 on the search is in float32 first, which is twice as fast; the
        values and residuals are those of the original matrix in float64, but for changes so
        small that float32 tells them precisely enough, and what that leaves open is counted.
    """

    k: int
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 < self.tolerance < 1:
            raise UpdateError(
                "these leading directions cannot be asked for",
                where="Leading(k, tolerance)",
                expected="k of at least 1 and a tolerance between 0 and 1",
                got=f"k = {self.k}, tolerance = {self.tolerance}",
                fix="ask for at least one direction; 1e-6 is a good tolerance",
            )

    def decompose(
        self, core: Float[Tensor, "p q"], k: int | None, size: float, *, vectors: bool
    ) -> Decomposition:
        """Return the decomposition by `leading_svd`, or by `Gram` where that has none."""
        k = k or self.k
        found = leading_svd(core, k, self.tolerance, size)
        if found is None:
            square = mirror(gram(_tall(core)))
            found = leading_of_square(core, square, k, self.tolerance, size)
        if found is None:
            note = f"not separated at k = {k} as far as was searched: computed in full"
            return replace(Gram().of_square(core, square, k, vectors=vectors), notes=(note,))
        return Decomposition(
            found.values,
            found.left if vectors else None,
            found.right if vectors else None,
            found.tail,
            "leading",
            found.errors,
            found.cut_errors,
        )


@dataclass(frozen=True)
class Auto:
    """`Exact` up to a short side of `limit`; above, `Leading` for a few directions, or `Gram`.

    A few are at most an eighth of the short side. A factored update has a core of its
    adapter's rank and is always small; the rule matters for dense updates, where `Exact` takes
    about 25 seconds at 4096 x 4096.
    """

    limit: int = 1024

    def decompose(
        self, core: Float[Tensor, "p q"], k: int | None, size: float, *, vectors: bool
    ) -> Decomposition:
        """Return the decomposition by the method that the short side and `k` select."""
        side = min(core.shape)
        method: Method = Exact()
        if side > self.limit:
            method = Leading(k) if k is not None and 8 * k <= side else Gram()
        return method.decompose(core, k, size, vectors=vectors)


def _tall(core: Float[Tensor, "p q"]) -> Float[Tensor, "m n"]:
    return core if core.shape[0] >= core.shape[1] else core.T


def _cut(s: Float[Tensor, " n"], k: int | None) -> tuple[Float[Tensor, " k"], float]:
    """Return the first `k` values and the next one, 0 if there is none."""
    values = s[:k]
    return values, s[len(values)].item() if len(s) > len(values) else 0.0


def _first(vectors: Tensor | None, k: int | None) -> Tensor | None:
    return None if vectors is None else vectors[:, :k]


def following(values: Float[Tensor, " k"], tail: float) -> Float[Tensor, " k"]:
    """Return what comes after each value: the next one, or `tail` after the last.

    Examples
    --------
    >>> following(torch.tensor([3.0, 2.0]), 1.0)
    tensor([2., 1.])
    """
    return torch.cat([values[1:], values.new_full((min(len(values), 1),), tail)])
