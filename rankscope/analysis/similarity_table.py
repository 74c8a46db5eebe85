"""The table of a similarity, its random control, and what a reader must know of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from rankscope.analysis.references import shuffle_columns
from rankscope.analysis.stacks import MEASURES
from rankscope.analysis.verdicts import verdicts
from rankscope.linalg.chance import adjusted_p_values, random_subspace
from rankscope.measures.similarity import phi_grid

__all__ = ["caveats", "random_control", "similarity_table"]

_COLUMNS = {
    "module": "str",
    "layer": "Int64",
    "kind": "str",
    "expert": "Int64",
    "side": "str",
    "dimension": "int64",
    "rank_a": "int64",
    "rank_b": "int64",
    "phi": "object",
    "phi_first": "float64",
    "p_first": "float64",
    "phi_full": "float64",
    "chance_full": "float64",
    "chance_sd": "float64",
    "z_full": "float64",
    "p_full": "float64",
    "p_adjusted": "float64",
    "shared_directions": "Int64",
    "shared_edge": "float64",
    "cosines": "object",
    "ambiguous_a": "object",
    "ambiguous_b": "object",
    "reference_rank": "Int64",
    "phi_reference": "float64",
    "floor": "float64",
    "floor_error": "float64",
    "ceiling": "float64",
    "ceiling_error": "float64",
    "placed": "float64",
    "shuffled": "object",
    "shuffled_mean": "float64",
    "shuffled_95": "float64",
    "p_shuffled": "float64",
    "init_residue_a": "float64",
    "init_residue_b": "float64",
    "shared_init_suspected": "boolean",
    "verdict": "object",
}


def similarity_table(rows: list[dict[str, Any]], measures: Sequence[str]) -> pd.DataFrame:
    """Return the table of all rows, with what only all of them together tell."""
    further = {column: "float64" for name in measures for column in MEASURES[name]}
    columns = _COLUMNS | further
    table = pd.DataFrame(rows, columns=list(columns)).astype(columns)
    for _, group in table.groupby("side"):
        table.loc[group.index, "p_adjusted"] = adjusted_p_values(group.p_full.to_numpy())
    shuffled = shuffle_columns(table)
    table[shuffled.columns] = shuffled
    return table.assign(verdict=verdicts(table))


def random_control(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Draw φ of two independent random subspaces once for every size in the table."""
    sizes = table[(table.rank_a > 0) & (table.rank_b > 0)]
    sizes = sizes[["side", "dimension", "rank_a", "rank_b"]].drop_duplicates()
    grids = []
    for number, (d, i, j) in enumerate(sizes[["dimension", "rank_a", "rank_b"]].to_numpy()):
        rng = np.random.default_rng([seed, number])
        one, two = (random_subspace(int(d), int(k), rng) for k in (i, j))
        grids.append(phi_grid(torch.from_numpy(one.T @ two)).numpy())
    return sizes.assign(phi=pd.Series(grids, index=sizes.index, dtype=object)).reset_index(
        drop=True
    )


def caveats(names: Sequence[str], vectors: str, table: pd.DataFrame) -> list[str]:
    """Return what a reader of the numbers must know."""
    notes = []
    shared = table[table.shared_init_suspected.fillna(False)].module.unique()
    if len(shared):
        notes.append(
            f"both runs seem to have started from the same numbers in {len(shared)} "
            f"module{'s' * (len(shared) > 1)}, as "
            f"{shared[0]}: similarity of their input side says nothing of training there"
        )
    for name, column in zip(names, ("rank_a", "rank_b"), strict=True):
        zero = table[table[column] == 0].module.unique()
        if len(zero):
            notes.append(
                f"{name}: {len(zero)} updates are zero (untrained), "
                f"their similarity is undefined: {', '.join(zero[:3])}"
            )
    if vectors == "factor":
        notes.append(
            "directions of A and B alone depend on how ΔW is factored, and rows of an A that "
            "hardly moved are its initial numbers"
        )
    tied = sum(1 in a or 1 in b for a, b in zip(table.ambiguous_a, table.ambiguous_b, strict=True))
    if tied:
        notes.append(
            f"in {tied} rows the first singular values are equal: φ(1,1) is arbitrary there"
        )
    return notes
