"""φ heat maps layer by layer, as figures 3, 4, 6 and 7 of the LoRA paper lay them out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rankscope.plots.chance import colour_bar
from rankscope.plots.panels import RANDOM, Panel, mean_panel, with_grids
from rankscope.plots.similarity import NOTHING, direction, draw_grid
from rankscope.plots.style import DOUBLE, new_figure, notice_figure, outer_labels, points, theme
from rankscope.plots.tables import kinds_in_order, require_columns

__all__ = ["figure_layers", "phi_cells"]

_BAR = 2.0  # inches, the longest colour bar


def figure_layers(
    table: pd.DataFrame,
    *,
    random: pd.DataFrame | None = None,
    names: tuple[str, str] = ("A", "B"),
    abreast: int = 1,
    caption: str = "",
) -> Figure:
    """Return heat maps of one side, a row per layer: each kind, then its triangle enlarged.

    Parameters
    ----------
    table : DataFrame
        Rows of one side of a similarity table: `layer`, `kind`, `dimension`, `phi`. Several
        rows of one layer and kind, from several pairs of runs, are averaged.
    random : DataFrame, optional
        Grids of random directions, `dimension` and `phi`, averaged into one panel a row.
    names : (str, str)
        What the axis labels call the two adapters.
    abreast : int
        How many layers stand in one row of panels.
    caption : str
        What was averaged; chance is marked on the colour bar.

    Returns
    -------
    Figure
        Colours from 0 to 1. Not known to pyplot, so it need not be closed.

    Raises
    ------
    TableError
        If a column is missing.

    Examples
    --------
    >>> table = pd.DataFrame({"layer": [0, 0], "kind": ["v", "q"], "dimension": 8,
    ...                       "phi": [np.eye(2, 4), np.eye(2, 4)]})
    >>> [ax.get_title() for ax in figure_layers(table).axes][:4]
    ['layer 0: q', 'layer 0: v', 'layer 0: q, j ≤ i', 'layer 0: v, j ≤ i']
    """
    require_columns(table, "layer", "kind", "dimension", "phi")
    rows = with_grids(table).query("drawn")
    if rows.empty:
        return notice_figure(NOTHING if len(table) else "no module to draw", caption)
    control = None if random is None else mean_panel(with_grids(random), RANDOM)
    blocks = [_block(rows[rows["layer"] == layer], control) for layer in _layers(rows)]
    lines = [list(chain(*blocks[n : n + abreast])) for n in range(0, len(blocks), abreast)]
    with theme():
        return _draw(lines, names, caption)


def phi_cells(table: pd.DataFrame, digits: int = 4) -> pd.DataFrame:
    """Return the mean grids that `figure_layers` draws: a row per layer, kind and i.

    The columns ``j1``, ``j2`` … hold φ(i, j), rounded; `chance` is max(i, j)/d at the last j.

    Examples
    --------
    >>> table = pd.DataFrame({"layer": [0], "kind": ["q"], "dimension": 8, "phi": [np.eye(2)]})
    >>> phi_cells(table).values.tolist()
    [[0, 'q', 1, 0.25, 1.0, 0.0], [0, 'q', 2, 0.25, 0.0, 1.0]]
    """
    rows = with_grids(table).query("drawn")
    parts = []
    for layer in _layers(rows):
        for kind in kinds_in_order(rows["kind"]):
            mine = rows[(rows["layer"] == layer) & (rows["kind"] == kind)]
            if len(mine):
                parts.append(_cells(mine, layer, kind, digits))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _cells(rows: pd.DataFrame, layer: int, kind: str, digits: int) -> pd.DataFrame:
    grid = mean_panel(rows, "").grid
    high, wide = grid.shape
    i = np.arange(1, high + 1)
    dimension = float(rows["dimension"].iloc[0])
    first: dict[str, Any] = {
        "layer": layer,
        "kind": kind,
        "i": i,
        "chance": np.maximum(i, wide) / dimension,
    }
    columns = [f"j{j}" for j in range(1, wide + 1)]
    cells: NDArray[np.float64] = grid.round(digits)
    return pd.concat([pd.DataFrame(first), pd.DataFrame(cells, columns=columns)], axis=1)


def _layers(rows: pd.DataFrame) -> list[int]:
    return sorted({int(layer) for layer in rows["layer"].dropna()})


def _block(rows: pd.DataFrame, control: Panel | None) -> list[Panel]:
    """Return the panels of one layer: kinds, the control, enlarged triangles."""
    layer = _layers(rows)[0]
    kinds = kinds_in_order(rows["kind"])
    full = [mean_panel(rows[rows["kind"] == k], f"layer {layer}: {k}") for k in kinds]
    oblong = [panel for panel in full if panel.grid.shape[0] != panel.grid.shape[1]]
    return full + ([control] if control else []) + [panel.triangle() for panel in oblong]


def _draw(lines: Sequence[Sequence[Panel]], names: tuple[str, str], caption: str) -> Figure:
    columns = max(map(len, lines))
    wide = (DOUBLE - 1.1) / columns - 0.2
    body = len(lines) * (min(wide, 1.9) + 0.4) + 0.3
    figure = new_figure(DOUBLE, body, caption)
    grid = figure.add_gridspec(len(lines), columns)
    drawn: list[Axes] = []
    for r, panels in enumerate(lines):
        for c, panel in enumerate(panels):
            ax = figure.add_subplot(grid[r, c])
            draw_grid(ax, panel, most_ticks=max(2, int(wide / 0.13)))
            ax.set_title(
                f"{panel.name}, j ≤ i" if panel.enlarged else panel.name, size=points(6.5), pad=3
            )
            same = c > 0 and panels[c - 1].grid.shape[0] == panel.grid.shape[0]
            ax.tick_params(labelleft=not same, labelbottom=r + 1 == len(lines))
            drawn.append(ax)
    outer_labels(figure, direction("j", names[1]), direction("i", names[0]))
    length = min(_BAR, body - 0.6)
    chances = [panel.chance for line in lines for panel in line]
    mesh: Any = drawn[0].collections[0]
    colour_bar(figure, mesh, drawn, chances, inches=length, shrink=min(1.0, length / (body - 0.6)))
    return figure
