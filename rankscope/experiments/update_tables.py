"""Tables of what the updates are: how they relate to W, to each other and to the full update.

Every function takes the runs and returns a table with a row per condition. Means are over the
modules of a kind and over the runs; ``runs`` says how many, ``…_sd`` is the standard deviation
(n − 1) of the runs' own means. Chance stands beside whatever has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd

from rankscope.analysis.compare import compare
from rankscope.experiments.measured import Pair, Runs, across_seeds, by_rank, each, grouped
from rankscope.experiments.published import published
from rankscope.io.updateset import UpdateSet

__all__ = [
    "drift_table",
    "full_rank_table",
    "full_share_table",
    "intruders_table",
    "kinds_of_pairs",
    "middle_layer",
    "of_layers",
    "pairs_table",
    "ranks_table",
    "table7",
]

_OF_UPDATE = ("norm_update", "projection_update")
_OF_WEIGHT = ("norm_weight", "projection_weight", "projection_random")
_RATIOS = ("amplification", "amplification_random", "excess")
_FIRST = 8
_RANKS = ("effective_rank", "stable_rank", "energy_rank_90", "relative_norm", "frobenius")
_SIMILARITY = ("phi_first", "phi_full", "shared_directions")


def table7(runs: Runs) -> pd.DataFrame:
    """Return ‖UᵀWV‖ with the first r directions of ΔW, of W and random ones, as Table 7 does.

    Every plain adapter on q and v at k = r. `layers` is the middle one, as in the paper (48 of
    96), or ``all`` for the root mean square over them. `amplification` is ‖ΔW‖ over the first,
    `amplification_random` what random directions would score, `excess` the first over the third;
    where there are several layers, of their root mean squares, which one module with next to
    nothing along its directions cannot upset. A module whose ΔW has fewer than r directions is in
    none of the columns; `left_out` is how many of them a run has on the mean.
    """
    parts = []
    for run in each(runs.adapters()):
        table = runs.amplification(run.name, [run.rank])
        middle = middle_layer(table)
        for layers, some in (("middle", table[table.layer == middle]), ("all", table)):
            parts.append(of_layers(some).assign(rank=run.rank, layers=layers))
    table = _joined(
        parts, ["kind", "layers", "rank"], [*_OF_UPDATE, *_RATIOS], (*_OF_WEIGHT, "left_out")
    )
    beside = published("table7").rename(columns=lambda c: c if c == "rank" else f"published_{c}")
    beside = beside.assign(kind="q", layers="middle")
    return table.merge(beside, on=["kind", "layers", "rank"], how="left")


def full_share_table(runs: Runs) -> pd.DataFrame:
    """Return how much of the full update's energy lies in an adapter's span, beside chance.

    Adapters on q and v of another seed than the full fine-tuning's. `share` is the energy of the
    full ΔW within the span of the adapter's r directions, on one side; by chance it is
    `chance` = r/d. `cosine` is that of the two whole updates.
    """
    parts = []
    for rank, rows in by_rank(runs.adapters()).items():
        for pair in across_seeds(rows, runs.whole()):
            table = runs.containment(pair)
            table = table.assign(share=table.containment_b, chance=table.chance_b)
            means = table.groupby(["kind", "side"])[["share", "chance", "cosine"]].mean()
            parts.append(means.reset_index().assign(rank=rank))
    return _joined(parts, ["kind", "side", "rank"], ("share", "cosine"), ("chance",))


def full_rank_table(runs: Runs) -> pd.DataFrame:
    """Return the ranks of every full fine-tuning, seed by seed, and what its seeds share.

    `rank_above_noise` is the number of directions that the rounding of a half-precision storage
    does not explain (undefined for float32, which rounds far below), `bulk_edge_rank` that
    above the update's own bulk, and `shared_directions` the mean number of the first 64 that
    another seed's update has too.
    """
    measures = ["rank_above_noise", "bulk_edge_rank", "effective_rank", "energy_rank_90"]
    parts = []
    for task in runs.plain.task.unique():
        rows = runs.whole(task)
        pairs = across_seeds(rows, rows)
        for run in each(rows):
            ranks = runs.rank(run.name).astype(dict.fromkeys(measures, "Float64"))
            means = ranks.groupby("kind")[measures].mean().astype("float64").reset_index()
            shared = _shared(runs, [pair for pair in pairs if run.name in pair])
            parts.append(means.assign(task=task, seed=run.seed, **_by_kind(means, shared)))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def ranks_table(runs: Runs) -> pd.DataFrame:
    """Return the rank measures and norms of ΔW, by task, targets, rank and kind of matrix."""
    return _of_each(runs, runs.plain, runs.rank, ["kind"], _RANKS)


def intruders_table(runs: Runs) -> pd.DataFrame:
    """Return how many of the first 10 directions of W + ΔW no direction of W resembles.

    `intruders` are those with a largest cosine below 0.5, `below_chance` those no closer to W
    than random directions are; the counts are per matrix.
    """
    measures = ("intruders", "below_chance", "intruder_energy_share")
    rows = runs.plain[(runs.plain.targets == "q,v") | (runs.plain.method == "full")]
    return _of_each(runs, rows, runs.weight_cosines, ["kind", "side"], measures)


def pairs_table(runs: Runs) -> pd.DataFrame:
    """Return the similarity of every kind of pair that is compared, by kind of matrix and side.

    ``ranks`` is the small rank against the large one, ``seeds`` two seeds of one rank,
    ``full seeds`` two seeds of the full fine-tuning, ``shuffled`` a run against one with
    shuffled labels, ``shared init`` two runs whose adapters started from the same numbers.
    """
    parts = []
    for what, rank_a, rank_b, pairs in kinds_of_pairs(runs):
        for pair in pairs:
            table = runs.similarity(pair).table.astype({"shared_directions": "Float64"})
            table = table.astype({"shared_directions": "float64"})
            means = (
                table.groupby(["kind", "side"])[[*_SIMILARITY, "chance_full"]].mean().reset_index()
            )
            chance = 1 / table.groupby(["kind", "side"]).dimension.first().to_numpy()
            parts.append(
                means.assign(what=what, rank_a=rank_a, rank_b=rank_b, chance_first=chance)
            )
    keys = ["what", "rank_a", "rank_b", "kind", "side"]
    return _joined(parts, keys, _SIMILARITY, ("chance_first", "chance_full"))


def drift_table(runs: Runs) -> pd.DataFrame:
    """Return the checkpoints of each run that kept some, against its end.

    `phi` is that of the first 8 directions, `norm` the mean ‖ΔW‖ at that step; φ is undefined
    where nothing is trained yet.
    """
    columns = ["name", "kind", "side", "step", "phi", "chance", "norm"]
    series = {name: runs.steps(name) for name in map(str, runs.plain.name)}
    parts = [_drift(kept).assign(name=name) for name, kept in series.items() if len(kept) > 1]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return table.sort_values(columns[:4], ignore_index=True)[columns]


# --- parts -----------------------------------------------------------------------------------


def of_layers(table: pd.DataFrame) -> pd.DataFrame:
    """Return root mean squares of an amplification table's norms, by kind, and their ratios.

    All are over the modules that have k directions; `left_out` counts the others.

    Examples
    --------
    >>> names = ["kind", *_OF_UPDATE, *_OF_WEIGHT]
    >>> rows = [["q", 4.0, 2.0, 9.0, 3.0, 1.0], ["q", 1.0, float("nan"), 9.0, 3.0, 5.0]]
    >>> means = of_layers(pd.DataFrame(rows, columns=names))
    >>> means[["amplification", "excess", "left_out"]].to_numpy().tolist()
    [[2.0, 2.0, 1.0]]
    """
    known = table.projection_update.notna()
    squares = table[[*_OF_UPDATE, *_OF_WEIGHT]].pow(2).where(known)
    means = squares.groupby(table.kind).mean().pow(0.5)
    means = means.assign(left_out=(~known).groupby(table.kind).sum()).reset_index()
    return means.assign(
        amplification=means.norm_update / means.projection_update,
        amplification_random=means.norm_update / means.projection_random,
        excess=means.projection_update / means.projection_random,
    )


def kinds_of_pairs(runs: Runs) -> Iterator[tuple[str, int, int, list[Pair]]]:
    """Yield what is compared, the two ranks (0 for all weights), and the pairs of runs."""
    adapters = runs.adapters()
    ranks = runs.ranks
    if ranks:
        low, high = (adapters[adapters["rank"] == r] for r in ranks)
        yield "ranks", *ranks, across_seeds(low, high)
    for rank, rows in by_rank(adapters).items():
        yield "seeds", rank, rank, across_seeds(rows, rows)
    yield "full seeds", 0, 0, across_seeds(runs.whole(), runs.whole())
    for rank, rows in by_rank(runs.variants("shuffled")).items():
        true = adapters[adapters["rank"] == rank]
        yield "shuffled", rank, rank, across_seeds(true, rows)
    for rank, rows in by_rank(runs.variants("init0")).items():
        first = adapters[(adapters["rank"] == rank) & (adapters.seed == 0)]
        yield "shared init", rank, rank, across_seeds(first, rows)


def _drift(series: Mapping[int, UpdateSet]) -> pd.DataFrame:
    """Return φ of each step and the last, the last with itself, and the norms."""
    last = max(series)
    named = {str(step): updates for step, updates in series.items()}
    table = compare(named, k=_FIRST, measures=("phi",)).table
    ends = table[table.b == str(last)].astype({"a": "int64"})
    keys = ["kind", "side", "a"]
    means = ends.groupby(keys)[["phi", "chance"]].mean().reset_index()
    itself = means.groupby(["kind", "side"]).chance.max().reset_index().assign(a=last, phi=1.0)
    norms = [
        {"a": step, "kind": site.kind, "norm": updates[site.module].norm()}
        for step, updates in series.items()
        for site in updates.sites
    ]
    mean_norms = pd.DataFrame(norms).groupby(["kind", "a"]).norm.mean().reset_index()
    rows = pd.concat([means, itself]).merge(mean_norms, on=["kind", "a"])
    return rows.rename(columns={"a": "step"})


def _of_each(
    runs: Runs,
    rows: pd.DataFrame,
    measure: Callable[[str], pd.DataFrame],
    by: Sequence[str],
    columns: Sequence[str],
) -> pd.DataFrame:
    """Return the means of what is measured of every run, by condition and `by`."""
    parts = []
    for run in each(rows):
        table = measure(run.name).astype(dict.fromkeys(columns, "Float64"))
        means = table.groupby(list(by))[list(columns)].mean().astype("float64").reset_index()
        condition = {name: getattr(run, name) for name in ("task", "method", "targets", "rank")}
        parts.append(means.assign(**condition))
    return _joined(parts, ["task", "method", "targets", "rank", *by], columns)


def _joined(
    parts: Sequence[pd.DataFrame],
    by: Sequence[str],
    columns: Sequence[str],
    fixed: Sequence[str] = (),
) -> pd.DataFrame:
    """Return means and spread over the runs of one condition."""
    if not parts:
        return pd.DataFrame(columns=[*by, *columns, *fixed, "runs"])
    table = grouped(pd.concat(parts, ignore_index=True), by, columns, fixed)
    return table.sort_values(list(by), ignore_index=True)


def middle_layer(table: pd.DataFrame) -> int:
    """Return the middle layer as the paper takes it: 48 of 96, counted from 1."""
    return max(int(table.layer.max() + 1) // 2 - 1, 0)


def _shared(runs: Runs, pairs: Sequence[Pair]) -> pd.DataFrame:
    """Return the mean number of shared directions, a row per kind, a column per side."""
    if not pairs:
        return pd.DataFrame()
    table = pd.concat([runs.similarity(pair).table for pair in pairs])
    table = table.assign(shared=table.shared_directions.astype("Float64"))
    return table.pivot_table(index="kind", columns="side", values="shared").astype("float64")


def _by_kind(means: pd.DataFrame, shared: pd.DataFrame) -> dict[str, list[float]]:
    return {
        f"shared_directions_{side}": shared[side].reindex(means.kind).to_list() for side in shared
    }
