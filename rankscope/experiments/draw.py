"""Everything that is drawn from saved runs, again and again, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from rankscope.experiments import correlations, serving, tables, update_tables
from rankscope.experiments.accounting import gpt3_table
from rankscope.experiments.causal import causal_table
from rankscope.experiments.claims import as_json, claims, shown
from rankscope.experiments.figures import FIGURES
from rankscope.experiments.folder import begun
from rankscope.experiments.index import index
from rankscope.experiments.measured import Runs
from rankscope.experiments.published import PUBLISHED, published
from rankscope.experiments.timing import steps_table
from rankscope.io.write import replacing, write_json
from rankscope.plots.save import figure_bytes
from rankscope.tables import as_markdown

__all__ = ["draw"]

Make = Callable[[Runs], pd.DataFrame]

TABLES: Mapping[str, tuple[Make, str]] = MappingProxyType(
    {
        "table5": (tables.table5, "scores at an equal budget of parameters (the paper's Table 5)"),
        "table6": (tables.table6, "scores against targets and rank (Table 6)"),
        "table7": (update_tables.table7, "ΔW against W (Table 7)"),
        "table18": (tables.table18, "the second task against rank (Table 18)"),
        "parameters": (tables.parameters_table, "scores against trained parameters"),
        "costs": (tables.cost_table, "parameters, bytes and time of a step"),
        "gpt3": (lambda _: gpt3_table(), "the paper's accounting of GPT-3"),
        "methods": (tables.methods_table, "the methods that LoRA is compared with"),
        "alpha": (tables.alpha_table, "α/r held at 1, and α held at 8"),
        "pairs": (update_tables.pairs_table, "what pairs of runs share"),
        "ranks": (update_tables.ranks_table, "every measure of rank"),
        "full-rank": (update_tables.full_rank_table, "the full update's rank above noise"),
        "full-share": (update_tables.full_share_table, "LoRA's share of the full update"),
        "intruders": (update_tables.intruders_table, "intruding directions against rank"),
        "drift": (update_tables.drift_table, "directions over the steps"),
        "forgetting": (tables.forgetting_table, "what the base knew, after adaptation"),
        "forgetting-runs": (correlations.forgetting_runs, "the same, run by run"),
        "forgetting-correlations": (
            correlations.forgetting_correlations,
            "forgetting against rank, norm and intruders (Spearman)",
        ),
        "switching": (serving.switching_table, "from task to task: W − BA + B′A′"),
    }
)
# These take minutes, and are of the full design alone.
LONG: Mapping[str, tuple[Make, str]] = MappingProxyType(
    {
        "causal": (causal_table, "the loss with some directions kept or removed"),
        "steps": (steps_table, "time and memory of a training step, by rank"),
        "latency": (serving.latency_table, "time of a prediction, merged and apart (Table 1)"),
    }
)


def draw(out: str | Path) -> pd.DataFrame:
    """Write tables, figures and claims of the finished runs in `out`, and return the claims.

    Writes ``tables/*.csv``, ``figures/*.svg``, ``claims.json`` and ``README.md``, each whole or
    not at all. The numbers in a figure stand in the table of its name, what the paper printed in
    ``tables/published`` and, where conditions are the same, in columns of our own tables.

    Returns
    -------
    DataFrame
        As of `rankscope.experiments.claims.claims`.

    Raises
    ------
    SourceError
        If there is no experiment in `out`, or not even its base is finished.
    OutputError
        If something cannot be written.
    """
    out = Path(out)
    table = index(out)
    runs = Runs(table)
    _write_table(out, "index", table.drop(columns="folder"))
    found = claims(runs)
    write_json(out / "claims.json", as_json(found))
    made = {**TABLES, **LONG} if begun(out).design == "full" else dict(TABLES)
    listed = {}
    for name, (make, about) in made.items():
        table = make(runs)
        _write_table(out, name, table)
        if len(table):  # a small design leaves some without a row
            listed[name] = about
    for name in PUBLISHED:
        _write_table(out, f"published/{name}", published(name))
    for name, picture in FIGURES.items():
        drawn = picture(runs)
        _write_table(out, name, drawn.table)
        with replacing(out / "figures" / f"{name}.svg") as temporary:
            temporary.write_bytes(figure_bytes(drawn.figure))
    _write_readme(out, shown(found), listed)
    return found


def _write_table(out: Path, name: str, table: pd.DataFrame) -> None:
    with replacing(out / "tables" / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False)


def _write_readme(out: Path, found: pd.DataFrame, made: Mapping[str, str]) -> None:
    listed = "".join(f"- `tables/{name}.csv`: {about}\n" for name, about in made.items())
    listed += "- `tables/published/*.csv`: what the paper printed\n"
    drawn = "".join(f"- `figures/{name}.svg`, `tables/{name}.csv`\n" for name in FIGURES)
    text = (
        "# Section 7, repeated\n\n"
        "Each claim of the paper's section 7 as a test on these runs; what is not held here is "
        "said as plainly as what is. `claims.json` says the statistic, the control and the rule "
        f"of each.\n\n{as_markdown(found)}\n"
        "Every run is a folder of the trainer in `runs/`; `tables/index.csv` has a row for each, "
        f"`design.json` its configuration.\n\n{listed}{drawn}"
    )
    with replacing(out / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
