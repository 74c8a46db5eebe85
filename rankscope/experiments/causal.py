"""What some directions are for: the loss with them alone, and without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from rankscope.analysis.ablation import TruncateResult, truncate
from rankscope.experiments.measured import Run, Runs, each
from rankscope.io.updateset import UpdateSet
from rankscope.training.draws import seed_of
from rankscope.training.evaluate import Evaluation, evaluate
from rankscope.training.folder import recorded_config
from rankscope.training.weights import load_model

__all__ = ["causal_table", "evaluator"]

_ROWS = 64  # held-out rows of every loss
_FIRST = (1, 4, 16)
_COLUMNS = (
    "name", "task", "method", "rank", "seed", "directions", "k", "side", "action", "control",
    "count", "energy_share", "loss", "token_accuracy",
)  # fmt: skip

Options = dict[str, Any]


def causal_table(runs: Runs, rows: int = _ROWS, seeds: int = 2) -> pd.DataFrame:
    """Return the loss after keeping or removing some directions, beside a control.

    Of the adapters of the small and the large rank on q and v, and of full fine-tunings, where
    only the matrices of attention are truncated.

    Parameters
    ----------
    runs : Runs
    rows : int
        Held-out rows of the run's own task.
    seeds : int
        Of how many runs of each condition, the first ones.

    Returns
    -------
    DataFrame
        `directions` are ``none`` (the update as it is), ``all`` (removed: W itself in those
        matrices), ``first`` k, ``shared`` with the next seed, ``intruder`` or, of full
        fine-tunings, ``noise``; `action` is ``keep`` or ``remove``, `count` their mean number in
        a matrix and `energy_share` the mean share of ‖ΔW‖² in them. A `control` puts in the place
        of the chosen part a matrix of its singular values along random directions, of both sides
        and of each run's own: what is kept is that matrix alone, what is removed is ΔW less that
        matrix. It takes no direction out of ΔW but adds a perturbation of the same size to it.
    """
    chosen = pd.concat([_adapters(runs), runs.whole()])
    chosen = chosen.groupby("rank", sort=False).head(seeds)
    found = [row for run in each(chosen) for row in _of_run(runs, run, rows)]
    return pd.DataFrame(found, columns=list(_COLUMNS))


def evaluator(
    folder: str | Path, model_folder: str | Path, rows: int
) -> Callable[..., Evaluation]:
    """Return what scores weights on the held-out rows of a run's own task.

    Parameters
    ----------
    folder : path
        Of the run: its task and precision.
    model_folder : path
        Of the model that has all other weights: the base, or a full fine-tuning.
    rows : int
    """
    config, model = recorded_config(folder), load_model(model_folder)

    def score(weights: dict[str, Tensor]) -> Evaluation:
        model.load_state_dict(weights, strict=False)
        return evaluate(model, config.task, rows, config.precision, difficulty=config.difficulty)

    return score


def _adapters(runs: Runs) -> pd.DataFrame:
    rows = runs.adapters()
    return rows[rows["rank"].isin(runs.ranks or ())]


def _of_run(runs: Runs, run: Run, rows: int) -> Iterator[dict[str, Any]]:
    folder = runs.index.folder[run.name]
    whole = run.method == "full"
    score = evaluator(folder, folder if whole else runs.base.folder, rows)
    updates = runs.updates(run.name)
    fixed = run._asdict()
    # All of it kept is the run itself; all removed is W.
    size: Options = {"directions": "first", "k": runs.width}
    for name, remove in (("none", False), ("all", True)):
        result = truncate(updates, **size, remove=remove, evaluate=score)
        yield fixed | _row(result, remove=remove) | {"directions": name, "control": False}
    for options in _choices(runs, run):
        for remove in (False, True):
            for control in (None, seed_of("causal", run.name)):
                result = truncate(
                    updates, **options, remove=remove, control=control, evaluate=score
                )
                named = {name: options.get(name) for name in ("directions", "k")}
                yield fixed | named | _row(result, remove) | {"control": control is not None}


def _choices(runs: Runs, run: Run) -> Iterator[Options]:
    ceiling = run.rank or runs.width
    for k in _FIRST:
        if k < ceiling:
            yield {"directions": "first", "k": k}
    other = _next_seed(runs, run)
    if other is not None:
        yield {"directions": "shared", "other": other}
    yield {"directions": "intruder", "k": 10}
    if not run.rank:
        yield {"directions": "noise"}


def _next_seed(runs: Runs, run: Run) -> UpdateSet | None:
    """Return the updates of the same condition's next seed, the first after the last."""
    rows = runs.adapters() if run.rank else runs.whole()
    rows = rows[rows["rank"] == run.rank]
    others = sorted(
        (other.seed <= run.seed, other.seed, other.name)
        for other in each(rows)
        if other.seed != run.seed
    )
    return runs.updates(others[0][2]) if others else None


def _row(result: TruncateResult, remove: bool) -> dict[str, Any]:
    score: Any = result.score
    return {
        "action": "remove" if remove else "keep",
        "side": result.table.side.iloc[0],
        "count": float(result.table.directions.mean()),
        "energy_share": float(result.table.energy_share.mean()),
        "loss": score["loss"],
        "token_accuracy": score["token_accuracy"],
    }
