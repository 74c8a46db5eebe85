"""Tables of scores: what was reached with how many parameters, and what it cost.

Every function takes the runs and returns a table with a row per condition: means over the seeds,
their standard deviation (n − 1) as ``…_sd``, and how many ``runs`` there are. Accuracies are
shares of 1 on held-out questions, losses nats per counted character. Conditions that were not
trained have no row; where nothing was, the table is empty.
"""

from __future__ import annotations

import pandas as pd

from rankscope.experiments.accounting import adapter_parameters, checkpoint_bytes
from rankscope.experiments.measured import Runs, grouped
from rankscope.experiments.published import published

__all__ = [
    "BUDGET",
    "alpha_table",
    "cost_table",
    "forgetting_table",
    "methods_table",
    "parameters_table",
    "table5",
    "table6",
    "table18",
]

SCORES = ("exact_match", "token_accuracy", "loss")
BUDGET = 8  # rank times kinds of matrices, as in the paper's Table 5
_CONDITION = ("task", "targets", "rank")


def table5(runs: Runs) -> pd.DataFrame:
    """Return the scores of equal budgets on other matrices, beside the paper's.

    The budget is one kind of matrix at rank 8, or two at 4, or four at 2.
    """
    rows = _adapters(runs)
    kinds = rows.targets.str.count(",") + 1
    table = _scores(rows[rows["rank"] * kinds == BUDGET], ["trained_parameters"])
    beside = published("table5").add_prefix("published_")
    return _beside(table, beside, {"published_targets": "targets", "published_rank": "rank"})


def table6(runs: Runs) -> pd.DataFrame:
    """Return the scores against targets and rank, full fine-tuning last, beside the paper's."""
    rows = _adapters(runs)
    several = rows.groupby(["task", "targets"])["rank"].transform("nunique") > 1
    full = runs.plain[runs.plain.method == "full"].assign(targets="all")
    table = _scores(pd.concat([rows[several], full]), ["trained_parameters"])
    printed = published("table6").pivot(
        index=["targets", "rank"], columns="task", values="accuracy"
    )
    printed = printed.add_prefix("published_")
    return _beside(table, printed.reset_index(), {})


def table18(runs: Runs, task: str = "slots") -> pd.DataFrame:
    """Return loss and scores of the data-to-text task against rank, beside the paper's.

    A row per difficulty and rank, of adapters on q and v.
    """
    rows = runs.index[(runs.index.task == task) & (runs.index.method == "LoRA")]
    rows = rows[(rows.labels == "true") & (rows.targets == "q,v")]
    table = grouped(rows, ["difficulty", "rank"], SCORES, ["trained_parameters"])
    beside = published("table18").add_prefix("published_")
    return _beside(table.sort_values(["difficulty", "rank"]), beside, {"published_rank": "rank"})


def parameters_table(runs: Runs) -> pd.DataFrame:
    """Return the scores against the number of trained parameters, by method (Figure 2)."""
    index = runs.index
    same = (index.init_seed == index.seed) & (index.labels == "true")
    rows = index[same & (index.method != "pre-training") & ~_alpha_held(runs)]
    keys = ["task", "difficulty", "method", "targets", "rank", "trained_parameters"]
    table = grouped(rows, keys, SCORES)
    return table.sort_values(["task", "difficulty", "method", "targets", "trained_parameters"])


def forgetting_table(runs: Runs) -> pd.DataFrame:
    """Return how much worse each condition is on the mixture than the base was, in nats."""
    rows = runs.plain.assign(forgetting=runs.plain.mixture_loss - float(runs.base.loss))
    rows = rows[rows.forgetting.notna()]
    table = grouped(rows, ["task", "method", "targets", "rank"], ["forgetting", "mixture_loss"])
    return table.sort_values(["task", "method", "targets", "rank"]).reset_index(drop=True)


def alpha_table(runs: Runs) -> pd.DataFrame:
    """Return the scores and norms with α held fixed, beside α/r held fixed, rank by rank and seed.

    Where α is held at the rank itself the two rules are one, and the plain run belongs to both.
    """
    held = runs.index[_alpha_held(runs) & (runs.index.method == "LoRA")].assign(rule="alpha fixed")
    keys = ["task", "targets", "rank", "seed"]
    plain = _adapters(runs).merge(held[keys].drop_duplicates(), on=keys)
    same = ["task", "targets", "alpha", "seed"]
    both = _adapters(runs).merge(held[same].drop_duplicates(), on=same)
    both = both[~both.name.isin(plain.name)]
    scaled = pd.concat([plain, both]).assign(rule="alpha/r fixed")
    rows = pd.concat([scaled, held, both.assign(rule="alpha fixed")])
    rows = rows.assign(relative_norm=[_norm(runs, name) for name in rows.name])
    table = grouped(rows, ["task", "targets", "rule", "rank", "alpha"], [*SCORES, "relative_norm"])
    return table.sort_values(["task", "targets", "rank", "rule"]).reset_index(drop=True)


