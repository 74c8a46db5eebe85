"""One GGUF file, as llama.cpp reads them; needs the package ``gguf``."""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from rankscope.errors import SourceError
from rankscope.io.containers.gguf_header import bounded_reader
from rankscope.io.containers.store import (
    FileStore,
    TensorInfo,
    TensorStore,
    file_record,
    printable,
)

__all__ = ["GGUFFile", "check_no_stacks"]

# Everything else is dequantised to float32.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
_SPLIT = ("split.no", "split.count", "split.tensors.count")
_STACK = "_exps.weight"


@final
class GGUFFile(FileStore):
    """One GGUF file, memory-mapped; quantised tensors are computed when they are read.

    Names are those of the file, shapes those of the checkpoint that it was converted from.
    """

    @cached_property
    def _library(self) -> Any:
        try:
            return importlib.import_module("gguf")
        except ImportError as error:
            raise SourceError(
                "a GGUF file needs a package that is not installed",
                where=self.label,
                expected="the package gguf, 0.17 or later",
                got=str(error),
                fix="pip install 'rankscope[gguf]'",
            ) from error

    @cached_property
    def _reader(self) -> Any:
        bounded = bounded_reader(self._library)
        try:
            reader = bounded(self.path)
            for tensor in reader.tensors:
                self._check_extent(tensor)
        except Exception as error:  # gguf raises whatever damaged bytes provoke
            raise self._unreadable(error) from error
        if reader.byte_order != "I":
            raise SourceError(
                "this GGUF file is not read",
                where=self.label,
                expected="a little-endian file",
                got="big-endian",
                fix="convert it with gguf_convert_endian.py of llama.cpp",
            )
        return reader

    @property
    def split(self) -> tuple[int, int, int]:
        """Which part it is, from 0, of how many, and how many tensors all have."""
        fields = self._reader.fields
        try:
            numbers = [int(fields[key].contents()) if key in fields else 0 for key in _SPLIT]
        except (ValueError, TypeError) as error:
            raise self._unreadable(error) from error
        return numbers[0], numbers[1], numbers[2]

    def _check_extent(self, tensor: Any) -> None:
        # In Python's numbers: the library's product of the dimensions can wrap around.
        count = math.prod(map(int, tensor.shape))
        end = int(tensor.data_offset) + int(tensor.n_bytes)
        if count != int(tensor.n_elements) or end > self.path.stat().st_size:
            raise ValueError(f"tensor {tensor.name!r} reaches beyond the file")

    @cached_property
    def _by_name(self) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in self._reader.tensors}

    @cached_property
    @override
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(_DTYPES.get(tensor.tensor_type.name, "float32"), _shape(tensor))
            for name, tensor in self._by_name.items()
        }

    @cached_property
    @override
    def metadata(self) -> Mapping[str, str]:
        # Arrays hold the vocabulary: long, and of no use here.
        single = {n: f for n, f in self._reader.fields.items() if len(f.types) == 1}
        try:
            return {printable(name): printable(str(f.contents())) for name, f in single.items()}
        except ValueError as error:
            raise self._unreadable(error) from error

    @override
    def read(self, name: str) -> Tensor:
        tensor = self._by_name[name]
        dtype = self.tensors[name].dtype
        try:
            if dtype in ("float32", "bfloat16"):
                with np.errstate(all="ignore"):  # scales that are not finite are found later
                    array = self._library.quants.dequantize(tensor.data, tensor.tensor_type)
            else:
                array = tensor.data
            # A copy: the map is read-only, and closes with the reader.
            return torch.from_numpy(np.array(array).reshape(_shape(tensor))).to(
                getattr(torch, dtype)
            )
        except (NotImplementedError, ValueError, IndexError, KeyError) as error:
            raise SourceError(
                "a tensor of the GGUF file cannot be dequantised",
                where=f"{self.label}, tensor {name!r}",
                expected="a type that the installed gguf knows",
                got=tensor.tensor_type.name,
                fix="pip install --upgrade gguf, or convert the file to f16",
            ) from error

    @cached_property
    @override
    def provenance(self) -> dict[str, Any]:
        with self.path.open("rb") as file:
            header = file.read(int(self._reader.data_offset))
        return file_record(self.path, hashlib.sha256(header))

    def _unreadable(self, error: Exception) -> SourceError:
        return SourceError(
            "not a readable GGUF file",
            where=self.label,
            expected="a complete GGUF file of version 2 or 3",
            got=printable(str(error) or type(error).__name__)[:200],
            fix="copy or download the file again; it is damaged or cut short",
        )


def check_no_stacks(store: TensorStore) -> None:
    """Refuse to take a GGUF file's stacks of experts for matrices of their own.

    Raises
    ------
    SourceError
        If the checkpoint has any.
    """
    stacks = [name for name in store.tensors if name.endswith(_STACK)]
    if stacks:
        raise SourceError(
            "stacked experts of a GGUF file are not compared",
            where=f"{store.label}, tensor {stacks[0]!r}",
            expected="one matrix per tensor, or an adapter of such a model",
            got=f"{len(stacks)} stacks of experts",
            fix="compare the checkpoints that the files were converted from",
        )


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in reversed(tensor.shape.tolist()))
