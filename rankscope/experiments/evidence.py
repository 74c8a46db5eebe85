"""One claim: what was measured for it, and by which rule it is judged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import pandas as pd

from rankscope.linalg.chance import adjusted_p_values

__all__ = ["LEVEL", "Evidence", "Rule", "judged", "untested"]

LEVEL = 0.05  # of adjusted p-values
_FEWEST = 2  # units, for an effect in every one of them to say anything
UNLIKELY = 0.001  # a control is not at chance if chance reaches it less often


class Rule(Enum):
    """What decides whether a claim is held; each also needs `agrees`, the effect itself.

    EFFECT: the effect alone, in every unit, of which it takes two. Where runs can be exchanged
    their p stands beside it, unadjusted: of n exchanged units it is never below 2⁻ⁿ, so with two
    or three seeds it could not decide. Pairs that share runs cannot be, and have no p.
    BEYOND: the adjusted p-value lies below 0.05. It is not tested where p is undefined.
    CHANCE: chance reaches the value; unadjusted p is at least 0.001, which takes enough draws for
    p to fall below that. For controls.
    """

    EFFECT = "effect"
    BEYOND = "p"
    CHANCE = "chance"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the runs say of one claim.

    Attributes
    ----------
    claim, statistic : str
        What is claimed, and the number that is looked at.
    value, control, chance : float
        The statistic; the same of what it is compared with; what chance gives. NaN where there
        is none.
    p : float
        Small if the claim holds; for a control (`Rule.CHANCE`) small if it does not. NaN where
        nothing can be exchanged.
    rule : Rule
    agrees : bool or None
        Whether the effect is there, in every unit; None where there are too few runs.
    n : int
        Units: what `unit` says.
    seeds : int
        Different seeds among the runs.
    says : str
        A sentence: what was compared, with its numbers, or why it was not tested.
    """

    claim: str
    statistic: str
    value: float = math.nan
    control: float = math.nan
    chance: float = math.nan
    p: float = math.nan
    rule: Rule = Rule.EFFECT
    agrees: bool | None = None
    n: int = 0
    unit: str = ""
    seeds: int = 0
    says: str = ""


def untested(claim: str, statistic: str, why: str) -> Evidence:
    """Return a claim for which there are too few runs."""
    return Evidence(claim=claim, statistic=statistic, says=f"not tested: {why}")


def judged(found: Iterable[Evidence]) -> pd.DataFrame:
    """Return the table of claims: adjusted p-values, and held, not held or not tested.

    `p_adjusted` is Benjamini and Hochberg's over the claims that are decided by it, those of
    `Rule.BEYOND`; others have none. `held` is NA where nothing was tested, which includes a
    statistic that is undefined.
    """
    rows = [_defined(one) for one in found]
    table = pd.DataFrame([vars(one) for one in rows])
    tests = (table.rule == Rule.BEYOND) & table.p.notna()
    table["p_adjusted"] = math.nan
    table.loc[tests, "p_adjusted"] = adjusted_p_values(table.p[tests].to_numpy())
    held = [_held(one, adjusted) for one, adjusted in zip(rows, table.p_adjusted, strict=True)]
    table["held"] = pd.array(held, dtype="boolean")
    table["rule"] = [one.rule.value for one in rows]
    return table[list(_COLUMNS)]


_COLUMNS: Sequence[str] = (
    "claim", "statistic", "value", "control", "chance", "p", "p_adjusted", "held", "rule", "n",
    "unit", "seeds", "says",
)  # fmt: skip


def _defined(one: Evidence) -> Evidence:
    if one.agrees is None or not math.isnan(one.value):
        return one
    return untested(one.claim, one.statistic, "what it looks at is undefined in some run")


def _held(one: Evidence, adjusted: float) -> bool | None:
    if one.agrees is None or (one.rule is Rule.EFFECT and one.n < _FEWEST):
        return None
    if one.rule is not Rule.EFFECT and math.isnan(one.p):
        return None
    decided = {
        Rule.EFFECT: True,
        Rule.BEYOND: adjusted < LEVEL,
        Rule.CHANCE: one.p >= UNLIKELY,
    }
    return one.agrees and decided[one.rule]
