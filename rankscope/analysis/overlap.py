"""The directions of one module's updates, and what two sets of them have in a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rankscope.analysis.engine import Row
from rankscope.analysis.stacks import MEASURES, Stack, pair_rows
from rankscope.errors import UpdateError
from rankscope.linalg.chance import expected_overlap, overlap_p_value, overlap_sd
from rankscope.linalg.edges import cosine_edge
from rankscope.measures.interference import update_cosine
from rankscope.measures.similarity import (
    ambiguous_cuts,
    phi_grid,
    principal_cosines,
    shared_directions,
)
from rankscope.spectra import Spectrum, svd
from rankscope.updates import DenseUpdate, FactoredUpdate, Update

__all__ = [
    "DENSE_LIMIT",
    "SIDES",
    "Directions",
    "Measured",
    "Options",
    "Side",
    "at_least_one",
    "check_shapes",
    "checked_options",
    "compared",
    "in_other_order",
    "measure_columns",
    "measured",
]

Side = Literal["left", "right"]
SIDES: dict[str, tuple[Side, ...]] = {
    "both": ("right", "left"),
    "right": ("right",),
    "left": ("left",),
}
DENSE_LIMIT = 64
# φ of directions that are this far off, in the sine of an angle, is off in the second digit.
UNRESOLVED = 0.01


@dataclass(frozen=True)
class Options:
    """What is compared, and how."""

    sides: tuple[Side, ...]
    vectors: str
    max_i: int | None
    max_j: int | None
    measures: tuple[str, ...]
    seed: int


def checked_options(
    side: str,
    vectors: str,
    max_i: int | None,
    max_j: int | None,
    measures: Sequence[str],
    seed: int,
) -> Options:
    """Return the options of `rankscope.analysis.similarity.similarity`.

    Raises
    ------
    UpdateError
        If one of them is out of range.
    """
    return Options(
        _choice("side", side, SIDES),
        _choice("vectors", vectors, {"delta": "delta", "factor": "factor"}),
        at_least_one("similarity(max_i=…)", max_i),
        at_least_one("similarity(max_j=…)", max_j),
        _further(measures, vectors),
        seed,
    )


@dataclass(frozen=True)
class Directions:
    """The directions of one update on one side, strongest first, and where cuts are arbitrary."""

    basis: Tensor
    ambiguous: list[int]

    @property
    def count(self) -> int:
        """How many there are."""
        return self.basis.shape[1]


@dataclass(frozen=True)
class Measured:
    """One update, its decomposition, and its directions on the sides that are compared.

    The spectrum is that of ΔW, whichever directions are compared.
    """

    update: Update
    spectrum: Spectrum
    sides: dict[Side, Directions]


def measured(update: Update, options: Options, limit: int | None) -> Measured:
    """Return the first `limit` directions of an update: all, of a dense one 64, if it is None."""
    if limit is None and isinstance(update, DenseUpdate):
        limit = DENSE_LIMIT
    if options.vectors == "delta":
        whole = svd(update, limit)
        spectra: dict[Side, Spectrum] = {"right": whole, "left": whole}
    else:
        spectra = _of_factors(update, limit)
        whole = svd(update, vectors=False)
        if not whole.directions:
            limit = 0  # an untrained adapter: A alone would still show its initial numbers
    return Measured(
        update, whole, {side: _directions(side, spectra[side], limit) for side in options.sides}
    )


def measure_columns(side: Side, a: Measured, b: Measured, measures: tuple[str, ...]) -> Row:
    """Return the columns of the measures other than φ, of all directions that are used."""
    if not measures:
        return {}
    stack = Stack(["a", "b"], [a.update, b.update], [a.spectrum, b.spectrum], side)
    cosine = update_cosine(a.update, b.update) if "cosine" in measures else math.nan
    cosines = torch.full((2, 2), cosine, dtype=torch.float64)
    (row,) = pair_rows(stack, cosines, measures)
    return {name: value for name, value in row.items() if name not in ("side", "a", "b")}


def _of_factors(update: Update, limit: int | None) -> dict[Side, Spectrum]:
    if not isinstance(update, FactoredUpdate):
        raise UpdateError(
            "a dense update has no factors",
            where="--vectors factor",
            expected="two adapters",
            got=f"a dense update of shape {update.shape}",
            fix="use --vectors delta",
        )
    factors: dict[Side, Tensor] = {"right": update.down, "left": update.up}
    return {side: svd(DenseUpdate(factor), limit) for side, factor in factors.items()}


def _directions(side: Side, spectrum: Spectrum, limit: int | None) -> Directions:
    basis = spectrum.right if side == "right" else spectrum.left
    count = spectrum.directions if limit is None else min(spectrum.directions, limit)
    assert basis is not None  # svd() was asked for vectors
    return Directions(basis[:, :count], _ambiguous(spectrum, count))


def _ambiguous(spectrum: Spectrum, count: int) -> list[int]:
    """Return the cuts, up to `count`, inside blocks that are equal or were not told apart."""
    values = torch.cat([spectrum.values, spectrum.values.new_tensor([spectrum.tail])])
    unresolved = torch.nonzero(spectrum.cut_errors > UNRESOLVED).flatten() + 1
    cuts = {*ambiguous_cuts(values), *unresolved.tolist()}
    # Beyond the last singular value that is not zero nothing is left to be confused with.
    return sorted(cut for cut in cuts if cut <= count and cut < spectrum.ceiling)


def compared(side: Side, a: Directions, b: Directions, seed: int) -> dict[str, Any]:
    """Return the columns of one side of two updates."""
    i, j, d = a.count, b.count, a.basis.shape[0]
    overlap = a.basis.T @ b.basis
    phi, cosines = phi_grid(overlap).numpy(), principal_cosines(overlap)
    row = {
        "side": side,
        "dimension": d,
        "rank_a": i,
        "rank_b": j,
        "phi": phi,
        "cosines": cosines.numpy(),
        "ambiguous_a": a.ambiguous,
        "ambiguous_b": b.ambiguous,
    }
    if not i or not j:
        return row
    first, full = float(phi[0, 0]), float(phi[-1, -1])
    expected, sd = float(expected_overlap(i, j, d)), float(overlap_sd(i, j, d))
    shared, edge = _shared_directions(cosines, i, j, d)
    return row | {
        "phi_first": first,
        "p_first": overlap_p_value(first, 1, 1, d, seed=seed),
        "phi_full": full,
        "chance_full": expected,
        "chance_sd": sd,
        "z_full": (full - expected) / sd if sd else math.nan,
        "p_full": overlap_p_value(full, i, j, d, seed=seed),
        "shared_directions": shared,
        "shared_edge": edge,
    }


def _shared_directions(cosines: Tensor, i: int, j: int, d: int) -> tuple[int | None, float]:
    """Return the number of cosines above the chance edge, and the edge.

    Any two subspaces share i + j - d directions; the other angles are those between the
    complements. Nothing is left to compare where one of them is the whole space.
    """
    forced = max(i + j - d, 0)
    if d in (i, j):
        return None, math.nan
    edge = cosine_edge(d - i, d - j, d) if forced else cosine_edge(i, j, d)
    return shared_directions(cosines[forced:], edge), edge


def check_shapes(module: str, updates: list[Update], sides: tuple[Side, ...]) -> None:
    """Raise an `UpdateError` where two updates do not fit on a side that is compared."""
    (out_a, in_a), (out_b, in_b) = (update.shape for update in updates)
    if ("right" in sides and in_a != in_b) or ("left" in sides and out_a != out_b):
        raise UpdateError(
            "the two updates have different shapes",
            where=module,
            expected=f"({out_a}, {in_a}) as in A",
            got=f"({out_b}, {in_b}) in B",
            fix="compare adapters of one model, or one side only with --side",
        )


def in_other_order(module: str) -> UpdateError:
    """Return the error of a module whose output sides cannot be compared."""
    return UpdateError(
        "the rows of the two updates stand in different orders",
        where=module,
        expected="both as Hugging Face stores them",
        got="one of them in Meta's rotary order, as llama.cpp and torchtune have it",
        fix="give a base that tells its heads (--base), or compare the input side",
    )


def _choice(name: str, value: str, choices: Mapping[str, Any]) -> Any:
    if value not in choices:
        raise UpdateError(
            f"unknown {name}",
            where=f"similarity({name}=…)",
            expected=f"one of {', '.join(choices)}",
            got=repr(value),
            fix="choose one of them",
        )
    return choices[value]


def _further(measures: Sequence[str], vectors: str) -> tuple[str, ...]:
    """Return the measures other than φ, which is always there."""
    for name in measures:
        _choice("measures", name, MEASURES)
    further = tuple(dict.fromkeys(name for name in measures if name != "phi"))
    if further and vectors == "factor":
        raise UpdateError(
            "of the factors alone only φ is measured",
            where="similarity(vectors='factor')",
            expected="phi",
            got=", ".join(further),
            fix="use vectors='delta' for the other measures",
        )
    return further


def at_least_one(where: str, value: int | None) -> int | None:
    """Return a number of directions, None for all of them; raise where it is below 1."""
    if value is not None and value < 1:
        raise UpdateError(
            "no direction was asked for",
            where=where,
            expected="a number of at least 1",
            got=str(value),
            fix="leave it out for all directions",
        )
    return value
