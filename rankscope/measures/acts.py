"""The two ways in which storage rounds, acted out on entries of two stored weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from rankscope.linalg.blocks import norm
from rankscope.linalg.rounding import own_generator
from rankscope.linalg.surrogates import Leading, Profile
from rankscope.measures.stored import Pair

__all__ = ["Act", "likelier"]

_SAMPLE = 2**15  # entries on which the two ways are told apart
_EXPLAINED = 60.0  # a distance that mere chance, and the shape of an update, lead to
_SPARSE = 0.8  # supports above that are no other answer: spikes in an update look like that
_DOMINANT = 9.0  # ‖ΔW‖² in floors, above which its leading directions are taken off before that


@dataclass(frozen=True)
class Act:
    """One way of storage, acted out: how far it is from what is seen, and what it does.

    The support is the share of the entries that the update touches.
    """

    both: bool
    distance: float
    gain: float
    share: float
    support: float = 1.0


def likelier(pair: Pair, found: Leading, seed: int) -> Act:
    """Act out both ways and return the one that is nearer to what is seen.

    An update of every entry is the answer unless one of fewer is much nearer.
    """
    dense = _nearest(_Sample(pair, found, _certain(pair, found), seed))
    if dense.distance < _EXPLAINED:
        return dense
    sparse = _nearest(_SparseSample(pair, found, 0, seed))
    much = sparse.support < _SPARSE and 2 * sparse.distance < dense.distance
    return sparse if much else dense


def _nearest(sample: _Sample) -> Act:
    acts = [sample.act(unit, both=both) for both in sample.ways for unit in sample.shapes]
    return min(acts, key=lambda act: act.distance)


def _certain(pair: Pair, found: Leading) -> int:
    """Return how many directions of a large difference are no rounding in either way."""
    noise = Profile(pair.deviation(both=True))
    if norm(pair.difference) ** 2 <= _DOMINANT * noise.energy:
        return 0
    return found.above(noise.bound)


class _Sample:
    """Some entries of a pair, on which storage is acted out."""

    def __init__(self, pair: Pair, found: Leading, certain: int, seed: int) -> None:
        generator = own_generator(seed, 1)
        device, (rows, columns) = pair.base.device, pair.base.shape
        chosen = torch.randint(rows * columns, (_SAMPLE,), generator=generator).to(device)
        at = chosen // columns, chosen % columns
        self.base, x = pair.base[at], pair.difference[at]
        self.known, rest = found.at(certain, *at)
        self.grid = pair.tuned_grid
        spacing = pair.base_grid.spacing(self.base)
        coarser = torch.maximum(spacing, self.grid.spacing(self.base))
        octaves, self.octave = torch.unique(coarser.double(), return_inverse=True)
        self.count, self.variance = torch.bincount(self.octave).double(), octaves.square() / 12
        self.energy = self._mean(rest.square())
        self.changed = self._mean(x != 0)
        # That the base was rounded as well makes no difference where it was so finely.
        self.ways = (False,) if pair.base_grid.dtype.itemsize > 2 else (False, True)
        first, second = (torch.randn(_SAMPLE, generator=generator).to(device) for _ in range(2))
        self.shapes = (first, first * second)  # entries of a high rank, and of rank one
        dither = (torch.rand(_SAMPLE, generator=generator) - 0.5).to(device)
        finer = self.base + spacing * dither
        # Below a power of two the spacing is half of that above.
        self.finer = torch.where(pair.base_grid.rounded(finer) == self.base, finer, self.base)

    def act(self, unit: Tensor, *, both: bool) -> Act:
        """Round the base plus an update of one shape, of the size that comes nearest."""
        origin = self.finer if both else self.base

        def stored(size: float) -> Tensor:
            return self.grid.rounded(origin + self.known + size * unit) - self.base

        size = self._nearest(lambda size: self._distance(stored(size)))
        update, result = self.known + size * unit, stored(size)
        product, energy = (update.double() * result).sum().item(), _energy(update)
        gain = product / energy if energy else 1.0
        correlation = gain * math.sqrt(energy / _energy(result)) if result.any() else 0.0
        return Act(
            both,
            self._distance(result),
            1.0 if both else min(max(gain, 0.0), 1.0),
            min(max(1 - correlation**2, 0.0), 1.0),
            self._support(result),
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
        support = self._support(result)
        energy = support * self._mean((result - self.known).square())
        difference = energy.sqrt() - self.energy.sqrt()
        changed = (support * self._mean(result != 0)).sqrt() - self.changed.sqrt()
        # In spacings where an octave is coarse, relative where it is fine; bounded, since the
        # finest octaves are few entries.
        scale = self.variance + self.energy + energy
        distance = difference.square() / scale + changed.square()
        return float((self.count * distance).sum())

    def _support(self, result: Tensor) -> float:
        """Return the share of the entries that the update touches."""
        return 1.0

    def _mean(self, entries: Tensor) -> Tensor:
        """Return the mean over each octave of the base."""
        return torch.bincount(self.octave, entries.double()) / self.count


class _SparseSample(_Sample):
    """Some entries of a pair, on which an update of a part of them is acted out.

    An entry that it does not touch does not change: such an act is one of every entry, of which
    only the support is seen. Its gain and its share do not depend on the support.
    """

    def _support(self, result: Tensor) -> float:
        """Return the support with which as many entries change as are seen to."""
        acted = int(result.count_nonzero())
        return min((self.count * self.changed).sum().item() / acted, 1.0) if acted else 1.0


def _energy(x: Tensor) -> float:
    return x.double().square().sum().item()
