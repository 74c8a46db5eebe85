"""Scores against the number of trained parameters: figure 2 of the LoRA paper."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rankscope.plots.style import SINGLE, new_figure, notice_figure, theme, thick
from rankscope.plots.tables import in_words, require_columns

__all__ = ["figure_scores", "plot_scores"]

# Paul Tol's "muted" colours and as many marks, in the order in which series come.
_COLORS = (
    "#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499",
    "#DDCC77", "#777777",
)  # fmt: skip
_MARKS = "osD^vPX<>h"


def plot_scores(
    table: pd.DataFrame,
    *,
    x: str = "trained_parameters",
    y: str = "token_accuracy",
    order: Sequence[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """Draw a score against cost, a line per series, with the seeds' standard deviation.

    Parameters
    ----------
    table : DataFrame
        `series`, the columns `x` and `y`, and ``{y}_sd``: undefined, as of a single seed, it has
        no bar.
    x, y : str
        Columns.
    order : sequence of str
        All series, where several panels are to give each one colour; those of the table by
        default.
    ax : Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    Axes
        x is logarithmic.

    Raises
    ------
    TableError
        If a column is missing.

    Examples
    --------
    >>> table = pd.DataFrame({"series": ["LoRA"] * 2, "trained_parameters": [10, 100],
    ...                       "token_accuracy": [0.5, 0.75], "token_accuracy_sd": 0.125})
    >>> ax = plot_scores(table, ax=Figure().add_subplot())
    >>> ax.get_xscale(), ax.get_ylabel()
    ('log', 'token accuracy')
    """
    require_columns(table, "series", x, y, f"{y}_sd")
    ax = plt.gca() if ax is None else ax
    for number, name in enumerate(order or dict.fromkeys(table["series"])):
        rows = table[table["series"] == name].sort_values(x)
        if rows.empty:
            continue
        color = _COLORS[number % len(_COLORS)]
        # Another mark when the colours come again, so that no two series are drawn alike.
        mark = _MARKS[(number + 3 * (number // len(_COLORS))) % len(_MARKS)]
        ax.errorbar(
            rows[x], rows[y], yerr=rows[f"{y}_sd"], color=color, marker=mark,
            capsize=thick(1.5), elinewidth=thick(0.6), label=name,
        )  # fmt: skip
    ax.set(xscale="log", xlabel=in_words(x), ylabel=in_words(y))
    return ax


def figure_scores(
    table: pd.DataFrame, *, x: str = "trained_parameters", y: str = "token_accuracy"
) -> Figure:
    """Return a score against cost, a panel per task.

    Parameters
    ----------
    table : DataFrame
        As for `plot_scores`, with `task`.
    x, y : str
        Columns.

    Returns
    -------
    Figure
        Not known to pyplot, so it need not be closed.

    Raises
    ------
    TableError
        If a column is missing.
    """
    require_columns(table, "task", "series", x, y, f"{y}_sd")
    tasks, order = (list(dict.fromkeys(table[name])) for name in ("task", "series"))
    if not tasks:
        return notice_figure("no run to draw")
    with theme():
        caption = "Held-out questions; bars are the seeds' standard deviation, one seed has none."
        figure = new_figure(SINGLE * max(len(tasks), 1.4), 2.8, caption)
        axes = figure.subplots(1, len(tasks), squeeze=False)[0]
        for ax, task in zip(axes, tasks, strict=True):
            plot_scores(table[table["task"] == task], x=x, y=y, order=order, ax=ax)
            ax.set_title(task)
        found = {
            label: handle
            for ax in axes
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        figure.legend([found[name] for name in order], order, loc="outside right upper")
    return figure
