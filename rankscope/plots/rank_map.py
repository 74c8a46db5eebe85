"""A measure of every module as a map: kinds of weight down, layers to the right."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, Locator, MaxNLocator
from numpy.typing import NDArray

from rankscope.plots.rank import MEASURES
from rankscope.plots.style import (
    DOUBLE,
    SINGLE,
    SMALL,
    ink,
    new_figure,
    notice_figure,
    points,
    sequential,
    theme,
    thick,
)
from rankscope.plots.tables import (
    as_floats,
    in_words,
    kinds_in_order,
    layer_numbers,
    left_out,
    require_columns,
)

__all__ = ["draw_map", "figure_rank_map", "plot_rank_map"]

# Shares of a whole: their scale is the whole, so that two figures can be compared.
SHARES = ("unchanged_fraction", "noise_share", "top1_energy")
_NUMBERED = 8  # layers whose values can be written into their cells
_NONE = "none"


def plot_rank_map(
    table: pd.DataFrame, *, measure: str = "effective_rank", ax: Axes | None = None
) -> Axes:
    """Draw one measure as a heat map of kind and layer, with its colour scale.

    The scale starts at 0; shares such as `unchanged_fraction` have the fixed scale 0–1. A
    cell is the mean over its modules, grey where none has the measure. Modules without a
    layer stand in a last column, ``none``.

    Parameters
    ----------
    table : DataFrame
        A rank table: `module`, `layer`, `kind` and the measure.
    measure : str
        The column to draw.
    ax : Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    Axes

    Raises
    ------
    TableError
        If a column is missing.

    Examples
    --------
    >>> table = pd.DataFrame({"module": ["a", "b"], "layer": [0, 1], "kind": "q",
    ...                       "stable_rank": [2.0, 3.0]})
    >>> ax = plot_rank_map(table, measure="stable_rank", ax=Figure().add_subplot())
    >>> ax.get_title(), [label.get_text() for label in ax.get_yticklabels()]
    ('stable rank', ['q'])
    """
    require_columns(table, "module", "layer", "kind", measure)
    ax = plt.gca() if ax is None else ax
    mesh = draw_map(ax, table, measure)
    ax.figure.colorbar(mesh, ax=ax, ticks=_ticks(measure), pad=0.02)
    return ax


def figure_rank_map(table: pd.DataFrame, *, measures: Sequence[str] = MEASURES) -> Figure:
    """Return a heat map of kind and layer per measure, one below the other.

    Parameters
    ----------
    table : DataFrame
        A rank table: `module`, `layer`, `kind` and the measures.
    measures : sequence of str
        The columns to draw, such as ``["unchanged_fraction"]``.

    Returns
    -------
    Figure
        Not known to pyplot, so it need not be closed. Modules for which no measure is defined
        are named under it.

    Raises
    ------
    TableError
        If a column is missing.

    Examples
    --------
    >>> table = pd.DataFrame({"module": ["a"], "layer": [0], "kind": "q", "stable_rank": [2.0]})
    >>> figure_rank_map(table, measures=["stable_rank"]).axes[0].get_title()
    'stable rank'
    """
    require_columns(table, "module", "layer", "kind", *measures)
    undefined = as_floats(table, measures).isna().all(axis=1)
    caption = left_out(list(table.loc[undefined, "module"]), "no measure is defined")
    table = table[~undefined]
    if table.empty:
        return notice_figure("no measure is defined" if caption else "no module to draw", caption)
    with theme():
        return _draw_maps(table, measures, " ".join(filter(None, [_means(table), caption])))


def _draw_maps(table: pd.DataFrame, measures: Sequence[str], caption: str) -> Figure:
    width = SINGLE if len(_columns(table)) <= _NUMBERED else DOUBLE
    height = 0.17 * max(table["kind"].nunique(), 3) + 0.22
    figure = new_figure(width, len(measures) * height + 0.25, caption)
    for index, measure in enumerate(measures):
        ax = figure.add_subplot(len(measures), 1, index + 1)
        mesh = draw_map(ax, table, measure)
        bar = figure.colorbar(mesh, ax=ax, ticks=_ticks(measure), pad=0.01, aspect=8)
        bar.outline.set_visible(False)
        if index + 1 < len(measures):
            ax.set_xlabel("")
            ax.tick_params(labelbottom=False)
    return figure


def draw_map(ax: Axes, table: pd.DataFrame, measure: str, *, top: float = 0.0) -> QuadMesh:
    """Draw a measure by kind and layer, from 0 to `top`, or to the largest value."""
    kinds, layers = kinds_in_order(table["kind"]), _columns(table)
    grid = _grid(table, measure, kinds, layers)
    top = 1.0 if measure in SHARES else top or float(np.nanmax(grid, initial=0.0)) or 1.0
    mesh = ax.pcolormesh(
        np.arange(len(layers) + 1) - 0.5,
        np.arange(len(kinds) + 1) - 0.5,
        np.ma.masked_invalid(grid),
        cmap=sequential("mako").with_extremes(bad="0.88"),
        vmin=0,
        vmax=top,
        edgecolors="white",
        linewidth=thick(0.4),
    )
    ax.set_facecolor("0.88")
    ax.set(title=in_words(measure), xlabel="layer")
    ax.invert_yaxis()
    ax.set_yticks(range(len(kinds)), kinds)
    step = next(step for step in (1, 2, 4, 5, 8, 10, 20, 50, 100) if len(layers) / step <= 16)
    ticks = [at for at, name in enumerate(layers) if name == _NONE or int(name) % step == 0]
    ax.set_xticks(ticks, [layers[at] for at in ticks])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if len(layers) <= _NUMBERED:
        _write_values(ax, grid, mesh)
    return mesh


def _ticks(measure: str) -> Locator:
    return FixedLocator([0.0, 0.5, 1.0]) if measure in SHARES else MaxNLocator(3)


def _columns(table: pd.DataFrame) -> list[str]:
    """Return the layers from the first to the last, and ``none`` where a module has none."""
    numbers = layer_numbers(table)
    known = numbers[np.isfinite(numbers)].astype(int)
    layers = [str(n) for n in range(known.min(), known.max() + 1)] if known.size else []
    return layers + ([_NONE] if known.size < len(numbers) else [])


def _grid(
    table: pd.DataFrame, measure: str, kinds: list[str], layers: list[str]
) -> NDArray[np.float64]:
    """Return the mean of each kind and layer, NaN where no module has the measure."""
    places = [_NONE if np.isnan(n) else str(int(n)) for n in layer_numbers(table)]
    values = as_floats(table, [measure])[measure].to_numpy()
    frame = pd.DataFrame({"kind": table["kind"].to_numpy(), "place": places, "value": values})
    means = frame.pivot_table(index="kind", columns="place", values="value")
    grid: NDArray[np.float64] = means.reindex(index=kinds, columns=layers).to_numpy(np.float64)
    return grid


def _write_values(ax: Axes, grid: NDArray[np.float64], mesh: QuadMesh) -> None:
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            color = ink(mesh, value)
            ax.text(
                column,
                row,
                f"{value:.3g}",
                ha="center",
                va="center",
                size=points(SMALL),
                color=color,
            )


def _means(table: pd.DataFrame) -> str:
    """Return the sentence that says where a cell stands for several modules."""
    largest = table.groupby(["kind", "layer"], dropna=False, observed=True).size().max()
    return f"Means of up to {largest} modules in a cell." if largest > 1 else ""
