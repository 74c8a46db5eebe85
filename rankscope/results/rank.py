"""What rank measures and advice return."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from rankscope.results.base import Result, drawn
from rankscope.tables import as_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Advice", "RankResult"]


@dataclass(frozen=True, eq=False)
class Advice:
    """Which rank every module needs, rule by rule, and the ranks that are advised.

    Attributes
    ----------
    table : DataFrame
        A row per module and rule: ``module rule rank relative_error parameters bytes``.
        `relative_error` is ‖ΔW − ΔW_k‖ / ‖ΔW‖ at that rank, `parameters` and `bytes` are of
        the two factors. A rule that does not apply has no rank.
    rule : str
        The rule that is advised.
    dtype : str
        Of the factors whose bytes are counted.
    """

    table: pd.DataFrame
    rule: str
    dtype: str

    @property
    def chosen(self) -> pd.DataFrame:
        """The rows of the rule that is advised."""
        return self.table[self.table.rule == self.rule]

    @property
    def rank_pattern(self) -> dict[str, int]:
        """The advised rank of every module that needs one, as PEFT's ``rank_pattern``."""
        kept = self.chosen[self.chosen["rank"] > 0]
        return {module: int(rank) for module, rank in zip(kept.module, kept["rank"], strict=True)}

    @property
    def left_out(self) -> list[str]:
        """The modules that need none."""
        return [module for module in self.chosen.module if module not in self.rank_pattern]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: what is advised, then the row of every module and rule."""
        return {
            "rule": self.rule,
            "dtype": self.dtype,
            "parameters": int(self.chosen.parameters.sum()),
            "bytes": int(self.chosen.bytes.sum()),
            "rank_pattern": self.rank_pattern,
            "left_out": self.left_out,
            "rows": self.table.to_dict(orient="records"),
        }

    def side_by_side(self) -> pd.DataFrame:
        """Return a row per module: its rank by every rule, and the cost of the advised one."""
        wide = self.table.pivot(index="module", columns="rule", values="rank")
        costs = self.chosen.set_index("module")[["relative_error", "parameters", "bytes"]]
        order = list(dict.fromkeys(self.table.module))
        return wide[list(dict.fromkeys(self.table.rule))].join(costs).loc[order].reset_index()

    def to_text(self, width: int | None = None) -> str:
        """Return the ranks of a module side by side, the advised one's cost, and the pattern."""
        size = f"{self.chosen.parameters.sum():,} parameters, {self.chosen.bytes.sum():,} bytes"
        pattern = json.dumps({"rank_pattern": self.rank_pattern}, ensure_ascii=False)
        text = as_text(self.side_by_side(), width)
        return f"{text}\n{self.rule}: {size} in {self.dtype}\n{pattern}"


@dataclass(frozen=True, eq=False, repr=False)
class RankResult(Result):
    """Rank measures of every update; columns as in ``rankscope.rank/1``.

    Attributes
    ----------
    advice : Advice or None
        Which rank every module needs, if asked for.
    """

    schema: ClassVar[str] = "rankscope.rank/1"
    shown_columns: ClassVar[tuple[str, ...]] = (
        "module",
        "kind",
        "rows",
        "columns",
        "ceiling",
        "frobenius",
        "relative_norm",
        "numerical_rank",
        "stable_rank",
        "participation_rank",
        "effective_rank",
        "energy_rank_90",
        "rank_above_noise",
        "noise_share",
        "state",
    )

    advice: Advice | None = None

    def plot(self, **options: Any) -> Figure:
        """Return a rank measure against depth, see `figure_rank`."""
        return drawn("figure_rank", self.table, **options)

    def long(self) -> pd.DataFrame:
        """Return the table with the names of the measures that noise affects in one cell."""
        named = self.table.noise_affected.map(" ".join, na_action="ignore")
        return self.table.assign(noise_affected=named.astype("string"))

    def shown(self) -> pd.DataFrame:
        """Return the columns that are printed; of the noise only where there is any."""
        shown = self.table[list(self.shown_columns)]
        noise = ["rank_above_noise", "noise_share"]
        return shown if shown.noise_share.notna().any() else shown.drop(columns=noise)

    def to_text(self, width: int | None = None) -> str:
        """Return the table, then the advice where it was asked for."""
        text = super().to_text(width)
        return text if self.advice is None else f"{text}\n\n{self.advice.to_text(width)}"

    def folded(self) -> dict[str, pd.DataFrame]:
        """Return the advice, where it was asked for."""
        advice = self.advice
        shown = {} if advice is None else {f"advised ({advice.rule})": advice.side_by_side()}
        return shown | super().folded()

    def extra(self) -> dict[str, Any]:
        """Return the advice, where it was asked for."""
        return {} if self.advice is None else {"advice": self.advice.to_dict()}
