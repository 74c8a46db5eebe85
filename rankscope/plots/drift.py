"""A series of sources, such as the checkpoints of one run: each against those around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rankscope.plots.panels import SIDES
from rankscope.plots.style import DOUBLE, SMALL, characters, new_figure, notice_figure, theme
from rankscope.plots.tables import as_floats, in_words, line_names, require_columns

__all__ = ["figure_drift", "plot_drift"]

_COLORS = {"previous": "#332288", "last": "#CC6677"}
_SIZES = {"norm": "‖ΔW‖", "stable_rank": "stable rank"}
_NAMED = 8  # sources whose names stand under the axis without being turned


def plot_drift(
    table: pd.DataFrame,
    *,
    names: Sequence[str],
    measure: str = "phi",
    side: str = "right",
    ax: Axes | None = None,
) -> Axes:
    """Draw each source's similarity to the one before it and to the last.

    Parameters
    ----------
    table : DataFrame
        A compare table: `side`, `a`, `b` and the measure; `chance` for φ.
    names : sequence of str
        The sources in their order.
    measure : str
        A column of the table, the same for a pair either way round.
    side : {"right", "left"}
        Input or output directions.
    ax : Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    Axes
        Lines for the means over modules, bands from the lower to the upper quartile, dots for
        chance.

    Raises
    ------
    TableError
        If a column is missing.

    Examples
    --------
    >>> table = pd.DataFrame({"side": "right", "a": ["1", "1", "2"], "b": ["2", "3", "3"],
    ...                       "phi": [0.5, 0.25, 0.75], "chance": 0.125})
    >>> ax = plot_drift(table, names=["1", "2", "3"], ax=Figure().add_subplot())
    >>> [line.get_ydata().tolist() for line in ax.lines[:2]]
    [[0.5, 0.75], [0.25, 0.75]]
    """
    require_columns(table, "side", "a", "b", measure)
    ax = plt.gca() if ax is None else ax
    rows = table[table["side"] == side]
    last = len(names) - 1
    pairs = {
        "previous": [(n, n - 1) for n in range(1, len(names))],
        "last": [(n, last) for n in range(last)],
    }
    for word, places in pairs.items():
        middle, low, high = _summary(rows, names, places, measure)
        at = [place for place, _ in places]
        ax.plot(at, middle, color=_COLORS[word], marker="o", label=f"to the {word}")
        ax.fill_between(at, low, high, color=_COLORS[word], alpha=0.15, linewidth=0)
    if measure == "phi" and "chance" in rows:
        chance, _, _ = _summary(rows, names, pairs["previous"], "chance")
        ax.plot(range(1, len(names)), chance, color="0.4", linestyle=":", label="chance")
    _label(ax, names, measure)
    ax.legend()
    return ax


def figure_drift(
    table: pd.DataFrame,
    *,
    names: Sequence[str],
    updates: pd.DataFrame | None = None,
    measure: str = "phi",
) -> Figure:
    """Return the drift along a series: a panel per side, then norm and rank.

    Parameters
    ----------
    table, names, measure
        As for `plot_drift`.
    updates : DataFrame, optional
        ``CompareResult.updates``, for norm and rank.

    Returns
    -------
    Figure
        Not known to pyplot, so it need not be closed.

    Raises
    ------
    TableError
        If a column is missing.
    """
    require_columns(table, "side", "a", "b", measure)
    sides = [side for side in SIDES if (table["side"] == side).any()]
    if not sides:
        return notice_figure("no module to draw")
    with theme():
        caption = "Means over the modules; bands from the lower to the upper quartile."
        rows = 1 if updates is None else 2
        figure = new_figure(DOUBLE, 2.5 * rows, caption)
        upper, *lower = figure.subfigures(rows, 1, squeeze=False)[:, 0]
        _draw_sides(upper, table, names, measure, sides)
        if updates is not None:
            _draw_sizes(lower[0], updates, names)
    return figure


def _draw_sides(
    figure: Any, table: pd.DataFrame, names: Sequence[str], measure: str, sides: Sequence[str]
) -> None:
    axes = figure.subplots(1, len(sides), sharey=True, squeeze=False)[0]
    for ax, side in zip(axes, sides, strict=True):
        plot_drift(table, names=names, measure=measure, side=side, ax=ax)
        ax.get_legend().remove()
        ax.set(title=SIDES[side], ylabel=ax.get_ylabel() if ax is axes[0] else "")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def _draw_sizes(figure: Any, updates: pd.DataFrame, names: Sequence[str]) -> None:
    """Draw the norm and the stable rank of the modules, step by step."""
    require_columns(updates, "name", *_SIZES)
    axes = figure.subplots(1, len(_SIZES), squeeze=False)[0]
    for ax, (column, label) in zip(axes, _SIZES.items(), strict=True):
        groups = as_floats(updates, [column])[column].groupby(updates["name"])
        parts = [groups.mean(), groups.quantile(0.25), groups.quantile(0.75)]
        middle, low, high = (part.reindex(list(names)).to_numpy() for part in parts)
        ax.plot(range(len(names)), middle, color="0.2", marker="o")
        ax.fill_between(range(len(names)), low, high, color="0.2", alpha=0.15, linewidth=0)
        _label(ax, names, column)
        ax.set_ylabel(label)
        ax.set_ylim(bottom=0)


def _summary(
    rows: pd.DataFrame, names: Sequence[str], pairs: Sequence[tuple[int, int]], column: str
) -> NDArray[np.float64]:
    """Return the mean and the quartiles of each pair's modules; NaN where it has none."""
    values = as_floats(rows, [column])[column]
    groups = values.groupby([rows["a"], rows["b"]])
    parts = [groups.mean(), groups.quantile(0.25), groups.quantile(0.75)]
    keys = [(names[min(pair)], names[max(pair)]) for pair in pairs]
    found: NDArray[np.float64] = pd.concat(parts, axis=1).reindex(keys).to_numpy(np.float64).T
    return found


def _label(ax: Axes, names: Sequence[str], measure: str) -> None:
    turned = len(names) > _NAMED
    short = line_names(names, 20 if turned else characters(2.6 / len(names), SMALL))
    ax.set_xticks(range(len(names)), short)
    if turned:
        plt.setp(ax.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    ax.set_ylabel(in_words(measure))
    if measure in ("phi", "cka", "mean_cosine", "cosine"):
        ax.set_ylim(min(0.0, ax.get_ylim()[0]), 1.02)
