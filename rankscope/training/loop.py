"""One flat training loop that repeats to the bit and resumes to the bit."""

from __future__ import annotations

import math
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import numpy as np
import safetensors
import torch
from torch import Tensor

from rankscope.errors import RankscopeError
from rankscope.io.progress import progress_bar
from rankscope.training import folder
from rankscope.training.checks import out_of_range
from rankscope.training.config import TrainingConfig
from rankscope.training.data import Task, batch
from rankscope.training.draws import seed_of
from rankscope.training.evaluate import autocast, evaluate, loss_of
from rankscope.training.methods import METHODS, trained
from rankscope.training.model import CONTEXT
from rankscope.training.trained import initial_model
from rankscope.training.weights import sha256_of

__all__ = ["Run", "train"]

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """What `train` has done: the folder it wrote to and the content of its ``run.json``."""

    folder: Path
    record: dict[str, Any]


def train(
    config: TrainingConfig,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool | Callable[[Row], None] = True,
    stop_at: int | None = None,
) -> Run:
    """Train as `config` says and write the result to the folder `out`.

    The same configuration gives the same bits on the same machine, in one go or resumed. Ctrl-C
    lets the step under way end, writes the weights and the state to resume from, and is raised
    again; a killed run has lost at most ``config.save_every`` steps.

    Parameters
    ----------
    config : TrainingConfig
    out : path
        Receives ``run.json``, ``log.jsonl``, the weights and ``checkpoints/``.
    resume : bool
        Go on with the unfinished run in `out`. A finished one is returned as it is.
    progress : bool or callable
        True shows a bar on a terminal and in a notebook; a callable gets every row of the log.
    stop_at : int, optional
        Stop after this step, resumable, with the learning rates of the whole run.

    Returns
    -------
    Run

    Raises
    ------
    OutputError
        If `out` holds another run or cannot be written.
    ConfigError
        If the run to resume was begun with other options.
    SourceError
        If the base or the run to resume cannot be read.
    RankscopeError
        If the loss is no longer finite.
    """
    out = Path(out)
    last = config.steps if stop_at is None else stop_at
    if not 0 <= last <= config.steps:
        raise out_of_range("stop_at", f"a step from 0 to {config.steps}", last)
    if not resume:
        folder.check_free(out)
    with _threads(config.threads):
        trainer = Trainer(config, out)
        if resume:
            if record := folder.finished_record(out, trainer.identity()):
                return Run(out, record)
            trainer.resume()
        try:
            with _reporter(progress, config, trainer.step) as report:
                while trainer.step < last:
                    trainer.keep()
                    with _interrupts_held():
                        row = trainer.advance()
                    report(row)
            trainer.keep()
            return Run(out, trainer.write(finished=trainer.step == config.steps))
        except KeyboardInterrupt:
            trainer.write(finished=False)
            raise


