"""The two ways in which storage rounds, acted out on entries of two stored weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from rankscope.linalg.blocks import cached_rows, norm
from rankscope.linalg.rounding import own_generator
from rankscope.linalg.surrogates import Leading, Profile
from rankscope.measures.stored import Pair

__all__ = ["Act", "likelier"]

_SAMPLE = 2**15  # entries on which the two ways are told apart
_EXPLAINED = 60.0  # a distance that mere chance, and the shape of an update, lead to
_CHANCE = 100.0  # a difference of distances that chance leads to where few entries change
_NEARER = 2.0  # times, that a support of less than all must be
_AGREED = 0.2  # the most by which two numbers differ that tell a reader the same
_SPARSE = 0.8  # supports above that are no other answer: spikes in an update look like that
# So few changed entries, and of 400 times as many, do not tell a sparse update from a dead
# zone.
_FEW, _THIN = 1000, 400
_DOMINANT = 9.0  # ‖ΔW‖² in floors, above which its leading directions are taken off before that


@dataclass(frozen=True)
class Act:
    """One way of storage, acted out: how far it is from what is seen, and what it does.

    Gain and share are NaN where nothing changed in it. The support is the share of the entries
    that the update touches.
    """

    both: bool
    distance: float
    gain: float
    share: float
    support: float = 1.0


def likelier(pair: Pair, found: Leading, seed: int) -> Act:
    """Act out both ways and return the one that is nearer to what is seen.

    An update of every entry is the answer where it explains what is seen, or nearly as well as
    one of a part of them. Otherwise share or gain is NaN where acts about as near disagree, and
    both are where very few entries changed.
    """
    acts = _Sample(pair, found, _certain(pair, found), seed).acts()
    if acts[0].distance < _EXPLAINED:
        return acts[0]
    if pair.changed < min(_FEW, pair.base.numel() / _THIN):
        return replace(acts[0], gain=math.nan, share=math.nan)
    others = _SparseSample(pair, found, seed).acts()
    best, other = acts[0], others[0]
    if other.support < _SPARSE and _NEARER * other.distance < best.distance:
        best = other
    return _agreed(best, [*acts, *others])


def _agreed(best: Act, acts: list[Act]) -> Act:
    """Return an act without what others that are about as near say otherwise."""
    near = [act for act in acts if act.distance < best.distance + _CHANCE]

    def known(name: str) -> float:
        value: float = getattr(best, name)
        agree = all(abs(getattr(act, name) - value) < _AGREED for act in near)
        return value if agree else math.nan

    return replace(best, gain=known("gain"), share=known("share"))


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
        self.octaves, self.octave = torch.unique(pair.coarser(self.base), return_inverse=True)
        self.count = torch.bincount(self.octave).double()
        self.variance = self.octaves.double().square() / 12
        self.energy = self._mean(rest.square())
        self.changed = self._mean(x != 0)
        self.unit = ((self.count * self.energy).sum() / _SAMPLE).sqrt().item()
        # That the base was rounded as well makes no difference where it was so finely.
        self.ways = (False,) if pair.base_grid.dtype.itemsize > 2 else (False, True)
        first, second = (torch.randn(_SAMPLE, generator=generator).to(device) for _ in range(2))
        self.shapes = (first, first * second)  # entries of a high rank, and of rank one
        dither = (torch.rand(_SAMPLE, generator=generator) - 0.5).to(device)
        finer = self.base + pair.base_grid.spacing(self.base) * dither
        # Below a power of two the spacing is half of that above.
        self.finer = torch.where(pair.base_grid.rounded(finer) == self.base, finer, self.base)

    def acts(self) -> list[Act]:
        """Return both ways with updates of either shape, the nearest first."""
        acts = [self.act(unit, both=both) for both in self.ways for unit in self.shapes]
        return sorted(acts, key=lambda act: act.distance)

    def act(self, unit: Tensor, *, both: bool) -> Act:
        """Round the base plus an update of one shape, of the size that comes nearest."""
        origin = self.finer if both else self.base

        def stored(size: float) -> Tensor:
            return self.grid.rounded(origin + self.known + size * unit) - self.base

        size = self._nearest(lambda size: self._distance(stored(size)))
        update, result = self.known + size * unit, stored(size)
        distance, support = self._distance(result), self._support(result)
        if not result.any():
            return Act(both, distance, math.nan, math.nan, support)
        product, energy = (update.double() * result).sum().item(), _energy(update)
        gain = product / energy if energy else 1.0
        share = 1 - gain**2 * energy / _energy(result)
        gain = 1.0 if both else min(max(gain, 0.0), 1.0)
        return Act(both, distance, gain, min(max(share, 0.0), 1.0), support)

    def _nearest(self, distance: Callable[[float], float]) -> float:
        """Return the size of least distance, to a percent: a factor of two, then within it."""
        sizes = [0.0, *(self.unit * 2.0**power for power in range(-12, 5))]
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

    def __init__(self, pair: Pair, found: Leading, seed: int) -> None:
        super().__init__(pair, found, 0, seed)
        # A few changes in a sample are too few.
        self.energy, self.changed = self._of_all(pair)
        energy, changed = ((self.count * x).sum().item() for x in (self.energy, self.changed))
        self.unit, self.hits = math.sqrt(energy / max(changed, 1.0)), changed

    def _of_all(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the mean energy and the share of changes of all entries, by octave."""
        count = len(self.octaves)
        entries, energy, changed = (self.count.new_zeros(count) for _ in range(3))
        for part in cached_rows(pair.base):
            spacing, x = pair.coarser(pair.base[part]), pair.difference[part].double()
            octave = torch.bucketize(spacing, self.octaves).clamp_max_(count - 1)
            sampled = self.octaves[octave] == spacing
            octave, x = octave[sampled], x[sampled]
            entries += torch.bincount(octave, minlength=count)
            energy += torch.bincount(octave, x.square(), count)
            changed += torch.bincount(octave, x != 0, count)
        return energy / entries, changed / entries

    def _support(self, result: Tensor) -> float:
        """Return the support with which as many entries change as are seen to."""
        acted = int(result.count_nonzero())
        return min(self.hits / acted, 1.0) if acted else 1.0


def _energy(x: Tensor) -> float:
    return x.double().square().sum().item()
