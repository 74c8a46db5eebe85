"""ΔW against W: Table 7 and Figure 8 of the LoRA paper, and where ΔW's energy lies."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from rankscope.plots.alignment import (
    ALIGNMENT,
    alike,
    draw_alignment,
    modules_once,
    ratio_bar,
)
from rankscope.plots.panels import SIDES
from rankscope.plots.places import draw_kind, label_places, layered, places
from rankscope.plots.style import (
    DOUBLE,
    KIND_COLORS,
    KIND_MARKERS,
    new_figure,
    notice_figure,
    points,
    theme,
)
from rankscope.plots.tables import (
    TableError,
    as_floats,
    as_vector,
    count,
    kinds_in_order,
    left_out,
    require_columns,
)

__all__ = ["figure_amplification", "plot_amplification", "plot_profile"]

_PROJECTIONS = ("projection_update", "projection_weight", "projection_random")
_PROFILE = ("rows", "columns", "profile_k", "profile_top", "profile_bottom")
_MOST = 3  # panels of k beside the profile


def plot_amplification(
    table: pd.DataFrame, *, k: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draw ‖UᵀWV‖ for the first k directions of ΔW, of W and for random ones: Table 7.

    Parameters
    ----------
    table : DataFrame
        An amplification table: `module`, `layer`, `kind`, `k` and the projections.
    k : int, optional
        Which rows to draw; needed where the table holds several k.
    ax : Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    Axes
        Layers, or modules, to the right on a logarithmic axis: marks and lines for ΔW's
        directions, dashes for W's own, a grey band for what random ones give.

    Raises
    ------
    TableError
        If a column is missing, or rows of several k are given without `k`.

    Examples
    --------
    >>> table = pd.DataFrame({"module": ["a"], "layer": [0], "kind": ["q"], "k": [4],
    ...     "projection_update": 0.32, "projection_weight": 21.67, "projection_random": 0.02})
    >>> ax = plot_amplification(table, ax=Figure().add_subplot())
    >>> ax.get_title(), ax.get_yscale()
    ('k = 4', 'log')
    """
    require_columns(table, "module", "layer", "kind", "k", *_PROJECTIONS)
    ax = plt.gca() if ax is None else ax
    rows = table if k is None else table[table["k"] == k]
    if rows["k"].nunique() > 1:
        raise TableError(
            "one panel cannot show several numbers of directions",
            where="plot_amplification, k",
            expected="rows of one k, or k=…",
            got=f"rows of k = {', '.join(map(str, rows['k'].unique()))}",
            fix="pass k=…, or use figure_amplification for all",
        )
    kinds = _draw_projections(ax, rows)
    ax.set(title=f"k = {rows['k'].iloc[0]}" if len(rows) else "", ylabel="‖UᵀWV‖")
    ax.legend(handles=_kind_keys(kinds) + _keys(), ncols=2)
    return ax


