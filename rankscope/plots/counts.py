"""A number of directions per module: lines for few kinds of weight, a map for many."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rankscope.plots.places import draw_kind, label_places, layered, places
from rankscope.plots.rank_map import draw_map
from rankscope.plots.tables import kinds_in_order

__all__ = ["draw_counts", "draw_lines"]

_LINES = 2  # kinds whose lines can be told apart where they cross


def draw_counts(ax: Axes, table: pd.DataFrame, side: str, column: str) -> None:
    """Draw one side's numbers, on the scale of both sides."""
    rows = table[table["side"] == side]
    known = table[column].to_numpy(dtype=np.float64)
    top = float(known[np.isfinite(known)].max(initial=0.0)) or 1.0
    if layered(rows) and rows["kind"].nunique() > _LINES:
        mesh = draw_map(ax, rows, column, top=top)
        bar = ax.figure.colorbar(mesh, ax=ax, ticks=MaxNLocator(3, integer=True), pad=0.02)
        bar.outline.set_visible(False)
    else:
        draw_lines(ax, rows, column)
        ax.set_ylim(0, 1.1 * top)


def draw_lines(ax: Axes, rows: pd.DataFrame, column: str) -> list[str]:
    """Draw numbers against the layer, from 0; return the kinds drawn."""
    kinds = kinds_in_order(rows["kind"])
    at, found = places(rows), rows[column].to_numpy(dtype=np.float64)
    for kind in kinds:
        mine = (rows["kind"] == kind).to_numpy()
        draw_kind(ax, kind, at[mine], found[mine], joined=layered(rows))
    label_places(ax, rows)
    ax.set_ylim(0, 1.1 * found[np.isfinite(found)].max(initial=1.0))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return kinds
