"""The heat map of one φ grid, drawn into given axes."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from rankscope.plots.chance import colour_bar
from rankscope.plots.panels import SIDES, Panel, mean_panel, with_grids
from rankscope.plots.style import sequential, thick
from rankscope.plots.tables import TableError, count, one_line, require_columns, ticks_from_one

__all__ = ["plot_similarity"]

NOTHING = "every update is zero"
_EDGE = "0.6"


def plot_similarity(
    table: pd.DataFrame,
    *,
    side: str | None = None,
    names: tuple[str, str] = ("A", "B"),
    enlarged: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw the mean φ grid of the rows given, colours fixed to 0–1, with chance on the bar.

    Parameters
    ----------
    table : DataFrame
        Rows of a similarity table (`module`, `side`, `dimension`, `phi`). Grids of different
        sizes are averaged over the leading block that all of them have; rows of rank 0 are
        left out.
    side : {"right", "left"}, optional
        Which rows to draw; needed where the table holds both sides.
    names : (str, str)
        What the axis labels call the two adapters.
    enlarged : bool
        Draw only the lower-left triangle j ≤ i, as panels 3 and 4 of the paper's figure 3 do.
    ax : Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    Axes
        i points down and j to the right, both from 1.

    Raises
    ------
    TableError
        If a column is missing, or rows of both sides are given without `side`.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> table = pd.DataFrame({"module": ["q"], "side": ["right"], "dimension": [8],
    ...                       "phi": [np.eye(2)]})
    >>> ax = plot_similarity(table, ax=Figure().add_subplot())
    >>> ax.get_title(), ax.get_ylabel()
    ('q', 'i (directions of A)')
    """
    require_columns(table, "module", "side", "dimension", "phi")
    ax = plt.gca() if ax is None else ax
    rows = with_grids(_one_side(table, side)).query("drawn")
    if rows.empty:
        ax.set_axis_off()
        ax.text(0.5, 0.5, NOTHING, ha="center", va="center", transform=ax.transAxes)
        return ax
    panel = mean_panel(rows, _heading(rows))
    panel = panel.triangle() if enlarged else panel
    mesh = draw_grid(ax, panel)
    ax.set(xlabel=direction("j", names[1]), ylabel=direction("i", names[0]))
    ax.set_title(f"{panel.name}, {panel.detail}" if enlarged else panel.name)
    colour_bar(ax.figure, mesh, [ax], [panel.chance])
    return ax


def draw_grid(ax: Axes, panel: Panel, most_ticks: int = 10) -> QuadMesh:
    """Draw one grid: i down, j to the right, cell centres on whole numbers from 1."""
    high, wide = panel.grid.shape
    mesh = ax.pcolormesh(
        np.arange(wide + 1) + 0.5,
        np.arange(high + 1) + 0.5,
        np.ma.masked_invalid(panel.grid),
        cmap=sequential("rocket"),
        vmin=0,
        vmax=1,
        rasterized=True,  # thousands of little paths make slow files with hairlines between
    )
    ax.set(xlim=(0.5, wide + 0.5), ylim=(high + 0.5, 0.5))
    ax.set_xticks(ticks_from_one(wide, most_ticks))
    ax.set_yticks(ticks_from_one(high))
    ax.spines[["top", "right"]].set_visible(not panel.enlarged)
    ax.spines[:].set_color(_EDGE)
    if panel.enlarged:
        # Without the staircase j = i a φ of 1 fades into the paper.
        edge = np.arange(high + 1) + 0.5
        ax.step(edge, edge, where="post", color=_EDGE, linewidth=thick(0.6))
    return mesh


def direction(index: str, name: str, width: int = 30) -> str:
    """Return the label of an index axis: 'i (directions of A)'."""
    return f"{index} (directions of {one_line(name, width)})"


def _one_side(table: pd.DataFrame, side: str | None) -> pd.DataFrame:
    if side is not None:
        return table[table["side"] == side]
    present = [name for name in SIDES if (table["side"] == name).any()]
    if len(present) > 1:
        raise TableError(
            "one grid cannot show both sides",
            where="plot_similarity, side",
            expected="rows of one side, or side='right' or 'left'",
            got=f"rows of {' and '.join(present)}",
            fix="pass side='right', or use figure_similarity for both",
        )
    return table


def _heading(rows: pd.DataFrame) -> str:
    modules = list(rows["module"].unique())
    if len(modules) == 1:
        return one_line(str(modules[0]))
    return f"mean of {count(len(modules), 'module')}"
