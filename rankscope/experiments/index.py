"""The index of an experiment: one row for each finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from rankscope.experiments.folder import begun, finished_record
from rankscope.training import TrainingConfig
from rankscope.training.methods import METHODS

__all__ = ["COLUMNS", "index"]

COLUMNS = (
    "name",
    "groups",
    "task",
    "method",
    "targets",
    "rank",
    "alpha",
    "seed",
    "init_seed",
    "labels",
    "difficulty",
    "steps",
    "parameters",
    "trained_parameters",
    "loss",
    "token_accuracy",
    "exact_match",
    "mixture_loss",
    "seconds",
    "folder",
)


def index(out: str | Path) -> pd.DataFrame:
    """Return a row for each finished run of the experiment in `out`, the base first.

    Parameters
    ----------
    out : path
        The folder of an experiment.

    Returns
    -------
    DataFrame
        `name`, `groups` (words with commas between), `task`, `method`, `targets` (``"q,v"``;
        empty where nothing is adapted), `rank` (0 where there is none), `alpha`, `seed`,
        `init_seed`, `labels`, `difficulty`, `steps`, `parameters` of the whole model,
        `trained_parameters`, the held-out `loss` (nats per character), `token_accuracy` and
        `exact_match` of the run's own task, `mixture_loss` of what the base was trained on,
        `seconds` in training steps, and `folder`. What does not apply is NaN or None.

    Raises
    ------
    SourceError
        If there is no experiment, or a record is damaged.
    """
    out = Path(out)
    about = begun(out)
    rows = [
        _row(out, name, about.groups[name], record)
        for name in about.configs
        if (record := finished_record(out, name)) is not None
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(out: Path, name: str, groups: tuple[str, ...], record: dict[str, Any]) -> dict[str, Any]:
    config = TrainingConfig.from_dict(record["config"])
    scores = record["evaluation"]
    own = scores[config.task]
    return {
        **config.to_dict(),
        **record,
        "name": name,
        "groups": ",".join(groups),
        "method": config.method,
        "targets": ",".join(config.targets) if METHODS[config.method].scaled else "",
        "rank": config.rank if isinstance(config.rank, int) else 0,
        "loss": own["loss"],
        "token_accuracy": own["token_accuracy"],
        "exact_match": own["exact_match"],
        "mixture_loss": scores["mixture"]["loss"],
        "folder": str(out.resolve() / "runs" / name),
    }
