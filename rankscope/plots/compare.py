"""Many sources against each other: matrices in the order of their clusters, and what all share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rankscope.plots.chance import colour_bar
from rankscope.plots.counts import draw_counts, draw_lines
from rankscope.plots.groups import GROUPS_CAPTION, draw_groups, group_height
from rankscope.plots.panels import SIDES
from rankscope.plots.style import (
    DOUBLE,
    SMALL,
    characters,
    diverging,
    ink,
    new_figure,
    notice_figure,
    points,
    sequential,
    theme,
    thick,
)
from rankscope.plots.tables import in_words, line_names, require_columns, ticks_from_one

__all__ = ["Squares", "figure_compare", "plot_compare", "plot_shared"]

# Side, then measure, then the square table of the mean over modules.
Squares = Mapping[str, Mapping[str, pd.DataFrame]]

SIMILARITIES = ("phi", "containment", "mean_cosine", "cka", "cosine")
_BAD = "0.88"
_WRITTEN = 6  # sources whose values can be written into their cells
_NAMED = 12  # sources whose names stand beside each other
_UPRIGHT = 14  # letters of a name under a column


def plot_compare(
    square: pd.DataFrame,
    *,
    measure: str = "phi",
    chance: Sequence[float] = (),
    ax: Axes | None = None,
) -> Axes:
    """Draw one square table of sources, in the order of their clusters.

    Parameters
    ----------
    square : DataFrame
        Sources by sources, as ``CompareResult.matrix`` returns it; NaN is grey.
    measure : str
        What it holds. Similarities have the fixed colours 0–1, cosines -1–1, distances begin
        at 0.
    chance : sequence of float
        Chance levels to mark on the colour bar.
    ax : Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    Axes
        Names downwards and to the right; where there are many, numbers to the right, which
        stand beside the names.

    Examples
    --------
    >>> square = pd.DataFrame([[1, 0, 0.9], [0, 1, 0], [0.9, 0, 1]], list("abc"), list("abc"))
    >>> ax = plot_compare(square, ax=Figure().add_subplot())
    >>> sorted(label.get_text() for label in ax.get_yticklabels())
    ['a', 'b', 'c']
    """
    ax = plt.gca() if ax is None else ax
    order = _leaves(_tree([square], measure))
    mesh = _draw_square(ax, square.iloc[order, order], measure)
    _name(ax, [str(name) for name in square.index[order]])
    ax.set_title(in_words(measure))
    _bar(mesh, ax, measure, chance)
    return ax


def plot_shared(shared: pd.DataFrame, *, side: str = "right", ax: Axes | None = None) -> Axes:
    """Draw how many directions the sources share beyond chance, layer by layer.

    Parameters
    ----------
    shared : DataFrame
        ``CompareResult.shared``: `module`, `layer`, `kind`, `side`, `directions`.
    side : {"right", "left"}
        Input or output directions.
    ax : Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    Axes
        From 0; a line joins the means of a kind's modules in each layer.

    Raises
    ------
    TableError
        If a column is missing.

    Examples
    --------
    >>> shared = pd.DataFrame({"module": ["a"], "layer": [0], "kind": ["q"], "side": ["right"],
    ...                        "directions": [3]})
    >>> ax = plot_shared(shared, ax=Figure().add_subplot())
    >>> ax.get_ylabel(), ax.lines[0].get_ydata().tolist()
    ('shared directions', [3.0])
    """
    require_columns(shared, "module", "layer", "kind", "side", "directions")
    ax = plt.gca() if ax is None else ax
    kinds = draw_lines(ax, shared[shared["side"] == side], "directions")
    ax.set(ylabel="shared directions", title=SIDES[side])
    if len(kinds) > 1:
        ax.legend(ncols=1 + len(kinds) // 6)
    return ax


def figure_compare(
    squares: Squares,
    *,
    chance: Mapping[str, Mapping[str, Sequence[float]]],
    shared: pd.DataFrame,
    groups: pd.DataFrame | None = None,
) -> Figure:
    """Return the matrices of every measure and side, and what all sources share by layer.

    Parameters
    ----------
    squares : mapping
        From the side to the measures to square tables, as ``CompareResult.matrix`` makes them.
        The tree of the first measure, of the mean of both sides, gives all of them one order
        and stands left of them.
    chance : mapping
        From the side to the measures to their chance levels.
    shared : DataFrame
        As for `plot_shared`.
    groups : DataFrame, optional
        ``CompareResult.groups``: how alike sources are within and between groups, drawn below.

    Returns
    -------
    Figure
        Not known to pyplot, so it need not be closed.

    Raises
    ------
    TableError
        If a column is missing.
    """
    require_columns(shared, "module", "layer", "kind", "side", "directions")
    if not squares:
        return notice_figure("no module to draw")
    with theme():
        return _draw_page(squares, chance, shared, pd.DataFrame() if groups is None else groups)


def _draw_page(
    squares: Squares,
    chance: Mapping[str, Mapping[str, Sequence[float]]],
    shared: pd.DataFrame,
    groups: pd.DataFrame,
) -> Figure:
    measures = list(next(iter(squares.values())))
    names = list(map(str, next(iter(next(iter(squares.values())).values())).index))
    high = max(0.105 * len(names), 1.25) + 0.4 + _below(names)
    below = 1.7
    lowest = group_height(groups) if len(groups) else 0.0
    caption = _caption(squares, measures[0]) + (GROUPS_CAPTION if lowest else "")
    heights = [high] * len(squares) + [below] + ([lowest] if lowest else [])
    figure = new_figure(DOUBLE, sum(heights), caption)
    parts = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if lowest:
        draw_groups(parts.pop(), groups, list(squares), measures[0])
    *upper, lower = parts
    tree = _tree([tables[measures[0]] for tables in squares.values()], measures[0])
    for part, (side, tables) in zip(upper, squares.items(), strict=True):
        _draw_side(part, side, tables, chance.get(side, {}), tree)
    _draw_shared(lower, squares, shared)
    return figure


def _draw_shared(lower: Any, squares: Squares, shared: pd.DataFrame) -> None:
    axes = lower.subplots(1, len(squares), squeeze=False)[0]
    for ax, side in zip(axes, squares, strict=True):
        draw_counts(ax, shared, side, "directions")
        ax.set_title(f"shared directions, {SIDES[side]}")
    handles, labels = axes[0].get_legend_handles_labels()
    if len(labels) > 1:
        lower.legend(handles, labels, loc="outside right center")


def _draw_side(
    figure: Any,
    side: str,
    tables: Mapping[str, pd.DataFrame],
    chance: Mapping[str, Sequence[float]],
    tree: NDArray[np.float64],
) -> None:
    order = _leaves(tree)
    grid = figure.add_gridspec(1, len(tables) + 1, width_ratios=[0.22] + [1.0] * len(tables))
    trunk = figure.add_subplot(grid[0])
    _draw_tree(trunk, tree)
    trunk.set_ylabel(SIDES[side], weight="bold", size=points(6.5))
    for n, (measure, square) in enumerate(tables.items()):
        ax = figure.add_subplot(grid[n + 1])
        mesh = _draw_square(ax, square.iloc[order, order], measure)
        _name(ax, [str(name) for name in square.index[order]], width=1.1)
        ax.tick_params(labelleft=not n)
        ax.set_title(in_words(measure))
        _bar(mesh, ax, measure, chance.get(measure, ()))


def _tree(squares: Sequence[pd.DataFrame], measure: str) -> NDArray[np.float64]:
    """Return the linkage of the sources by their average distances, the mean of the squares."""
    from scipy.cluster.hierarchy import linkage

    parts = [square.to_numpy(dtype=np.float64) for square in squares]
    values = np.ma.masked_invalid(parts).mean(axis=0).filled(np.nan)
    values = (values + values.T) / 2  # containment has two directions
    distances = 1 - values if measure in SIMILARITIES else values
    apart = distances[np.triu_indices(len(values), 1)]
    # A pair that shares no module is as far apart as any.
    apart = np.where(np.isfinite(apart), apart, np.nanmax(apart, initial=0.0))
    tree: NDArray[np.float64] = linkage(np.maximum(apart, 0), "average", optimal_ordering=True)
    return tree


def _leaves(tree: NDArray[np.float64]) -> list[int]:
    from scipy.cluster.hierarchy import leaves_list

    return [int(leaf) for leaf in leaves_list(tree)]


def _draw_tree(ax: Axes, tree: NDArray[np.float64]) -> None:
    from scipy.cluster.hierarchy import dendrogram

    drawn = dendrogram(tree, no_plot=True)
    for across, down in zip(drawn["dcoord"], drawn["icoord"], strict=True):
        # Leaves stand at 5, 15, 25 …; rows at 0, 1, 2 …
        ax.plot(across, (np.array(down) - 5) / 10, color="0.3", linewidth=thick(0.7))
    far = max(float(tree[:, 2].max()), 1e-9)
    ax.set(xlim=(1.05 * far, 0), ylim=(len(tree) + 0.5, -0.5))
    ax.set_xticks([0, far], ["0", f"{far:.2g}"])
    ax.set_yticks([])
    ax.set_title("tree", size=points(SMALL))
    ax.spines[["left"]].set_visible(False)


def _draw_square(ax: Axes, square: pd.DataFrame, measure: str) -> QuadMesh:
    values = square.to_numpy(dtype=np.float64)
    n, (low, high) = len(values), _limits(values, measure)
    colours = sequential("rocket" if measure in SIMILARITIES else "mako")
    colours = diverging("vlag") if measure == "cosine" else colours
    edges = np.arange(n + 1) - 0.5
    mesh = ax.pcolormesh(
        edges,
        edges,
        np.ma.masked_invalid(values),
        cmap=colours.with_extremes(bad=_BAD),
        vmin=low,
        vmax=high,
        rasterized=True,
    )
    ax.set_facecolor(_BAD)
    ax.set(ylim=(n - 0.5, -0.5), xlim=(-0.5, n - 0.5))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if n <= _WRITTEN:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = ink(mesh, value)
                ax.text(
                    column,
                    row,
                    f"{value:.2f}",
                    size=points(5),
                    ha="center",
                    va="center",
                    color=color,
                )
    return mesh


def _limits(values: NDArray[np.float64], measure: str) -> tuple[float, float]:
    if measure == "cosine":
        return -1.0, 1.0
    if measure in SIMILARITIES:
        return 0.0, 1.0
    finite = values[np.isfinite(values)]
    return 0.0, float(finite.max(initial=0.0)) or 1.0


def _name(ax: Axes, names: Sequence[str], width: float = 1.4) -> None:
    """Name the rows, and the columns where their names stand beside each other."""
    names, n = [str(name) for name in names], len(names)
    rows = line_names(names, characters(width, SMALL))
    if n > _NAMED:
        ticks = ticks_from_one(n, 6)
        ax.set_xticks([tick - 1 for tick in ticks], [str(tick) for tick in ticks])
        rows = [f"{name}  {number}" for number, name in enumerate(rows, 1)]
    else:
        ax.set_xticks(range(n), line_names(names, _UPRIGHT), rotation=90)
    ax.set_yticks(range(n), rows)


def _below(names: Sequence[str]) -> float:
    """Return the inches that the names of the columns take."""
    upright = 0 if len(names) > _NAMED else min(max(map(len, names)), _UPRIGHT)
    return 0.1 + 0.045 * upright


def _bar(mesh: QuadMesh, ax: Axes, measure: str, chance: Sequence[float]) -> None:
    low, high = mesh.get_clim()
    ticks = [-1.0, -0.5, 0.0, 0.5, 1.0] if low else list(np.linspace(0, high, 3))
    bar = colour_bar(ax.figure, mesh, [ax], chance, inches=1.2, label="", ticks=ticks)
    bar.set_ticklabels([f"{tick:.2g}" for tick in ticks])


def _caption(squares: Squares, measure: str) -> str:
    number = len(next(iter(next(iter(squares.values())).values())))
    return (
        f"Means over the modules that two of the {number} sources share, in the order of the "
        f"tree: average linkage of {in_words(measure)}, mean of the sides. Containment: the row's "
        "energy in the column's span. Shared directions: common to more of the "
        "sources than chance allows."
    )
