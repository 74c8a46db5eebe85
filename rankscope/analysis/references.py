"""What else φ is held against: unrelated runs, runs of another seed, and other layers."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rankscope.analysis.engine import Row
from rankscope.analysis.overlap import Directions, Options, Side, check_shapes, measured
from rankscope.analysis.pairing import Pairing, paired
from rankscope.io.fused import split_alike
from rankscope.io.updateset import UpdateSet
from rankscope.linalg.chance import overlap_sd
from rankscope.measures.similarity import phi_grid
from rankscope.updates import Update

__all__ = [
    "Others",
    "Reference",
    "directions_of",
    "layers_of",
    "other_layers",
    "reference_columns",
    "references",
    "shuffle_columns",
    "shuffled_column",
]

_MOST_LAYERS = 8
# A difference of less than so many standard errors is noise.
_ERRORS = 3.0


@dataclass(frozen=True)
class Reference:
    """One module of a source that A is also compared with; it travels with the task.

    Attributes
    ----------
    role : str
        ``floor`` or ``ceiling``.
    updates : UpdateSet
        This module alone.
    module : str
        Its name there.
    reordered : bool
        Whether its rows stand in another order, so that output sides cannot be compared.
    """

    role: str
    updates: UpdateSet
    module: str
    reordered: bool


@dataclass(frozen=True)
class Others:
    """The same kind of module in other layers of B; `updates` holds these alone."""

    updates: UpdateSet
    modules: tuple[str, ...]


def references(
    a: UpdateSet, sources: Iterable[tuple[str, UpdateSet]]
) -> dict[str, tuple[Reference, ...]]:
    """Return the references of every module of A, by its name.

    Raises
    ------
    SourceError
        If a source has no module in common with A.
    """
    found: dict[str, list[Reference]] = {name: [] for name in a.names}
    for role, source in sources:
        _, updates = split_alike(a, source)
        pairing = paired(a, updates)
        for name, other in pairing.partners.items():
            reordered = name in pairing.reordered
            found[name].append(Reference(role, updates.only(other), other, reordered))
    return {name: tuple(some) for name, some in found.items()}


def other_layers(a: UpdateSet, b: UpdateSet, pairing: Pairing, seed: int) -> dict[str, Others]:
    """Return, for every module of A, at most 8 of B's of its kind and shape in other layers."""
    fit = {
        name: other for name, other in pairing.partners.items() if name not in pairing.reordered
    }
    return {
        name: _some(b, [o for n, o in fit.items() if _elsewhere(a, b, name, n, o)], name, seed)
        for name in pairing.partners
    }


def _elsewhere(a: UpdateSet, b: UpdateSet, name: str, other: str, partner: str) -> bool:
    here, there = a.site(name), a.site(other)
    return (
        None not in (here.layer, there.layer)
        and here.layer != there.layer
        and (here.kind, here.shape) == (there.kind, b.site(partner).shape)
    )


def _some(b: UpdateSet, modules: list[str], name: str, seed: int) -> Others:
    if len(modules) > _MOST_LAYERS:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        chosen = np.sort(rng.choice(len(modules), _MOST_LAYERS, replace=False))
        modules = [modules[n] for n in chosen]
    return Others(b.select(names=modules), tuple(modules))


def directions_of(
    a: Update, references: Sequence[Reference], options: Options
) -> list[tuple[Reference, dict[Side, Directions]]]:
    """Read the references of a module and return their directions."""
    return [
        (one, _read(a, one.updates, one.module, options, reordered=one.reordered))
        for one in references
    ]


def _read(
    a: Update, updates: UpdateSet, module: str, options: Options, *, reordered: bool = False
) -> dict[Side, Directions]:
    update = updates[module].to(a.device)
    sides: tuple[Side, ...] = tuple(s for s in options.sides if s == "right" or not reordered)
    check_shapes(f"{updates.source}, {module}", [a, update], sides)
    found = measured(update, options, options.max_j).sides
    return {side: found[side] for side in sides}


def reference_columns(
    side: Side,
    a: Directions,
    b: Directions,
    found: Sequence[tuple[Reference, dict[Side, Directions]]],
) -> Row:
    """Return φ, the floor and the ceiling, all at (rank_a, reference_rank), and φ's place.

    The reference rank is the fewest directions that B and the references have: a larger
    subspace overlaps more by chance alone. References that are zero are left out.
    """
    some = [(one.role, sides[side]) for one, sides in found if side in sides and sides[side].count]
    if not (a.count and b.count and some):
        return {}
    j = min(b.count, *(one.count for _, one in some))
    sd = float(overlap_sd(a.count, j, a.basis.shape[0]))
    row: Row = {"reference_rank": j, "phi_reference": _phi(a, b, j)}
    for role in ("floor", "ceiling"):
        values = [_phi(a, one, j) for name, one in some if name == role]
        row |= {role: _mean(values), f"{role}_error": _error(values, sd)}
    return row | {"placed": _placed(row)}


def _phi(a: Directions, b: Directions, j: int) -> float:
    return float(phi_grid(a.basis.T @ b.basis[:, :j])[-1, -1])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _error(values: Sequence[float], sd: float) -> float:
    """Return the standard error of the mean; the spread is at least that of chance."""
    if not values:
        return math.nan
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return max(spread, sd) / math.sqrt(len(values))


def _placed(row: Row) -> float:
    """Where φ lies from the floor, 0, to the ceiling, 1; NaN where these are not told apart."""
    gap = row["ceiling"] - row["floor"]
    if not gap > _ERRORS * math.hypot(row["floor_error"], row["ceiling_error"]):
        return math.nan
    return float((row["phi_reference"] - row["floor"]) / gap)


def layers_of(a: Update, others: Others | None, options: Options) -> list[dict[Side, Directions]]:
    """Read B's modules of other layers and return their directions."""
    if others is None:
        return []
    return [_read(a, others.updates, module, options) for module in others.modules]


def shuffled_column(
    side: Side, a: Directions, b: Directions, layers: Sequence[dict[Side, Directions]]
) -> Row:
    """Return φ of A and every other layer of B that has as many directions as the true one."""
    if not (a.count and b.count and layers):
        return {}
    same = [sides[side] for sides in layers if sides[side].count == b.count]
    return {"shuffled": np.array([_phi(a, one, b.count) for one in same])}


def shuffle_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean and the 95 % quantile of `shuffled`, and what share of it reaches φ.

    Taken together over the rows of one side, kind and size.
    """
    columns = ["shuffled_mean", "shuffled_95", "p_shuffled"]
    found = pd.DataFrame(np.nan, index=table.index, columns=columns)
    same = ["side", "kind", "dimension", "rank_a", "rank_b"]
    for _, group in table[table.shuffled.notna()].groupby(same):
        null = np.sort(np.concatenate([np.asarray(part, float) for part in group.shuffled]))
        if not null.size:
            continue
        reached = null.size - np.searchsorted(null, group.phi_full.to_numpy())
        found.loc[group.index, "shuffled_mean"] = null.mean()
        found.loc[group.index, "shuffled_95"] = np.quantile(null, 0.95)
        found.loc[group.index, "p_shuffled"] = (1 + reached) / (1 + null.size)
    return found
