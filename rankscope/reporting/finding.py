"""One result and what it is of: what reports are made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from rankscope.errors import printable
from rankscope.results import Result

__all__ = ["Finding", "Names", "finding_of", "of_command", "origin", "readable"]

# From every module, by the first source's name, to what each source calls it.
Names = Mapping[str, Mapping[str, str]]

_USUAL = ("adapter_model", "model", "pytorch_model")


@dataclass(frozen=True)
class Finding:
    """The result of one command about one source, or about several together.

    Attributes
    ----------
    command : str
        As the schema names it: ``rank``, ``similarity``.
    sources : tuple of str
        Their names in the report.
    result : Result
    """

    command: str
    sources: tuple[str, ...]
    result: Result = field(repr=False)

    @property
    def source(self) -> str:
        """The source, or all of them."""
        return ", ".join(self.sources)


def finding_of(result: Result) -> Finding:
    """Return a result alone, with the names that its provenance tells."""
    command = result.schema.partition(".")[2].partition("/")[0]
    names = getattr(result, "names", None)
    groups = result.provenance.get("inputs", {}).values()
    given = tuple(names) if names else tuple(origin(group) for group in groups)
    return Finding(command, given or (command,), result)


def origin(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a short name of a source: its folder, or its file where that says more.

    Examples
    --------
    >>> origin([{"path": "runs/r8/adapter_model.safetensors"}]), origin([{"path": "x/r8.bin"}])
    ('r8', 'r8')
    """
    path = next((record.get("path") for record in records), None)
    if path is None:
        return "memory"
    name = Path(path)
    return name.parent.name or name.stem if name.stem in _USUAL else name.stem


def of_command(findings: Iterable[Finding], *commands: str) -> Iterator[Finding]:
    """Yield the findings of some commands."""
    return (one for one in findings if one.command in commands)


def readable(result: Result) -> Result:
    """Return a result whose names a figure can draw, whatever a file has put into them."""
    changes: dict[str, Any] = {"table": _with_safe_names(result.table)}
    if hasattr(result, "names"):
        changes["names"] = tuple(_drawable(name) for name in result.names)
    if hasattr(result, "shared"):
        changes["shared"] = _with_safe_names(result.shared)
    return replace(result, **changes)


def _with_safe_names(table: pd.DataFrame) -> pd.DataFrame:
    names = [name for name in ("module", "a", "b", "source") if name in table]
    return table.assign(**{name: [_drawable(own) for own in table[name]] for name in names})


def _drawable(name: Any) -> str:
    """Return a name without what a terminal or a formula would be made of."""
    return printable(str(name)).replace("$", r"\$")
