"""What an adapter costs when it is used: the time of a prediction, and switching between tasks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from operator import truediv
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from rankscope.experiments.measured import Runs
from rankscope.experiments.published import published
from rankscope.training.evaluate import autocast
from rankscope.training.folder import recorded_config
from rankscope.training.lora import merge_lora
from rankscope.training.methods import METHODS
from rankscope.training.model import CONTEXT, GPT
from rankscope.training.trained import initial_model

__all__ = ["latency_table", "one_thread", "switching_table"]

_SIZES = ((1, CONTEXT // 4), (1, CONTEXT), (16, CONTEXT), (32, CONTEXT))
_SWITCHES = (1, 10, 100)
_LATENCY = (
    "model", "batch", "length", "milliseconds", "milliseconds_low", "milliseconds_high", "ratio",
    "published_ratio",
)  # fmt: skip
_SWITCHING = ("a", "b", "dtype", "switches", "max_error", "relative_error", "changed_share")


def latency_table(runs: Runs, repeats: int = 15) -> pd.DataFrame:
    """Return the time of a prediction with an adapter merged, apart, or between the layers.

    The paper's Table 1: merged, an adapter costs nothing; a bottleneck, which adds depth, always
    does. On one core; the models take turns, so that other work on the machine meets all alike.

    Returns
    -------
    DataFrame
        A row per model and size of the input: `model` (``merged``, ``apart``, ``bottleneck``),
        `batch` rows of `length` characters, the median and quartiles of `repeats` times
        in `milliseconds`, and `ratio`, the median quotient of its time and the merged model's
        just before; `published_ratio` is that of GPT-2 Medium and AdapterH at the same batch,
        on a GPU and with longer inputs. Empty unless a bottleneck and an adapter of its size
        were trained.
    """
    models, rows = _models(runs), []
    printed = _printed_ratios()
    with one_thread():
        for batch, length in _SIZES if models else ():
            times = _times(models, batch, length, repeats)
            for model, own in times.items():
                low, middle, high = (1000 * q for q in statistics.quantiles(own, n=4))
                ratio = statistics.median(map(truediv, own, times["merged"]))
                paper = printed.get((model, batch), float("nan"))
                rows.append((model, batch, length, middle, low, high, ratio, paper))
    return pd.DataFrame(rows, columns=list(_LATENCY))


def switching_table(runs: Runs) -> pd.DataFrame:
    """Return how far W − BA + B′A′ ends from W + B′A′ when it is computed in one precision.

    A model that serves two tasks goes from one to the other and back: each switch takes the
    adapter that is merged out of the weights and puts the other in, rounded to the precision of
    the weights. In exact numbers nothing would be left of it.

    Returns
    -------
    DataFrame
        A row per precision and number of switches: `a`, `b` (the adapters), `dtype`, `switches`,
        `max_error` against weights that were merged anew in the same precision, `relative_error`
        of all modules together (Frobenius norm, over that of the update that is merged then), and
        `changed_share` of the numbers that differ. Without two adapters it has no row.
    """
    adapters = _adapters(runs)
    if len(adapters) < 2:
        return pd.DataFrame(columns=list(_SWITCHING))
    a, b = adapters[:2]
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for switches in _SWITCHES:
            parts = list(_errors(runs, a, b, dtype, switches))
            errors, updates = (torch.stack(part) for part in zip(*parts, strict=True))
            values = (
                errors.abs().max().item(),
                (errors.norm() / updates.norm()).item(),
                (errors != 0).double().mean().item(),
            )
            rows.append((a, b, str(dtype).removeprefix("torch."), switches, *values))
    return pd.DataFrame(rows, columns=list(_SWITCHING))


# --- parts -----------------------------------------------------------------------------------


def _adapters(runs: Runs) -> list[str]:
    """Return adapters of different tasks, or seeds of one, at the smaller of the two ranks."""
    tasks = [runs.adapters(task) for task in ("sql", "slots")]
    rows = [task[task["rank"] == (runs.ranks or (0,))[0]] for task in tasks]
    first = [str(names.name.iloc[0]) for names in rows if len(names)]
    return first if len(first) > 1 else [str(name) for name in rows[0].name]


def _errors(
    runs: Runs, a: str, b: str, dtype: torch.dtype, switches: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the error of every module after so many switches, and the update merged then."""
    sets = runs.updates(a), runs.updates(b)
    for name in sets[0].names:
        weight = sets[0].weight(name).to(dtype).double()
        first, second = (one[name].dense() for one in sets)
        merged = (weight + first).to(dtype)
        for number in range(switches):
            taken, put = (first, second) if number % 2 == 0 else (second, first)
            merged = ((merged.double() - taken).to(dtype).double() + put).to(dtype)
        last = second if switches % 2 else first
        anew = (weight + last).to(dtype)
        yield merged.double() - anew.double(), last


def _models(runs: Runs) -> dict[str, tuple[GPT, str]]:
    """Return the models of a bottleneck and of an adapter of its size, with their precision."""
    bottlenecks = runs.index[runs.index.method == "bottleneck"]
    adapters = runs.adapters()
    adapters = adapters[adapters["rank"].isin(bottlenecks["rank"])]
    if adapters.empty:
        return {}
    name = str(adapters.name.iloc[0])
    bottleneck = str(bottlenecks[bottlenecks["rank"] == adapters["rank"].iloc[0]].name.iloc[0])
    models = {
        "merged": _model(runs, name),
        "apart": _model(runs, name),
        "bottleneck": _model(runs, bottleneck),
    }
    merge_lora(models["merged"][0])
    return models


def _printed_ratios() -> dict[tuple[str, int], float]:
    """Return the paper's times of AdapterH over those of a merged model, by batch."""
    times = published("table1").set_index(["method", "batch"]).milliseconds
    ratios = times["AdapterH"] / times["fine-tune/LoRA"]
    return {("bottleneck", batch): ratio for batch, ratio in ratios.to_dict().items()}


def _model(runs: Runs, name: str) -> tuple[GPT, str]:
    folder = Path(str(runs.index.folder[name]))
    # The experiment may have been moved since; its base has moved with it.
    config = replace(recorded_config(folder), base=str(runs.base.folder))
    model = initial_model(config)
    METHODS[config.method].load(folder, model)
    return model.eval(), config.precision


@torch.no_grad()
def _times(
    models: Mapping[str, tuple[GPT, str]], batch: int, length: int, repeats: int
) -> dict[str, list[float]]:
    """Return the seconds of each model's passes, after one that is not counted."""
    tokens = torch.full((batch, length), 2, dtype=torch.long)
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(repeats + 1):
        for name, (model, precision) in models.items():
            with autocast(precision):
                began = time.perf_counter()
                model(tokens)
                seconds = time.perf_counter() - began
            if number:
                times[name].append(seconds)
    return times


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