def methods_table(runs: Runs, task: str = "sql") -> pd.DataFrame:
    """Return every method that was trained on a task: cost, scores, forgetting, shape of ΔW.

    Adapters on q and v at the rank that most methods have; `relative_norm`, `effective_rank` and
    `energy_rank_90` are means over the matrices of attention that the method changes, undefined
    for methods without a weight update there. `published_wikisql` and `published_multinli` are
    the paper's on GPT-3, of LoRA with the same targets and rank (Table 15), of the others at the
    larger size (Table 4).
    """
    index = runs.index[(runs.index.task == task) & (runs.index.labels == "true")]
    index = index[(index.init_seed == index.seed) & ~_alpha_held(runs).reindex(index.index)]
    others = index[~index.method.isin(["LoRA", "full", "pre-training"])]
    plain = runs.plain[runs.plain.task == task]
    ranks = others["rank"][others["rank"] > 0]
    common = int(ranks.mode().iloc[0]) if len(ranks) else (runs.ranks or (0,))[0]
    lora = plain[(plain.method == "LoRA") & (plain.targets == "q,v") & (plain["rank"] == common)]
    rows = pd.concat([plain[plain.method == "full"], lora, others])
    rows = rows.assign(forgetting=rows.mixture_loss - float(runs.base.loss))
    shape = pd.DataFrame([_shape(runs, name) for name in rows.name], index=rows.index)
    values = [*SCORES, "forgetting", *shape.columns]
    keys = ["method", "targets", "rank", "trained_parameters"]
    table = grouped(pd.concat([rows, shape], axis=1), keys, values)
    return table.join(_gpt3_scores().reindex(_gpt3_rows(table)).set_axis(table.index))


def cost_table(runs: Runs) -> pd.DataFrame:
    """Return parameters, checkpoint bytes and step time of every condition of LoRA and of full.

    `factors` is r·(d + k) summed over the adapted matrices, which `trained_parameters` must
    equal; bytes are those of float16; `tasks_bytes` are those of 100 tasks, the model included;
    `seconds_per_step` is the mean of whole runs, which other work on the machine may have slowed.
    """
    rows = runs.plain.assign(
        factors=[_factors(runs, name) for name in runs.plain.name],
        seconds_per_step=runs.plain.seconds / runs.plain.steps,
    )
    keys = ["task", "method", "targets", "rank", "trained_parameters", "factors", "parameters"]
    table = grouped(rows, keys, ["seconds_per_step"])
    own = table.trained_parameters.map(checkpoint_bytes)
    whole = table.parameters.map(checkpoint_bytes)
    full = table.method == "full"
    return table.assign(
        share=table.trained_parameters / table.parameters,
        checkpoint_bytes=own,
        tasks_bytes=(100 * own).where(full, whole + 100 * own),
    )


# --- parts -----------------------------------------------------------------------------------


def _adapters(runs: Runs) -> pd.DataFrame:
    return runs.plain[runs.plain.method == "LoRA"]


def _alpha_held(runs: Runs) -> pd.Series[bool]:
    """Whether a run's scale is not that of the plain runs, alpha/r, by its name."""
    return runs.index.name.str.contains(r"-alpha[\d.]+$")


def _scores(rows: pd.DataFrame, further: list[str]) -> pd.DataFrame:
    rows = rows.assign(**{name: pd.to_numeric(rows[name]) for name in SCORES})
    keys = [*_CONDITION, *further]
    order = {"all": 9}
    table = grouped(rows, keys, SCORES)
    kinds = table.targets.map(lambda text: order.get(text, text.count(",")))
    return (
        table.assign(kinds=kinds)
        .sort_values(["task", "kinds", "targets", "rank"], kind="stable")
        .drop(columns="kinds")
        .reset_index(drop=True)
    )


def _beside(table: pd.DataFrame, printed: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """Return the table with the paper's numbers in the rows of the same targets and rank."""
    printed = printed.rename(columns=names)
    keys = [name for name in ("targets", "rank") if name in printed]
    printed = printed.astype({"rank": "Int64"})
    return table.astype({"rank": "Int64"}).merge(printed, on=keys, how="left")


def _gpt3_scores() -> pd.DataFrame:
    """Return the paper's accuracies on GPT-3, by what `_gpt3_rows` returns."""
    sizes = published("table15").query("method == 'LoRA'")
    named = sizes.assign(row=sizes.targets + sizes["rank"].map(" {:.0f}".format))
    others = published("table4").assign(row=lambda table: table.method)
    rows = pd.concat([named, others.drop_duplicates("method", keep="last")]).set_index("row")
    return rows[["wikisql", "multinli"]].add_prefix("published_")


def _gpt3_rows(table: pd.DataFrame) -> pd.Series[str]:
    names = {
        "full": "fine-tune",
        "bias": "BitFit",
        "prefix": "PrefixLayer",
        "bottleneck": "AdapterH",
    }
    lora = table.targets.astype(str) + table["rank"].map(" {:.0f}".format)
    return table.method.map(names).where(table.method != "LoRA", lora)


def _norm(runs: Runs, name: str) -> float:
    return float(runs.rank(name).relative_norm.mean())


def _shape(runs: Runs, name: str) -> dict[str, float]:
    measures = ("relative_norm", "effective_rank", "energy_rank_90")
    if not runs.has_update(name):
        return dict.fromkeys(measures, float("nan"))
    table = runs.rank(name)
    table = table[table.state != "zero"]
    return {measure: float(table[measure].astype("Float64").mean()) for measure in measures}


def _factors(runs: Runs, name: str) -> int:
    """Return r·(d + k) summed over an adapter's matrices, of another run what it trained."""
    index = runs.index
    if index.method[name] != "LoRA":
        return int(index.trained_parameters[name])
    shapes = [site.shape for site in runs.updates(name).sites]
    return adapter_parameters(shapes, int(index["rank"][name]))
