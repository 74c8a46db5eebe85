"""What a step of training takes: LoRA against all weights, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from operator import truediv
from pathlib import Path

import pandas as pd

from rankscope.experiments.measured import Runs, by_rank
from rankscope.experiments.serving import one_thread
from rankscope.training.folder import recorded_config
from rankscope.training.loop import Trainer

__all__ = ["steps_table"]

# A float32 weight; its gradient and AdamW's two moments, where it is trained.
_WEIGHT, _TRAINED = 4, 12


def steps_table(runs: Runs, repeats: int = 15) -> pd.DataFrame:
    """Return the time of a training step and the memory of weights and optimiser, by rank.

    On one core, the first steps of each run again; the runs take turns, so that other work on
    the machine meets all alike.

    Returns
    -------
    DataFrame
        A row per rank of the adapters on q and v, and for all weights: `method`, `rank`,
        `trained_parameters`, the median and quartiles of `repeats` steps in `milliseconds`, and
        `ratio`, the median quotient with the full step of the same turn. `state_bytes` are
        counted, not measured: 4 for every weight, 12 more for every trained one (gradient and
        two moments); activations, which are much the same, come on top. Empty unless both kinds
        were trained.
    """
    trainers = _trainers(runs)
    if len(trainers) < 2:
        return pd.DataFrame()
    with one_thread():
        times = _times(trainers, repeats)
    return pd.DataFrame(
        [_row(trainer, times[name], times["full"]) for name, trainer in trainers.items()]
    )


def _trainers(runs: Runs) -> dict[str, Trainer]:
    """Return the beginnings of a run of every rank, and of all weights; none without those."""
    names = [str(rows.name.iloc[0]) for rows in by_rank(runs.adapters()).values()]
    whole = runs.whole()
    if whole.empty:
        return {}
    made = {name: _trainer(runs, name) for name in names}
    return made | {"full": _trainer(runs, str(whole.name.iloc[0]))}


def _trainer(runs: Runs, name: str) -> Trainer:
    folder = Path(str(runs.index.folder[name]))
    # The experiment may have been moved since; its base has moved with it.
    return Trainer(replace(recorded_config(folder), base=str(runs.base.folder)), folder)


def _times(trainers: Mapping[str, Trainer], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each one's steps, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for number in range(repeats + 1):
        for name, trainer in trainers.items():
            before = trainer.seconds
            trainer.advance()
            if number:
                times[name].append(trainer.seconds - before)
    return times


def _row(trainer: Trainer, own: list[float], full: list[float]) -> dict[str, object]:
    trained = sum(weight.numel() for weight in trainer.weights.values())
    everything = sum(weight.numel() for weight in trainer.model.parameters())
    low, middle, high = statistics.quantiles(own, n=4)
    rank = trainer.config.rank
    return {
        "method": trainer.config.method,
        "rank": rank if isinstance(rank, int) else 0,
        "trained_parameters": trained,
        "milliseconds": 1000 * middle,
        "milliseconds_low": 1000 * low,
        "milliseconds_high": 1000 * high,
        "ratio": statistics.median(map(truediv, own, full)),
        "state_bytes": _WEIGHT * everything + _TRAINED * trained,
    }
