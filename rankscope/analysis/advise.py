"""Which rank every module needs, by several rules, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rankscope.analysis.budget import parse_budget
from rankscope.errors import UpdateError
from rankscope.measures import rank as measures
from rankscope.measures.allocation import allocate
from rankscope.results import Advice
from rankscope.spectra import Spectrum

__all__ = ["Case", "Plan"]

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CHOSEN = "energy_95"  # the rule of the rank pattern where there is no budget

_COLUMNS = {
    "module": "str",
    "rule": "str",
    "rank": "Int64",
    "relative_error": "float64",
    "parameters": "Int64",
    "bytes": "Int64",
}


@dataclass(frozen=True, eq=False)
class Case:
    """What a rank is chosen for: one update's directions, and how many are real.

    Attributes
    ----------
    module : str
    cost : int
        Parameters per unit of rank, ``out + in``.
    s : (k,) Tensor
        Singular values above round-off, descending, in units of the largest.
    unit : float
        The largest.
    real : int
        How many of them are above the noise of the storage; all where there is none.
    above_noise, hard_threshold : int or None
        Ranks by the noise of the storage, and by Gavish and Donoho.
    """

    module: str
    cost: int
    s: Tensor
    unit: float
    real: int
    above_noise: int | None
    hard_threshold: int | None

    @classmethod
    def of(cls, row: dict[str, Any], spectrum: Spectrum) -> Case:
        """Return the case of a row of the rank table and the spectrum it was measured on."""
        zero = row["state"] == "zero"
        s = spectrum.values[: 0 if zero else spectrum.directions]
        unit = s[0].item() if len(s) else 1.0
        above = row.get("rank_above_noise")
        return cls(
            module=row["module"],
            cost=sum(spectrum.shape),
            s=s / unit,
            unit=unit,
            real=len(s) if above is None else min(above, len(s)),
            above_noise=above,
            hard_threshold=row.get("hard_threshold_rank"),
        )

    def as_row(self) -> dict[str, Any]:
        """Return it as what a journal can hold."""
        return vars(self) | {"s": self.s.numpy()}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Case:
        """Return what `as_row` was made of."""
        return cls(**row | {"s": torch.from_numpy(row["s"])})

    @property
    def signal(self) -> Tensor:
        """The singular values above the noise of the storage."""
        return self.s[: self.real]


# The gap is looked for in the directions that hold 99 % of the energy above the noise, and below
# the last of them: further down, a square matrix of noise has larger steps than any signal.
RULES: dict[str, Callable[[Case], int | None]] = {
    "energy_90": lambda case: measures.energy_rank(case.signal, 0.90),
    "energy_95": lambda case: measures.energy_rank(case.signal, 0.95),
    "energy_99": lambda case: measures.energy_rank(case.signal, 0.99),
    "above_noise": lambda case: case.above_noise,
    "hard_threshold": lambda case: case.hard_threshold,
    "gap": lambda case: measures.gap_rank(case.s[: measures.energy_rank(case.signal, 0.99) + 1]),
    "sv_ratio_20": lambda case: measures.ratio_rank(case.s, 20.0),
    "sv_cumulative_90": lambda case: measures.cumulative_rank(case.s, 0.9),
    "sv_fro_90": lambda case: measures.frobenius_rank(case.s, 0.9),
}


@dataclass(frozen=True)
class Plan:
    """What is to be advised: factors of a dtype, and all of them within a budget.

    Raises
    ------
    UpdateError
        If the dtype is another one, or the budget is none.
    """

    dtype: str = "float32"
    budget: int | str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in BYTES:
            raise UpdateError(
                "factors cannot be stored in this dtype",
                where="dtype",
                expected=", ".join(BYTES),
                got=repr(self.dtype),
                fix="use dtype='float32'",
            )
        self._parameters()

    def advice(self, cases: Sequence[Case]) -> Advice:
        """Return the ranks by every rule, and the pattern of the one that is advised.

        Raises
        ------
        UpdateError
            If the budget pays for no direction of any module.
        """
        budgeted = self._allocated(cases)
        rows = []
        for at, case in enumerate(cases):
            ranks = {rule: choose(case) for rule, choose in RULES.items()}
            ranks |= {"budget": budgeted[at]} if budgeted else {}
            rows += [self._row(case, rule, rank) for rule, rank in ranks.items()]
        return Advice(
            table=pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS),
            rule="budget" if budgeted else CHOSEN,
            dtype=self.dtype,
        )

    def _parameters(self) -> int | None:
        return None if self.budget is None else parse_budget(self.budget, BYTES[self.dtype])

    def _allocated(self, cases: Sequence[Case]) -> list[int]:
        """Return the rank of each case within the budget; none without a budget."""
        budget = self._parameters()
        if budget is None:
            return []
        ranks = allocate(
            [case.unit * case.signal for case in cases], [case.cost for case in cases], budget
        )
        costs = [case.cost for case in cases if case.real]
        if costs and not any(ranks):
            raise UpdateError(
                "the budget pays for no direction at all",
                where="budget",
                expected=f"at least {min(costs):,} parameters, the cost of one direction",
                got=f"{budget:,}",
                fix="allow more, or choose fewer modules",
            )
        return ranks

    def _row(self, case: Case, rule: str, rank: int | None) -> dict[str, Any]:
        row: dict[str, Any] = {"module": case.module, "rule": rule, "rank": rank}
        if rank is None:
            return row
        return row | {
            "relative_error": measures.truncation_error(case.s, rank),
            "parameters": rank * case.cost,
            "bytes": rank * case.cost * BYTES[self.dtype],
        }
