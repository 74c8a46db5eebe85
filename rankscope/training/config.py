"""The configuration of a training run: one frozen value, checked when it is made."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from rankscope.errors import SourceError, os_reason
from rankscope.training.checks import ConfigError, check_method, check_ranges
from rankscope.training.data import Labels, Task
from rankscope.training.methods import METHODS, MethodName
from rankscope.training.model import Architecture
from rankscope.training.slots import USUAL_DIFFICULTY

__all__ = ["ConfigError", "Precision", "Rank", "TrainingConfig", "native_bfloat16"]

Precision: TypeAlias = Literal["auto", "bf16", "float32"]
Rank: TypeAlias = int | Literal["full"] | None

# The default of a field whose value is chosen, when the configuration is made, from the others.
_CHOSEN: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Everything that the bits of a training run depend on, but the machine.

    Fields left out are chosen from the others and then stand in the value, so that what is
    written with a run is complete. Without `base` a new model is pre-trained; with it, a whole
    `rank` trains adapters, ``rank="full"`` all weights, and `method` may name another way.

    Parameters
    ----------
    task : {"mixture", "sql", "slots"}
        The language; by default the mixture for pre-training and SQL with a `base`.
    difficulty : {1, 2, 3}
        Of slots alone; 2 by default.
    labels : {"true", "shuffled"}
        Shuffled, every answer of the training is another question's; evaluation stays true.
    base : str, optional
        Folder of an earlier run to start from.
    method : str
        The way of training, a name in ``METHODS``; by default what `base` and `rank` say.
    rank : int or "full", optional
        Goes with `base`: r, a bottleneck's width, or a prefix's length; bias, last and IA3 have
        none.
    alpha : float
        LoRA's scale is alpha/rank; equal to `rank` by default, which is scale 1.
    dropout : float
        On the inputs of A, in [0, 1).
    targets : tuple of str
        The layers that LoRA and its relatives adapt, of q, k, v, o, up, down.
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
        Of data and dropout.
    init_seed : int
        Of what begins at random: a new model's weights, the factors A; `seed` by default.
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
    difficulty: int | None = _CHOSEN
    labels: Labels = "true"
    base: str | None = None
    method: MethodName = _CHOSEN
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
    init_seed: int = _CHOSEN
    save_at: tuple[int, ...] = ()
    save_every: int = 50
    held_out: int = 256
    precision: Precision = "auto"
    threads: int = _CHOSEN
    layers: int = _CHOSEN
    width: int = _CHOSEN

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", _method(self))
        check_method(self)
        for name, value in (_plain(self) | _choices(self)).items():
            object.__setattr__(self, name, value)
        check_ranges(self)

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


def _method(config: TrainingConfig) -> MethodName:
    if config.method is not _CHOSEN:
        return config.method
    if config.base is None:
        return "pre-training"
    return "full" if config.rank == "full" else "LoRA"


def _choices(config: TrainingConfig) -> dict[str, Any]:
    """Return a value for every field that was left out, and the machine's for "auto"."""
    method = METHODS[config.method]
    chosen = {
        "task": "sql" if config.base else "mixture",
        "difficulty": USUAL_DIFFICULTY if config.task == "slots" else None,
        "rank": "full" if method.size == "full" else None,
        "alpha": method.alpha(config.rank)
        if method.scaled and isinstance(config.rank, int)
        else None,
        "steps": method.steps,
        "batch": method.batch,
        "lr": method.lr,
        "lr_reason": method.reason if config.lr is _CHOSEN else "given by the user",
        "init_seed": config.seed,
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
