"""How close the leading directions of W + ΔW are to W's, and how many are intruders."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rankscope.plots.counts import draw_counts, draw_lines
from rankscope.plots.panels import SIDES
from rankscope.plots.places import label_places, layered, places
from rankscope.plots.style import (
    DOUBLE,
    KIND_COLORS,
    KIND_MARKERS,
    new_figure,
    notice_figure,
    panels_of,
    theme,
    thick,
)
from rankscope.plots.tables import TableError, as_vector, kinds_in_order, require_columns

__all__ = ["figure_intruders", "plot_closeness", "plot_intruders"]

_CLOSENESS = ("epsilon", "chance_99", "max_cosine")
_SPREAD = 0.24  # of a layer's width, over which its kinds stand beside each other


def plot_closeness(
    table: pd.DataFrame, *, side: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the largest cosine of every leading direction of W + ΔW with one of W's.

    Parameters
    ----------
    table : DataFrame
        An intruders table: `module`, `layer`, `kind`, `side`, `k`, `epsilon`,
        `chance_99` and `max_cosine`. Of several k the largest is drawn.
    side : {"right", "left"}, optional
        Which rows to draw; needed where the table holds both sides.
    ax : Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    Axes
        Layers, or modules, to the right, each kind's directions above each other; a dashed
        line for every ε and a grey band up to what 99 % of random directions stay below.

    Raises
    ------
    TableError
        If a column is missing, or rows of both sides are given without `side`.

    Examples
    --------
    >>> table = pd.DataFrame({"module": ["a"], "layer": [0], "kind": ["q"], "side": ["right"],
    ...     "k": [2], "epsilon": [0.5], "chance_99": [0.1], "max_cosine": [[0.9, 0.3]]})
    >>> ax = plot_closeness(table, ax=Figure().add_subplot())
    >>> ax.lines[0].get_ydata().tolist()
    [0.9, 0.3]
    """
    require_columns(table, "module", "layer", "kind", "side", "k", *_CLOSENESS)
    ax = plt.gca() if ax is None else ax
    kinds = _draw_closeness(ax, _one_side(table, side))
    ax.set_ylabel("largest cosine")
    ax.legend(handles=_keys(kinds), ncols=2)
    return ax


