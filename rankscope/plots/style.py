"""Sizes, fonts and fixed colours, and the empty figure that every picture starts from."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

__all__ = ["DOUBLE", "KIND_COLORS", "KIND_MARKERS", "SINGLE", "SMALL", "characters", "theme"]

SINGLE = 3.4  # inches, one column of a two-column page
DOUBLE = 7.0  # inches, both columns
SMALL = 6.0  # points, the smallest text anywhere
_SCREEN = 120  # a notebook's pixels for an inch: the smallest text is as high as ten of them

# Paul Tol's "muted" scheme: distinct for every common form of colour blindness.
KIND_COLORS: Mapping[str, str] = MappingProxyType(
    {
        "q": "#332288",
        "k": "#88CCEE",
        "v": "#CC6677",
        "o": "#117733",
        "up": "#DDCC77",
        "gate": "#44AA99",
        "down": "#882255",
        "embed": "#999933",
        "head": "#AA4499",
        "other": "#777777",
    }
)
KIND_MARKERS: Mapping[str, str] = MappingProxyType(
    dict(zip(KIND_COLORS, ("o", "s", "^", "D", "P", "X", "v", "<", ">", "h"), strict=True))
)

_THEME: dict[str, Any] = {
    "font.size": 7.0,
    "axes.titlesize": 7.0,
    "axes.labelsize": 7.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "legend.fontsize": 6.5,
    "legend.title_fontsize": 6.5,
    "legend.frameon": False,
    "lines.linewidth": 0.9,
    "lines.markersize": 3.0,
    "figure.dpi": 150.0,
    "savefig.dpi": 300.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "rankscope",
    "pdf.fonttype": 42,
}


def theme(width: float = DOUBLE) -> AbstractContextManager[None]:
    """Return a context in which figures have the package's fonts, sizes and line widths.

    It starts from matplotlib's defaults, so that a reader's own settings change nothing; text
    stays text in SVG and PDF files.

    Parameters
    ----------
    width : float
        Default figure width in inches: 3.4 for one column, 7.0 for two.

    Returns
    -------
    context manager

    Examples
    --------
    >>> import matplotlib
    >>> with theme(width=3.4):
    ...     [float(inches) for inches in matplotlib.rcParams["figure.figsize"]]
    [3.4, 2.5]
    """
    size = [width, round(max(2.5, 0.5 * width), 2)]
    return matplotlib.style.context(["default", {**_THEME, "figure.figsize": size}])


def characters(inches: float, points: float) -> int:
    """Return how many letters of a font of `points` fit into `inches`.

    Examples
    --------
    >>> characters(7.0, 6.0)
    146
    """
    return int(72 * inches / (0.575 * points))


class _NotebookFigure(Figure):
    """A figure that a notebook shows, though pyplot does not know it."""

    def _repr_png_(self) -> tuple[bytes, dict[str, float]]:
        buffer = io.BytesIO()
        with theme():
            self.savefig(buffer, format="png", dpi=1.5 * _SCREEN, metadata={"Software": None})
        return buffer.getvalue(), {"width": round(_SCREEN * self.get_figwidth())}


def new_figure(width: float, height: float, caption: str = "") -> Figure:
    """Return an empty constrained figure of `width` by `height` inches, above its caption."""
    lines = textwrap.wrap(caption, characters(width - 0.2, SMALL))
    strip = 1.35 * SMALL / 72 * len(lines) + (0.08 if lines else 0.0)
    total = height + strip
    engine = ConstrainedLayoutEngine(
        rect=(0.0, strip / total, 1.0, height / total), w_pad=0.04, h_pad=0.04
    )
    figure = _NotebookFigure(figsize=(width, total), layout=engine)
    if lines:
        figure.text(
            0.1 / width, 0.04 / total, "\n".join(lines), size=SMALL, va="bottom", color="0.3"
        )
    return figure


def outer_labels(figure: Figure, x: str, y: str) -> None:
    """Label the x and y axes of all panels once, below and left of them, above the caption.

    Plain text in a strip taken from the layout: `supxlabel` would stand on the caption.
    """
    engine = figure.get_layout_engine()
    if not isinstance(engine, ConstrainedLayoutEngine):
        return
    size = matplotlib.rcParams["axes.labelsize"]
    wide, high = (1.8 * size / 72 / inches for inches in figure.get_size_inches())
    left, bottom, width, height = engine.get()["rect"]
    left, bottom, width, height = left + wide, bottom + high, width - wide, height - high
    engine.set(rect=(left, bottom, width, height))
    figure.text(left + width / 2, bottom - 0.4 * high, x, size=size, ha="center", va="center")
    middle = bottom + height / 2
    figure.text(0.55 * wide, middle, y, size=size, ha="center", va="center", rotation="vertical")


def notice_figure(message: str, caption: str = "") -> Figure:
    """Return a small figure that says in words why there is nothing to draw."""
    with theme(SINGLE):
        figure = new_figure(SINGLE, 1.2, caption)
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes)
    return figure
