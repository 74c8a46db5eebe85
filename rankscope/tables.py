"""Tables as text, Markdown, LaTeX and JSON; names in them are somebody else's text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["as_latex", "as_markdown", "as_text", "plain", "short"]


def plain(value: Any) -> Any:
    """Return a value as JSON has it; NaN, infinity and <NA> become None.

    Examples
    --------
    >>> plain({"a": np.array([1.0, np.nan])})
    {'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value


def short(value: float) -> str:
    """Return a number with four digits.

    Examples
    --------
    >>> short(0.123456)
    '0.1235'
    """
    return f"{value:.4g}"


def as_text(table: pd.DataFrame) -> str:
    """Return aligned text: numbers to the right, words to the left.

    Undefined cells are a dash, control characters are replaced.

    Examples
    --------
    >>> print(as_text(pd.DataFrame({"kind": ["q", "embed"], "rank": [8.0, 0.125]})))
    kind    rank
    q          8
    embed  0.125
    """
    columns = []
    for name in table.columns:
        cells = [str(name), *map(_cell, table[name])]
        width = max(map(len, cells))
        number = pd.api.types.is_numeric_dtype(table[name])
        columns.append([c.rjust(width) if number else c.ljust(width) for c in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def as_markdown(table: pd.DataFrame) -> str:
    """Return a Markdown table."""
    rows = [list(map(str, table.columns)), ["---"] * len(table.columns)]
    rows += [[_cell(c) for c in row] for row in table.itertuples(index=False)]
    lines = (" | ".join(c.replace("|", "\\|") for c in row) for row in rows)
    return "".join(f"| {line} |\n" for line in lines)


def as_latex(table: pd.DataFrame) -> str:
    """Return a LaTeX table with booktabs rules."""
    escaped = table.map(lambda c: _latex(_cell(c))).rename(columns=_latex)
    text: str = escaped.style.hide(axis="index").to_latex(hrules=True)
    return text


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else short(value)
    if value is pd.NA or value is None:
        return "–"
    # A tensor's name may hold escape sequences that a terminal would obey.
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def _latex(text: str) -> str:
    escapes = {"\\": r"\textbackslash{}", "–": "--", **{c: f"\\{c}" for c in "_&%$#{}"}}
    return "".join(escapes.get(c, c) for c in text)
