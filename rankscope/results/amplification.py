"""What a comparison of ΔW with W returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from rankscope.results.base import Result, drawn
from rankscope.tables import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AmplificationResult"]

_CURVES = (
    "profile_k", "profile_top", "profile_bottom", "alignment_i", "alignment_left",
    "alignment_right",
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class AmplificationResult(Result):
    """ΔW against W; columns as in ``rankscope.amplification/1``."""

    schema: ClassVar[str] = "rankscope.amplification/1"
    hidden: ClassVar[tuple[str, ...]] = (
        "layer", "rows", "columns", "norm_update", "projection_drawn", "left_energy",
        "left_chance", "right_energy", "right_chance", "reweighting", "rewiring", "new",
        "factors", "cosines", *_CURVES,
    )  # fmt: skip

    def plot(self, **options: Any) -> Figure:
        """Return Table 7, Figure 8 and ΔW's energy in W's directions: `figure_amplification`."""
        return drawn("figure_amplification", self.table, **options)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: `curves`, equal for every k, once for each module."""
        curves = self.table[["module", *_CURVES]].drop_duplicates("module")
        bare = replace(self, table=self.table.drop(columns=list(_CURVES)))
        form = super(AmplificationResult, bare).to_dict()
        return form | {"curves": plain(curves.to_dict(orient="records"))}

    def long(self) -> pd.DataFrame:
        """Return the numbers alone: lists and curves have no place in CSV or Parquet."""
        return self.table.drop(columns=["factors", "cosines", *_CURVES])
