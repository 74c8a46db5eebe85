"""A figure's numbers and provenance, written beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rankscope.errors import OutputError
from rankscope.io.write import replacing
from rankscope.results.base import FIGURE_SUFFIXES, Result

__all__ = ["beside", "check_beside", "save_all"]


def beside(outputs: Iterable[str]) -> dict[Path, list[Path]]:
    """Return the figures among `outputs` by the path that all their files share but the suffix.

    Examples
    --------
    >>> beside(["a.svg", "a.pdf", "a.csv"]) == {Path("a"): [Path("a.svg"), Path("a.pdf")]}
    True
    """
    found: dict[Path, list[Path]] = {}
    for path in map(Path, dict.fromkeys(outputs)):
        if path.suffix.lower() in FIGURE_SUFFIXES:
            found.setdefault(path.with_suffix(""), []).append(path)
    return found


def check_beside(outputs: Iterable[str]) -> None:
    """Raise where a figure's numbers or provenance would take the place of somebody's file.

    ``x.csv`` and ``x.json`` are written anew where they came with a figure, and ``x.csv`` is
    as it was written, or where they are outputs of their own.

    Raises
    ------
    OutputError
        If another file stands there.
    """
    outputs = list(outputs)
    for stem in beside(outputs):
        table, about = _companions(stem)
        record = _record(about)
        known = {about: record is not None, table: _same(table, record)}
        for path, ours in known.items():
            if path.exists() and not ours and path not in map(Path, outputs):
                raise OutputError(
                    "a file stands where the figure's numbers would go",
                    where=str(path),
                    expected="no file, or the one that came with this figure, unchanged",
                    got="another file",
                    fix=f"name the figure otherwise, or also give -o {path} to replace it",
                )


def save_all(result: Result, outputs: Iterable[str], look: Mapping[str, str]) -> list[str]:
    """Write all outputs, and a table and a JSON file beside every figure.

    Returns
    -------
    list of str
        A sentence for each figure, or figures that share their numbers: what is where.
    """
    outputs = list(outputs)
    figures = beside(outputs)
    taken = {path for stem in figures for path in _companions(stem)}
    for output in outputs:
        if Path(output) not in taken.union(*figures.values()):
            result.save(output)
    asked = set(map(Path, outputs))
    return [_save(result, stem, pictures, look, asked) for stem, pictures in figures.items()]


def _save(
    result: Result, stem: Path, pictures: list[Path], look: Mapping[str, str], asked: set[Path]
) -> str:
    table, about = _companions(stem)
    # Nested: neither takes its place unless both, and the figures, could be written.
    with replacing(about) as new_about, replacing(table) as new_table:
        numbers = result.long() if table in asked else result.beside_figure()
        numbers.to_csv(new_table, index=False)
        record = {
            "figures": [picture.name for picture in pictures],
            "look": dict(look),
            "numbers": table.name,
            "sha256": _sha256(new_table),
        }
        content = {"schema": result.schema, "beside": record, **result.to_dict()}
        if about not in asked:
            content["rows"] = [_without_grids(row, numbers) for row in content["rows"]]
        new_about.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        for picture in pictures:
            result.save(picture, **look)
    written = " and ".join(map(str, pictures))
    return f"wrote {written}, the numbers {table} and their provenance {about}"


def _without_grids(row: dict[str, Any], numbers: pd.DataFrame) -> dict[str, Any]:
    """Return a row without the grids that the table beside it holds."""
    held = set(numbers.columns)
    return {
        name: value for name, value in row.items() if name not in held or type(value) is not list
    }


def _companions(stem: Path) -> tuple[Path, Path]:
    return stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}.json")


def _record(about: Path) -> dict[str, Any] | None:
    """Return what a JSON file says of the figure it came with; None for any other file."""
    try:
        content = json.loads(about.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    record = content.get("beside") if isinstance(content, dict) else None
    return record if isinstance(record, dict) else None


def _same(table: Path, record: Mapping[str, Any] | None) -> bool:
    return record is not None and table.is_file() and _sha256(table) == record.get("sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
