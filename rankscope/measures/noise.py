r"""Storage noise: how much of the difference of two checkpoints is rounding.

A checkpoint in bfloat16 or float16 holds every weight :math:`w` as the nearest point of a grid
of spacing :math:`\mathrm{ulp}(w)`, with an error of variance :math:`\mathrm{ulp}(w)^2 / 12`.
The difference X of two checkpoints holds such errors in one of two ways:

* **from the stored base**: training began at the stored numbers and only the tuned file was
  rounded, :math:`X = \mathrm{RN}(W_0 + Δ) - W_0`. Where the base lies on the grid of the tuned
  file this is a *dead zone*: an entry changes only if :math:`|Δ|` exceeds half a spacing. Small
  updates are attenuated, and for very low ranks the rounding is itself a pattern of low rank.
* **both rounded** from finer originals: an independent error in each file, nothing attenuated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from rankscope.errors import UpdateError
from rankscope.linalg.rounding import (
    leading,
    own_generator,
    rounded,
    rounding_variance,
    spectral_norm,
    ulp,
)
from rankscope.linalg.surrogates import Leading, noise_edge
from rankscope.spectra import Spectrum, svd
from rankscope.updates import DenseUpdate

__all__ = ["StorageNoise", "rank_above_noise", "storage_noise", "stored_precision"]

_PRECISIONS = ("bfloat16", "float16", "float32", "float64")  # the coarsest first
_SAMPLE = 2**15  # entries on which the two ways are told apart
_DOMINANT = 9.0  # ‖ΔW‖² in floors, above which its leading directions are taken off before that
_COHERENT_UP_TO = 64  # the rank above which rounding leaves no pattern
_COHERENT = 1.2  # the largest ratio of a measured singular value to a re-rounded one
_CORRECTIONS = 2


@dataclass(frozen=True)
class StorageNoise:
    """What the storage of two checkpoints leaves in their difference X.

    Parameters
    ----------
    tuned_dtype, base_dtype : str
        The precision of each file, as its bits show.
    dtype : str
        The coarser of the two.
    edge : float
        The largest singular value that unstructured rounding gives, in the unit of the weight;
        a rounding exceeds it in less than 1 % of cases.
    floor : float
        ``‖rounding‖_F`` if every entry is rounded; in a dead zone less is.
    unchanged : float
        Fraction of the entries that are exactly equal, in [0, 1].
    share : float
        Predicted share of ``‖X‖²`` that is rounding: one minus the squared correlation of X
        with the true update, in [0, 1]. NaN where nothing changed.
    gain : float
        Predicted ``⟨Δ, X⟩ / ‖Δ‖²`` with the true update Δ: 1 without a dead zone, where
        nothing is lost. NaN where nothing changed.
    on_grid : bool
        Whether the tuned weights were rounded from the stored base plus an update, and that
        base lies on their grid. If not, the base is finer than the grid, or both files were
        rounded from finer originals.
    dead_zone : bool
        Whether the grid swallowed more than 1 % of the update.
    """

    tuned_dtype: str
    base_dtype: str
    dtype: str
    edge: float
    floor: float
    unchanged: float
    share: float
    gain: float
    on_grid: bool
    dead_zone: bool


def stored_precision(weight: Float[Tensor, "*shape"]) -> str:
    """Return the precision of stored numbers, as their bits show.

    A float32 file often holds numbers that were bfloat16 before: their low 16 bits are zero. A
    16-bit tensor is what it is; a wider one the first of bfloat16, float16 (with its range and
    subnormals) and float32 that represents every number exactly.

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
    for name in _PRECISIONS:
        narrower = getattr(torch, name).itemsize < weight.dtype.itemsize
        if narrower and torch.equal(weight.to(getattr(torch, name)).to(weight.dtype), weight):
            return name
    return own


