"""The singular value decomposition of an update."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.errors import UpdateError
from rankscope.linalg.blocks import norm
from rankscope.linalg.certificate import turns
from rankscope.spectra.methods import Auto, Decomposition, Leading, Method, following
from rankscope.updates import Update

__all__ = ["DIRECTION_TOLERANCE", "Spectrum", "svd"]

# A direction whose singular value is below this share of the largest (or of the largest term
# that is added up to the update) is round-off: the arithmetic is float64.
DIRECTION_TOLERANCE = 1e-12


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
    gaps = values - following(values, tail)
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


def _lift(basis: Tensor | None, vectors: Tensor | None, count: int) -> Tensor:
    assert vectors is not None  # the method was asked for them
    first = vectors[:, :count]
    return (first if basis is None else basis @ first).cpu()
