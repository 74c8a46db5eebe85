"""The axis that most pictures share: layers, or modules where none has a layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from rankscope.plots.style import KIND_COLORS, KIND_MARKERS
from rankscope.plots.tables import layer_numbers, one_line, ticks_from_one

__all__ = ["draw_kind", "label_places", "layered", "places"]

_NAMED = 12  # modules without layers whose names still fit under an axis


def draw_kind(
    ax: Axes, kind: str, at: NDArray[np.float64], values: NDArray[np.float64], *, joined: bool
) -> None:
    """Draw one kind's values; a line joins the means of each layer."""
    color = KIND_COLORS.get(kind, KIND_COLORS["other"])
    marker = KIND_MARKERS.get(kind, KIND_MARKERS["other"])
    ax.plot(at, values, linestyle="none", marker=marker, color=color, label=kind)
    if joined:
        means = pd.Series(values).groupby(at).mean()
        means = means[means.index == np.floor(means.index)]  # no line to those without a layer
        ax.plot(means.index, means, color=color, alpha=0.6)


def layered(table: pd.DataFrame) -> bool:
    """Whether any module has a layer."""
    return bool(table["layer"].notna().any())


def places(table: pd.DataFrame) -> NDArray[np.float64]:
    """Return every row's layer, right of the last for those without; the order if none has one."""
    if not layered(table):
        return np.arange(1, len(table) + 1, dtype=np.float64)
    layers = layer_numbers(table)
    return np.where(np.isfinite(layers), layers, np.nanmax(layers) + 1.5)


def label_places(ax: Axes, table: pd.DataFrame) -> None:
    """Label the axis of layers, or of modules where none has a layer."""
    ax.set_xlabel("layer" if layered(table) else "module")
    if not layered(table):
        few = len(table) <= _NAMED
        ticks = list(range(1, len(table) + 1)) if few else ticks_from_one(len(table))
        ax.set_xticks(ticks)
        if few:
            names = [one_line(name.replace("\n", ""), 24) for name in table["module"]]
            ax.set_xticklabels(names, rotation=30, ha="right", rotation_mode="anchor")
        return
    layers = layer_numbers(table)
    first, last = int(np.nanmin(layers)), int(np.nanmax(layers))
    step = next(step for step in (1, 2, 4, 5, 8, 10, 20, 50, 100) if (last - first) / step <= 10)
    ticks = list(range(-(-first // step) * step, last + 1, step))
    labels = [str(tick) for tick in ticks]
    if np.isnan(layers).any():
        ax.set_xticks([*ticks, last + 1.5], [*labels, "none"])
    else:
        ax.set_xticks(ticks, labels)
