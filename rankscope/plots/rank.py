"""Rank measures against depth, from zero to the largest rank possible."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rankscope.plots.places import draw_kind, label_places, layered, places
from rankscope.plots.style import (
    DOUBLE,
    SINGLE,
    SMALL,
    new_figure,
    notice_figure,
    panels_of,
    points,
    theme,
    thick,
)
from rankscope.plots.tables import (
    as_floats,
    in_words,
    kinds_in_order,
    left_out,
    require_columns,
)

__all__ = ["figure_rank", "plot_rank"]

MEASURES = ("effective_rank", "stable_rank", "participation_rank", "energy_rank_90")


def plot_rank(
    table: pd.DataFrame, *, measure: str = "effective_rank", ax: Axes | None = None
) -> Axes:
    """Draw one rank measure against the layer, one colour and marker per kind.

    The axis starts at 0. The ceiling, the largest rank possible, is a dashed line, or words at
    the top where it is more than three times the largest value. Lines join the means of a
    kind's modules in each layer. Modules without a layer stand right of the last one; where no
    module has a layer, they stand in the table's order, with their names if they are few.

    Parameters
    ----------
    table : DataFrame
        A rank table: `module`, `layer`, `kind`, `ceiling` and the measure.
    measure : str
        The column to draw; rows where it is undefined are left out.
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
    >>> table = pd.DataFrame({"module": ["a", "b"], "layer": [0, 1], "kind": "q", "ceiling": 8,
    ...                       "effective_rank": [2.0, 3.0]})
    >>> ax = plot_rank(table, ax=Figure().add_subplot())
    >>> ax.get_ylabel(), float(ax.get_ylim()[0])
    ('effective rank', 0.0)
    """
    require_columns(table, "module", "layer", "kind", "ceiling", measure)
    ax = plt.gca() if ax is None else ax
    drawn = _draw_measure(ax, table, measure)
    ax.set_ylabel(in_words(measure))
    if drawn:
        ax.legend(title="kind", ncols=1 + len(drawn) // 6)
    return ax


def figure_rank(table: pd.DataFrame, *, measures: Sequence[str] = MEASURES) -> Figure:
    """Return a panel per rank measure against the layer, coloured by kind.

    Parameters
    ----------
    table : DataFrame
        A rank table: `module`, `layer`, `kind`, `ceiling` and the measures.
    measures : sequence of str
        The columns to draw.

    Returns
    -------
    Figure
        Not known to pyplot, so it need not be closed. If no measure is defined it says so.

    Raises
    ------
    TableError
        If a column is missing.

    Examples
    --------
    >>> table = pd.DataFrame({"module": ["a"], "layer": [0], "kind": "q", "ceiling": 8,
    ...                       "stable_rank": [2.0]})
    >>> [ax.get_title() for ax in figure_rank(table, measures=["stable_rank"]).axes]
    ['stable rank']
    """
    require_columns(table, "module", "layer", "kind", "ceiling", *measures)
    undefined = as_floats(table, measures).isna().all(axis=1)
    caption = left_out(list(table.loc[undefined, "module"]), "no measure is defined")
    table = table[~undefined]
    if table.empty:
        return notice_figure("no measure is defined" if caption else "no module to draw", caption)
    with theme():
        return _draw_panels(table, measures, caption)


def _draw_panels(table: pd.DataFrame, measures: Sequence[str], caption: str) -> Figure:
    columns = min(len(measures), 2)
    rows = -(-len(measures) // columns)
    figure = new_figure(SINGLE if columns == 1 else DOUBLE, rows * 1.9 + 0.3, caption)
    part = panels_of(figure)
    axes = [part.add_subplot(rows, columns, n + 1) for n in range(len(measures))]
    drawn: list[str] = []
    for index, (ax, measure) in enumerate(zip(axes, measures, strict=True)):
        drawn = _draw_measure(ax, table, measure) or drawn
        ax.set_title(in_words(measure))
        if index + columns < len(measures):
            ax.set_xlabel("")
            ax.tick_params(labelbottom=False)
    handles, labels = axes[0].get_legend_handles_labels()
    if len(labels) > 1:
        part.legend(
            handles,
            labels,
            loc="outside upper center",
            ncols=len(labels),
        )
    return figure


def _draw_measure(ax: Axes, table: pd.DataFrame, measure: str) -> list[str]:
    """Draw the values and the ceiling; return the kinds drawn."""
    at = places(table)
    values = as_floats(table, [measure])[measure].to_numpy()
    shown = np.isfinite(values)
    kinds = kinds_in_order(table.loc[shown, "kind"])
    for kind in kinds:
        chosen = shown & (table["kind"] == kind).to_numpy()
        draw_kind(ax, kind, at[chosen], values[chosen], joined=layered(table))
    _mark_ceiling(ax, table["ceiling"].to_numpy(dtype=np.float64), values[shown])
    label_places(ax, table)
    return kinds


def _mark_ceiling(ax: Axes, ceilings: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    highest = values.max(initial=0.0)
    levels = np.unique(ceilings[np.isfinite(ceilings)])
    near = levels[levels <= 3 * highest]
    for level in near:
        ax.axhline(level, color="0.4", linestyle="--", linewidth=thick(0.7), label="_ceiling")
    if near.size:
        words, height = "ceiling " + ", ".join(f"{n:g}" for n in near[-4:]), float(near[-1])
        ax.annotate(
            words,
            (1.0, height),
            xytext=(0, 1),
            xycoords=ax.get_yaxis_transform(),
            textcoords="offset points",
            ha="right",
            va="bottom",
            size=points(SMALL),
            color="0.3",
        )
    elif levels.size:
        span = "–".join(dict.fromkeys(f"{level:g}" for level in (levels[0], levels[-1])))
        ax.annotate(
            f"ceiling {span} ↑",
            (1.0, 1.0),
            xytext=(0, -1),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="top",
            size=points(SMALL),
            color="0.3",
        )
    ax.set_ylim(0, 1.15 * max(highest, near.max(initial=0.0)) or 1.0)
