"""The updates of one module by many sources, and what every pair of them has in a row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankscope.analysis.engine import Row
from rankscope.linalg.angles import principal_angles
from rankscope.linalg.chance import expected_overlap, overlap_p_value, overlap_sd
from rankscope.measures.distances import DISTANCES
from rankscope.measures.interference import cka, gram_interference, update_cosine
from rankscope.measures.together import (
    common_directions,
    common_edge,
    pair_containment,
    pair_cosines,
    pair_phi,
)
from rankscope.spectra import Spectrum
from rankscope.updates import Update

__all__ = ["MEASURES", "Stack", "joint_interference", "pair_rows", "whole_cosines"]

_PHI = ("phi", "rank_a", "rank_b", "chance", "z", "p", "p_adjusted")
# What each measure puts into a row.
MEASURES: Mapping[str, tuple[str, ...]] = {
    "phi": _PHI,
    "cosine": ("cosine",),
    "containment": ("containment_a", "chance_a", "containment_b", "chance_b"),
    "mean_cosine": ("mean_cosine",),
    "cka": ("cka",),
    **{name: (name,) for name in DISTANCES},
}


class Stack:
    """The directions of all updates on one side, next to each other."""

    def __init__(
        self, names: list[str], updates: list[Update], spectra: list[Spectrum], side: str
    ) -> None:
        self.names, self.side = names, side
        self.updates = updates if side == "right" else [update.T for update in updates]
        self.energies = [one.energy for one in spectra]
        self.sizes = [one.directions for one in spectra]
        bases = [one.right if side == "right" else one.left for one in spectra]
        self.bases = [
            basis[:, :k] for basis, k in zip(bases, self.sizes, strict=True) if basis is not None
        ]
        together = torch.cat(self.bases, dim=1)
        self.dimension = len(together)
        self.gram = together.T @ together
        parts = [one.values[:k] for one, k in zip(spectra, self.sizes, strict=True)]
        self.parts, self.values = parts, torch.cat(parts)
        # Whether the directions that are used hold all of an update.
        self.whole = [
            float(part.square().sum()) >= energy * (1 - 1e-9)
            for part, energy in zip(parts, self.energies, strict=True)
        ]

    def overlap(self, a: int, b: int) -> Tensor:
        """Return the overlap matrix of two updates' directions."""
        starts = np.cumsum([0, *self.sizes])
        rows, columns = (slice(starts[n], starts[n + 1]) for n in (a, b))
        return self.gram[rows, columns]

    def angles(self, a: int, b: int) -> Tensor:
        """Return the principal angles of two updates' directions."""
        return principal_angles(self.bases[a], self.bases[b])

    def contained(self) -> Tensor:
        """Return how much of row a's whole energy lies in the span of column b."""
        inside = pair_containment(self.gram, self.values, self.sizes)
        for a in (n for n, whole in enumerate(self.whole) if not whole):
            for b, basis in enumerate(self.bases):
                seen = float(torch.linalg.vector_norm(self.updates[a].matmul(basis)))
                inside[a, b] = min(seen**2 / self.energies[a], 1.0)
        return inside

    def shared(self) -> Row:
        """Return what all updates share."""
        sizes = tuple(size for size in self.sizes if size)
        common = common_directions(self.gram, max(len(sizes), 1))
        edge = common_edge(sizes, self.dimension) if len(sizes) > 1 else math.nan
        above = None if math.isnan(edge) else int((common > edge).sum())
        return {
            "dimension": self.dimension,
            "sources": len(sizes),
            "common": common[: max((*sizes, above or 0))].numpy(),
            "edge": edge,
            "directions": above,
        }


def whole_cosines(right: Stack, left: Stack) -> Tensor:
    """Return the cosine of every two whole updates."""
    cosines = pair_cosines(left.gram, right.gram, right.values, right.sizes)
    for a, b in combinations(range(len(right.names)), 2):
        if not (right.whole[a] and right.whole[b]):
            cosine = update_cosine(right.updates[a], right.updates[b])
            cosines[a, b] = cosines[b, a] = cosine
    return cosines


def joint_interference(right: Stack, left: Stack) -> float:
    """Return the interference of all updates, in units of what as many equal ones would have.

    N equal ones with singular values σ interfere by N (N − 1)² Σσ.
    """
    others = sum(size > 0 for size in right.sizes) - 1
    if others < 1:
        return math.nan
    whole = gram_interference(left.gram, right.values, right.gram)
    return whole / (others**2 * float(right.values.sum()))


def pair_rows(stack: Stack, cosines: Tensor, measures: Sequence[str]) -> Iterator[Row]:
    """Yield the side, the names and the measures of every pair."""
    pairs = list(combinations(range(len(stack.names)), 2))
    first, second = (np.array(places) for places in zip(*pairs, strict=True))
    columns = {
        name: values[first, second].tolist()
        for name, values in _matrices(stack, cosines, measures).items()
    }
    angles = [name for name in measures if name == "mean_cosine" or name in DISTANCES]
    if angles:
        each = [_of_angles(stack.angles(a, b), angles) for a, b in pairs]
        columns |= {name: [row[name] for row in each] for name in angles}
    for (a, b), *values in zip(pairs, *columns.values(), strict=True):
        named = {"side": stack.side, "a": stack.names[a], "b": stack.names[b]}
        yield named | dict(zip(columns, values, strict=True))


_Square = np.ndarray[Any, np.dtype[Any]]


def _matrices(stack: Stack, cosines: Tensor, measures: Sequence[str]) -> dict[str, _Square]:
    """Return what needs no angles as matrices, sources by sources."""
    found: dict[str, _Square] = {}
    if "phi" in measures:
        found |= _phi(stack)
    if "cosine" in measures:
        found["cosine"] = cosines.numpy()
    if "containment" in measures:
        inside = stack.contained().numpy()
        chance = np.tile(np.array(stack.sizes) / stack.dimension, (len(stack.sizes), 1))
        found |= {"containment_a": inside, "chance_a": chance}
        found |= {"containment_b": inside.T, "chance_b": chance.T}
    if "cka" in measures:
        found["cka"] = _cka(stack)
    return found


def _phi(stack: Stack) -> dict[str, _Square]:
    phi, d = pair_phi(stack.gram, stack.sizes).numpy(), stack.dimension
    first, second = np.meshgrid(stack.sizes, stack.sizes, indexing="ij")
    some = np.minimum(first, second) > 0
    chance, sd, p = (np.full(phi.shape, np.nan) for _ in range(3))
    chance[some] = expected_overlap(first[some], second[some], d)
    sd[some] = overlap_sd(first[some], second[some], d)
    for i, j in {(int(i), int(j)) for i, j in zip(first[some], second[some], strict=True)}:
        cells = (first == i) & (second == j)
        p[cells] = overlap_p_value(phi[cells], i, j, d)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(sd > 0, (phi - chance) / sd, np.nan)
    return {"phi": phi, "rank_a": first, "rank_b": second, "chance": chance, "z": z, "p": p}


def _cka(stack: Stack) -> _Square:
    found = np.full((len(stack.sizes),) * 2, np.nan)
    for a, b in combinations(range(len(stack.sizes)), 2):
        found[a, b] = cka(stack.overlap(a, b), stack.parts[a], stack.parts[b])
    return found


def _of_angles(angles: Tensor, names: Sequence[str]) -> Row:
    if not len(angles):
        return dict.fromkeys(names, math.nan)
    distances = {name: DISTANCES[name](angles) for name in names if name in DISTANCES}
    return distances | {"mean_cosine": float(angles.cos().mean())}
