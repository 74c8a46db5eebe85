"""W's directions against those of several updates: figure 8 of the LoRA paper, beside chance."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rankscope.plots.alignment import draw_alignment, ratio_bar
from rankscope.plots.style import (
    DOUBLE,
    new_figure,
    notice_figure,
    outer_labels,
    sequential,
    theme,
)
from rankscope.plots.tables import as_vector, require_columns, ticks_from_one

__all__ = ["figure_alignments", "mean_alignment"]

_CAP = 0.4  # of the colours of φ: little lies above, as in the paper, where the bar ends at 0.2


def figure_alignments(
    tables: Mapping[str, pd.DataFrame], *, side: str = "right", caption: str = ""
) -> Figure:
    """Return φ of W's first i and ΔW's first j directions, a column per update, and over chance.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Amplification tables by what to call them; rows of one kind, over which φ is averaged.
    side : {"right", "left"}
        Input or output directions.
    caption : str
        What was averaged.

    Returns
    -------
    Figure
        Above φ, as figure 8 draws it, below φ over its chance level max(i, j)/d, where white
        is chance. Not known to pyplot, so it need not be closed.

    Raises
    ------
    TableError
        If a column is missing.
    """
    for table in tables.values():
        require_columns(table, "rows", "columns", "alignment_i", f"alignment_{side}")
    if not any(map(len, tables.values())):
        return notice_figure("no module to draw", caption)
    with theme():
        return _draw(tables, side, caption)


def mean_alignment(table: pd.DataFrame, side: str) -> NDArray[np.float64]:
    """Return the mean over a table's modules of φ, W's directions by ΔW's."""
    grids = [np.asarray(grid, dtype=np.float64) for grid in table[f"alignment_{side}"]]
    mean: NDArray[np.float64] = np.mean(grids, axis=0)
    return mean


def _draw(tables: Mapping[str, pd.DataFrame], side: str, caption: str) -> Figure:
    figure = new_figure(DOUBLE, 3.6, caption)
    upper, lower = figure.subplots(2, len(tables), squeeze=False)
    for column, (name, table) in enumerate(tables.items()):
        i, phi = as_vector(table["alignment_i"].iloc[0]), mean_alignment(table, side)
        edges = np.concatenate([[0.5], (i[1:] + i[:-1]) / 2, i[-1:] + 0.5])
        across = np.arange(phi.shape[1] + 1) + 0.5
        mesh = upper[column].pcolormesh(
            across, edges, phi, cmap=sequential("rocket"), vmin=0, vmax=_CAP, rasterized=True
        )
        upper[column].set(title=name, ylim=(edges[-1], 0.5))
        upper[column].set_xticks(ticks_from_one(phi.shape[1], 6))
        upper[column].set_yticks(ticks_from_one(int(i[-1]), 6))
        draw_alignment(lower[column], table, side, most_ticks=6)
        for ax in (upper[column], lower[column]):
            ax.tick_params(labelleft=column == 0)
        upper[column].tick_params(labelbottom=False)
    bar = figure.colorbar(mesh, ax=list(upper), extend="max", label="φ(i, j)")
    bar.outline.set_visible(False)
    ratio_bar(list(lower))
    outer_labels(figure, "j (directions of ΔW)", "i (directions of W)")
    return figure
