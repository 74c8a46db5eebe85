"""Claims on ΔW and W: whose intrinsic rank is higher, and what ΔW amplifies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankscope.experiments.evidence import Evidence, Rule, untested
from rankscope.experiments.measured import Runs, across_seeds, by_rank, each
from rankscope.experiments.statistics import (
    falling_p_value,
    reached_p_value,
    sign_flip_p_value,
)
from rankscope.experiments.update_tables import of_layers

__all__ = ["weight_claims"]

_Array = NDArray[np.float64]

QUARTER = 0.25  # of the energy in W's own first directions: below it W does not emphasise them
_NEAREST = 4  # the rank whose directions the paper looks at
_DRAWS = 499
_LEAST_RANKS, _LEAST_SEEDS = 3, 2
_NO_TREND = "it takes three ranks below d, and two seeds of each"


def weight_claims(runs: Runs) -> Iterator[Evidence]:
    """Yield the claims of sections 7.2 and 7.3 on ΔW and W."""
    yield _higher_shared(runs)
    yield _higher_rank(runs)
    for kind in ("q", "v"):
        yield _amplifies(runs, kind)
        yield _not_emphasised(runs, kind)
    yield _falls(runs)
    yield _excess_falls(runs)


# --- q against v -----------------------------------------------------------------------------


def _higher_shared(runs: Runs) -> Evidence:
    claim = "ΔWq has a higher intrinsic rank than ΔWv: its seeds share more directions"
    statistic = "shared directions of q less those of v, input side"
    rows = _large(runs)
    pairs = across_seeds(rows, rows)
    if not pairs:
        return untested(claim, statistic, "it takes two seeds of a rank below d")
    counts = {
        kind: [_shared(runs.similarity(pair).table, kind) for pair in pairs] for kind in ("q", "v")
    }
    return _more(claim, statistic, counts, "pairs of runs", rows)  # pairs share runs: no p


def _higher_rank(runs: Runs) -> Evidence:
    claim = "ΔWq has a higher intrinsic rank than ΔWv: its effective rank is higher"
    statistic = "effective rank of q less that of v"
    rows = _large(runs)
    if len(rows) < 2:
        return untested(claim, statistic, "it takes two seeds of a rank below d")
    tables = [runs.rank(name) for name in rows.name]
    ranks = {
        kind: [float(table.effective_rank[table.kind == kind].mean()) for table in tables]
        for kind in ("q", "v")
    }
    return _more(claim, statistic, ranks, "runs", rows)


def _more(
    claim: str, statistic: str, of: dict[str, list[float]], unit: str, rows: pd.DataFrame
) -> Evidence:
    differences = [q - v for q, v in zip(of["q"], of["v"], strict=True)]
    q, v = (float(np.mean(values)) for values in of.values())
    return Evidence(
        claim=claim,
        statistic=statistic,
        value=q - v,
        control=0.0,
        p=sign_flip_p_value(differences) if unit == "runs" else math.nan,
        agrees=min(differences) > 0,
        n=len(differences),
        unit=unit,
        seeds=rows.seed.nunique(),
        says=f"q {q:.2f}, v {v:.2f}, r = {int(rows['rank'].iloc[0])}; q has more in "
        f"{sum(one > 0 for one in differences)} of {len(differences)} {unit}",
    )


def _large(runs: Runs) -> pd.DataFrame:
    rows = runs.adapters()
    return rows[rows["rank"] == (runs.ranks[1] if runs.ranks else 0)]


def _shared(table: pd.DataFrame, kind: str) -> float:
    rows = table[(table.kind == kind) & (table.side == "right")]
    return float(rows.shared_directions.astype("Float64").mean())


# --- amplification ---------------------------------------------------------------------------


def _amplifies(runs: Runs, kind: str) -> Evidence:
    claim = f"ΔW{kind} amplifies directions that W{kind} has"
    statistic = "‖UᵀWV‖ along ΔW's directions over its chance level"
    rows = _looked_at(runs)
    if rows.empty:
        return untested(claim, statistic, "it takes an adapter on q and v")
    rank = int(rows["rank"].iloc[0])
    ratios = [_at(runs, run.name, run.rank, kind) for run in each(rows)]
    excess = [float(one["excess"]) for one in ratios]
    draws = _drawn_excess(runs, str(rows.name.iloc[0]), kind, rank, len(rows))
    control = np.mean([_at(runs, runs.drawn(name, 0), rank, kind)["excess"] for name in rows.name])
    value = float(np.mean(excess))
    return Evidence(
        claim=claim,
        statistic=statistic,
        value=value,
        control=float(control),
        chance=1.0,
        p=reached_p_value(value, draws),
        rule=Rule.BEYOND,
        agrees=min(excess) > 1,
        n=len(rows),
        unit="runs",
        seeds=rows.seed.nunique(),
        says=f"{value:.2f} times chance at r = {rank}, runs from {min(excess):.2f} to "
        f"{max(excess):.2f}; the paper's r = 4 has 15.9. Drawn directions have {control:.2f}",
    )


def _not_emphasised(runs: Runs, kind: str) -> Evidence:
    claim = f"the directions that ΔW{kind} amplifies are not those that W{kind} emphasises"
    statistic = "energy of W along ΔW's directions over that along W's own first"
    rows = _looked_at(runs)
    if rows.empty:
        return untested(claim, statistic, "it takes an adapter on q and v")
    ratios = [_at(runs, run.name, run.rank, kind) for run in each(rows)]
    shares = [float((one["projection_update"] / one["projection_weight"]) ** 2) for one in ratios]
    chance = float((ratios[0]["projection_random"] / ratios[0]["projection_weight"]) ** 2)
    return Evidence(
        claim=claim,
        statistic=statistic,
        value=float(np.mean(shares)),
        control=1.0,
        chance=chance,
        p=sign_flip_p_value([QUARTER - share for share in shares]),
        agrees=max(shares) < QUARTER,
        n=len(rows),
        unit="runs",
        seeds=rows.seed.nunique(),
        says=f"{np.mean(shares):.4f} (to {max(shares):.4f}) at r = {int(rows['rank'].iloc[0])}, "
        f"random directions {chance:.4f}; not emphasised means below {QUARTER}. The paper's "
        "r = 4 has 0.0002",
    )


def _falls(runs: Runs) -> Evidence:
    """Judge the fall by its presence in every seed, without a p.

    Along random directions of the same norm the amplification falls too, as 1/r where ‖ΔW‖ does
    not change: no order of the ranks is as likely as any other, and a trend test says nothing.
    What random directions fall by stands beside it.
    """
    claim = "the amplification by ΔWq falls with r"
    statistic = "amplification at the smallest r over that at the largest, k = r below d"
    seen = _over_ranks(runs, ("amplification", "amplification_random"))
    if seen is None:
        return untested(claim, statistic, _NO_TREND)
    ranks, (values, random) = seen
    means = values.mean(axis=0)
    value, chance = float(means[0] / means[-1]), float((random[:, 0] / random[:, -1]).mean())
    compared = "more: the fall alone says nothing of W" if chance > value else "not more"
    return Evidence(
        claim=claim,
        statistic=statistic,
        value=value,
        control=1.0,
        chance=chance,
        agrees=bool((values[:, 0] > values[:, -1]).all()),
        n=len(values),
        unit="seeds",
        seeds=len(values),
        says=f"{_by_rank(ranks, means)}; it falls by {value:.3g}, and along random directions of "
        f"the same norms by {chance:.3g}, {compared}",
    )


def _excess_falls(runs: Runs) -> Evidence:
    """Judge by Page's test: over chance, every order of the ranks is as likely if W is alike."""
    claim = "the later directions of ΔWq are less those of Wq"
    statistic = "excess at the smallest r over that at the largest, k = r below d"
    seen = _over_ranks(runs, ("excess",))
    if seen is None:
        return untested(claim, statistic, _NO_TREND)
    ranks, (values,) = seen
    means = values.mean(axis=0)
    return Evidence(
        claim=claim,
        statistic=statistic,
        value=float(means[0] / means[-1]),
        control=1.0,
        chance=1.0,
        p=falling_p_value(values.tolist()),
        rule=Rule.BEYOND,
        agrees=bool((values[:, 0] > values[:, -1]).all()),
        n=len(values),
        unit="seeds",
        seeds=len(values),
        says=_by_rank(ranks, means),
    )


