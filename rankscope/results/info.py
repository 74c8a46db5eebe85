"""What is returned of sources that were only looked at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from rankscope.results.base import Result, without_experts
from rankscope.tables import as_text, plain

__all__ = ["InfoResult"]


@dataclass(frozen=True, eq=False, repr=False)
class InfoResult(Result):
    """What sources hold; columns as in ``rankscope.info/1``.

    Attributes
    ----------
    modules : DataFrame or None
        Columns ``source module expert shape rank scale format``, if asked for.
    tensors : DataFrame or None
        Columns ``source tensor shape dtype role``, if asked for.
    metadata : dict or None
        What each source says of itself, header and configuration, if asked for.
    """

    schema: ClassVar[str] = "rankscope.info/1"

    modules: pd.DataFrame | None = None
    tensors: pd.DataFrame | None = None
    metadata: dict[str, Any] | None = None

    def to_text(self, width: int | None = None) -> str:
        """Return the table, then the lists and the metadata where they were asked for."""
        parts = [super().to_text(width)]
        for table in map(without_experts, self._lists().values()):
            for source, rows in table.groupby("source", sort=False):
                # A path in every line would push what counts out of the window.
                parts.append(f"{source}\n{as_text(rows.drop(columns='source'), width)}")
        if self.metadata is not None:
            parts.append(json.dumps(plain(self.metadata), indent=1))
        return "\n\n".join(parts)

    def extra(self) -> dict[str, Any]:
        """Return the lists and the metadata, where they were asked for."""
        lists = {name: table.to_dict("records") for name, table in self._lists().items()}
        return lists | ({} if self.metadata is None else {"metadata": self.metadata})

    def folded(self) -> dict[str, pd.DataFrame]:
        """Return the lists of modules and tensors, where they were asked for."""
        return {name: without_experts(table) for name, table in self._lists().items()} | (
            super().folded()
        )

    def _lists(self) -> dict[str, pd.DataFrame]:
        lists = {"modules": self.modules, "tensors": self.tensors}
        return {name: table for name, table in lists.items() if table is not None}

    def shown(self) -> pd.DataFrame:
        """Return the table with the number of unread tensors in place of their names."""
        return self.table.assign(unread=[len(names) for names in self.table.unread])
