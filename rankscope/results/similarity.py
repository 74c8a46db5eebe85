"""What a comparison of two sources returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from rankscope.errors import UpdateError, printable
from rankscope.results.base import Result, drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MOST_CELLS", "SimilarityResult"]

MOST_CELLS = 200_000  # beside a figure: some ten megabytes


@dataclass(frozen=True, eq=False, repr=False)
class SimilarityResult(Result):
    """Subspace similarity of two sources; columns as in ``rankscope.similarity/1``.

    Attributes
    ----------
    names : (str, str)
        Short names of A and B, for axes.
    unmatched_a, unmatched_b : tuple of str
        Modules that only one side has.
    random : DataFrame
        φ of two random subspaces of the same dimensions, drawn once per size: what chance
        looks like. Columns ``side dimension rank_a rank_b phi``.
    verdicts : tuple of dict
        In words what the rows say, for all modules of a side and kind: ``side kind modules
        above_chance verdict``.
    """

    schema: ClassVar[str] = "rankscope.similarity/1"
    hidden: ClassVar[tuple[str, ...]] = (
        "phi",
        "cosines",
        "layer",
        "ambiguous_a",
        "ambiguous_b",
        "floor_error",
        "ceiling_error",
        "shuffled",
        "init_residue_a",
        "init_residue_b",
        "shared_init_suspected",
        "verdict",
    )
    # Shown only where they were asked for.
    asked: ClassVar[tuple[str, ...]] = (
        "reference_rank",
        "phi_reference",
        "floor",
        "ceiling",
        "placed",
        "shuffled_mean",
        "shuffled_95",
        "p_shuffled",
    )

    names: tuple[str, str] = ("A", "B")
    unmatched_a: tuple[str, ...] = ()
    unmatched_b: tuple[str, ...] = ()
    random: pd.DataFrame = field(default_factory=pd.DataFrame)
    verdicts: tuple[dict[str, Any], ...] = ()

    def shown(self) -> pd.DataFrame:
        """Return the printed columns; of references and other layers only where there are any."""
        table = super().shown()
        return table.drop(columns=[name for name in self.asked if table[name].isna().all()])

    def to_details(self) -> str:
        """Return the verdict of every module and side, then of every kind."""
        rows = self.table
        lines = [f"{row.module}, {row.side}: {row.verdict}" for row in rows.itertuples()]
        lines += [f"all {one['kind']}, {one['side']}: {one['verdict']}" for one in self.verdicts]
        if rows.floor.isna().all() and any(one["above_chance"] for one in self.verdicts):
            lines.append(
                "unrelated tasks on one base are above chance too: a floor tells how much"
            )
        return "\n".join(map(printable, lines))

    def folded(self) -> dict[str, pd.DataFrame]:
        """Return in words what the modules of every side and kind show together."""
        return {"verdicts": pd.DataFrame(self.verdicts)} | super().folded()

    def grid(self, module: str, side: str = "right") -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return φ(i, j) of one module and side, (rank_a, rank_b), cell ``[i-1, j-1]``.

        Raises
        ------
        UpdateError
            If the result has no such module or side.
        """
        rows = self.table[(self.table.module == module) & (self.table.side == side)]
        if rows.empty:
            raise UpdateError(
                "no such module and side in this result",
                where="SimilarityResult.grid",
                expected=f"one of {', '.join(self.table.module.unique()[:3])} …, left or right",
                got=f"{module!r}, {side!r}",
                fix="look at .table",
            )
        grid: np.ndarray[Any, np.dtype[np.float64]] = rows.iloc[0].phi
        return grid

    def plot(self, **options: Any) -> Figure:
        """Return heat maps like figures 3 and 4 of the LoRA paper, see `figure_similarity`."""
        options.setdefault("names", self.names)
        return drawn("figure_similarity", self.table, random=self.random, **options)

    def long(self) -> pd.DataFrame:
        """Return one row per cell: module, side, i, j, phi and its chance level."""
        parts = [_cells(row) for row in self.table.itertuples()]
        columns = ["module", "side", "i", "j", "phi", "chance"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def beside_figure(self) -> pd.DataFrame:
        """Return every cell, or where those are many the means by kind that the figure draws."""
        panels = import_module("rankscope.plots.panels")
        single = self.table.module.nunique() <= panels.AUTO_MODULES  # drawn one by one
        if single or sum(grid.size for grid in self.table.phi) <= MOST_CELLS:
            return self.long()
        cells: pd.DataFrame = import_module("rankscope.plots").drawn_cells(self.table, self.random)
        return cells

    def extra(self) -> dict[str, Any]:
        """Return the names, what was not matched, and the random control."""
        return {
            "names": list(self.names),
            "unmatched_a": list(self.unmatched_a),
            "unmatched_b": list(self.unmatched_b),
            "verdicts": list(self.verdicts),
            "random": self.random.to_dict(orient="records"),
        }


def _cells(row: Any) -> pd.DataFrame:
    rows, columns = row.phi.shape
    i, j = np.indices((rows, columns)) + 1
    return pd.DataFrame(
        {
            "module": row.module,
            "side": row.side,
            "i": i.ravel(),
            "j": j.ravel(),
            "phi": row.phi.ravel(),
            "chance": np.maximum(i, j).ravel() / row.dimension,
        }
    )
