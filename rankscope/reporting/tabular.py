"""Data frames as a report's tables: columns in words, numbers rounded, kinds summed up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from rankscope.reporting.definitions import definition
from rankscope.reporting.document import Cell, Column, Table
from rankscope.reporting.numbers import exact, rounded, short_name

__all__ = ["MANY", "SIDES", "by_kind", "cell", "frame_table", "spread"]

SIDES = {"right": "input", "left": "output"}
# From so many modules on a table is folded behind its summary.
MANY = 32

_WIDE = 44  # characters of a cell that is broken into lines
_NAMES = ("module", "source", "tensor", "a", "b", "path")


def frame_table(
    frame: pd.DataFrame,
    command: str,
    caption: str,
    *,
    anchors: Mapping[str, str] | None = None,
    folded: bool = False,
) -> Table:
    """Return a frame as a table; columns that are wholly undefined are left out.

    `anchors` leads from modules to where they are described.
    """
    kept = [name for name in frame.columns if not frame[name].isna().all() or not len(frame)]
    writers = [_writer(frame[name], name, command, anchors or {}) for name in kept]
    rows = [
        [write(value) for write, value in zip(writers, row, strict=True)]
        for row in frame[kept].itertuples(index=False)
    ]
    columns = [_column(frame[name], name, command) for name in kept]
    return Table(caption, columns, rows, folded)


def _column(series: pd.Series[Any], name: str, command: str) -> Column:
    found = definition(command, name)
    numeric = _is_number(series) or (found is not None and found.form != "text")
    wide = not numeric and max((len(str(value)) for value in series), default=0) > _WIDE
    if found is None:
        return Column(name.replace("_", " "), "", numeric, wide)
    title = " ".join(filter(None, [found.words, found.formula]))
    return Column(found.label, title, numeric, wide)


def _writer(
    series: pd.Series[Any], name: str, command: str, anchors: Mapping[str, str]
) -> Callable[[Any], Cell]:
    if name == "side":
        return lambda value: Cell(SIDES.get(value, str(value)))
    if name in _NAMES:
        return lambda value: _named(str(value), anchors if name == "module" else {})
    found = definition(command, name)
    form = "norm" if found is None or (found.form == "text" and _is_number(series)) else found.form
    return lambda value: cell(value, form)


def cell(value: Any, form: str) -> Cell:
    """Return a value as a cell: rounded, with the exact number behind it where they differ."""
    return Cell(rounded(value, form), exact(value))


def _named(name: str, anchors: Mapping[str, str]) -> Cell:
    short = short_name(name)
    return Cell(short, short_name(name, 400) if short != name else "", anchors.get(name, ""))


def _is_number(series: pd.Series[Any]) -> bool:
    return pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series)


def by_kind(
    table: pd.DataFrame, command: str, columns: Sequence[str], caption: str, *by: str
) -> Table:
    """Return the median and the range of some columns, a row per kind (and what else is given).

    The range stands behind the median, as "5.7 (3.6 to 6.4)"; the median alone where all are
    equal.
    """
    present = [name for name in columns if name in table and table[name].notna().any()]
    groups = table.groupby([*by, "kind"], sort=False, observed=True)
    head = [_column(table[name], name, command) for name in (*by, "kind")]
    titles = [_column(table[name], name, command) for name in present]
    rows = []
    for keys, group in groups:
        words = [Cell(SIDES.get(str(key), short_name(str(key)))) for key in keys]
        rows.append(
            [*words, Cell(f"{len(group)}"), *(_middle(group, c, command) for c in present)]
        )
    return Table(caption, [*head, Column("modules", "", True), *titles], rows)


def _middle(group: pd.DataFrame, column: str, command: str) -> Cell:
    found = definition(command, column)
    form = found.form if found else "norm"
    values = pd.to_numeric(group[column]).astype("Float64").dropna()
    if values.empty:
        return Cell("–")
    return Cell(spread(values, form), exact(float(values.median())))


def spread(values: pd.Series[Any], form: str) -> str:
    """Return the median of some numbers and their range.

    Examples
    --------
    >>> spread(pd.Series([1.0, 2.0, 4.0]), "1"), spread(pd.Series([2.0, 2.0]), "1")
    ('2.0 (1.0–4.0)', '2.0')
    """
    low, middle, high = (
        rounded(float(value), form) for value in (values.min(), values.median(), values.max())
    )
    return middle if low == high else f"{middle} ({low}–{high})"
