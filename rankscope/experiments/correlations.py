"""What goes with forgetting: Spearman's correlation with a bootstrap interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from rankscope.experiments.measured import Runs, each

__all__ = ["forgetting_correlations", "forgetting_runs", "spearman"]

_Array = NDArray[np.floating[Any]]
_RESAMPLES = 2000
_SEED = 0
_LEVEL = 0.95
_FEWEST = 4  # of fewer runs hardly any resample has two different values


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

    And of the norm with the intruders. `low` and `high` bound the 95 % bootstrap interval over
    runs (percentiles of 2,000 seeded resamples); `p` is two-sided. Seeds of one condition are
    no independent draws of conditions: the interval is that of these conditions.
    """
    table = forgetting_runs(runs)
    pairs = [(x, "forgetting") for x in ("rank", "relative_norm", "intruders")]
    pairs.append(("relative_norm", "intruders"))
    rows = [
        {"task": task, "methods": methods, "x": x, "y": y, **spearman(some[x], some[y])}
        for task, own in (table.groupby("task") if len(table) else ())
        for methods, some in (("all", own), ("LoRA", own[own.method == "LoRA"]))
        for x, y in pairs
    ]
    return pd.DataFrame(rows, columns=["task", "methods", "x", "y", *_COLUMNS])


_COLUMNS = ("spearman", "low", "high", "p", "n")


def spearman(x: pd.Series[float], y: pd.Series[float]) -> dict[str, float]:
    """Return the correlation of two columns, its interval, p and n; NaN of too few.

    NaN where there are fewer than 4 rows, or one of the two does not vary.

    Examples
    --------
    >>> found = spearman(pd.Series([1.0, 2.0, 3.0, 4.0]), pd.Series([1.0, 4.0, 9.0, 16.0]))
    >>> round(found["spearman"], 9), round(found["high"], 9), found["n"]
    (1.0, 1.0, 4)
    """
    a, b = x.to_numpy(np.float64), y.to_numpy(np.float64)
    if len(a) < _FEWEST or math.isnan(_coefficient(a, b)):
        return {**dict.fromkeys(_COLUMNS, math.nan), "n": len(a)}
    rng = np.random.default_rng(_SEED)
    places = rng.integers(len(a), size=(_RESAMPLES, len(a)))
    drawn = [_coefficient(a[some], b[some]) for some in places]
    tail = (1 - _LEVEL) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    rho, p = stats.spearmanr(a, b)
    found = map(float, (rho, low, high, p))
    return {**dict(zip(_COLUMNS, found, strict=False)), "n": len(a)}


def _coefficient(a: _Array, b: _Array) -> float:
    """Return Spearman's correlation; NaN where one of the two does not vary."""
    ranks = [stats.rankdata(values) for values in (a, b)]
    spread = [float(np.std(values)) for values in ranks]
    if not all(spread):
        return math.nan
    product = np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean()))
    return float(product) / (spread[0] * spread[1])


def _means(runs: Runs, name: str) -> dict[str, float]:
    ranks, cosines = runs.rank(name), runs.weight_cosines(name)
    cosines = cosines[(cosines.side == "right") & cosines.kind.isin(["q", "v"])]
    ranks = ranks[ranks.kind.isin(["q", "v"])]
    return {
        "relative_norm": float(ranks.relative_norm.mean()),
        "intruders": float(cosines.intruders.mean()),
    }
