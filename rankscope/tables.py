"""Tables as text, Markdown, LaTeX, HTML and JSON; names in them are somebody else's text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd

__all__ = [
    "as_html",
    "as_latex",
    "as_markdown",
    "as_text",
    "html_text",
    "plain",
    "short",
    "with_spread",
]

_PROBABILITIES = ("p", "p_first", "p_full", "p_adjusted")


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


def as_text(table: pd.DataFrame, width: int | None = None) -> str:
    """Return aligned text: numbers to the right, words to the left.

    Undefined cells are a dash, control characters are replaced. A table that is wider than
    `width` characters is cut between columns, and each part begins with the columns of words
    that the table begins with, or the first of them where they leave no room.

    Examples
    --------
    >>> print(as_text(pd.DataFrame({"kind": ["q", "embed"], "rank": [8.0, 0.125]})))
    kind    rank
    q          8
    embed  0.125
    """
    columns = [_column(table, name) for name in table.columns]
    numbers = [pd.api.types.is_numeric_dtype(table[name]) for name in table.columns]
    words = numbers.index(True) if True in numbers else len(numbers)
    if width is not None and sum(len(column[0]) + 2 for column in columns[:words]) > width / 2:
        words = 1
    return "\n\n".join(
        "\n".join("  ".join(row).rstrip() for row in zip(*part, strict=True))
        for part in _parts(columns, max(words, 1), width)
    )


def _column(table: pd.DataFrame, name: str) -> list[str]:
    cells = [str(name), *_cells(table, name)]
    width = max(map(len, cells))
    number = pd.api.types.is_numeric_dtype(table[name])
    return [c.rjust(width) if number else c.ljust(width) for c in cells]


def _cells(table: pd.DataFrame, name: str) -> list[str]:
    tiny = "<1e-300" if name in _PROBABILITIES else None  # 0 is what is too small for a float
    return [
        tiny if tiny and cell is not pd.NA and cell == 0 else _cell(cell) for cell in table[name]
    ]


def _parts(columns: list[list[str]], shared: int, width: int | None) -> Iterator[list[list[str]]]:
    """Yield the columns in groups that fit; at least one beside the first, which all share."""
    part: list[list[str]] = columns[:shared]
    for column in columns[shared:]:
        together = sum(len(one[0]) + 2 for one in [*part, column]) - 2
        if width is not None and together > width and len(part) > shared:
            yield part
            part = columns[:shared]
        part = [*part, column]
    yield part


def _rows(table: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    return zip(*(_cells(table, name) for name in table.columns), strict=True)


def as_markdown(table: pd.DataFrame) -> str:
    """Return a Markdown table."""
    rows = [list(map(str, table.columns)), ["---"] * len(table.columns)]
    rows += map(list, _rows(table))
    lines = (" | ".join(c.replace("|", "\\|") for c in row) for row in rows)
    return "".join(f"| {line} |\n" for line in lines)


def as_latex(table: pd.DataFrame) -> str:
    """Return a LaTeX table with booktabs rules."""
    cells = [[_latex(cell) for cell in row] for row in _rows(table)]
    escaped = pd.DataFrame(cells, columns=[_latex(str(name)) for name in table.columns])
    text: str = escaped.style.hide(axis="index").to_latex(hrules=True)
    return text


_WORD = "text-align:left"
_NUMBER = "text-align:right;white-space:nowrap"  # 1e-30 would break at its minus sign


def as_html(table: pd.DataFrame, most: int = 200) -> str:
    """Return an HTML table in a frame that scrolls, without colours of its own.

    Numbers stand to the right, words to the left; of very long names the middle is left out,
    of long tables what follows the first `most` rows.

    Examples
    --------
    >>> print(as_html(pd.DataFrame({"module": ["<b>q</b>"]})).split("<tbody>")[1])
    <tr><td style="text-align:left">&lt;b&gt;q&lt;/b&gt;</td></tr></tbody></table></div>
    """
    styles = [
        _NUMBER if pd.api.types.is_numeric_dtype(table[name]) else _WORD for name in table.columns
    ]
    head = _html_row("th", map(str, table.columns), styles)
    body = "".join(_html_row("td", row, styles) for row in _rows(table.head(most)))
    more = f"<p>… and {len(table) - most} more rows</p>" if len(table) > most else ""
    return (
        '<div style="max-height:28em;overflow:auto"><table>'
        f"<thead>{head}</thead><tbody>{body}</tbody></table>{more}</div>"
    )


def html_text(text: str, most: int = 300) -> str:
    """Return text for HTML: escaped, without control characters, its middle left out if long.

    Examples
    --------
    >>> html_text("a < b"), html_text("x" * 200, most=9)
    ('a &lt; b', 'xxxx…xxxx')
    """
    half = (most - 1) // 2
    short_text = text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
    return escape(_visible(short_text))


def _html_row(tag: str, cells: Iterable[str], styles: Iterable[str]) -> str:
    parts = (
        f'<{tag} style="{style}">{html_text(cell)}</{tag}>'
        for cell, style in zip(cells, styles, strict=True)
    )
    return f"<tr>{''.join(parts)}</tr>"


def with_spread(groups: pd.DataFrame) -> pd.DataFrame:
    """Return groups of sources as a paper prints them: a row per side and pair of groups.

    Every measure has a column of mean ± standard deviation, over the pairs of sources such as
    seeds; the mean alone where there is one pair.

    Examples
    --------
    >>> with_spread(pd.DataFrame({"measure": ["phi"], "side": "right", "a": "r8", "b": "r64",
    ...                           "mean": [0.37219], "sd": [0.0142]}))
        side   a    b            phi
    0  right  r8  r64  0.372 ± 0.014
    """
    cells = map(_spread, groups["mean"], groups["sd"])
    columns = list(dict.fromkeys(groups["measure"]))
    keys = ["side", "a", "b"]
    wide = groups.assign(cell=list(cells)).pivot(index=keys, columns="measure", values="cell")
    ordered = wide.loc[list(dict.fromkeys(zip(*(groups[key] for key in keys), strict=True)))]
    return ordered[columns].rename_axis(columns=None).reset_index()


def _spread(mean: float, deviation: float) -> str:
    """Return mean ± deviation, both to the deviation's second digit."""
    if not deviation > 0:
        return _cell(float(mean))
    digits = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else short(value)
    if value is pd.NA or value is None:
        return "–"
    return _visible(str(value))


def _visible(text: str) -> str:
    # A tensor's name may hold escape sequences that a terminal would obey.
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _latex(text: str) -> str:
    escapes = {
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "–": "--",
        "…": r"\dots{}",
        "±": r"$\pm$",
        "<": r"\textless{}",
        **{c: f"\\{c}" for c in "_&%$#{}"},
    }
    return "".join(escapes.get(c, c) for c in text)
