"""Where ΔW's directions lie along W's: one map of figure 8 of the LoRA paper, over chance."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import TwoSlopeNorm

from rankscope.plots.panels import SIDES
from rankscope.plots.style import diverging
from rankscope.plots.tables import as_vector, require_columns, ticks_from_one

__all__ = ["ALIGNMENT", "alike", "draw_alignment", "modules_once", "plot_alignment", "ratio_bar"]

ALIGNMENT = ("rows", "columns", "alignment_i")
_OCTAVES = 2  # either way from chance, to the ends of the colours


def plot_alignment(table: pd.DataFrame, *, side: str = "right", ax: Axes | None = None) -> Axes:
    """Draw φ of W's first i and ΔW's first j directions over chance: Figure 8.

    Parameters
    ----------
    table : DataFrame
        An amplification table: `module`, `k`, `rows`, `columns`, `alignment_i` and the
        alignment of the side. The mean over the modules of the commonest size is drawn.
    side : {"right", "left"}
        Input or output directions.
    ax : Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    Axes
        i points down and j to the right. White is chance, max(i, j)/d; the colours end at a
        quarter and at four times of it.

    Raises
    ------
    TableError
        If a column is missing.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> table = pd.DataFrame({"module": ["a"], "k": 1, "rows": 8, "columns": 8,
    ...     "alignment_i": [[1, 2]], "alignment_right": [np.array([[0.25], [0.25]])]})
    >>> ax = plot_alignment(table, ax=Figure().add_subplot())
    >>> ax.collections[0].get_array().ravel().tolist()  # twice chance, then chance
    [1.0, 0.0]
    """
    require_columns(table, "module", "k", *ALIGNMENT, f"alignment_{side}")
    ax = plt.gca() if ax is None else ax
    if not draw_alignment(ax, table, side):
        ax.set_axis_off()
        return ax
    ax.set(xlabel="j (directions of ΔW)", ylabel="i (directions of W)", title=SIDES[side])
    ratio_bar([ax])
    return ax


def draw_alignment(ax: Axes, table: pd.DataFrame, side: str, most_ticks: int = 8) -> int:
    """Draw the mean of a table's modules; return of how many."""
    mine = alike(modules_once(table), "alignment_i", f"alignment_{side}")
    if mine.empty:
        ax.set_axis_off()
        return 0
    i = as_vector(mine["alignment_i"].iloc[0])
    d = float(mine["columns" if side == "right" else "rows"].iloc[0])
    phi = np.mean([np.asarray(grid) for grid in mine[f"alignment_{side}"]], axis=0)
    chance = np.maximum(i[:, None], np.arange(1, phi.shape[1] + 1)) / d
    edges = np.concatenate([[0.5], (i[1:] + i[:-1]) / 2, i[-1:] + 0.5])
    with np.errstate(divide="ignore"):
        octaves = np.log2(phi / chance)
    ax.pcolormesh(
        np.arange(phi.shape[1] + 1) + 0.5,
        edges,
        octaves,
        cmap=diverging("vlag").with_extremes(bad="0.88"),
        norm=TwoSlopeNorm(0, -_OCTAVES, _OCTAVES),
        rasterized=True,
    )
    ax.set(ylim=(edges[-1], 0.5))
    ax.set_xticks(ticks_from_one(phi.shape[1], most_ticks))
    ax.set_yticks(ticks_from_one(int(i[-1]), most_ticks))
    return len(mine)


def ratio_bar(axes: Sequence[Axes]) -> Colorbar:
    """Draw the colour bar of what `draw_alignment` drew."""
    mesh = next(ax.collections[0] for ax in axes if ax.collections)
    ticks = range(-_OCTAVES, _OCTAVES + 1)
    bar = axes[0].figure.colorbar(
        mesh, ax=list(axes), extend="both", ticks=list(ticks), label="φ over chance"
    )
    bar.set_ticklabels([f"×{2.0**n:g}" for n in ticks])
    bar.outline.set_visible(False)
    return bar


def modules_once(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per module: curves and grids are the same for every k."""
    return table.drop_duplicates("module")


def alike(rows: pd.DataFrame, index: str, values: str) -> pd.DataFrame:
    """Return the rows whose numbers can be averaged: those of the commonest size."""
    some = rows[[len(np.shape(cell)) > 0 for cell in rows[values]]]
    if some.empty:
        return some
    sizes = pd.Series(
        [
            (m, n, tuple(as_vector(i)), np.shape(cell))
            for m, n, i, cell in zip(
                some["rows"], some["columns"], some[index], some[values], strict=True
            )
        ],
        index=some.index,
    )
    alike: pd.DataFrame = some[sizes == sizes.mode().iloc[0]]
    return alike