def storage_noise(
    tuned: Float[Tensor, "out in"], base: Float[Tensor, "out in"], *, seed: int = 0
) -> StorageNoise | None:
    """Return what storage leaves in the difference of two stored weights.

    Parameters
    ----------
    tuned, base : (out, in) Tensor
        As they were stored, in any floating dtype; finite.
    seed : int
        Of the surrogates: an edge varies with it by some tenths of a percent.

    Returns
    -------
    StorageNoise or None
        None where both are float32 or float64 by their bits. Their rounding is smaller than
        that of bfloat16 by 2**16: it matters below ``‖ΔW‖ / ‖W‖`` of 1e-6. Nor is that of a
        format of 8 bits modelled.

    Raises
    ------
    UpdateError
        If a weight holds NaN or infinity (a float16 overflow).

    Notes
    -----
    *Edge.* `rankscope.linalg.surrogates.noise_edge`: of uniform errors with the variance
    ``ulp² / 12`` of every entry, or of X with random signs where that is less. In a dead zone most
    entries carry no error, and two files rounded from like originals share theirs: the first
    alone would be up to ten times too high.

    *Which way.* Both ways are acted out on a sample of the entries, with an update of Gaussian
    entries, or of products of two (rank one), beside what of X is too large for rounding. The
    one is taken whose energy and share of changed entries come nearest, octave by octave of the
    base: in a dead zone large weights do not change, in the other way they change the most.
    Share and gain are those of that act. An update of full rank that dwarfs the rounding leaves
    the way open, and with it a factor of two in the share, which is then small, and of √2 in
    the edge.

    Examples
    --------
    Every second entry moves by one spacing (2**-7 at 1) of bfloat16:

    >>> base = torch.ones(4, 4, dtype=torch.bfloat16)
    >>> tuned = base + 2**-7 * (torch.arange(4) % 2)
    >>> noise = storage_noise(tuned, base)
    >>> noise.dtype, noise.base_dtype, noise.unchanged
    ('bfloat16', 'bfloat16', 0.5)
    """
    names = stored_precision(tuned), stored_precision(base)
    coarse = [name for name in _PRECISIONS[:2] if name in names]
    if not coarse or not tuned.numel() or set(names).difference(_PRECISIONS):
        return None
    _check_finite(tuned, base)
    pair = _Pair(tuned.float(), base.float(), *(_grid(name) for name in names))
    found = Leading(pair.difference, seed)
    act = _likelier(pair, found, seed)
    variance = pair.variance(act.both)
    on_grid = not act.both and pair.base_on_grid
    return StorageNoise(
        tuned_dtype=names[0],
        base_dtype=names[1],
        dtype=coarse[0],
        edge=noise_edge(found, variance, seed=seed),
        floor=variance.double().sum().sqrt().item(),
        unchanged=(pair.difference == 0).double().mean().item(),
        share=act.share,
        gain=act.gain if on_grid or math.isnan(act.gain) else 1.0,
        on_grid=on_grid,
        dead_zone=on_grid and act.gain < 0.99,
    )


def rank_above_noise(
    spectrum: Spectrum,
    tuned: Float[Tensor, "out in"],
    base: Float[Tensor, "out in"],
    noise: StorageNoise,
    *,
    seed: int = 0,
) -> int:
    """Return the number of directions of a difference that its storage does not explain.

    Parameters
    ----------
    spectrum : Spectrum
        Of ``tuned - base``; the leading values are enough, and vectors are not needed.
    tuned, base : (out, in) Tensor
        As they were stored.
    noise : StorageNoise
        `storage_noise` of the two.
    seed : int
        Of the random starts.

    Returns
    -------
    int
        Never more than the number of singular values above ``noise.edge``; 0 where all is
        below the noise.

    Notes
    -----
    Of an update that was rounded on the grid of its base, a rank k is enough if k directions,
    added to the base and rounded again, leave a (k+1)th singular value within 1.2 of the one
    measured; up to the true rank the ratio is 3 and more. The k directions are those of X,
    corrected twice for what rounding takes from them, :math:`Δ ← P_k[Δ + (X - R(Δ)) / g]` with
    the gain :math:`g = ⟨Δ, R(Δ)⟩ / ‖Δ‖²`: without, the ratio at the true rank would be up to
    1.4 where the gain is 0.6, and 2 where it is 0.2.

    Examples
    --------
    >>> base = torch.ones(4, 4, dtype=torch.bfloat16)
    >>> tuned = base + torch.eye(4).bfloat16() / 2
    >>> difference = DenseUpdate(tuned.float() - base.float())
    >>> rank_above_noise(svd(difference), tuned, base, storage_noise(tuned, base))
    4
    """
    pair = _Pair(tuned.float(), base.float(), _grid(noise.tuned_dtype), _grid(noise.base_dtype))
    if len(spectrum.values) < min(tuned.shape) and spectrum.values[-1] > noise.edge:
        spectrum = svd(DenseUpdate(tuned.double() - base.double()), vectors=False)
    values = spectrum.values
    above = int((values > max(noise.edge, spectrum.floor)).sum())
    highest = min(above - 1, _COHERENT_UP_TO)
    if not noise.on_grid or highest < 1:
        return above
    _, right = leading(pair.difference, highest, seed=seed)

    def enough(k: int) -> bool:
        return _enough(k, values, pair, right[:, :k], seed)

    if not enough(highest):
        return above
    low, high = 1, 1
    while not enough(high):  # small ranks are both the likely and the cheap ones
        low, high = high + 1, min(2 * high, highest)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


