"""What a comparison of many sources returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from rankscope.measures.distances import DISTANCES
from rankscope.results.base import Result, drawn
from rankscope.tables import as_latex, as_text, with_spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas.api.typing import DataFrameGroupBy

__all__ = ["CompareResult"]

_SIMILARITIES = ("phi", "cosine", "mean_cosine", "cka")
_CHANCE = {"phi": ("chance",), "containment": ("chance_a", "chance_b")}


@dataclass(frozen=True, eq=False, repr=False)
class CompareResult(Result):
    """Many adapters; columns as in ``rankscope.compare/1``.

    Attributes
    ----------
    names : tuple of str
        Of the sources, in the order they were given.
    unmatched : dict
        From every name to the modules that this source alone updates.
    shared : DataFrame
        A row per module and side: ``module side dimension sources common edge directions
        interference``: how common the most common directions of all sources are (1 in all),
        what chance passes once in a thousand times, how many directions lie above it
        (undefined where any subspaces of these sizes meet), and how much the sources would
        interfere if they were added (`task_interference`, in units of what as many equal ones
        would have: 0 for orthogonal ones; directions that share in part can pass 1).
    updates : DataFrame
        A row per module and source: ``module layer kind name directions norm spectral
        stable_rank energy_rank_90``; `directions` are those that were used, `norm` is ‖ΔW‖,
        `energy_rank_90` undefined where the directions that are used hold less.
    measures : tuple of str
        The measures that the table holds.
    groups : DataFrame
        A row per measure, side and pair of groups, within one (a = b) and between two, empty
        without groups. `mean` and `sd` are of the pairs of sources, each pair the mean over
        its modules; ``seeds_low`` to ``seeds_high`` is a 95 % bootstrap interval of the mean
        over sources (undefined below three in a group, see `seed_interval` for how wide it
        is), ``modules_low`` to ``modules_high`` over modules. `p_shuffled` says how often
        sources dealt to the two groups at random, in `arrangements` ways, are as much more
        alike within them than between; `p_adjusted` are adjusted over the pairs of groups.
    series : DataFrame
        A row per side and source, empty unless the sources are a series: ``step name modules
        norm`` (of all modules together) and the means ``directions stable_rank
        energy_rank_90``, then each measure to the ``_previous`` source and to the ``_last``.
    """

    schema: ClassVar[str] = "rankscope.compare/1"
    hidden: ClassVar[tuple[str, ...]] = ("layer", "rank_a", "rank_b", "p_adjusted")

    names: tuple[str, ...] = ()
    unmatched: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shared: pd.DataFrame = field(default_factory=pd.DataFrame)
    updates: pd.DataFrame = field(default_factory=pd.DataFrame)
    measures: tuple[str, ...] = ()
    groups: pd.DataFrame = field(default_factory=pd.DataFrame)
    series: pd.DataFrame = field(default_factory=pd.DataFrame)

    def plot(self, **options: Any) -> Figure:
        """Return the matrices of all measures in the order of their clusters.

        See `figure_compare`; of a series, `drift`.
        """
        if len(self.series):
            return self.drift(**options)
        sides = list(dict.fromkeys(self.table.side))
        squares = {side: {m: self.matrix(m, side) for m in self.measures} for side in sides}
        chance = {side: self._chances(side) for side in sides}
        given = {"shared": self.shared, "groups": self.groups, **options}
        return drawn("figure_compare", squares, chance=chance, **given)

    def drift(self, **options: Any) -> Figure:
        """Return each source against the one before it and the last, see `figure_drift`."""
        return drawn("figure_drift", self.table, names=self.names, updates=self.updates, **options)

    def long(self) -> pd.DataFrame:
        """Return the pairs; of a series its steps."""
        return self.series if len(self.series) else self.table

    def folded(self) -> dict[str, pd.DataFrame]:
        """Return what all sources share, the groups and the steps, where there are any."""
        tables = {
            "shared by more than chance allows": self.shared,
            "groups": self.groups,
            "series": self.series,
        }
        return {name: table for name, table in tables.items() if len(table)} | super().folded()

    def to_latex(self) -> str:
        """Return the printed table; of groups theirs, mean ± standard deviation over pairs."""
        return as_latex(with_spread(self.groups)) if len(self.groups) else super().to_latex()

    def to_text(self, width: int | None = None) -> str:
        """Return the pairs, then the groups and the steps where there are any."""
        tables = [as_text(table, width) for table in (self.groups, self.series) if len(table)]
        return "\n\n".join([super().to_text(width), *tables])

    def _chances(self, side: str) -> dict[str, list[float]]:
        """Return the chance levels of a measure, pair by pair, the mean over modules."""
        pairs = self.table[self.table.side == side].groupby(["a", "b"], sort=False)
        return {
            measure: sorted({float(level) for name in names for level in _means(pairs, name)})
            for measure, names in _CHANCE.items()
            if set(names) <= set(self.table)
        }

    def matrix(self, measure: str = "phi", side: str = "right") -> pd.DataFrame:
        """Return the mean over modules as a square table, sources by sources.

        The diagonal is 1 for similarities, 0 for distances and undefined for all else.
        `containment` has row a's energy in the span of column b.
        """
        rows = self.table[self.table.side == side]
        own = 0.0 if measure in DISTANCES else 1.0 if measure in _SIMILARITIES else np.nan
        square = pd.DataFrame(np.nan, index=list(self.names), columns=list(self.names))
        for name in self.names:
            square.loc[name, name] = own
        ways = (f"{measure}_a", f"{measure}_b") if measure == "containment" else (measure, measure)
        for (a, b), group in rows.groupby(["a", "b"], sort=False):
            square.loc[a, b], square.loc[b, a] = (group[way].mean() for way in ways)
        return square

    def extra(self) -> dict[str, Any]:
        """Return the names, what only one source has, each source's size, and all else shared."""
        content: dict[str, Any] = {
            "names": list(self.names),
            "unmatched": {name: list(alone) for name, alone in self.unmatched.items()},
            "shared": self.shared.to_dict(orient="records"),
            "updates": self.updates.to_dict(orient="records"),
        }
        more = {"groups": self.groups, "series": self.series}
        return content | {k: v.to_dict(orient="records") for k, v in more.items() if len(v)}


def _means(pairs: DataFrameGroupBy[Any, Any], column: str) -> pd.Series[float]:
    levels: pd.Series[float] = pairs[column].mean().dropna().round(6)
    return levels