def plot_profile(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the share of ‖ΔW‖² in W's first and last k directions, beside chance.

    Parameters
    ----------
    table : DataFrame
        An amplification table: `module`, `kind`, `k`, `rows`, `columns`, `profile_k`,
        `profile_top` and `profile_bottom`. A line is the mean over a kind's modules of the
        commonest size.
    ax : Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    Axes
        k over the number of W's directions, on two logarithmic axes: lines for the first k,
        dashes for the last k, dots for chance, k²/(mn).

    Raises
    ------
    TableError
        If a column is missing.

    Examples
    --------
    >>> table = pd.DataFrame({"module": ["a"], "kind": "q", "k": 1, "rows": 2, "columns": 2,
    ...     "profile_k": [[1, 2]], "profile_top": [[0.5, 1.0]], "profile_bottom": [[0.2, 1.0]]})
    >>> ax = plot_profile(table, ax=Figure().add_subplot())
    >>> [line.get_ydata().tolist() for line in ax.lines]
    [[0.25, 1.0], [0.5, 1.0], [0.2, 1.0]]
    """
    require_columns(table, "module", "kind", "k", *_PROFILE)
    ax = plt.gca() if ax is None else ax
    kinds = _draw_profile(ax, table)
    ax.set(ylabel="share of ‖ΔW‖²", title="energy in W's directions")
    keys = [Line2D([], [], color=_color(kind), label=kind) for kind in kinds]
    ax.legend(handles=keys + _profile_keys(), ncols=2)
    return ax


def figure_amplification(table: pd.DataFrame) -> Figure:
    """Return ΔW against W: Table 7 for each k, ΔW's energy in W's directions, and Figure 8.

    Parameters
    ----------
    table : DataFrame
        An amplification table.

    Returns
    -------
    Figure
        Not known to pyplot, so it need not be closed. Up to three k are drawn, the smallest,
        a middle one and the largest; a line under the panels says what is left out.

    Raises
    ------
    TableError
        If a column is missing.

    References
    ----------
    .. [1] E. Hu et al., "LoRA: low-rank adaptation of large language models", 2021,
       arXiv:2106.09685v2, table 7 and figure 8.
    """
    require_columns(table, "module", "layer", "kind", "k", *_PROJECTIONS)
    require_columns(table, *ALIGNMENT, *_PROFILE, "alignment_left", "alignment_right")
    undefined = table.groupby("module", sort=False)["projection_update"].count() == 0
    caption = left_out(list(undefined.index[undefined]), "no k is defined")
    rows = table[table["projection_update"].notna()]
    if rows.empty:
        return notice_figure("nothing is defined" if len(table) else "no module to draw", caption)
    with theme():
        return _draw_page(table, rows, caption)


def _draw_page(table: pd.DataFrame, rows: pd.DataFrame, caption: str) -> Figure:
    ks = sorted(int(k) for k in rows["k"].unique())
    chosen = ks if len(ks) <= _MOST else [ks[0], ks[len(ks) // 2], ks[-1]]
    kinds = kinds_in_order(rows["kind"])
    grids = modules_once(rows)
    said = [
        f"Of {len(ks)} k, {', '.join(map(str, chosen))} are drawn." if ks != chosen else "",
        "Below: φ of W's first i and ΔW's first j directions over chance, max(i, j)/d"
        + (", means over each kind's modules." if len(grids) > len(kinds) else "."),
        caption,
    ]
    figure = new_figure(DOUBLE, 4.6, " ".join(filter(None, said)))
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.0, 1.3))[:, 0]
    axes = top.subplots(1, len(chosen) + 1)
    for n, (ax, k) in enumerate(zip(axes, chosen, strict=False)):
        _draw_projections(ax, rows[rows["k"] == k])
        ax.set_title(f"k = {k}")
        ax.set_ylim(*_range(rows[rows["k"].isin(chosen)]))
        ax.tick_params(labelleft=not n)
    axes[0].set_ylabel("‖UᵀWV‖")
    _draw_profile(axes[-1], grids)
    axes[-1].set_title("share of ‖ΔW‖²")
    # Dashes mean one thing in each: a legend that all share would have to be read twice.
    axes[-1].legend(handles=_profile_keys(), loc="lower right", labelspacing=0.2, borderpad=0)
    keys = _kind_keys(kinds) + _keys()
    top.legend(handles=keys, loc="outside upper left", ncols=min(len(keys), 5))
    _draw_alignments(bottom, grids, kinds)
    return figure


def _draw_alignments(figure: Figure, grids: pd.DataFrame, kinds: Sequence[str]) -> None:
    axes = figure.subplots(2, len(kinds), squeeze=False)
    for row, side in zip(axes, SIDES, strict=True):
        row[0].set_ylabel(SIDES[side], weight="bold", size=points(6.5))
        for ax, kind in zip(row, kinds, strict=True):
            mine = grids[grids["kind"] == kind]
            drawn = draw_alignment(ax, mine, side, most_ticks=3 if len(kinds) > 4 else 8)
            if side == "right":
                number = count(drawn, "module") if len(kinds) <= 4 else f"{drawn}"
                ax.set_title(f"{kind} · {number}")
    figure.supxlabel("j (directions of ΔW)", size=plt.rcParams["axes.labelsize"])
    figure.supylabel("i (directions of W)", size=plt.rcParams["axes.labelsize"])
    ratio_bar([ax for row in axes for ax in row])


def _draw_projections(ax: Axes, rows: pd.DataFrame) -> list[str]:
    values = as_floats(rows, _PROJECTIONS)
    at = places(rows)
    order = np.unique(at)
    random = values["projection_random"].groupby(at).agg(["min", "max"])
    wide = 0.4 if len(order) == 1 else 0.0
    edges = np.concatenate([order[:1] - wide, order, order[-1:] + wide])
    low, high = (random[name].to_numpy()[[0, *range(len(order)), -1]] for name in random)
    # Where all modules agree the band is a line.
    ax.fill_between(edges, low * 0.97, high * 1.03, color="0.75", linewidth=0, label="random")
    kinds = kinds_in_order(rows["kind"])
    for kind in kinds:
        mine = (rows["kind"] == kind).to_numpy()
        draw_kind(
            ax, kind, at[mine], values["projection_update"].to_numpy()[mine], joined=layered(rows)
        )
        own = values["projection_weight"][mine].groupby(at[mine]).mean()
        dashed = "--" if len(own) > 1 else ""
        ax.plot(own.index, own, linestyle=dashed, marker="" if dashed else "_", color=_color(kind))
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    label_places(ax, rows)
    return kinds


def _range(rows: pd.DataFrame) -> tuple[float, float]:
    values = as_floats(rows, _PROJECTIONS).to_numpy()
    positive = values[values > 0]
    return float(positive.min(initial=1.0)) / 1.4, float(positive.max(initial=0.0)) * 1.4 or 2.0


def _draw_profile(ax: Axes, table: pd.DataFrame) -> list[str]:
    grids = modules_once(table)
    kinds = kinds_in_order(grids["kind"])
    least = 1.0
    for kind in kinds:
        mine = alike(grids[grids["kind"] == kind], "profile_k", "profile_top")
        ks = as_vector(mine["profile_k"].iloc[0])
        rows, columns = (float(mine[name].iloc[0]) for name in ("rows", "columns"))
        share, chance = ks / ks[-1], ks**2 / (rows * columns)
        ax.plot(share, chance, color="0.4", linestyle=":", label="_chance")
        for name, style in (("profile_top", "-"), ("profile_bottom", "--")):
            mean = np.mean([as_vector(values) for values in mine[name]], axis=0)
            ax.plot(share, mean, style, color=_color(kind), label=kind)
        least = min(least, chance[0])
    ax.set(xscale="log", yscale="log", ylim=(least / 3, 1.5), xlabel="k / number of directions")
    return kinds


def _color(kind: str) -> str:
    return KIND_COLORS.get(kind, KIND_COLORS["other"])


def _kind_keys(kinds: Sequence[str]) -> list[Line2D | Patch]:
    return [
        Line2D([], [], color=_color(kind), marker=KIND_MARKERS.get(kind, "h"), label=kind)
        for kind in kinds
    ]


def _keys() -> list[Line2D | Patch]:
    return [
        Line2D([], [], color="0.3", label="ΔW's directions (marks)"),
        Line2D([], [], color="0.3", linestyle="--", label="W's own"),
        Patch(color="0.75", label="random"),
    ]


def _profile_keys() -> list[Line2D | Patch]:
    return [
        Line2D([], [], color="0.3", linestyle="-", label="first k of W"),
        Line2D([], [], color="0.3", linestyle="--", label="last k of W"),
        Line2D([], [], color="0.3", linestyle=":", label="chance"),
    ]
