"""The figures and maps of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from rankscope.plots import figure_bytes
from rankscope.reporting.document import Figure, Map
from rankscope.reporting.finding import Finding, readable
from rankscope.reporting.numbers import rounded, short_name

__all__ = ["figure_of", "map_of"]

LEVELS = 8  # of a map's shades, from 0
_CAPTIONS = {
    "rank": (
        "Rank measures of {source} by layer",
        "Four rank measures against the layer, a colour and marker for each kind of weight. The "
        "axes begin at 0; the dashed line, or the words at the top, mark the largest rank that "
        "the form of the updates allows.",
    ),
    "spectrum": (
        "Singular values of {source}",
        "Singular values in units of the largest, on a logarithmic axis. A grey band is the noise "
        "of the storage, where there is any.",
    ),
    "similarity": (
        "Heat maps of φ(i, j) of {source}, beside random directions",
        "φ(i, j) of the first i directions of the one and the first j of the other. The panel of "
        "random directions shows what chance gives: compare with it, not with 0.",
    ),
    "compare": (
        "Every pair of {source}",
        "Means over the modules, in the order of their clusters, input side first. The mark on "
        "the colour bar is the chance level.",
    ),
    "amplification": (
        "ΔW of {source} against W",
        "How much of W lies along the first directions of ΔW, of W and of random ones (the LoRA "
        "paper's Table 7); where ΔW's energy lies among W's directions; and φ of W's and ΔW's "
        "first directions over chance.",
    ),
    "intruders": (
        "Largest cosine of the directions of W + ΔW with W's, {source}",
        "Every leading direction of W + ΔW beside its closest in W. The grey ends where 99 % of "
        "random directions do: within it a direction is as new as one drawn at random.",
    ),
}


def figure_of(finding: Finding) -> Figure | None:
    """Return the figure of a result; None where it has none."""
    if finding.command not in _CAPTIONS or finding.result.table.empty:
        return None
    label, caption = _CAPTIONS[finding.command]
    sources = " and ".join(short_name(name, 40) for name in finding.sources[:2])
    more = f" and {len(finding.sources) - 2} more" if len(finding.sources) > 2 else ""
    svg = figure_bytes(readable(finding.result).plot(), "svg")
    return Figure(svg, label.format(source=sources + more), caption)


def map_of(
    table: pd.DataFrame,
    column: str,
    caption: str,
    anchors: Mapping[str, str],
    *,
    most: pd.Series[Any] | float,
) -> Map | None:
    """Return a measure as shares of `most`, kinds down and layers across.

    None where no module has a layer; of several modules of one kind and layer the first.
    """
    rows = table[table.layer.notna() & table[column].notna()]
    if rows.layer.nunique() < 2:
        return None
    share = rows[column].astype(float) / (most if isinstance(most, float) else most[rows.index])
    layers = sorted({int(layer) for layer in rows.layer})
    at: dict[tuple[Any, int], tuple[str, int, str]] = {}
    listed: Iterable[Any] = rows.itertuples()
    for row, part in zip(listed, share, strict=True):
        text = f"{short_name(row.module)}: {rounded(getattr(row, column), '2')}"
        found = (anchors.get(row.module, ""), _level(float(part)), text)
        at.setdefault((row.kind, int(row.layer)), found)
    kinds = dict.fromkeys(rows.kind)
    cells = [(kind, [at.get((kind, layer)) for layer in layers]) for kind in kinds]
    high = f"{most:g}" if isinstance(most, float) else "the ceiling"
    return Map(caption, [str(layer) for layer in layers], cells, "0", high)


def _level(share: float) -> int:
    return min(max(math.floor(share * (LEVELS + 1)), 0), LEVELS)
