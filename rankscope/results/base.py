"""A result: a tidy table, where it came from, and how it is shown, drawn and saved."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch

from rankscope.errors import OutputError, UpdateError
from rankscope.io.write import replacing
from rankscope.tables import as_html, as_latex, as_markdown, as_text, html_text, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = [
    "FIGURE_SUFFIXES",
    "REPORT_SUFFIXES",
    "TABLE_SUFFIXES",
    "Result",
    "drawn",
    "provenance",
    "unknown_suffix",
    "without_experts",
]


TABLE_SUFFIXES = (".json", ".csv", ".parquet", ".tex", ".md")
FIGURE_SUFFIXES = (".svg", ".pdf", ".png")
REPORT_SUFFIXES = (".html",)
# Pages are made in a room above this one: named, and loaded when one is written.
_REPORTING = "rankscope.reporting"
# Where a notebook's MathJax looks for none.
NO_FORMULAS = "tex2jax_ignore mathjax_ignore"


def provenance(
    command: str, inputs: Mapping[str, Any], options: Mapping[str, Any], device: str
) -> dict[str, Any]:
    """Return what another person needs to compute the same numbers again.

    No time and no host: equal inputs and options give equal bytes.
    """
    packages = ("rankscope", "torch", "numpy", "scipy")
    return {
        "command": command,
        "inputs": dict(inputs),
        "options": dict(options),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in packages},
        },
        "device": device,
        "threads": torch.get_num_threads(),
    }


@cache
def _version(package: str) -> str:
    return version(package)


@dataclass(frozen=True, eq=False)
class Result:
    """What an analysis returns.

    Attributes
    ----------
    table : DataFrame
        Tidy, one row per module (and side). Undefined is NaN or ``<NA>``.
    provenance : dict
        Inputs with their hashes, options, versions, device, threads.
    notes : tuple of str
        What a reader of the numbers must know.
    failures : tuple of dict
        Updates that could not be measured, with the reason.
    """

    schema: ClassVar[str]
    # Long columns that a printed table leaves out.
    hidden: ClassVar[tuple[str, ...]] = ()

    table: pd.DataFrame
    provenance: dict[str, Any]
    notes: tuple[str, ...] = ()
    failures: tuple[dict[str, Any], ...] = ()

    def plot(self, **options: Any) -> Figure:
        """Return the figure of this result.

        `style`, `title` and `cmap` are those of `rankscope.plots.theme`; other options go to
        its ``figure_*`` function.
        """
        raise UpdateError(
            "this result has no figure",
            where=type(self).__name__,
            expected="a result of similarity, rank or spectrum",
            got=self.schema,
            fix=f"save it as one of {', '.join(TABLE_SUFFIXES)}",
        )

    def long(self) -> pd.DataFrame:
        """Return the form that CSV and Parquet hold: one number per row where a cell is a list."""
        return self.table

    def beside_figure(self) -> pd.DataFrame:
        """Return the numbers that stand beside a figure: `long`, or only what is drawn."""
        return self.long()

    def extra(self) -> dict[str, Any]:
        """Return what stands beside the rows in the JSON form."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: schema, provenance, rows and what stands beside them.

        Undefined numbers are None.
        """
        content = {
            "schema": self.schema,
            "provenance": self.provenance,
            "rows": self.table.to_dict(orient="records"),
            **self.extra(),
            "notes": list(self.notes),
            "failures": list(self.failures),
        }
        form: dict[str, Any] = plain(content)
        return form

    def shown(self) -> pd.DataFrame:
        """Return the part of the table that is printed: without the long columns."""
        return without_experts(self.table.drop(columns=list(self.hidden), errors="ignore"))

    def to_text(self, width: int | None = None) -> str:
        """Return the printed table, all rows of it, in lines of at most `width` characters."""
        return as_text(self.shown(), width)

    def to_details(self) -> str:
        """Return what is printed under the table on request; nothing for most results."""
        return ""

    def to_latex(self) -> str:
        """Return the printed table in LaTeX, with booktabs rules."""
        return as_latex(self.shown())

    def save(self, path: str | os.PathLike[str], **look: str) -> None:
        """Write the result; the suffix chooses the form.

        Tables are ``.json`` (everything), ``.csv`` and ``.parquet`` (rows), ``.tex`` and
        ``.md`` (the printed table); figures are ``.svg``, ``.pdf`` and ``.png``; ``.html`` is
        one self-contained page of all this. The file appears whole or not at all. `look` is
        for figures: `style`, `title` and `cmap`, as in `plot`.

        Raises
        ------
        OutputError
            If the suffix is another one, or the file cannot be written.
        """
        target = Path(path)
        writer = _WRITERS.get(target.suffix.lower())
        if writer is None:
            raise unknown_suffix(target)
        with replacing(target) as temporary:
            if target.suffix.lower() in FIGURE_SUFFIXES:
                _write_figure(self, temporary, **look)
            else:
                writer(self, temporary)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}: {len(self.table)} rows", as_text(self.shown().head(20))]
        if len(self.table) > 20:
            lines.append(f"… and {len(self.table) - 20} more rows in .table")
        lines.extend(f"note: {note}" for note in self.notes)
        return "\n".join(lines)

    def folded(self) -> dict[str, pd.DataFrame]:
        """Return the tables that a notebook shows folded under the first, by their headings."""
        return {"could not be measured": pd.DataFrame(self.failures)}

    def _repr_html_(self) -> str:
        parts = [f"<p><b>{type(self).__name__}</b>: {len(self.table)} rows</p>"]
        parts.append(as_html(self.shown()))
        parts += [
            f"<details><summary>{html_text(heading)}: {len(table)} rows</summary>"
            f"{as_html(table)}</details>"
            for heading, table in self.folded().items()
            if len(table)
        ]
        notes = "".join(f"<li>{html_text(note, 2000)}</li>" for note in self.notes)
        parts.append(f"<p>Notes</p><ul>{notes}</ul>" if notes else "")
        # A dollar sign in a name is no formula.
        return f'<div class="{NO_FORMULAS}">{"".join(parts)}</div>'


def drawn(
    figure: str,
    *tables: Any,
    style: str | None = None,
    title: str | None = None,
    cmap: str | None = None,
    **options: Any,
) -> Figure:
    """Return what a ``figure_*`` function draws of tables, in the style asked for."""
    plots = import_module("rankscope.plots")
    with plots.theme(style, title=title, cmap=cmap):
        made: Figure = getattr(plots, figure)(*tables, **options)
    return made


def unknown_suffix(
    path: Path,
    suffixes: tuple[str, ...] = TABLE_SUFFIXES + FIGURE_SUFFIXES + REPORT_SUFFIXES,
    or_else: str = "",
) -> OutputError:
    """Return the error for a suffix that no writer serves; `or_else` says what else would do."""
    return OutputError(
        "this kind of output is not known",
        where=str(path),
        expected=f"one of {' '.join(suffixes)}" + (f", or {or_else}" if or_else else ""),
        got=path.suffix or "no suffix",
        fix="choose the form by the file's suffix",
    )


def without_experts(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table without the column of experts where there are none."""
    empty = "expert" in table and bool(table.expert.isna().all())
    return table.drop(columns="expert") if empty else table


