"""The configuration of a training run: one frozen value, checked when it is made."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from rankscope.errors import RankscopeError, SourceError, os_reason
from rankscope.training.data import Task
from rankscope.training.lora import TARGETS
from rankscope.training.model import HEADS, Architecture

__all__ = ["ConfigError", "Precision", "Rank", "TrainingConfig", "native_bfloat16", "out_of_range"]

Precision: TypeAlias = Literal["auto", "bf16", "float32"]
Rank: TypeAlias = int | Literal["full"] | None

# The default of a field whose value is chosen, when the configuration is made, from the others.
_CHOSEN: Any = None


class ConfigError(RankscopeError, ValueError):
    """An option of a training run that is out of range, unknown, or contradicts another."""


class _Method(NamedTuple):
    """What a way of training takes unless it is told otherwise."""

    steps: int
    batch: int
    lr: float
    reason: str


_METHODS = {
    "pre-training": _Method(
        600,
        32,
        2e-3,
        "chosen for pre-training: at this rate 600 steps suffice to learn copying from the "
        "context, upon which adaptation builds",
    ),
    "LoRA": _Method(
        400,
        16,
        8e-4,
        "chosen for LoRA at alpha = rank: several times that of full fine-tuning, because B "
        "begins at zero and few weights move; ranks 8 and 64 both learn the task and end with a "
        "relative norm of the update of about 0.1 to 0.3, at 1e-3 beyond",
    ),
    "full": _Method(
        250,
        16,
        2.5e-4,
        "chosen for full fine-tuning: a third of LoRA's, because every weight moves; the task is "
        "learned to 95 % and the relative norm of the update ends at about 0.05 (q, v) to 0.15 "
        "(down); a tenth of LoRA's would end below that range",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Everything that the bits of a training run depend on, but the machine.

    Fields left out are chosen from the others and then stand in the value, so that what is
    written with a run is complete. Three ways of training: without `base` a new model is
    pre-trained; with it, a whole `rank` trains adapters and ``rank="full"`` trains all weights.

    Parameters
    ----------
    task : {"mixture", "sql"}
        The language; by default the mixture for pre-training and SQL with a `base`.
    base : str, optional
        Folder of an earlier run to start from.
    rank : int or "full", optional
        Goes with `base`.
    alpha : float
        The adapters' scale is alpha/rank; equal to `rank` by default, which is scale 1.
    dropout : float
        On the inputs of A, in [0, 1).
    targets : tuple of str
        The adapted layers, of q, k, v, o, up, down.
    steps, batch : int
        Updates, and rows of 128 characters in each.
    lr : float
        The peak; it rises over `warmup` steps and then falls in a straight line to zero.
    lr_reason : str
        Why `lr` is what it is; written with the run.
    warmup : int
        Steps; a twentieth of `steps` by default.
    weight_decay, betas, clip
        AdamW's, and the largest norm of a gradient.
    seed : int
        Of initial weights, data and dropout.
    save_at : tuple of int
        Keep checkpoints after these numbers of steps; 0 is before the first.
    save_every : int
        Steps between the states from which a killed run resumes.
    held_out : int
        Rows of the evaluation at the end.
    precision : {"auto", "bf16", "float32"}
        Of the products; weights are float32. "auto" is bf16 where the processor has it.
    threads : int
        torch's own choice by default.
    layers, width : int
        The size of a new model; a `base` brings its own.

    Raises
    ------
    ConfigError
        If an option is out of range or contradicts another.

    Examples
    --------
    >>> config = TrainingConfig(base="data/base", rank=8)
    >>> config.task, config.alpha, config.method
    ('sql', 8.0, 'LoRA')
    """

    task: Task = _CHOSEN
    base: str | None = None
    rank: Rank = None
    alpha: float = _CHOSEN
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q", "v")
    steps: int = _CHOSEN
    batch: int = _CHOSEN
    lr: float = _CHOSEN
    lr_reason: str = _CHOSEN
    warmup: int = _CHOSEN
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    seed: int = 0
    save_at: tuple[int, ...] = ()
    save_every: int = 50
    held_out: int = 256
    precision: Precision = "auto"
    threads: int = _CHOSEN
    layers: int = _CHOSEN
    width: int = _CHOSEN

    def __post_init__(self) -> None:
        _check_method(self)
        for name, value in (_plain(self) | _choices(self)).items():
            object.__setattr__(self, name, value)
        _check_ranges(self)

    @property
    def method(self) -> Literal["pre-training", "LoRA", "full"]:
        """How this run trains."""
        if self.base is None:
            return "pre-training"
        return "full" if self.rank == "full" else "LoRA"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields with JSON's types; ``TrainingConfig.from_dict`` is the way back."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, options: Mapping[str, Any], *, where: str = "options") -> TrainingConfig:
        """Return the configuration of named options, such as a run's own record of them.

        Raises
        ------
        ConfigError
            If a name is unknown or a value is out of range.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise ConfigError(
                    f"there is no option {name!r}",
                    where=where,
                    expected=f"one of {', '.join(known)}",
                    got=name,
                    fix=f"write {near[0]!r}" if near else "leave it out",
                )
        return cls(**options)

    @classmethod
    def load(cls, file: str | Path | None = None, **options: Any) -> TrainingConfig:
        """Return the configuration of a TOML file; `options` that are not None go before it.

        Parameters
        ----------
        file : path, optional
            Names and values as in the parameters of this class, without sections.
        **options
            As on the command line.

        Raises
        ------
        SourceError
            If the file cannot be read or is no TOML.
        ConfigError
            As for `from_dict`.
        """
        given = {name: value for name, value in options.items() if value is not None}
        return cls.from_dict(
            {**(_read_toml(Path(file)) if file else {}), **given},
            where=str(file) if file else "options",
        )


def native_bfloat16() -> bool:
    """Return whether this processor multiplies bfloat16 itself; elsewhere it is slower.

    torch has no public name for the question, and its private ones differ between releases.
    """
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SourceError(
            "cannot read the configuration",
            where=str(path),
            expected="a TOML file of options such as: rank = 8",
            got=os_reason(error) if isinstance(error, OSError) else str(error),
            fix="check the path and the line named above",
        ) from error


def _choices(config: TrainingConfig) -> dict[str, Any]:
    """Return a value for every field that was left out, and the machine's for "auto"."""
    method = _METHODS[config.method]
    chosen = {
        "task": "sql" if config.base else "mixture",
        "alpha": float(config.rank) if isinstance(config.rank, int) else None,
        "steps": method.steps,
        "batch": method.batch,
        "lr": method.lr,
        "lr_reason": method.reason if config.lr is _CHOSEN else "given by the user",
        "threads": torch.get_num_threads(),
    }
    if config.base is None:
        chosen |= asdict(Architecture())
    chosen = {name: value for name, value in chosen.items() if getattr(config, name) is _CHOSEN}
    if config.warmup is _CHOSEN:
        steps = chosen.get("steps", config.steps)
        chosen["warmup"] = steps // 20 if isinstance(steps, int) else 0
    if config.precision == "auto":
        chosen["precision"] = "bf16" if native_bfloat16() else "float32"
    return chosen


