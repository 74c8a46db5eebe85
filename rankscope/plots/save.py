"""Figures as bytes that are the same on every run."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from matplotlib.figure import Figure

from rankscope.errors import OutputError
from rankscope.plots.style import theme

__all__ = ["FIGURE_FORMATS", "figure_bytes", "save_figure"]

_METADATA: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "svg": {"Date": None, "Creator": "rankscope"},
        "pdf": {"CreationDate": None, "Creator": "rankscope", "Producer": "rankscope"},
        "png": {"Software": "rankscope"},
    }
)
FIGURE_FORMATS = tuple(_METADATA)


def figure_bytes(figure: Figure, format: str = "svg") -> bytes:
    """Return the figure as an SVG, PDF or PNG file, without dates or random names in it.

    Parameters
    ----------
    figure : Figure
        Any figure; it is neither shown nor closed, but its layout is settled.
    format : {"svg", "pdf", "png"}
        The file format. Heat maps are pixels at 300 dpi in all three, everything else is
        drawn as lines and text.

    Returns
    -------
    bytes
        The same for the same figure, in every process.

    Raises
    ------
    OutputError
        If `format` is none of the three.

    Examples
    --------
    >>> figure_bytes(Figure(), "png")[1:4]
    b'PNG'
    """
    if format not in _METADATA:
        raise OutputError(
            "figures cannot be written in this format",
            where=f"format {format!r}",
            expected=", ".join(FIGURE_FORMATS),
            got=repr(format),
            fix="end the file name in .svg, .pdf or .png",
        )
    buffer = io.BytesIO()
    with theme():
        _settle(figure)
        figure.savefig(buffer, format=format, dpi=300, metadata=_METADATA[format])
    return buffer.getvalue()


def _settle(figure: Figure) -> None:
    """Fix every axes where the layout puts it, rounded.

    The layout's solver adds in an order that varies from run to run: its last bits differ, and
    with them the names of clip paths in an SVG.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        bounds = [round(bound, 6) for bound in axes.get_position(original=True).bounds]
        axes.set_position((bounds[0], bounds[1], bounds[2], bounds[3]))


def save_figure(
    figure: Figure, path: str | os.PathLike[str], *, format: str | None = None
) -> None:
    """Write the figure to exactly `path`; the format is `format` or the path's suffix.

    Parameters
    ----------
    figure : Figure
        Any figure; it is neither shown nor closed, but its layout is settled.
    path : str or path
        Where to write. The folder must exist; a file there is overwritten.
    format : {"svg", "pdf", "png"}, optional
        The file format where the suffix does not tell it.

    Raises
    ------
    OutputError
        If the format is none of the three. Errors of the file system pass as they are.

    Examples
    --------
    >>> save_figure(Figure(), "/tmp/empty.svg")
    >>> Path("/tmp/empty.svg").read_text()[:5]
    '<?xml'
    """
    target = Path(path)
    target.write_bytes(figure_bytes(figure, format or target.suffix.lower().removeprefix(".")))
