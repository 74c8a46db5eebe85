"""Groups of sources, such as seeds: how alike within and between, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from rankscope.plots.panels import SIDES
from rankscope.plots.style import SMALL, characters, points, thick
from rankscope.plots.tables import in_words, line_names, require_columns

__all__ = ["GROUPS_CAPTION", "draw_groups", "group_height", "plot_groups"]

GROUPS_CAPTION = (
    " Groups: means over pairs of sources; thick, 95 % interval over sources; thin, over modules; "
    "p, by shuffling sources between the two groups."
)
_WITHIN, _BETWEEN = "#332288", "#CC6677"


def plot_groups(
    groups: pd.DataFrame, *, measure: str = "phi", side: str = "right", ax: Axes | None = None
) -> Axes:
    """Draw the mean of each group and each pair of groups, with its intervals.

    Parameters
    ----------
    groups : DataFrame
        ``CompareResult.groups``.
    measure : str
        Which of its measures.
    side : {"right", "left"}
        Input or output directions.
    ax : Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    Axes
        A row per group, then per pair of groups; the thick line is the interval over sources,
        the thin one over modules, a dotted mark chance.

    Raises
    ------
    TableError
        If a column is missing.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> row = {"measure": "phi", "side": "right", "a": "r8", "b": "r8", "mean": 0.5,
    ...        "chance": 0.25, "p_shuffled": float("nan")}
    >>> limits = {"seeds_low": 0.4, "seeds_high": 0.6, "modules_low": 0.3, "modules_high": 0.7}
    >>> ax = plot_groups(pd.DataFrame([row | limits]), ax=Figure().add_subplot())
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['within r8']
    """
    limits = ("seeds_low", "seeds_high", "modules_low", "modules_high")
    require_columns(groups, "measure", "side", "a", "b", "mean", "chance", "p_shuffled", *limits)
    ax = plt.gca() if ax is None else ax
    rows = groups[(groups["measure"] == measure) & (groups["side"] == side)]
    rows = pd.concat([rows[rows["a"] == rows["b"]], rows[rows["a"] != rows["b"]]])
    for n, row in enumerate(rows.itertuples()):
        _draw_row(ax, n, row)
    _name(ax, rows, "in" if measure == "containment" else "–")
    ax.set_xlabel(in_words(measure))
    ax.set_title(SIDES[side])
    return ax


def _draw_row(ax: Axes, n: int, row: Any) -> None:
    color = _WITHIN if row.a == row.b else _BETWEEN
    ax.hlines(n, row.modules_low, row.modules_high, color=color, linewidth=thick(0.8))
    ax.hlines(n, row.seeds_low, row.seeds_high, color=color, linewidth=thick(2.4), alpha=0.5)
    ax.plot(row.mean, n, "o", color=color)
    ax.vlines(row.chance, n - 0.35, n + 0.35, color="0.4", linestyle=":", label="chance")
    if np.isfinite(row.p_shuffled):
        ax.annotate(
            f"p = {row.p_shuffled:.2g}", (1.0, n), xycoords=ax.get_yaxis_transform(),
            ha="left", va="center", size=points(SMALL), annotation_clip=False,
        )  # fmt: skip


def group_height(groups: pd.DataFrame) -> float:
    """Return the inches that a panel of these groups takes."""
    most = groups.groupby(["measure", "side"]).size().max()
    return 0.15 * float(most) + 0.65


def draw_groups(figure: Any, groups: pd.DataFrame, sides: Sequence[str], measure: str) -> None:
    """Draw a panel per side, on one scale."""
    axes = figure.subplots(1, len(sides), squeeze=False)[0]
    for n, (ax, side) in enumerate(zip(axes, sides, strict=True)):
        plot_groups(groups, measure=measure, side=side, ax=ax)
        ax.set_title(f"groups, {SIDES[side]}")
        if n:
            ax.tick_params(labelleft=False)
    ends = np.array([ax.get_xlim() for ax in axes])
    for ax in axes:
        ax.set_xlim(ends.min(), ends.max())


def _name(ax: Axes, rows: pd.DataFrame, between: str) -> None:
    names = [
        f"within {a}" if a == b else f"{a} {between} {b}"
        for a, b in zip(rows["a"], rows["b"], strict=True)
    ]
    ax.set_yticks(range(len(names)), line_names(names, characters(1.6, SMALL)))
    ax.set_ylim(len(names) - 0.4, -0.6)
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, 0.0), max(high, 0.0))