def plot_intruders(
    table: pd.DataFrame, *, side: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw how many of the first k directions of W + ΔW are intruders.

    Parameters
    ----------
    table : DataFrame
        An intruders table: `module`, `layer`, `kind`, `side`, `k`, `epsilon`, `intruders`.
        Of several k the largest is drawn, of several ε the first.
    side : {"right", "left"}, optional
        Which rows to draw; needed where the table holds both sides.
    ax : Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    Axes
        From 0 to k; a line joins the means of a kind's modules in each layer.

    Raises
    ------
    TableError
        If a column is missing, or rows of both sides are given without `side`.

    Examples
    --------
    >>> table = pd.DataFrame({"module": ["a", "b"], "layer": [0, 1], "kind": "q",
    ...     "side": "right", "k": 10, "epsilon": 0.5, "intruders": [3, 0]})
    >>> ax = plot_intruders(table, ax=Figure().add_subplot())
    >>> ax.get_ylabel(), ax.lines[0].get_ydata().tolist()
    ('intruders of 10, ε = 0.5', [3.0, 0.0])
    """
    require_columns(table, "module", "layer", "kind", "side", "k", "epsilon", "intruders")
    ax = plt.gca() if ax is None else ax
    rows = _one_side(table, side)
    kinds = draw_lines(ax, _counted_rows(rows), "intruders")
    ax.set_ylabel(_counted(_counted_rows(rows)))
    if len(kinds) > 1:
        ax.legend(ncols=1 + len(kinds) // 6)
    return ax


def figure_intruders(table: pd.DataFrame) -> Figure:
    """Return both sides' largest cosines, and below them the numbers of intruders.

    Parameters
    ----------
    table : DataFrame
        An intruders table.

    Returns
    -------
    Figure
        Not known to pyplot, so it need not be closed.

    Raises
    ------
    TableError
        If a column is missing.
    """
    require_columns(table, "module", "layer", "kind", "side", "k", *_CLOSENESS, "intruders")
    sides = [side for side in SIDES if (table["side"] == side).any()]
    if not sides:
        return notice_figure("no module to draw")
    with theme():
        return _draw_page(table, sides)


def _draw_page(table: pd.DataFrame, sides: Sequence[str]) -> Figure:
    figure = new_figure(DOUBLE, 4.2, _chosen(table))
    part = panels_of(figure)
    axes = part.subplots(2, len(sides), squeeze=False, height_ratios=(1.6, 1))
    rows = _counted_rows(table)
    for (upper, lower), side in zip(axes.T, sides, strict=True):
        kinds = _draw_closeness(upper, _one_side(table, side))
        upper.set_title(SIDES[side])
        draw_counts(lower, rows, side, "intruders")
    axes[0, 0].set_ylabel("largest cosine with a direction of W")
    for ax, side in zip(axes[1], sides, strict=True):
        ax.set_title(f"{_counted(rows)}, {SIDES[side]}")
    keys = _keys(kinds)
    part.legend(
        handles=keys,
        loc="outside upper center",
        ncols=min(len(keys), 9),
    )
    return figure


def _one_side(table: pd.DataFrame, side: str | None) -> pd.DataFrame:
    rows = table if side is None else table[table["side"] == side]
    if rows["side"].nunique() > 1:
        raise TableError(
            "one panel cannot show both sides",
            where="side",
            expected="rows of one side, or side='right' or 'left'",
            got="rows of both",
            fix="pass side='right', or use figure_intruders for both",
        )
    largest: pd.DataFrame = rows[rows["k"] == rows["k"].max()]
    return largest


def _draw_closeness(ax: Axes, rows: pd.DataFrame) -> list[str]:
    once = rows.drop_duplicates("module")
    kinds = kinds_in_order(once["kind"])
    at = places(once)
    shifts = np.linspace(-_SPREAD / 2, _SPREAD / 2, len(kinds)) if len(kinds) > 1 else [0.0]
    for kind, shift in zip(kinds, shifts, strict=True):
        mine = (once["kind"] == kind).to_numpy()
        cosines = [as_vector(values) for values in once["max_cosine"][mine]]
        ax.plot(
            np.repeat(at[mine] + (shift if layered(once) else 0.0), [len(c) for c in cosines]),
            np.concatenate(cosines),
            linestyle="none",
            marker=_marker(kind),
            markersize=thick(2.0),
            alpha=0.7,
            color=_color(kind),
            label=kind,
        )
    levels = np.unique(once["chance_99"])
    ax.axhspan(0, levels[-1], color="0.93", linewidth=0, zorder=0)
    ax.axhspan(0, levels[0], color="0.85", linewidth=0, zorder=0, label="chance")
    for epsilon in rows["epsilon"].unique():
        ax.axhline(epsilon, color="0.3", linestyle="--", linewidth=thick(0.7), label="ε")
    label_places(ax, once)
    ax.set_ylim(0.0, 1.02)
    return kinds


def _counted_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the largest k and the first ε."""
    rows = rows[rows["k"] == rows["k"].max()]
    return rows[rows["epsilon"] == rows["epsilon"].iloc[0]] if len(rows) else rows


def _counted(rows: pd.DataFrame) -> str:
    return f"intruders of {rows['k'].max()}, ε = {rows['epsilon'].iloc[0]:g}"


def _chosen(table: pd.DataFrame) -> str:
    """Return the sentences that say what the band is and which rows are drawn."""
    said = ["Grey: no closer to W than random directions (99 % of them)"]
    said.append("lighter where only for some modules." if _several(table) else "")
    others = [
        f"Of several {word} the {which} is drawn."
        for column, word, which in (("k", "k", "largest"), ("epsilon", "ε", "first count"))
        if table[column].nunique() > 1
    ]
    return " ".join([", ".join(filter(None, said)).rstrip(".") + ".", *others])


def _several(table: pd.DataFrame) -> bool:
    return bool(table["chance_99"].nunique() > 1)


def _keys(kinds: Sequence[str]) -> list[Line2D]:
    marks = [
        Line2D([], [], color=_color(kind), marker=_marker(kind), linestyle="none", label=kind)
        for kind in kinds
    ]
    return [*marks, Line2D([], [], color="0.3", linestyle="--", label="ε")]


def _color(kind: str) -> str:
    return KIND_COLORS.get(kind, KIND_COLORS["other"])


def _marker(kind: str) -> str:
    return KIND_MARKERS.get(kind, KIND_MARKERS["other"])