def _plain(config: TrainingConfig) -> dict[str, Any]:
    """Return the fields that came as a path or a list, as the text or tuple they stand for."""
    given = {field.name: getattr(config, field.name) for field in fields(config)}
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    paths = {name: value.as_posix() for name, value in given.items() if isinstance(value, Path)}
    return lists | paths


def _check_method(config: TrainingConfig) -> None:
    """Raise unless `base`, `rank` and the options that depend on them go together."""
    adapters_only = [name for name in ("alpha", "dropout") if getattr(config, name)]
    size = [name for name in ("layers", "width") if getattr(config, name) is not None]
    if config.base is None and config.rank is not None:
        raise _contradiction("--rank without --base", "add --base RUN, the model to adapt")
    if config.base is not None and config.rank is None:
        raise _contradiction("--base without --rank", "add --rank 8, or --rank full")
    if config.base is not None and size:
        raise _contradiction(f"--{size[0]} with --base", "leave it out: the base has its size")
    if not isinstance(config.rank, int) and adapters_only:
        raise _contradiction(
            f"--{adapters_only[0]} without adapters", "leave it out, or give --rank a number"
        )


def _contradiction(got: str, fix: str) -> ConfigError:
    return ConfigError(
        "the options contradict each other",
        where=got.split()[0],
        expected="no --base, or --base with --rank N, or --base with --rank full",
        got=got,
        fix=fix,
    )


def _check_ranges(config: TrainingConfig) -> None:
    """Raise for the first option out of range."""
    for name, least in _LEAST.items():
        _check_whole(config, name, least)
    for name, (low, high) in _BETWEEN.items():
        value = getattr(config, name)
        if not (_real(value) and low <= value <= high):
            raise out_of_range(name, f"a number from {low:g} to {high:g}", value)
    _check_choice("task", config.task, ("mixture", "sql"))
    _check_choice("precision", config.precision, ("auto", "bf16", "float32"))
    _check_lists(config)
    if config.method == "LoRA":
        _check_whole(config, "rank", 1, other=", or full")
        if not (_real(config.alpha) and config.alpha > 0):
            raise out_of_range("alpha", "a number above 0", config.alpha)
    if config.method == "pre-training":
        _check_whole(config, "layers", 1)
        _check_whole(config, "width", HEADS)
        if config.width % HEADS:
            raise out_of_range("width", f"a multiple of {HEADS}", config.width)


_LEAST = {
    "steps": 1,
    "batch": 1,
    "warmup": 0,
    "seed": 0,
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


def _check_choice(name: str, value: object, options: tuple[str, ...]) -> None:
    if value not in options:
        raise out_of_range(name, f"one of {', '.join(options)}", value)


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
