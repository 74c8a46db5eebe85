"""What the options of a training run may be, and the error where they are not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rankscope.errors import RankscopeError
from rankscope.training.lora import TARGETS
from rankscope.training.methods import METHODS
from rankscope.training.model import HEADS
from rankscope.training.slots import DIFFICULTIES

if TYPE_CHECKING:
    from rankscope.training.config import TrainingConfig

__all__ = ["ConfigError", "check_method", "check_ranges", "out_of_range"]


class ConfigError(RankscopeError, ValueError):
    """An option of a training run that is out of range, unknown, or contradicts another."""


def check_method(config: TrainingConfig) -> None:
    """Raise unless `base`, `method`, `rank` and the options that depend on them go together."""
    _check_choice("method", config.method, tuple(METHODS))
    _check_base(config)
    _check_size(config)
    method = METHODS[config.method]
    of_factors = [name for name in ("alpha", "dropout") if getattr(config, name)]
    if not method.scaled and of_factors:
        raise _contradiction(
            f"--{of_factors[0]} without LoRA or a relative of it",
            "leave it out, or give --rank a number",
        )
    if not method.scaled and config.targets not in (_TARGETS, list(_TARGETS)):
        raise _contradiction(
            f"--targets with --method {method.name}", "leave it out: it has layers of its own"
        )


_TARGETS = ("q", "v")


def _check_base(config: TrainingConfig) -> None:
    size = [name for name in ("layers", "width") if getattr(config, name) is not None]
    new = config.method == "pre-training"
    if config.base is None and not new:
        raise _contradiction(f"--method {config.method} without --base", "add --base RUN")
    if config.base is None and config.rank is not None:
        raise _contradiction("--rank without --base", "add --base RUN, the model to adapt")
    if config.base is not None and new:
        raise _contradiction("--method pre-training with --base", "leave one of the two out")
    if config.base is not None and size:
        raise _contradiction(f"--{size[0]} with --base", "leave it out: the base has its size")


def _check_size(config: TrainingConfig) -> None:
    size = METHODS[config.method].size
    if size == "number" and config.rank is None:
        raise _contradiction("--base without --rank", "add --rank 8, or --rank full")
    fitting = {"none": config.rank is None, "full": config.rank in (None, "full")}
    if not fitting.get(size, config.rank != "full"):
        raise _contradiction(
            f"--rank {config.rank} with --method {config.method}", "leave one of the two out"
        )


def _contradiction(got: str, fix: str) -> ConfigError:
    return ConfigError(
        "the options contradict each other",
        where=got.split()[0],
        expected="no --base, or --base with --rank N, --rank full, or a --method",
        got=got,
        fix=fix,
    )


def check_ranges(config: TrainingConfig) -> None:
    """Raise for the first option out of range."""
    for name, least in _LEAST.items():
        _check_whole(config, name, least)
    for name, (low, high) in _BETWEEN.items():
        value = getattr(config, name)
        if not (_real(value) and low <= value <= high):
            raise out_of_range(name, f"a number from {low:g} to {high:g}", value)
    _check_choice("task", config.task, ("mixture", "sql", "slots"))
    _check_choice("labels", config.labels, ("true", "shuffled"))
    _check_choice("precision", config.precision, ("auto", "bf16", "float32"))
    _check_task(config)
    _check_lists(config)
    _check_rank(config)
    if config.method == "pre-training":
        _check_whole(config, "layers", 1)
        _check_whole(config, "width", HEADS)
        if config.width % HEADS:
            raise out_of_range("width", f"a multiple of {HEADS}", config.width)


def _check_task(config: TrainingConfig) -> None:
    if config.task == "slots":
        _check_choice("difficulty", config.difficulty, tuple(DIFFICULTIES))
    elif config.difficulty is not None:
        raise _conflict("--difficulty", f"--task {config.task}", "slots")
    if config.task == "mixture" and config.labels == "shuffled":
        raise _conflict("--labels shuffled", "--task mixture", "sql or slots")


def _conflict(option: str, other: str, tasks: str) -> ConfigError:
    return ConfigError(
        "the options contradict each other",
        where=option.split()[0],
        expected=f"{option} with --task {tasks}",
        got=f"{option} with {other}",
        fix="leave it out, or choose another --task",
    )


def _check_rank(config: TrainingConfig) -> None:
    method = METHODS[config.method]
    if method.size == "number":
        _check_whole(config, "rank", 1, other=", or full" if config.method == "LoRA" else "")
    if method.scaled and not (_real(config.alpha) and config.alpha > 0):
        raise out_of_range("alpha", "a number above 0", config.alpha)


_LEAST = {
    "steps": 1,
    "batch": 1,
    "warmup": 0,
    "seed": 0,
    "init_seed": 0,
    "threads": 1,
    "save_every": 1,
    "held_out": 1,
}
_BETWEEN = {
    "lr": (1e-9, 1.0),
    "weight_decay": (0.0, 1.0),
    "clip": (1e-9, 1e9),
    "dropout": (0.0, 0.99),
}


def _check_lists(config: TrainingConfig) -> None:
    targets, save_at, betas = config.targets, config.save_at, config.betas
    if not (isinstance(targets, tuple) and targets and len(set(targets)) == len(targets)):
        raise out_of_range("targets", f"some of {', '.join(TARGETS)}, each once", targets)
    for target in targets:
        _check_choice("targets", target, TARGETS)
    within = range(config.steps + 1)
    if not (isinstance(save_at, tuple) and all(_whole(s) and s in within for s in save_at)):
        raise out_of_range("save_at", f"whole numbers from 0 to --steps {config.steps}", save_at)
    pair = isinstance(betas, tuple) and len(betas) == 2
    if not (pair and all(_real(beta) and 0 <= beta < 1 for beta in betas)):
        raise out_of_range("betas", "two numbers from 0 up to, but not, 1", betas)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(value: object) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


def _check_whole(config: TrainingConfig, name: str, least: int, other: str = "") -> None:
    value = getattr(config, name)
    if not (_whole(value) and value >= least):
        raise out_of_range(name, f"a whole number, {least} or more{other}", value)


def _check_choice(name: str, value: object, options: tuple[object, ...]) -> None:
    if isinstance(value, bool) or value not in options:
        raise out_of_range(name, f"one of {', '.join(map(str, options))}", value)


def out_of_range(name: str, expected: str, got: object) -> ConfigError:
    """Return the error of an option whose value is not `expected`, in the user's flag name."""
    flag = "--" + name.replace("_", "-")
    return ConfigError(
        f"{flag} is out of range",
        where=flag,
        expected=expected,
        got=repr(got),
        fix=f"give {flag} a value in that range",
    )
