"""Pages of φ heat maps like figures 3 and 4 of the LoRA paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rankscope.plots.chance import colour_bar
from rankscope.plots.panels import SIDES, Page, Panel, arrange, page_columns
from rankscope.plots.similarity import NOTHING, direction, draw_grid
from rankscope.plots.style import (
    DOUBLE,
    SINGLE,
    characters,
    new_figure,
    notice_figure,
    outer_labels,
    points,
    theme,
)
from rankscope.plots.tables import short_names

__all__ = ["drawn_cells", "figure_similarity"]

_Row = tuple[str, Sequence[Panel]]
_BAR = 2.2  # inches, the longest colour bar


def figure_similarity(
    table: pd.DataFrame,
    *,
    random: pd.DataFrame | None = None,
    by: str = "auto",
    page: int = 1,
    names: tuple[str, str] = ("A", "B"),
) -> Figure:
    """Return a page of φ heat maps like figures 3 and 4 of the LoRA paper.

    Each side has its rows: the full grids, the random control where given, then the triangle
    j ≤ i of every grid that is not square, enlarged. All share one colour bar from 0 to 1, on
    which the chance level of the last cell is marked. A line under the panels says what was
    averaged, which page this is, and which modules are left out.

    Parameters
    ----------
    table : DataFrame
        A similarity table: `module`, `layer`, `kind`, `side`, `dimension`, `phi`.
    random : DataFrame, optional
        Grids of random Gaussian matrices: `side`, `dimension`, `phi`. Draws at the dimensions
        of the page are averaged into one panel per side.
    by : {"auto", "kind", "module"}
        One panel per kind (the mean of its modules) or per module; "auto" takes modules where
        there are at most four of them.
    page : int
        From 1. Modules come twelve a page, six where triangles are enlarged; see `count_pages`.
    names : (str, str)
        What the axis labels call the two adapters.

    Returns
    -------
    Figure
        Not known to pyplot, so it need not be closed. If every update is zero it says so.

    Raises
    ------
    TableError
        If a column is missing, `by` is unknown or the page does not exist.

    References
    ----------
    .. [1] E. Hu et al., "LoRA: low-rank adaptation of large language models", 2021,
       arXiv:2106.09685v2, figures 3 and 4.

    Examples
    --------
    >>> table = pd.DataFrame({"module": ["q"], "layer": [0], "kind": ["q"], "side": ["right"],
    ...                       "dimension": [8], "phi": [np.eye(2, 4)]})
    >>> [ax.get_title() for ax in figure_similarity(table).axes]
    ['q', 'q, enlarged: j ≤ i', '']
    """
    content = arrange(table, random=random, by=by, page=page)
    if not content.sides:
        return notice_figure(NOTHING if len(table) else "no module to draw", content.caption)
    with theme():
        return _draw_page(content, names)


def drawn_cells(table: pd.DataFrame, random: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the numbers of `figure_similarity` by kind: side, panel, i, j, phi and chance.

    Examples
    --------
    >>> rows = {"module": ["a", "b"], "layer": [0, 1], "kind": "q", "side": "right",
    ...         "dimension": 4, "phi": [np.eye(1), np.zeros((1, 1))]}
    >>> drawn_cells(pd.DataFrame(rows)).to_numpy().tolist()
    [['right', 'q', 1, 1, 0.5, 0.25]]
    """
    sides = arrange(table, random=random, by="kind", page=1).sides
    parts = [
        pd.DataFrame({"side": side, "panel": panel.name, **_cells(panel)})
        for side, panels in sides.items()
        for panel in panels
        if not panel.enlarged
    ]
    return pd.concat(parts, ignore_index=True)


def _cells(panel: Panel) -> dict[str, NDArray[Any]]:
    i, j = np.indices(panel.grid.shape) + 1
    # Of the last cell the panel knows chance, max(i, j) times the mean of 1 / d.
    chance = np.maximum(i, j) * panel.chance / max(panel.grid.shape)
    columns = {"i": i, "j": j, "phi": panel.grid, "chance": chance}
    return {name: values.ravel() for name, values in columns.items()}


def _draw_page(content: Page, names: tuple[str, str]) -> Figure:
    columns = page_columns([_parts(panels) for panels in content.sides.values()])
    rows = [row for item in content.sides.items() for row in _rows(*item, columns)]
    width = SINGLE if columns == 1 else DOUBLE
    wide = (width - 1.1) / columns - 0.2
    high = min(wide, 1.9) + 0.4
    body = len(rows) * high + 0.3
    figure = new_figure(width, body, content.caption)
    titles = _titles(content, wide)
    drawn = _draw_rows(figure, rows, columns, titles, wide)
    outer_labels(figure, direction("j", names[1]), direction("i", names[0]))
    chances = [panel.chance for _, row in rows for panel in row]
    length = min(_BAR, body - 0.6)
    colour_bar(
        figure,
        drawn[0].collections[0],  # type: ignore[arg-type]
        drawn,
        chances,
        inches=length,
        shrink=min(1.0, length / (body - 0.6)),
    )
    return figure


def _parts(panels: Sequence[Panel]) -> tuple[int, int]:
    enlarged = sum(panel.enlarged for panel in panels)
    return len(panels) - enlarged, enlarged


def _rows(side: str, panels: Sequence[Panel], columns: int) -> Iterator[_Row]:
    """Yield the rows of one side; where they wrap, enlarged panels begin a row of their own."""
    full, _ = _parts(panels)
    parts = [panels] if len(panels) <= columns else [panels[:full], panels[full:]]
    for part in parts:
        for start in range(0, len(part), columns):
            yield side, part[start : start + columns]


def _titles(content: Page, wide: float) -> dict[str, str]:
    """Return the name of every panel as its title can hold it."""
    panels = [panel for panels in content.sides.values() for panel in panels]
    full = list(dict.fromkeys(panel.name for panel in panels))
    return dict(zip(full, short_names(full, characters(wide + 0.1, 6.5)), strict=True))


def _draw_rows(
    figure: Figure, rows: Sequence[_Row], columns: int, titles: dict[str, str], wide: float
) -> list[Axes]:
    grid = figure.add_gridspec(len(rows), columns)
    drawn = []
    for r, (side, panels) in enumerate(rows):
        below = rows[r + 1][1] if r + 1 < len(rows) and rows[r + 1][0] == side else ()
        for c, panel in enumerate(panels):
            ax = figure.add_subplot(grid[r, c])
            draw_grid(ax, panel, most_ticks=max(2, int(wide / 0.13)))
            ax.set_title(_title(panel, titles[panel.name], wide), size=points(6.5), pad=points(3))
            same = c > 0 and panels[c - 1].grid.shape[0] == panel.grid.shape[0]
            covered = c < len(below) and below[c].grid.shape[1] == panel.grid.shape[1]
            ax.tick_params(labelleft=not same, labelbottom=not covered)
            drawn.append(ax)
        if r == 0 or rows[r - 1][0] != side:
            drawn[-len(panels)].set_ylabel(SIDES[side], weight="bold", size=points(6.5))
    return drawn


def _title(panel: Panel, name: str, wide: float) -> str:
    if not panel.detail:
        return name
    line = f"{name}{', ' if panel.enlarged else ' · '}{panel.detail}"
    return line if len(line) <= characters(wide + 0.1, 6.5) else f"{name}\n{panel.detail}"
