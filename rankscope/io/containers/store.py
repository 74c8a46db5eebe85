"""What every container of named tensors offers, and the checks that all share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankscope.errors import SourceError, printable

__all__ = [
    "FileStore",
    "NestedStore",
    "TensorInfo",
    "TensorStore",
    "check_names",
    "describe",
    "file_record",
    "printable",
]

_LONGEST_NAME = 1000
# Dtypes of safetensors that torch packs or lacks.
_PACKED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """The size of the stored numbers."""
        known = getattr(torch, self.dtype, None)
        bits = known.itemsize * 8 if isinstance(known, torch.dtype) else 8
        return self.parameters * _PACKED_BITS.get(self.dtype, bits) // 8

    @property
    def floating(self) -> bool:
        """Whether it holds real numbers: no masks, counters or packed integers."""
        return self.dtype.startswith(("float", "bfloat"))


class TensorStore(ABC):
    """Named tensors that are read one at a time.

    Attributes
    ----------
    label : str
        Where they lie, for messages: a path, or what kind of object.
    """

    label: str

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor's dtype and shape, in the container's order."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the container says of itself."""
        return {}

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Return one tensor as it is stored."""

    @property
    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """``path``, ``bytes`` and ``sha256`` of the header."""

    @property
    def files(self) -> tuple[dict[str, Any], ...]:
        """The provenance of every file read, where a container is several."""
        return (self.provenance,)


class FileStore(TensorStore):
    """Named tensors of one file; picklable, it opens again where it is used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = printable(str(path))

    def __getstate__(self) -> dict[str, Any]:
        # Open handles and what was read through them stay in this process, and another one may
        # have another working folder.
        return {"path": self.path.absolute(), "label": self.label}


class NestedStore(FileStore):
    """A file that may hold several models side by side; `nest` is the key of the one meant."""

    def __init__(self, path: Path, nest: str | None = None) -> None:
        super().__init__(path)
        self.nest = nest
        if nest is not None:
            self.label = printable(f"{path}::{nest}")

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"nest": self.nest}

    @property
    def which(self) -> dict[str, str]:
        """What the provenance says beside the file, as two models of it share its header."""
        return {} if self.nest is None else {"nest": self.nest}


def describe(content: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """Return what a header would say of tensors that are loaded."""
    return {
        name: TensorInfo(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in content.items()
    }


def file_record(path: Path, digest: Any) -> dict[str, Any]:
    """Return the provenance of a file whose header has been hashed."""
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def check_names(names: Iterable[str], label: str) -> None:
    """Refuse names that would command a terminal, reverse a line of text, or take hours to read.

    Raises
    ------
    SourceError
        If a name holds control or formatting characters, or is longer than any path.
    """
    for name in names:
        if len(name) > _LONGEST_NAME:
            raise SourceError(
                "the name of a tensor is too long",
                where=label,
                expected=f"at most {_LONGEST_NAME} characters",
                got=f"{len(name)}, which begin {printable(name[:60])!r}",
                fix="do not trust this file; no training library writes such names",
            )
        if not name.isprintable():
            raise SourceError(
                "the name of a tensor holds control characters",
                where=label,
                expected="names of printable characters",
                got=printable(name)[:200],
                fix="do not trust this file; no training library writes such names",
            )