@dataclass(frozen=True)
class _Pair:
    """Two stored weights in float32, and the grids on which they lie."""

    tuned: Tensor
    base: Tensor
    tuned_grid: torch.dtype
    base_grid: torch.dtype

    @property
    def difference(self) -> Tensor:
        return self.tuned - self.base

    @property
    def base_on_grid(self) -> bool:
        """Whether all of the base lies there but for some tiny numbers (bfloat16's range)."""
        on_grid = rounded(self.base, self.tuned_grid) == self.base
        return on_grid.double().mean().item() > 0.99

    def variance(self, both: bool) -> Tensor:
        """Return the variance of the rounding in every entry of the difference."""
        variance = rounding_variance(self.tuned, self.tuned_grid)
        return variance + rounding_variance(self.base, self.base_grid) if both else variance


@dataclass(frozen=True)
class _Act:
    """One way of storage, acted out: how far it is from what is seen, and what it does."""

    both: bool
    distance: float
    gain: float
    share: float


def _likelier(pair: _Pair, found: Leading, seed: int) -> _Act:
    """Act out both ways and return the one that is nearer to what is seen."""
    x = pair.difference
    if not x.any():
        return _Act(False, 0.0, math.nan, math.nan)
    sample = _Sample(pair, found, _certain(pair, found), seed)
    # That the base was rounded as well makes no difference where it was so finely.
    ways = (False,) if pair.base_grid.itemsize > 2 else (False, True)
    acts = [sample.act(unit, both=both) for both in ways for unit in sample.shapes]
    return min(acts, key=lambda act: act.distance)


def _certain(pair: _Pair, found: Leading) -> int:
    """Return how many directions of a large difference are no rounding in either way."""
    variance = pair.variance(both=True)
    if pair.difference.square().sum() <= _DOMINANT * variance.sum():
        return 0
    # No matrix of independent entries with these variances has a larger norm.
    bound = variance.sum(0).max().sqrt() + variance.sum(1).max().sqrt()
    return found.above(bound.item())


