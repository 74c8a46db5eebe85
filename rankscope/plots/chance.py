"""The colour bar of φ and the chance levels marked on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure, SubFigure
from matplotlib.markers import CARETRIGHT

from rankscope.plots.style import SMALL, points, thick

LABEL = "φ(i, j)"
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def colour_bar(
    figure: Figure | SubFigure,
    mesh: QuadMesh,
    axes: Sequence[Axes],
    chances: Iterable[float],
    *,
    inches: float = 2.0,
    shrink: float = 1.0,
    label: str = LABEL,
    ticks: Sequence[float] = _TICKS,
) -> Colorbar:
    """Draw one colour bar for `axes`, about `inches` tall, with each chance level on its left."""
    bar = figure.colorbar(
        mesh, ax=list(axes), label=label, ticks=list(ticks), shrink=shrink, aspect=inches / 0.12
    )
    bar.outline.set_visible(False)
    # Two lines of text and a little air, in units of φ.
    apart = 2.8 * SMALL / 72 / inches
    for levels in _clusters(sorted(set(chances)), apart):
        _mark(bar.ax, levels)
    return bar


def _clusters(levels: Sequence[float], apart: float) -> list[list[float]]:
    """Return ascending levels in runs whose labels would touch if each had its own."""
    runs: list[list[float]] = []
    for level in levels:
        if runs and level - _middle(runs[-1]) < apart:
            runs[-1].append(level)
        else:
            runs.append([level])
    return runs


def _mark(ax: Axes, levels: Sequence[float]) -> None:
    beside = ax.get_yaxis_transform()
    style: dict[str, Any] = {"marker": CARETRIGHT, "markersize": thick(4), "color": "black"}
    ax.plot(
        [0.0] * len(levels),
        list(levels),
        linestyle="none",
        transform=beside,
        clip_on=False,
        label="chance",
        **style,
    )
    ax.annotate(
        chance_label(levels),
        (0.0, _middle(levels)),
        xytext=(-5, 0),
        xycoords=beside,
        textcoords="offset points",
        ha="right",
        va="center",
        size=points(SMALL),
    )


def chance_label(levels: Sequence[float]) -> str:
    r"""Return the words beside a mark: one level, or the range of several.

    Examples
    --------
    >>> chance_label([0.25]), chance_label([0.03125, 0.0625])
    ('chance\n0.25', 'chance\n0.031–0.062')
    """
    ends = dict.fromkeys(f"{level:.2g}" for level in (levels[0], levels[-1]))
    return "chance\n" + "–".join(ends)


def _middle(levels: Sequence[float]) -> float:
    return (levels[0] + levels[-1]) / 2
