"""The singular value decomposition of an update, by methods that are values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.errors import UpdateError
from rankscope.linalg.blocks import gram, mirror, norm
from rankscope.linalg.certificate import root_errors, turns
from rankscope.linalg.leading import leading_of_square, leading_svd
from rankscope.linalg.svd import gram_svd, gram_values, thin_svd, thin_values
from rankscope.updates import Update

__all__ = [
    "DIRECTION_TOLERANCE",
    "Auto",
    "Decomposition",
    "Exact",
    "Gram",
    "Leading",
    "Method",
    "Spectrum",
    "svd",
]

# A direction whose singular value is below this share of the largest (or of the largest term
# that is added up to the update) is round-off: the arithmetic is float64.
DIRECTION_TOLERANCE = 1e-12


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
            turns(values.square() - _following(values, tail).square(), blur),
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
    that sine. Where there is no proof, because the values are not separated at `k` or the
    search came to its end at a quarter of the short side, `Gram` takes over and a note says so.

    Parameters
    ----------
    k : int
        At least 1. Worthwhile up to about an eighth of the short side.
    tolerance : float
        In (0, 1). From 1e-4 on the search is in float32, which is twice as fast; the
        values and the proof are those of the original matrix in float64 in any case.
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


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of an update, and its directions.

    Parameters
    ----------
    values : (k,) Tensor
        Singular values, descending, float64, in the unit of the weight.
    left : (out, k) Tensor or None
        Directions on the output side, one per column; signs are arbitrary.
    right : (in, k) Tensor or None
        Directions on the input side.
    energy : float
        ``‖ΔW‖_F²``, exact also where `values` holds only the first `k`.
    shape : (int, int)
        ``(out, in)`` of the update.
    ceiling : int
        The largest number of singular values that can differ from zero.
    method : str
        What computed it: ``exact``, ``gram`` or ``leading``.
    error_bound : float
        Absolute error of the worst of `values`, in the unit of the weight: for ``exact``
        ``max(out, in) * eps`` of the largest singular value, or of the largest term where the
        terms of a factored update cancel, and what was rounded when ΔW was formed.
    floor : float
        The singular value up to which a direction is taken for round-off.
    errors : (k,) Tensor
        Absolute error of each value.
    tail : float
        The next singular value, or a bound on it; 0 where `values` holds all.
    cut_errors : (k,) Tensor
        Entry i bounds the sine of the largest angle between the first i + 1 directions and the
        true ones; 1 where the cut lies between values that are not told apart.
    notes : tuple of str
        What should be known of how it was found.
    """

    values: Float[Tensor, " k"]
    left: Float[Tensor, "out k"] | None
    right: Float[Tensor, "in k"] | None
    energy: float
    shape: tuple[int, int]
    ceiling: int
    method: str
    error_bound: float
    floor: float
    errors: Float[Tensor, " k"]
    tail: float
    cut_errors: Float[Tensor, " k"]
    notes: tuple[str, ...] = ()

    @property
    def directions(self) -> int:
        """The number of directions that carry anything: ``s > 1e-12 * s[0]``.

        Where terms of the update cancel, or the method's error is larger, that error counts.
        """
        return int((self.values > self.floor).sum())


