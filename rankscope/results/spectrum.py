"""What singular values are returned in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from rankscope.results.base import Result, drawn
from rankscope.tables import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SpectrumResult"]


@dataclass(frozen=True, eq=False, repr=False)
class SpectrumResult(Result):
    """Singular values of every update; columns as in ``rankscope.spectrum/1``."""

    schema: ClassVar[str] = "rankscope.spectrum/1"
    hidden: ClassVar[tuple[str, ...]] = ("layer", "method", "error_bound")

    def plot(self, **options: Any) -> Figure:
        """Return the singular values on a logarithmic axis, see `figure_spectrum`."""
        return drawn("figure_spectrum", self.table, **options)

    def shown(self) -> pd.DataFrame:
        """Return the table with the first six singular values of each update."""
        firsts = [
            " ".join(map(short, row[:6])) + (" …" if len(row) > 6 else "")
            for row in self.table.singular_values
        ]
        return super().shown().assign(singular_values=firsts)

    def long(self) -> pd.DataFrame:
        """Return one row per singular value: module, layer, kind, index (from 1), value."""
        table = self.table[["module", "layer", "kind", "singular_values"]].assign(
            index=self.table.singular_values.map(lambda s: list(range(1, len(s) + 1)))
        )
        long = table.explode(["index", "singular_values"]).dropna(subset="index")
        return long.rename(columns={"singular_values": "singular_value"}).reset_index(drop=True)
