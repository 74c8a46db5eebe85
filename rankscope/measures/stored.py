"""Two stored weights, and the grids of numbers on which their formats put them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.errors import UpdateError
from rankscope.linalg.blocks import by_rows, cached_rows
from rankscope.linalg.rounding import Grid

__all__ = ["PRECISIONS", "Pair", "stored_precision"]

PRECISIONS = ("bfloat16", "float16", "float32", "float64")  # the coarsest first
_UNITS = (2.0**-149, 2.0**127)  # the powers of two that float32 holds
_FLAT = 2.0**-16  # below, the spacing of float16 is nowhere finer than bfloat16's
_OCTAVES = 20  # of the base, from the largest on, that are told apart; the rest is one
_EXPECTED = 10.0  # changes, of which a row holds none by chance in one of 20 000 cases
_SEEN = 2.0**-50  # of the largest number: below, float32 can hold no squares of a difference


def stored_precision(weight: Float[Tensor, "*shape"]) -> str:
    """Return the precision of stored numbers, as their bits show.

    A float32 file often holds numbers that were bfloat16 before: their low 16 bits are zero. A
    16-bit tensor is what it is; a wider one the first of bfloat16, float16 (with its range and
    subnormals) and float32 that represents every number exactly. Numbers below 2**-16 that both
    represent are float16, whose spacing of 2**-24 is the wider one there.

    Parameters
    ----------
    weight : Tensor

    Returns
    -------
    str
        ``bfloat16``, ``float16``, ``float32`` or ``float64``; a tensor of another dtype keeps
        its name.

    Examples
    --------
    >>> stored_precision(torch.tensor([0.5, 1.0 + 2**-7]))
    'bfloat16'
    >>> stored_precision(torch.tensor([0.5, 1.0 + 2**-10]))
    'float16'
    """
    own = str(weight.dtype).removeprefix("torch.")
    name = next((name for name in PRECISIONS if _holds(name, weight)), own)
    if name != "bfloat16" or own == name or not weight.any():
        return name
    return "float16" if _largest(weight) < _FLAT and _holds("float16", weight) else name


def _holds(name: str, weight: Tensor) -> bool:
    """Whether a format narrower than the tensor's own represents every number."""
    dtype = getattr(torch, name)
    narrower: bool = dtype.itemsize < weight.dtype.itemsize
    return narrower and torch.equal(weight.to(dtype).to(weight.dtype), weight)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two stored weights in float32 and in a common unit, and the grids on which they lie.

    The unit is a power of two near the largest number, so that no square overflows or vanishes
    and scaling both weights by a power of two changes nothing else.
    """

    tuned: Tensor
    base: Tensor
    tuned_grid: Grid
    base_grid: Grid
    unit: float

    @classmethod
    def of(cls, tuned: Tensor, base: Tensor, names: tuple[str, str]) -> Pair:
        """Return two stored weights of the named precisions.

        Raises
        ------
        UpdateError
            If a weight holds NaN or infinity.
        """
        _check_finite(tuned, base)
        largest = max(_largest(tuned), _largest(base))
        unit = 2.0 ** (math.frexp(largest)[1] - 1) if largest else 1.0
        unit = min(max(unit, _UNITS[0]), _UNITS[1])
        # All is computed in float32: float64 counts as that.
        grids = [Grid(getattr(torch, name.replace("64", "32")), unit) for name in names]
        return cls(_scaled(tuned, unit), _scaled(base, unit), grids[0], grids[1], unit)

    @cached_property
    def difference(self) -> Tensor:
        """The tuned weight less the base."""
        return by_rows(torch.sub, self.tuned, self.base)

    @cached_property
    def changed(self) -> int:
        """The number of entries that differ."""
        return int(self.difference.count_nonzero())

    @property
    def seen(self) -> bool:
        """Whether float32 can hold what differs beside the largest number of the two."""
        return _SEEN < _largest(self.difference) < math.inf

    @cached_property
    def base_on_grid(self) -> bool:
        """Whether all of the base lies there but for some tiny numbers (bfloat16's range)."""
        away = by_rows(lambda base: self.tuned_grid.rounded(base).sub_(base), self.base)
        return int(away.count_nonzero()) < 0.01 * away.numel()

    def touched(self) -> Pair:
        """Return the rows and columns that an update can have touched.

        Whether the update of a row without a change lay in a dead zone cannot be told, unless
        the other rows, octave by octave of the base, change so often that it would have.
        """
        x = self.difference
        if x.any(0).all() and x.any(1).all():
            return self
        octaves = self._octaves()
        rows, columns = _touched(x, octaves), _touched(x.T, octaves.T)
        tuned, base = (weight[rows][:, columns] for weight in (self.tuned, self.base))
        return Pair(tuned, base, self.tuned_grid, self.base_grid, self.unit)

    def _octaves(self) -> Tensor:
        """Return how many octaves of spacings each number of the base is below the largest."""
        exponents = by_rows(lambda x: torch.frexp(self.coarser(x)).exponent, self.base)
        return exponents.neg_().add_(exponents.max()).clamp_max_(_OCTAVES - 1)

    def coarser(self, base: Tensor) -> Tensor:
        """Return the spacing of some numbers of the base in the coarser of the two grids."""
        return torch.maximum(self.base_grid.spacing(base), self.tuned_grid.spacing(base))

    def deviation(self, both: bool) -> Tensor:
        """Return the standard deviation of the rounding in every entry of the difference."""
        if not both:
            return by_rows(self.tuned_grid.deviation, self.tuned)
        return by_rows(
            lambda tuned, base: self.tuned_grid.deviation(tuned).hypot_(
                self.base_grid.deviation(base)
            ),
            self.tuned,
            self.base,
        )


def _touched(difference: Tensor, octaves: Tensor) -> Tensor:
    """Return which rows an update can have touched."""
    changed = difference.any(1)
    if changed.all():
        return changed
    entries, changes = _by_octave(difference, octaves)
    rates = changes.sum(0) / entries[changed].sum(0).clamp_min(1)
    return changed | (entries @ rates < _EXPECTED)


def _by_octave(difference: Tensor, octaves: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers of entries, and of those that differ, by row and octave."""
    entries, changes = (octaves.new_zeros(len(octaves), _OCTAVES) for _ in range(2))
    for part in cached_rows(octaves):
        octave, differs = octaves[part].long(), (difference[part] != 0).float()
        entries[part].scatter_add_(1, octave, torch.ones_like(differs))
        changes[part].scatter_add_(1, octave, differs)
    return entries, changes


def _scaled(weight: Tensor, unit: float) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    return by_rows(lambda rows: rows.to(wide) / unit, weight)


def _largest(weight: Tensor) -> float:
    """Return the largest magnitude of a weight; NaN where one of its numbers is."""
    low, high = torch.aminmax(weight)
    return torch.maximum(-low, high).item()


def _check_finite(tuned: Tensor, base: Tensor) -> None:
    for name, weight in (("tuned", tuned), ("base", base)):
        if math.isfinite(_largest(weight)):
            continue
        broken = weight.numel() - int(torch.isfinite(weight).sum())
        raise UpdateError(
            "a stored weight holds numbers that are not finite",
            where=f"the {name} weight",
            expected="finite numbers",
            got=f"{broken} NaN or infinite entries of {weight.numel()}, {weight.dtype}",
            fix="float16 overflows at 65504: save the checkpoint again, as bfloat16",
        )
