"""Styles, fixed colours, and the empty figure that every picture starts from."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import matplotlib.style
import numpy as np
import seaborn as sns
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from rankscope.errors import RankscopeError

__all__ = [
    "COLOURS",
    "DOUBLE",
    "KIND_COLORS",
    "KIND_MARKERS",
    "SINGLE",
    "SMALL",
    "STYLES",
    "Style",
    "StyleError",
    "characters",
    "theme",
]

# Layouts are written for paper, in its inches and points; a style scales them.
SINGLE = 3.25  # inches, one column of a two-column page: it fits ICML, ACM, IEEE and Nature
DOUBLE = 6.75  # inches, both columns
SMALL = 6.0  # points, the smallest text on paper
_FONT, _LINE = 7.0, 0.9


@dataclass(frozen=True)
class Style:
    """The sizes of a figure, from which all others follow.

    Attributes
    ----------
    width : float
        Inches of a figure over two columns; one over a single column has 0.48 of it. Heights
        grow with the font.
    font : float
        Points of titles and axis labels; tick labels have six sevenths of it.
    line : float
        Points of a line's width.
    """

    width: float
    font: float
    line: float


class StyleError(RankscopeError, ValueError):
    """A style or a colour map that there is none of."""


STYLES: Mapping[str, Style] = MappingProxyType(
    {
        "paper": Style(DOUBLE, _FONT, _LINE),
        "talk": Style(12.0, 16.0, 2.0),
        "notebook": Style(9.0, 10.5, 1.3),
    }
)
# Light differs along each map as much as colour does: they can be printed in grey, the diverging
# ones as far as above and below may look alike there.
_SEQUENTIAL = ("rocket", "mako", "viridis", "cividis", "magma", "gray")
_DIVERGING = ("vlag", "coolwarm", "PuOr", "RdBu")
COLOURS = _SEQUENTIAL + _DIVERGING


@dataclass(frozen=True)
class _Look:
    """What figures look like at the moment."""

    style: Style = STYLES["paper"]
    title: str = ""
    cmap: str = ""


_LOOK: ContextVar[_Look] = ContextVar("look", default=_Look())  # noqa: B039  it is frozen

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
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.dpi": 150.0,
    "savefig.dpi": 300.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "rankscope",
    "pdf.fonttype": 42,
}
_TEXT: Mapping[str, float] = {
    "font.size": _FONT,
    "axes.titlesize": 7.0,
    "axes.labelsize": 7.0,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "legend.fontsize": 6.5,
    "legend.title_fontsize": 6.5,
}
_LINES: Mapping[str, float] = {
    "axes.linewidth": 0.6,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "lines.linewidth": _LINE,
    "lines.markersize": 3.0,
}


@contextmanager
def theme(
    style: str | None = None, *, title: str | None = None, cmap: str | None = None
) -> Iterator[None]:
    """Return a context in which figures have the package's fonts, sizes and line widths.

    It starts from matplotlib's defaults, so that a reader's own settings change nothing; text
    stays text in SVG and PDF files. What is not given stays as in the context around this one.

    Parameters
    ----------
    style : {"paper", "talk", "notebook"}, optional
        Paper at first: 3.25 or 6.75 inches wide, as many panels as there are need, with 7
        points; a talk has 12 inches and 16 points, a notebook 9 inches and 10.5 points.
    title : str, optional
        Words above each figure that is made.
    cmap : str, optional
        Colours of heat maps: rocket, mako, viridis, cividis, magma or gray; where their scale
        has a middle, as cosines and ratios to chance do, vlag, coolwarm, PuOr or RdBu. A name
        of one sort leaves maps of the other as they are.

    Returns
    -------
    context manager

    Raises
    ------
    StyleError
        If there is no such style or colour map.

    Examples
    --------
    >>> import matplotlib
    >>> with theme("talk"):
    ...     float(matplotlib.rcParams["font.size"])
    16.0
    """
    look = _LOOK.get()
    if style is not None:
        look = replace(look, style=STYLES[_known("style", style, tuple(STYLES))])
    if title is not None:
        look = replace(look, title=title)
    if cmap is not None:
        look = replace(look, cmap=_known("cmap", cmap, COLOURS))
    with _look(look):
        yield


def _known(option: str, name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise StyleError(
            "figures cannot be drawn this way",
            where=option,
            expected=", ".join(names),
            got=repr(name),
            fix=f"choose one of these, such as {option}={names[0]!r}",
        )
    return name


@contextmanager
def _look(look: _Look) -> Iterator[None]:
    before = _LOOK.set(look)
    try:
        with matplotlib.style.context(["default", _settings(look.style)]):
            yield
    finally:
        _LOOK.reset(before)


def _settings(style: Style) -> dict[str, Any]:
    text, line = style.font / _FONT, style.line / _LINE
    return {
        **_THEME,
        **{name: size * text for name, size in _TEXT.items()},
        **{name: size * line for name, size in _LINES.items()},
        "figure.figsize": [style.width * SINGLE / DOUBLE, 2.5 * text],
    }


def points(size: float) -> float:
    """Return a size of text, given in points on paper, in those of the style at hand."""
    return size * _LOOK.get().style.font / _FONT


def thick(width: float) -> float:
    """Return the width of a line, given in points on paper, in those of the style at hand."""
    return width * _LOOK.get().style.line / _LINE


def characters(inches: float, size: float) -> int:
    """Return how many letters of `size` points fit into `inches`, both as on paper.

    Examples
    --------
    >>> characters(7.0, 6.0)
    146
    """
    wide = inches * _LOOK.get().style.width / DOUBLE
    return int(72 * wide / (0.575 * points(size)))


def sequential(name: str) -> Colormap:
    """Return the colours asked for, or those called `name`, for numbers that begin at 0."""
    return _colours(name, _SEQUENTIAL)


def diverging(name: str) -> Colormap:
    """Return the colours asked for, or those called `name`, for numbers around a middle."""
    return _colours(name, _DIVERGING)


def _colours(name: str, names: tuple[str, ...]) -> Colormap:
    asked = _LOOK.get().cmap
    found: Colormap = sns.color_palette(asked if asked in names else name, as_cmap=True)
    return found


def ink(mesh: QuadMesh, value: float) -> str:
    """Return the colour of text on a cell of this value: black on light ones, white on dark."""
    red, green, blue, _ = mesh.to_rgba(np.array([value]))[0]
    return "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"


class _Drawing(Figure):
    """A figure that keeps its look: ticks are made, and read their sizes, when it is drawn."""

    def __init__(self, **options: Any) -> None:
        self.look = _LOOK.get()
        super().__init__(**options)

    def draw(self, renderer: Any) -> None:
        with _look(self.look):
            super().draw(renderer)


def new_figure(width: float, height: float, caption: str = "") -> Figure:
    """Return an empty constrained figure with its caption below and its title above.

    `width` and `height` of what lies between them are in inches on paper.
    """
    look = _LOOK.get()
    text = look.style.font / _FONT
    lines = textwrap.wrap(caption, characters(width - 0.2, SMALL))
    heading = textwrap.wrap(look.title, characters(width - 0.2, 9.0))
    strip = text * (1.35 * SMALL / 72 * len(lines) + (0.08 if lines else 0.0))
    above = text * (1.35 * 9.0 / 72 * len(heading) + (0.06 if heading else 0.0))
    wide, total = width * look.style.width / DOUBLE, strip + height * text + above
    engine = ConstrainedLayoutEngine(
        rect=(0.0, strip / total, 1.0, height * text / total), w_pad=0.04 * text, h_pad=0.04 * text
    )
    figure = _Drawing(figsize=(wide, total), layout=engine)
    if lines:
        figure.text(
            0.1 / width,
            0.04 * text / total,
            "\n".join(lines),
            size=points(SMALL),
            va="bottom",
            color="0.3",
            parse_math=False,
        )
    if heading:
        figure.text(
            0.5,
            1 - 0.04 * text / total,
            "\n".join(heading),
            size=points(9.0),
            ha="center",
            va="top",
            parse_math=False,
        )
    return figure


def panels_of(figure: Figure) -> Figure | SubFigure:
    """Return the part between title and caption: a legend of the figure stands on the title."""
    titled = isinstance(figure, _Drawing) and figure.look.title
    part: Figure | SubFigure = figure.subfigures(squeeze=False)[0, 0] if titled else figure
    return part


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
    with theme():
        figure = new_figure(SINGLE, 1.2, caption)
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes)
    return figure