def _write_json(result: Result, path: Path) -> None:
    path.write_text(json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n")


def _write_csv(result: Result, path: Path) -> None:
    result.long().to_csv(path, index=False)


def _write_parquet(result: Result, path: Path) -> None:
    try:
        result.long().to_parquet(path, index=False)
    except ImportError as error:
        raise OutputError(
            "Parquet needs another package",
            where=str(path),
            expected="pyarrow",
            got="not installed",
            fix="pip install 'rankscope[parquet]', or write .csv",
        ) from error


def _write_latex(result: Result, path: Path) -> None:
    path.write_text(result.to_latex())


def _write_markdown(result: Result, path: Path) -> None:
    path.write_text(as_markdown(result.shown()))


def _write_figure(result: Result, path: Path, **look: str) -> None:
    from rankscope.plots import save_figure

    save_figure(result.plot(**look), path)


def _write_page(result: Result, path: Path) -> None:
    import_module(_REPORTING).write_result(result, path)


_WRITERS: dict[str, Callable[[Result, Path], None]] = {
    ".json": _write_json,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".tex": _write_latex,
    ".md": _write_markdown,
    **dict.fromkeys(FIGURE_SUFFIXES, _write_figure),
    **dict.fromkeys(REPORT_SUFFIXES, _write_page),
}
