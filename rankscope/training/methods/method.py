"""What every way of training has to say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from rankscope.errors import SourceError
from rankscope.io.write import write_tensors
from rankscope.training.model import GPT
from rankscope.training.weights import read_tensors

if TYPE_CHECKING:
    from rankscope.training.config import TrainingConfig

__all__ = ["Method", "MethodName", "trained"]

MethodName: TypeAlias = Literal[
    "pre-training",
    "full",
    "LoRA",
    "rsLoRA",
    "DoRA",
    "LoRA+",
    "QLoRA",
    "bias",
    "last",
    "IA3",
    "bottleneck",
    "prefix",
]


def trained(model: GPT) -> dict[str, torch.nn.Parameter]:
    """Return the weights of a prepared model that are trained, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


class Method:
    """A way of training a model: what it changes and trains, its rates, and its files.

    Attributes
    ----------
    name : str
    size : {"none", "number", "full"}
        What `rank` is: left out, a number that sizes what is added, or "full".
    scaled : bool
        Whether `alpha`, `dropout` and `targets` mean something.
    steps, batch, lr : numbers
        Chosen unless they are given.
    reason : str
        Why `lr` is what it is.
    file : str
        Where the weights are written.
    """

    name: ClassVar[MethodName]
    size: ClassVar[Literal["none", "number", "full"]] = "none"
    scaled: ClassVar[bool] = False
    steps: ClassVar[int] = 400
    batch: ClassVar[int] = 16
    lr: ClassVar[float]
    reason: ClassVar[str]
    file: ClassVar[str] = "method.safetensors"

    def alpha(self, rank: int) -> float:
        """Return the alpha of a `rank` unless one is given."""
        return float(rank)

    def prepare(self, model: GPT, config: TrainingConfig) -> None:
        """Change `model` in place, so that exactly what is to be trained requires a gradient."""
        raise NotImplementedError

    def rate(self, name: str) -> float:
        """Return how many times `lr` the rate of the trained weight `name` is."""
        return 1.0

    def tensors(self, model: GPT) -> Mapping[str, Tensor]:
        """Return what is written of a prepared `model`, sharing its memory."""
        return {name: weight.detach() for name, weight in trained(model).items()}

    def write(self, folder: Path, model: GPT, config: TrainingConfig) -> None:
        """Write the weights to `folder`."""
        write_tensors(folder / self.file, self.tensors(model))

    @torch.no_grad()
    def load(self, folder: Path, model: GPT) -> None:
        """Put the weights that were written to `folder` into a prepared `model`.

        Raises
        ------
        SourceError
            If the file is missing, damaged, or of another model or method.
        """
        path = folder / self.file
        found, wanted = read_tensors(path), self.tensors(model)
        differing = sorted(
            name
            for name in found.keys() | wanted.keys()
            if name not in found or name not in wanted or found[name].shape != wanted[name].shape
        )
        if differing:
            raise SourceError(
                "the weights are of another model or method",
                where=str(path),
                expected=f"the tensors of a run with --method {self.name}",
                got=f"{len(differing)} tensors that differ, first {differing[0]!r}",
                fix="give the folder as it was written",
            )
        for name, tensor in wanted.items():
            tensor.copy_(found[name])
