"""What the numbers of a similarity say, in words: small, and never more than the nulls allow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from rankscope.linalg.chance import adjusted_p_values, overlap_p_value, overlap_sd

__all__ = ["summaries", "verdicts"]

LEVEL = 0.01  # of adjusted p-values
ERRORS = 3.0  # of a difference between φ and a floor
# From this share on most of what a side shows is how it started.
MOSTLY = 0.5
_SAME_START = "both started from the same numbers: similarity there says nothing of training"
_SIDES = {"right": "input", "left": "output"}


def verdicts(table: pd.DataFrame) -> list[str]:
    """Return a verdict for every row of a similarity table.

    First what makes the comparison void (a common start, directions that are mostly a random
    start), then where φ lies between floor and ceiling, then what chance explains, by adjusted
    p-values below 0.01. "The rest at chance" is tested: the directions that are not shared,
    as subspaces of what the shared ones leave over.
    """
    rest = table.apply(_rest_p, axis=1) if len(table) else pd.Series(dtype=float)
    for _, group in table.groupby("side"):
        rest.loc[group.index] = adjusted_p_values(rest.loc[group.index].to_numpy())
    rows = table.itertuples()
    return [_verdict(row, float(p)) for row, p in zip(rows, rest, strict=True)]


def summaries(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a verdict for all modules of every side and kind.

    Each with ``side kind modules above_chance verdict``; modules whose φ is undefined are not
    counted.
    """
    some = table[table.phi_full.notna()]
    groups = some.groupby(["side", "kind"], sort=False)
    return [
        {
            "side": side,
            "kind": kind,
            "modules": len(group),
            "above_chance": int((group.p_adjusted < LEVEL).sum()),
            "verdict": "; ".join(_summary(group)),
        }
        for (side, kind), group in groups
    ]


def _verdict(row: Any, rest: float) -> str:
    if not row.rank_a or not row.rank_b:
        return "nothing to compare: an update is zero"
    parts = [*_start(row), *_references(row), _chance(row, rest), *_layers(row)]
    return "; ".join(parts)


def _start(row: Any) -> Iterator[str]:
    side = _SIDES[row.side]
    if row.shared_init_suspected is not pd.NA and row.shared_init_suspected:
        yield _SAME_START
    for name, residue in (("A", row.init_residue_a), ("B", row.init_residue_b)):
        if residue >= MOSTLY:
            yield f"{residue:.0%} of {name}'s {side} directions look like their random start"


def _references(row: Any) -> Iterator[str]:
    phi, floor, ceiling = row.phi_reference, row.floor, row.ceiling
    if not math.isnan(row.placed):
        place = "at least the ceiling" if row.placed >= 1 else f"{row.placed:.0%} of the way up"
        place = "no more than the floor" if row.placed <= 0 else place
        yield f"{place} (φ {phi:.2f}, floor {floor:.2f}, ceiling {ceiling:.2f})"
    elif not (math.isnan(floor) or math.isnan(ceiling)):
        yield f"floor ({floor:.2f}) and ceiling ({ceiling:.2f}) are not told apart (φ {phi:.2f})"
    elif not math.isnan(ceiling):
        yield f"φ {phi:.2f}, where the ceiling is {ceiling:.2f}"
    elif not math.isnan(floor):
        sd = float(overlap_sd(row.rank_a, int(row.reference_rank), row.dimension))
        above = phi - floor > ERRORS * math.hypot(sd, row.floor_error)
        yield f"{'above' if above else 'no more than'} the floor (φ {phi:.2f} against {floor:.2f})"


def _chance(row: Any, rest: float) -> str:
    if row.dimension in (row.rank_a, row.rank_b):
        return "nothing to compare: one update has every direction there is"
    if not row.p_adjusted < LEVEL:
        return f"no more than chance ({_p(row.p_adjusted)})"
    shared, most = int(row.shared_directions), min(row.rank_a, row.rank_b)
    if not shared:
        return f"above chance ({_p(row.p_adjusted)}), though no single direction stands out"
    what = f"{shared} of {most} {_SIDES[row.side]} directions shared beyond chance"
    left = "" if math.isnan(rest) else f"; the rest {'above' if rest < LEVEL else 'at'} chance"
    return f"{what}, {_p(row.p_adjusted)}{left}"


def _layers(row: Any) -> Iterator[str]:
    if not math.isnan(row.p_shuffled):
        more = row.phi_full > row.shuffled_95
        yield (
            f"{'more than' if more else 'no more than'} between different layers "
            f"(95 % below φ {row.shuffled_95:.2f})"
        )


def _rest_p(row: pd.Series[Any]) -> float:
    """Return the p-value of what is left when the shared directions are taken away."""
    i, j, d = int(row.rank_a), int(row.rank_b), int(row.dimension)
    if not i or not j or i + j > d or pd.isna(row.shared_directions):
        return math.nan
    shared = int(row.shared_directions)
    if not 0 < shared < min(i, j):
        return math.nan
    phi = float(np.square(row.cosines[shared:]).mean())
    return overlap_p_value(phi, i - shared, j - shared, d - shared)


def _summary(group: pd.DataFrame) -> Iterator[str]:
    of = f"of {len(group)} modules"
    shared = int(group.shared_init_suspected.fillna(False).sum())
    if shared:
        yield f"in {shared} {of} {_SAME_START}"
    for name in ("a", "b"):
        mostly = int((group[f"init_residue_{name}"] >= MOSTLY).sum())
        if mostly:
            yield f"in {mostly} {of} most of {name.upper()}'s directions look like their start"
    yield from _placed(group)
    above = int((group.p_adjusted < LEVEL).sum())
    phi, chance = group.phi_full.median(), group.chance_full.median()
    yield f"{above} {of} above chance (adjusted p < {LEVEL:g})"
    yield f"median φ {_decimals(phi)} against {_decimals(chance)} by chance"
    if group.shared_directions.notna().any():
        most = group[["rank_a", "rank_b"]].min(axis=1).median()
        count = float(group.shared_directions.median())
        yield f"in the median {count:g} of {most:g} directions shared beyond chance"


def _placed(group: pd.DataFrame) -> Iterator[str]:
    medians = group[["phi_reference", "floor", "ceiling"]].median()
    names = [name for name in ("floor", "ceiling") if not math.isnan(medians[name])]
    if names:
        levels = " and ".join(f"the {name} {medians[name]:.2f}" for name in names)
        yield f"median φ {medians.phi_reference:.2f} where {levels}"


def _decimals(phi: float) -> str:
    """Return two decimals, of less than those show the first digit."""
    return f"{phi:.2f}" if phi >= 0.005 or phi == 0 else f"{phi:.1g}"


def _p(p: float) -> str:
    return "p < 1e-6" if p < 1e-6 else f"p = {p:.2g}"
