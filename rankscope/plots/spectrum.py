"""Singular values on a log axis, each divided by its update's largest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from rankscope.plots.style import (
    DOUBLE,
    KIND_COLORS,
    SINGLE,
    new_figure,
    notice_figure,
    outer_labels,
    theme,
)
from rankscope.plots.tables import (
    as_vector,
    count,
    kinds_in_order,
    layer_numbers,
    left_out,
    one_line,
    require_columns,
    ticks_from_one,
)

__all__ = ["figure_spectrum", "plot_spectrum"]

_CREST = sns.color_palette("crest", as_cmap=True)
_NOTHING = "every update is zero"
_FLOOR = 1e-16  # below it a float64 ratio says nothing


@dataclass(frozen=True, eq=False)
class _Curve:
    """One spectrum ready to draw.

    `ratio` is σ/σ₁ where it is above the error of the computation, otherwise NaN; `edge` is the
    noise edge over σ₁ or NaN.
    """

    module: str
    kind: str
    layer: float
    ratio: NDArray[np.float64]
    edge: float


def plot_spectrum(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw σ/σ₁ against its index, one line per module, coloured by kind, on a log axis.

    The grey band covers what lies below the noise edge; it is lighter where only some modules
    have theirs there. Updates that are all zero have no σ₁ and are left out.

    Parameters
    ----------
    table : DataFrame
        A spectrum table: `module`, `kind`, `singular_values` (descending) and, where known,
        `noise_edge` and `error_bound`.
    ax : Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    Axes
        Index from 1.

    Raises
    ------
    TableError
        If a column is missing.

    Examples
    --------
    >>> table = pd.DataFrame({"module": ["m"], "kind": ["q"], "singular_values": [[4.0, 2.0]]})
    >>> plot_spectrum(table, ax=Figure().add_subplot()).lines[0].get_ydata().tolist()
    [1.0, 0.5]
    """
    ax = plt.gca() if ax is None else ax
    curves = _curves(table)
    if not curves:
        ax.set_axis_off()
        ax.text(0.5, 0.5, _NOTHING, ha="center", va="center", transform=ax.transAxes)
        return ax
    own_colors = [KIND_COLORS.get(c.kind, KIND_COLORS["other"]) for c in curves]
    _draw_curves(ax, curves, own_colors, _bottom(curves))
    kinds = kinds_in_order(curve.kind for curve in curves)
    colors = [KIND_COLORS.get(kind, KIND_COLORS["other"]) for kind in kinds]
    lines = [Line2D([], [], color=color) for color in colors]
    ax.legend(lines, kinds, title="kind", ncols=1 + len(kinds) // 6)
    ax.set(xlabel="index", ylabel="σ / σ₁")
    return ax


def figure_spectrum(table: pd.DataFrame) -> Figure:
    """Return the spectra of a table: a panel per kind, the layers from light to dark.

    All panels share their axes. Where modules have no layer the colour follows their order.

    Parameters
    ----------
    table : DataFrame
        A spectrum table: `module`, `layer`, `kind`, `singular_values` and, where known,
        `noise_edge` and `error_bound`.

    Returns
    -------
    Figure
        Not known to pyplot, so it need not be closed. If every update is zero it says so.

    Raises
    ------
    TableError
        If a column is missing.

    Examples
    --------
    >>> table = pd.DataFrame({"module": ["a", "b"], "layer": [0, 0], "kind": ["q", "v"],
    ...                       "singular_values": [[4.0, 2.0], [0.0, 0.0]]})
    >>> figure = figure_spectrum(table)
    >>> figure.axes[0].get_title(), figure.texts[0].get_text()
    ('a', '1 module left out (all zero): b.')
    """
    require_columns(table, "module", "layer", "kind", "singular_values")
    curves = _curves(table)
    alive = {curve.module for curve in curves}
    caption = left_out([name for name in table["module"] if name not in alive], "all zero")
    if not curves:
        return notice_figure(_NOTHING if len(table) else "no module to draw", caption)
    with theme():
        return _draw_panels(curves, " ".join(filter(None, [_band(curves), caption])))


def _curves(table: pd.DataFrame) -> list[_Curve]:
    require_columns(table, "module", "kind", "singular_values")
    layers = layer_numbers(table) if "layer" in table else np.full(len(table), np.nan)
    edges, errors = (
        table[name] if name in table else [None] * len(table)
        for name in ("noise_edge", "error_bound")
    )
    values = table["singular_values"]
    rows = zip(table["module"], table["kind"], layers, values, edges, errors, strict=True)
    curves = (_curve(*row) for row in rows)
    return [curve for curve in curves if curve is not None]


def _curve(
    module: str, kind: str, layer: float, values: Any, edge: Any, error: Any
) -> _Curve | None:
    s = as_vector(values)
    if not s.size or not s[0] > 0:
        return None
    least = max(0.0 if pd.isna(error) else float(error) / s[0], _FLOOR)
    ratio = np.where(s / s[0] > least, s / s[0], np.nan)
    ratio[0] = 1.0  # the curve of an update that is zero to rounding is its first point
    return _Curve(module, kind, float(layer), ratio, np.nan if pd.isna(edge) else edge / s[0])


def _draw_curves(
    ax: Axes, curves: Sequence[_Curve], colors: Sequence[Any], bottom: float, most_ticks: int = 10
) -> None:
    for curve, color in zip(curves, colors, strict=True):
        n = curve.ratio.size
        marker = "o" if n <= 16 else ""
        places = np.arange(1, n + 1)
        ax.plot(places, curve.ratio, color=color, marker=marker, alpha=0.85, label=curve.module)
    longest = max(curve.ratio.size for curve in curves)
    ax.set_yscale("log")
    ax.set(xlim=(0.5, longest + 0.5) if longest <= 16 else (-0.01 * longest, 1.02 * longest))
    ax.set_ylim(bottom, 1.5)
    ax.set_xticks(ticks_from_one(longest, most_ticks))
    _draw_noise(ax, [curve.edge for curve in curves if np.isfinite(curve.edge)], bottom)


def _bottom(curves: Sequence[_Curve]) -> float:
    """Return the lowest value shown: a little below the data, 0.09 at most for two labels."""
    ratios = np.concatenate([curve.ratio for curve in curves])
    return min(0.7 * float(np.nanmin(ratios)), 0.09)


def _draw_noise(ax: Axes, edges: Sequence[float], bottom: float) -> None:
    edges = [edge for edge in edges if edge > bottom]
    if edges:
        ax.axhspan(bottom, max(edges), color="0.93", zorder=0, linewidth=0)
        ax.axhspan(bottom, min(edges), color="0.87", zorder=0, linewidth=0, label="noise")


def _band(curves: Sequence[_Curve]) -> str:
    """Return the sentence that says what the grey band is, where there is one."""
    known = [curve for curve in curves if np.isfinite(curve.edge)]
    lighter = ", lighter where only some of the modules are" if len(known) > 1 else ""
    return f"Grey: within the noise of the storage{lighter}." if known else ""


def _draw_panels(curves: Sequence[_Curve], caption: str) -> Figure:
    groups = _groups(curves)
    columns = min(len(groups), 4)
    rows = -(-len(groups) // columns)
    figure = new_figure(
        SINGLE if columns == 1 else DOUBLE, rows * (2.2 if rows == 1 else 1.7) + 0.2, caption
    )
    shade, label = _shades(groups)
    axes = []
    for index, (title, places) in enumerate(groups):
        ax = figure.add_subplot(rows, columns, index + 1)
        colors = [
            shade.to_rgba(np.asarray(place)) if label else KIND_COLORS["q"]
            for place in places.values()
        ]
        # Four panels beside each other have room for few numbers.
        _draw_curves(ax, list(places), colors, _bottom(curves), 10 if columns < 3 else 4)
        ax.set(title=title)
        ax.tick_params(labelleft=index % columns == 0)
        axes.append(ax)
    outer_labels(figure, "index of the singular value", "σ / σ₁")
    if label:
        low, high = shade.get_clim()
        ticks = np.unique(np.linspace(low, high, min(int(high - low) + 1, 6)).round())
        figure.colorbar(shade, ax=axes, label=label, aspect=18, ticks=list(ticks))
    return figure


def _groups(curves: Sequence[_Curve]) -> list[tuple[str, dict[_Curve, float]]]:
    """Return title and curves of each kind, each curve with its place: its layer, else order."""
    layered = any(np.isfinite(curve.layer) for curve in curves)
    groups = []
    for kind in kinds_in_order(curve.kind for curve in curves):
        group = [curve for curve in curves if curve.kind == kind]
        places = [curve.layer if layered else at for at, curve in enumerate(group, 1)]
        title = one_line(group[0].module) if len(group) == 1 else _title(kind, group)
        groups.append((title, dict(zip(group, places, strict=True))))
    return groups


def _title(kind: str, group: Sequence[_Curve]) -> str:
    layers = {curve.layer for curve in group if np.isfinite(curve.layer)}
    return f"{kind} · {count(len(group), 'layer' if len(layers) == len(group) else 'module')}"


def _shades(groups: Sequence[tuple[str, dict[_Curve, float]]]) -> tuple[ScalarMappable, str]:
    """Return the colours of the places and the bar's label, empty where one colour does."""
    curves = [curve for _, places in groups for curve in places]
    every = np.array([place for _, places in groups for place in places.values()])
    known = every[np.isfinite(every)]
    colormap = _CREST.with_extremes(bad="0.5")
    shade = ScalarMappable(Normalize(known.min(), known.max()), colormap)
    if known.min() == known.max():
        return shade, ""
    layered = any(np.isfinite(curve.layer) for curve in curves)
    return shade, "layer" if layered else "module, in the table's order"