def _by_rank(ranks: Sequence[int], means: _Array) -> str:
    return ", ".join(f"r = {r}: {one:.3g}" for r, one in zip(ranks, means, strict=True))


def _over_ranks(runs: Runs, measures: Sequence[str]) -> tuple[list[int], list[_Array]] | None:
    """Return the ranks below d and each measure of ΔWq, seeds as rows; None of too few."""
    ranked = {r: rows for r, rows in by_rank(runs.adapters()).items() if r < runs.width}
    seeds = set.intersection(*(set(rows.seed) for rows in ranked.values())) if ranked else set()
    if len(ranked) < _LEAST_RANKS or len(seeds) < _LEAST_SEEDS:
        return None
    cells = [
        [
            _at(runs, str(rows.name[rows.seed == seed].iloc[0]), rank, "q")
            for rank, rows in ranked.items()
        ]
        for seed in sorted(seeds)
    ]
    found = [np.array([[float(cell[name]) for cell in row] for row in cells]) for name in measures]
    return list(ranked), found


def _looked_at(runs: Runs) -> pd.DataFrame:
    """Return the adapters of the rank nearest to the paper's 4, the smaller of two."""
    rows = runs.adapters()
    ranks = sorted({int(r) for r in rows["rank"]}, key=lambda r: (abs(r - _NEAREST), r))
    return rows[rows["rank"] == (ranks[0] if ranks else 0)]


def _at(runs: Runs, name: str, rank: int, kind: str) -> pd.Series[float]:
    """Return Table 7's numbers of one run and kind, over all layers."""
    table = of_layers(runs.amplification(name, [rank]))
    return table[table.kind == kind].drop(columns="kind").iloc[0]


def _drawn_excess(runs: Runs, name: str, kind: str, k: int, seeds: int) -> _Array:
    """Draw the mean excess of so many runs whose directions are random."""
    updates = runs.updates(name).select(kind=kind)
    weights = [updates.weight(module).double().numpy() for module in updates.names]
    rng = np.random.default_rng([k, seeds, *kind.encode()])
    squares = np.mean([_drawn_squares(weight, k, _DRAWS * seeds, rng) for weight in weights], 0)
    chance = np.mean([k * k * np.square(weight).mean() for weight in weights])
    mean: _Array = np.sqrt(squares / chance).reshape(_DRAWS, seeds).mean(axis=1)
    return mean


def _drawn_squares(weight: _Array, k: int, count: int, rng: np.random.Generator) -> _Array:
    """Draw ‖UᵀWV‖² of independent uniformly random subspaces, `count` times."""
    left, right = (np.linalg.qr(rng.standard_normal((count, d, k))).Q for d in weight.shape)
    found: _Array = np.square(np.swapaxes(left, 1, 2) @ (weight @ right)).sum(axis=(1, 2))
    return found
