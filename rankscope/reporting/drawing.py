"""Small pictures drawn from numbers alone: spectra as paths, φ grids as pixels."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankscope.reporting.document import Chart
from rankscope.reporting.numbers import rounded

__all__ = ["HEIGHT", "LEVELS", "WIDTH", "band", "chart", "palette", "png"]

WIDTH, HEIGHT = 240, 96
LEVELS = 48  # colours of a φ grid
_POINTS = 64
_DEEPEST = 1e-10  # of the largest: below there is rounding


def chart(spectra: Mapping[int, Sequence[float]], label: str) -> Chart | None:
    """Return the spectra of one module as paths on a common logarithmic axis.

    `spectra` leads from the numbers of sources to their singular values, descending; what is
    zero is left out. None where nothing is left.
    """
    values = {n: np.asarray(s, dtype=np.float64) for n, s in spectra.items()}
    positive = [s[s > 0] for s in values.values() if (s > 0).any()]
    if not positive:
        return None
    top = max(float(s[0]) for s in positive)
    lowest = max(min(float(s[-1]) for s in positive), _DEEPEST * top)
    longest = max(len(s) for s in positive)
    lines = [
        (number, _path(s, longest, math.log10(lowest), math.log10(top)))
        for number, s in values.items()
        if (s >= lowest).any()
    ]
    ends = [rounded(end, "norm") for end in (top, lowest)]
    words = f"Singular values of {label}, logarithmic: {ends[0]} to {ends[1]} over {longest}"
    return Chart(lines, ends[0], ends[1], str(longest), words)


def _path(s: NDArray[np.float64], longest: int, low: float, high: float) -> str:
    kept = int((s >= 10**low * (1 - 1e-9)).sum())
    at = np.unique(np.linspace(0, kept - 1, min(kept, _POINTS)).round().astype(int))
    x = WIDTH * at / max(longest - 1, 1)
    y = HEIGHT * (high - np.log10(s[at])) / ((high - low) or 1.0)
    # A single point has no length; a round cap makes it a dot.
    return _through(x, y) if len(x) > 1 else f"{_through(x, y)}h0"


def _through(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """Return the path through points, in tenths."""
    # Adding 0 turns -0 into 0.
    pairs = zip((x.round(1) + 0.0).tolist(), (y.round(1) + 0.0).tolist(), strict=True)
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in pairs)


def band(spectra: Sequence[Any], caption: str) -> Chart | None:
    """Return the spectra of many modules in units of their largest: median, and all in a band.

    As far as all of them go, without what is zero. None where nothing is left.
    """
    live = [np.asarray(s, dtype=np.float64) for s in spectra]
    live = [s / s[0] for s in live if len(s) and s[0] > 0]
    if not live:
        return None
    longest = min(len(s) for s in live)
    stack = np.array([s[:longest] for s in live]).clip(_DEEPEST)
    at = np.unique(np.linspace(0, longest - 1, min(longest, _POINTS)).round().astype(int))
    low = math.log10(float(stack.min()))
    x = WIDTH * at / max(longest - 1, 1)
    least, middle, most = (
        HEIGHT * np.log10(level[at]) / (low or -1.0)
        for level in (stack.min(0), np.median(stack, axis=0), stack.max(0))
    )
    outline = _through(np.concatenate([x, x[::-1]]), np.concatenate([most, least[::-1]]))
    bottom = rounded(10**low, "norm")
    words = f"Singular values of {caption} over the largest: median and range, 1 to {bottom}"
    return Chart([(0, _through(x, middle))], "1", bottom, str(longest), words, caption, outline)


def png(grid: Any, step: int = 1) -> str:
    """Return φ in [0, 1] as a PNG in base64, one pixel per cell, counted from the last cell.

    With `step` 2 every second row and column is drawn.
    """
    cells = np.asarray(grid, dtype=np.float64)[::-step, ::-step][::-1, ::-1]
    levels = np.nan_to_num(cells.clip(0, 1) * (LEVELS - 1)).round().astype(np.uint8)
    rows, columns = levels.shape
    # Each line begins with its filter: 0, none.
    lines = np.hstack([np.zeros((rows, 1), dtype=np.uint8), levels]).tobytes()
    colours = bytes(channel for colour in palette() for channel in colour)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
        (b"PLTE", colours),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, parts))).decode()


def _chunk(part: tuple[bytes, bytes]) -> bytes:
    name, content = part
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


@lru_cache(maxsize=1)
def palette() -> tuple[tuple[int, int, int], ...]:
    """Return the colours of φ from 0 to 1, those of the figures, as bytes."""
    import seaborn as sns

    colours = sns.color_palette("rocket", LEVELS)
    return tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours)