class _Sample:
    """Some entries of a pair, on which storage is acted out."""

    def __init__(self, pair: _Pair, found: Leading, certain: int, seed: int) -> None:
        generator = own_generator(seed, 1)
        device, size = pair.base.device, pair.base.numel()
        chosen = torch.randint(size, (_SAMPLE,), generator=generator).to(device)
        entries = (pair.base, pair.difference, found.part(certain), found.rest(certain))
        self.base, x, self.known, rest = (of.flatten()[chosen] for of in entries)
        self.grid = pair.tuned_grid
        spacing = ulp(self.base, pair.base_grid)
        coarser = torch.maximum(spacing, ulp(self.base, self.grid))
        octaves, self.octave = torch.unique(coarser.double(), return_inverse=True)
        self.count, self.variance = torch.bincount(self.octave).double(), octaves.square() / 12
        self.energy = self._mean(rest.square())
        self.changed = self._mean(x != 0)
        first, second = (torch.randn(_SAMPLE, generator=generator).to(device) for _ in range(2))
        self.shapes = (first, first * second)  # entries of a high rank, and of rank one
        dither = (torch.rand(_SAMPLE, generator=generator) - 0.5).to(device)
        finer = self.base + spacing * dither
        # Below a power of two the spacing is half of that above.
        self.finer = torch.where(rounded(finer, pair.base_grid) == self.base, finer, self.base)

    def act(self, unit: Tensor, *, both: bool) -> _Act:
        """Round the base plus an update of one shape, of the size that comes nearest."""
        origin = self.finer if both else self.base

        def stored(size: float) -> Tensor:
            return rounded(origin + self.known + size * unit, self.grid) - self.base

        size = self._nearest(lambda size: self._distance(stored(size)))
        update, result = self.known + size * unit, stored(size)
        product, energy = (update.double() * result).sum().item(), _energy(update)
        gain = product / energy if energy else 1.0
        correlation = gain * math.sqrt(energy / _energy(result)) if result.any() else 0.0
        return _Act(
            both,
            self._distance(result),
            1.0 if both else min(max(gain, 0.0), 1.0),
            min(max(1 - correlation**2, 0.0), 1.0),
        )

    def _nearest(self, distance: Callable[[float], float]) -> float:
        """Return the size of least distance, to a percent: a factor of two, then within it."""
        unit = ((self.count * self.energy).sum() / _SAMPLE).sqrt().item()
        sizes = [0.0, *(unit * 2.0**power for power in range(-12, 5))]
        best = min(sizes, key=distance)
        if not best:
            return best
        around = (math.log(best / 2), math.log(best * 2))
        found = minimize_scalar(
            lambda log: distance(math.exp(log)), bounds=around, options={"xatol": 0.01}
        )
        return math.exp(found.x)

    def _distance(self, result: Tensor) -> float:
        """Return how far a result is from what is seen, octave by octave, in entries."""
        energy = self._mean((result - self.known).square())
        difference = energy.sqrt() - self.energy.sqrt()
        changed = self._mean(result != 0).sqrt() - self.changed.sqrt()
        # In spacings where an octave is coarse, relative where it is fine; bounded, since the
        # finest octaves are few entries.
        scale = self.variance + self.energy + energy
        distance = difference.square() / scale + changed.square()
        return float((self.count * distance).sum())

    def _mean(self, entries: Tensor) -> Tensor:
        """Return the mean over each octave of the base."""
        return torch.bincount(self.octave, entries.double()) / self.count


def _energy(x: Tensor) -> float:
    return x.double().square().sum().item()


def _enough(k: int, values: Tensor, pair: _Pair, right: Tensor, seed: int) -> bool:
    """Say whether `k` directions, rounded again, leave as large a next value as measured."""
    x = pair.difference
    update = x @ right @ right.T
    for _ in range(_CORRECTIONS):
        again = rounded(pair.base + update, pair.tuned_grid) - pair.base
        gain = (update * again).sum() / update.square().sum()
        target = update + (x - again) / gain.clamp(0.02, 1)
        _, right = leading(target, k, start=right, seed=seed)
        update = target @ right @ right.T
    again = rounded(pair.base + update, pair.tuned_grid) - pair.base
    _, right = leading(again, k, start=right, seed=seed)
    return values[k].item() <= _COHERENT * spectral_norm(again - again @ right @ right.T)


def _grid(name: str) -> torch.dtype:
    """Return the storage format; float64 counts as float32, in which all is computed."""
    return torch.float32 if name == "float64" else getattr(torch, name)


def _check_finite(tuned: Tensor, base: Tensor) -> None:
    for name, weight in (("tuned", tuned), ("base", base)):
        broken = weight.numel() - int(torch.isfinite(weight).sum())
        if broken:
            raise UpdateError(
                "a stored weight holds numbers that are not finite",
                where=f"the {name} weight",
                expected="finite numbers",
                got=f"{broken} NaN or infinite entries of {weight.numel()}, {weight.dtype}",
                fix="float16 overflows at 65504: save the checkpoint again, as bfloat16",
            )