def svd(
    update: Update, k: int | None = None, method: Method | None = None, *, vectors: bool = True
) -> Spectrum:
    """Return the singular value decomposition of an update.

    A factored update is never multiplied out: its factors are upcast to float64, two thin QRs
    leave an r x r core, and the core is decomposed. Singular values of graded or balanced
    factors are right to about 1e-14 relative, however small; in any other gauge the error is
    absolute, about ``eps * s[0]``.

    Parameters
    ----------
    update : Update
        A `FactoredUpdate` or `DenseUpdate`; finite.
    k : int, optional
        Keep the first `k` singular values and directions; all of them unless given. Values
        beyond `ceiling` are exactly zero and are never listed.
    method : Method, optional
        `Exact`, `Gram`, `Leading` or `Auto` (the default).
    vectors : bool
        Whether to return the directions.

    Returns
    -------
    Spectrum
        On the CPU. An all-zero update has zero singular values.

    Raises
    ------
    UpdateError
        If the update holds NaN or infinity, or `k` is below 1.

    Examples
    --------
    >>> from rankscope.updates import FactoredUpdate
    >>> spectrum = svd(FactoredUpdate(torch.eye(3)[:, :2], torch.diag(torch.tensor([3.0, 4.0]))))
    >>> [round(s, 12) for s in spectrum.values.tolist()]
    [4.0, 3.0]
    """
    _check_count(k)
    if isinstance(method, Leading):
        k = min(method.k, k or method.k)
    left_basis, core, right_basis = update.compress()
    size, unit, scaled = norm(core), 1.0, core
    # Nearly always the norm alone tells that no square overflows or vanishes.
    if not 1e-10 * math.sqrt(core.numel()) < size < 1e10:
        unit = _unit(core)
        scaled = core if unit == 1.0 else core * (1 / unit)
        size = norm(scaled)
    count = min(update.ceiling, k or update.ceiling)
    if size:
        found = (method or Auto()).decompose(scaled, k, size, vectors=vectors)
    else:
        found = _nothing(core, count)
    count = min(count, len(found.values))
    values = found.values[:count].cpu() * unit
    tail = found.tail * unit if count == len(found.values) else found.values[count].item() * unit
    largest = max(values[0].item() if count else 0.0, update.term_size())
    blur = max(update.shape) * torch.finfo(torch.float64).eps * largest + update.rounding
    errors = found.errors[:count].cpu() * unit + blur
    gaps = values - _following(values, tail)
    return Spectrum(
        values=values,
        left=_lift(left_basis, found.left, count) if vectors else None,
        right=_lift(right_basis, found.right, count) if vectors else None,
        energy=(size * unit) * (size * unit),
        shape=update.shape,
        ceiling=update.ceiling,
        method=found.method,
        error_bound=errors.max().item() if count else blur,
        floor=max(DIRECTION_TOLERANCE * largest, found.floor * unit, update.rounding),
        errors=errors,
        tail=tail,
        cut_errors=(found.cut_errors[:count].cpu() + turns(gaps, blur)).clamp_max(1.0),
        notes=found.notes,
    )


def _check_count(k: int | None) -> None:
    if k is not None and k < 1:
        raise UpdateError(
            "no direction was asked for",
            where="svd(update, k)",
            expected="k of at least 1",
            got=str(k),
            fix="leave k out for all directions",
        )


def _unit(core: Float[Tensor, "p q"]) -> float:
    """Return the power of two in which no square overflows or vanishes; mostly 1."""
    if not core.numel():
        return 1.0
    low, high = torch.aminmax(core)
    largest = max(-low.item(), high.item())
    if not math.isfinite(largest):
        _refuse(core)
    if not largest or 1e-10 < largest < 1e10:
        return 1.0
    most = 120 if core.dtype == torch.float32 else 1000  # its inverse is to be finite as well
    return math.ldexp(1.0, max(-most, min(most, math.frexp(largest)[1])))


def _refuse(core: Float[Tensor, "p q"]) -> None:
    broken = int((~torch.isfinite(core)).sum())
    raise UpdateError(
        "the update holds numbers that are not finite",
        where="ΔW",
        expected="finite numbers",
        got=f"{broken} NaN or infinite entries in its {tuple(core.shape)} core",
        fix="train or save the adapter again; such a model returns NaN",
    )


def _nothing(core: Float[Tensor, "p q"], count: int) -> Decomposition:
    """Return the decomposition of a matrix that is all zero."""
    p, q = core.shape
    none = core.new_zeros(count, dtype=torch.float64)
    left, right = (torch.eye(n, count, dtype=torch.float64, device=core.device) for n in (p, q))
    return Decomposition(none, left, right, 0.0, "exact", none, none)


def _tall(core: Float[Tensor, "p q"]) -> Float[Tensor, "m n"]:
    return core if core.shape[0] >= core.shape[1] else core.T


def _cut(s: Float[Tensor, " n"], k: int | None) -> tuple[Float[Tensor, " k"], float]:
    """Return the first `k` values and the next one, 0 if there is none."""
    values = s[:k]
    return values, s[len(values)].item() if len(s) > len(values) else 0.0


def _first(vectors: Tensor | None, k: int | None) -> Tensor | None:
    return None if vectors is None else vectors[:, :k]


def _following(values: Float[Tensor, " k"], tail: float) -> Float[Tensor, " k"]:
    """Return what comes after each value."""
    return torch.cat([values[1:], values.new_full((min(len(values), 1),), tail)])


def _lift(basis: Tensor | None, vectors: Tensor | None, count: int) -> Tensor:
    assert vectors is not None  # the method was asked for them
    first = vectors[:, :count]
    return (first if basis is None else basis @ first).cpu()