class Trainer:
    """A run under way: model, optimiser and position; between two steps all of it agrees."""

    def __init__(self, config: TrainingConfig, out: Path) -> None:
        self.config = config
        self.out = out
        self.method = METHODS[config.method]
        self.model = initial_model(config)
        self.weights = trained(self.model)
        self.optimiser = torch.optim.AdamW(
            self.rates(),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.step = 0
        self.seconds = 0.0  # in steps: without evaluation and writing
        self.rows: list[Row] = []
        self.base_sha256 = (
            sha256_of(Path(config.base) / "model.safetensors") if config.base else None
        )

    def rates(self) -> list[dict[str, Any]]:
        """Return the trained weights in groups that share a rate, as the optimiser takes them."""
        groups: dict[float, list[Tensor]] = {}
        for name, weight in self.weights.items():
            groups.setdefault(self.method.rate(name), []).append(weight)
        return [{"params": weights, "factor": factor} for factor, weights in groups.items()]

    def advance(self) -> Row:
        """Take one step and return its row of the log."""
        config, began = self.config, time.perf_counter()
        rate = learning_rate(config, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = group["factor"] * rate
        first = self.step * config.batch
        inputs, targets = batch(
            *(config.task, config.seed, "train", first, config.batch),
            difficulty=config.difficulty,
            labels=config.labels,
        )
        with autocast(config.precision), _dropout_seed(config, self.step):
            logits = self.model(inputs)
        loss = loss_of(logits, targets)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), config.clip)
        row = {"step": self.step, "loss": loss.item(), "lr": rate, "grad_norm": norm.item()}
        _check_finite(row, self.out)
        self.optimiser.step()
        self.step += 1
        self.rows.append(row)
        self.seconds += time.perf_counter() - began
        return row

    def keep(self) -> None:
        """Write the checkpoint and the state to resume from that are due at this step."""
        if self.step in self.config.save_at:
            target = folder.checkpoint_folder(self.out, self.step)
            self.method.write(target, self.model, self.config)
        if self.step % self.config.save_every == 0:
            self.write_resume()

    def write(self, *, finished: bool) -> Row:
        """Write weights, log and record, and return the record."""
        if not finished:
            self.write_resume()
        record = self.record(finished=finished)
        self.method.write(self.out, self.model, self.config)
        folder.write_log(self.out, self.rows)
        folder.write_record(self.out, record)
        return record

    def write_resume(self) -> None:
        """Write the state that `resume` reads."""
        tensors: dict[str, Tensor] = {f"weight.{n}": weight for n, weight in self.weights.items()}
        for name, weight in self.weights.items():
            for moment in ("exp_avg", "exp_avg_sq") if self.step else ():
                tensors[f"{moment}.{name}"] = self.optimiser.state[weight][moment]
        state = folder.State(self.step, self.seconds, self.rows, tensors)
        folder.write_resume(self.out, state, self.identity())

    def resume(self) -> None:
        """Take the position of the unfinished run in the folder."""
        state = folder.read_resume(self.out, self.identity())
        self.step, self.seconds, self.rows = state.step, state.seconds, state.rows
        for name, weight in self.weights.items():
            weight.data.copy_(state.tensors[f"weight.{name}"])
            if self.step:
                self.optimiser.state[weight] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": state.tensors[f"exp_avg.{name}"],
                    "exp_avg_sq": state.tensors[f"exp_avg_sq.{name}"],
                }

    def identity(self) -> Row:
        """Return what two runs must share to be the same one."""
        return {**self.config.to_dict(), "base_sha256": self.base_sha256}

    def record(self, *, finished: bool) -> Row:
        """Return the content of ``run.json``; a finished run is evaluated for it."""
        config = self.config
        tokens = self.step * config.batch * CONTEXT
        return {
            "schema": "rankscope.train/1",
            "finished": finished,
            "step": self.step,
            "config": config.to_dict(),
            "base_sha256": self.base_sha256,
            "parameters": self.model.architecture.parameters,
            "trained_parameters": sum(weight.numel() for weight in self.weights.values()),
            "versions": _versions(),
            "machine": {"processor": platform.machine(), "capability": _capability()},
            "loss_curve": loss_curve(self.rows),
            "evaluation": self.evaluations() if finished else None,
            "seconds": self.seconds,
            "tokens_per_second": tokens / self.seconds if self.seconds else None,
        }

    def evaluations(self) -> Row:
        """Return the scores on the task and, for an adapted model, on what it knew before."""
        config = self.config
        before: tuple[Task, ...] = ("mixture",) if config.base else ()
        return {
            task: evaluate(
                *(self.model, task, config.held_out, config.precision),
                difficulty=config.difficulty,
            )
            for task in dict.fromkeys((config.task, *before))
        }


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the rate of the step with number `step`, from 0.

    Examples
    --------
    >>> config = TrainingConfig(steps=10, warmup=2, lr=0.3)
    >>> [round(learning_rate(config, step), 4) for step in range(4)]
    [0.1, 0.2, 0.3, 0.2625]
    """
    rising = (step + 1) / (config.warmup + 1)
    falling = (config.steps - step) / max(1, config.steps - config.warmup)
    return config.lr * min(rising, falling, 1.0)


def loss_curve(rows: list[Row]) -> list[dict[str, float]]:
    """Return the mean loss of each twentieth of the log, with the step at which it ends."""
    size = max(1, math.ceil(len(rows) / 20))
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    return [
        {"step": part[-1]["step"] + 1, "loss": sum(row["loss"] for row in part) / len(part)}
        for part in parts
    ]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _dropout_seed(config: TrainingConfig, step: int) -> Iterator[None]:
    """Make dropout depend on seed and step, so that nothing need be kept to resume it."""
    if not config.dropout:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("dropout", config.seed, step))
        yield


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block, where weights and moments agree."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Ctrl-C is never raised here
        return
    pending: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        pending.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pending:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def _reporter(
    progress: bool | Callable[[Row], None], config: TrainingConfig, first: int
) -> Iterator[Callable[[Row], None]]:
    if callable(progress):
        yield progress
        return
    with progress_bar(
        progress=progress,
        total=config.steps,
        initial=first,
        desc=f"{config.method} on {config.task}",
        unit="step",
    ) as bar:

        def report(row: Row) -> None:
            bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
            bar.update()

        yield report


def _check_finite(row: Row, out: Path) -> None:
    if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
        raise RankscopeError(
            "the training has diverged",
            where=f"{out}, step {row['step']}",
            expected="a finite loss and gradient",
            got=f"loss {row['loss']}, gradient norm {row['grad_norm']}",
            fix="lower --lr",
        )


def _versions() -> dict[str, str]:
    return {
        "rankscope": metadata.version("rankscope"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
    }


def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()
