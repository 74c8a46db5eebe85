"""What goes with forgetting: Spearman's correlation with a bootstrap interval."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from rankscope.experiments.measured import Runs, each
from rankscope.linalg.chance import adjusted_p_values

__all__ = ["correlated", "forgetting_correlations", "forgetting_runs", "spearman"]

_Array = NDArray[np.floating[Any]]
_RESAMPLES = 2000
_SEED = 0
_LEVEL = 0.95
_FEWEST = 4  # of fewer rows hardly any resample has two different values
_ENUMERATED = 7  # rows whose 5,040 orders are all gone through
_ORDERS = 9999
_ROUNDING = 1e-12


def forgetting_runs(runs: Runs) -> pd.DataFrame:
    """Return what each adapter on q and v, and each full fine-tuning, is and forgot.

    Means over the matrices of q and v: `relative_norm` is ‖ΔW‖/‖W‖, `intruders` the number
    among the first 10 directions of W + ΔW, input side. `forgetting` is the loss on the mixture
    less the base's, nats. A full fine-tuning has the rank of its matrices.
    """
    rows = runs.plain[(runs.plain.targets == "q,v") | (runs.plain.method == "full")]
    rows = rows[rows.mixture_loss.notna()]
    forgetting = dict(zip(rows.name, rows.mixture_loss - float(runs.base.loss), strict=True))
    return pd.DataFrame(
        [
            {
                **run._asdict(),
                "rank": run.rank or runs.width,
                **_means(runs, run.name),
                "forgetting": forgetting[run.name],
            }
            for run in each(rows)
        ]
    )


def forgetting_correlations(runs: Runs) -> pd.DataFrame:
    """Return Spearman's correlation of forgetting with rank, norm and intruders, by task.

    And of the norm with the intruders, of all conditions and of LoRA's: see `correlated`.
    """
    return correlated(forgetting_runs(runs))


def correlated(table: pd.DataFrame) -> pd.DataFrame:
    """Return the correlations over the conditions of a table of runs.

    Seeds of one condition (task, method, targets and rank) are no independent draws of
    conditions: what is correlated are the means over the seeds of each, `conditions` of them.
    `low`, `high` and `p` are as of `spearman`, over conditions; `p_adjusted` is Benjamini and
    Hochberg's over the rows of the table.

    Parameters
    ----------
    table : DataFrame
        As of `forgetting_runs`.

    Returns
    -------
    DataFrame
        A row per task, methods and pair: ``task methods x y spearman low high p p_adjusted
        conditions``.
    """
    means = table.groupby(_CONDITION, as_index=False)[_MEASURES].mean() if len(table) else table
    pairs = [(x, "forgetting") for x in ("rank", "relative_norm", "intruders")]
    pairs.append(("relative_norm", "intruders"))
    rows = [
        {"task": task, "methods": methods, "x": x, "y": y, **spearman(some[x], some[y])}
        for task, own in (means.groupby("task") if len(means) else ())
        for methods, some in (("all", own), ("LoRA", own[own.method == "LoRA"]))
        for x, y in pairs
    ]
    found = pd.DataFrame(rows, columns=["task", "methods", "x", "y", *_COLUMNS])
    adjusted = adjusted_p_values(found.p.to_numpy(np.float64))
    found = found.rename(columns={"n": "conditions"}).assign(p_adjusted=adjusted)
    return found[[*found.columns[:-2], "p_adjusted", "conditions"]]


_COLUMNS = ("spearman", "low", "high", "p", "n")
_CONDITION = ["task", "method", "targets", "rank"]
_MEASURES = ["relative_norm", "intruders", "forgetting"]


def spearman(x: pd.Series[float], y: pd.Series[float]) -> dict[str, float]:
    """Return the correlation of two columns, its interval, p and n; NaN of too few.

    The rows are the units: independent of each other, as seeds of one condition are not. `low`
    and `high` bound the 95 % bootstrap interval (percentiles of 2,000 seeded resamples of the
    rows), which says little of some six rows; `p` is two-sided, by all permutations of up to 7
    rows, and by 9,999 seeded ones of more. NaN where there are fewer than 4 rows, or one of the
    two does not vary.

    Examples
    --------
    >>> found = spearman(pd.Series([1.0, 2.0, 3.0, 4.0]), pd.Series([1.0, 4.0, 9.0, 16.0]))
    >>> round(found["spearman"], 9), round(found["high"], 9), found["n"]
    (1.0, 1.0, 4)
    >>> found["p"] == 2 / 24  # two of the 4! orders are as extreme
    True
    """
    a, b = x.to_numpy(np.float64), y.to_numpy(np.float64)
    count = len(a)
    rho = float(_coefficients(a, b)) if count >= _FEWEST else math.nan
    if math.isnan(rho):
        return {**dict.fromkeys(_COLUMNS, math.nan), "n": count}
    places = np.random.default_rng(_SEED).integers(count, size=(_RESAMPLES, count))
    tail = (1 - _LEVEL) / 2
    low, high = np.nanquantile(_coefficients(a[places], b[places]), [tail, 1 - tail])
    p = _permuted(a, b, rho)
    return {"spearman": rho, "low": float(low), "high": float(high), "p": p, "n": count}


def _permuted(a: _Array, b: _Array, rho: float) -> float:
    """Return the share of orders of `b` with a correlation as large, of either sign."""
    if len(b) <= _ENUMERATED:
        orders = np.array(list(permutations(b)))
    else:
        shuffled = np.random.default_rng(_SEED).permuted(np.tile(b, (_ORDERS, 1)), axis=1)
        orders = np.vstack([b, shuffled])  # the observed one counts
    found = _coefficients(np.broadcast_to(a, orders.shape), orders)
    return float(np.mean(np.abs(found) >= abs(rho) - _ROUNDING))


def _coefficients(a: _Array, b: _Array) -> _Array:
    """Return Spearman's correlations of the last axes; NaN where one of two does not vary."""
    ranks = [stats.rankdata(values, axis=-1) for values in (a, b)]
    x, y = (values - values.mean(axis=-1, keepdims=True) for values in ranks)
    spread = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    found: _Array = (x * y).sum(axis=-1) / np.where(spread > 0, spread, np.nan)
    return found


def _means(runs: Runs, name: str) -> dict[str, float]:
    ranks, cosines = runs.rank(name), runs.weight_cosines(name)
    cosines = cosines[(cosines.side == "right") & cosines.kind.isin(["q", "v"])]
    ranks = ranks[ranks.kind.isin(["q", "v"])]
    return {
        "relative_norm": float(ranks.relative_norm.mean()),
        "intruders": float(cosines.intruders.mean()),
    }
