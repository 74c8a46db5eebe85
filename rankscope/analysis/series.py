"""A series of sources, such as checkpoints of one run: rank, norm and subspace by steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["series_table"]

_SIZES = ("directions", "stable_rank", "energy_rank_90")
# From a measure to what one reads it beside.
_BESIDE = {"phi": ("chance",)}


def series_table(
    table: pd.DataFrame, updates: pd.DataFrame, names: Sequence[str], measures: Sequence[str]
) -> pd.DataFrame:
    """Return a row per side and source, in the order of the sources.

    Parameters
    ----------
    table, updates : DataFrame
        Of a `CompareResult`, whose `series` this is.
    names : sequence of str
        The sources in their order.
    measures : sequence of str
        Those that `table` holds; one that differs between a pair's two ways is left out.
    """
    alike = [measure for measure in measures if measure in table]
    columns = [column for measure in alike for column in (measure, *_BESIDE.get(measure, ()))]
    means = table.groupby(["side", "a", "b"], sort=False)[columns].mean()
    sizes = {name: _size(updates[updates.name == name]) for name in names}
    rows = [
        {"side": side, "step": step + 1, "name": name}
        | sizes[name]
        | dict(_pairs(means, side, names, step, columns))
        for side in dict.fromkeys(table.side)
        for step, name in enumerate(names)
    ]
    return pd.DataFrame(rows)


def _size(rows: pd.DataFrame) -> dict[Any, Any]:
    """Return the norm of all modules together, and the means of their ranks."""
    norms = rows.norm.to_numpy(dtype=np.float64)
    means = rows[list(_SIZES)].astype("float64").mean(skipna=False)
    return {"modules": len(rows), "norm": float(np.linalg.norm(norms)), **dict(means.items())}


def _pairs(
    means: pd.DataFrame, side: str, names: Sequence[str], step: int, columns: Sequence[str]
) -> Iterator[tuple[str, float]]:
    """Yield what a source has in common with the one before it and with the last."""
    for word, other in (("previous", step - 1), ("last", len(names) - 1)):
        first, second = sorted((step, other))
        key = (side, names[first], names[second])
        known = first >= 0 and first != second and key in means.index
        for column in columns:
            yield f"{column}_{word}", float(means[column][key]) if known else math.nan
