"""The weights of a run, read back from its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rankscope.errors import SourceError, os_reason
from rankscope.training.model import GPT, Architecture, model_of, weight_shapes

__all__ = ["load_model", "owned", "read_tensors", "sha256_of"]


def load_model(folder: str | Path) -> GPT:
    """Return the model that a run wrote to `folder`, pre-trained or fully fine-tuned.

    Raises
    ------
    SourceError
        If ``model.safetensors`` is missing, damaged, or holds another kind of model.
    """
    path = Path(folder) / "model.safetensors"
    tensors = read_tensors(path)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    architecture = _architecture(found)
    differing = sorted(dict(weight_shapes(architecture).items() ^ found.items()))
    if differing:
        _refuse(path, f"{len(differing)} tensors that differ, first {differing[0]!r}")
    return model_of(architecture, {name: owned(tensor) for name, tensor in tensors.items()})


def _architecture(shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """Return the size that the named shapes speak of, or the default where they do not."""
    width = shapes.get("norm.weight", (0,))[-1]
    layers = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    return Architecture(layers, width) if layers and width else Architecture()


def owned(tensor: Tensor) -> Tensor:
    """Return a float32 copy: a tensor read from a file may lie in the file's own pages."""
    return tensor.to(torch.float32, copy=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that a run wrote.

    Raises
    ------
    SourceError
        If it is missing or damaged.
    """
    if not path.is_file():
        _refuse(path, "no such file")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        got = os_reason(error) if isinstance(error, OSError) else str(error)
        _refuse(path, got, error)


def _refuse(path: Path, got: str, error: Exception | None = None) -> NoReturn:
    raise SourceError(
        "no model of this trainer is there",
        where=str(path),
        expected=f"{path.name} as `rankscope train` writes it",
        got=got,
        fix="give the folder of a finished run; a base is one that wrote its whole model",
    ) from error


def sha256_of(path: Path) -> str:
    """Return the hexadecimal digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
