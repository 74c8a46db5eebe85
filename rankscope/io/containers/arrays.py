"""NumPy archives (``.npz``), as JAX and early MLX code writes weights."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from functools import cached_property
from typing import IO, Any, final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from rankscope.errors import SourceError
from rankscope.io.containers.archive import check_sizes
from rankscope.io.containers.store import (
    FileStore,
    TensorInfo,
    file_record,
    printable,
)

__all__ = ["ArraysFile"]

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@final
class ArraysFile(FileStore):
    """A NumPy archive; arrays are unpacked one at a time, Python objects never."""

    @cached_property
    @override
    def tensors(self) -> Mapping[str, TensorInfo]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                check_sizes(archive, self.path.stat().st_size, self.label)
                return {
                    member.filename.removesuffix(".npy"): _header(archive, member)
                    for member in archive.infolist()
                    if member.filename.endswith(".npy")
                }
        except SourceError:
            raise
        except Exception as error:  # zipfile and NumPy raise whatever damaged bytes provoke
            raise self._unreadable(error) from error

    @override
    def read(self, name: str) -> Tensor:
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                array = arrays[name].copy(order="C")
        except Exception as error:  # as above
            raise self._unreadable(error) from error
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))

    @cached_property
    @override
    def provenance(self) -> dict[str, Any]:
        header = repr([(n, i.dtype, i.shape) for n, i in self.tensors.items()]).encode()
        return file_record(self.path, hashlib.sha256(header))

    def _unreadable(self, error: Exception) -> SourceError:
        return SourceError(
            "not a readable NumPy archive",
            where=self.label,
            expected="an .npz of plain arrays",
            got=printable(str(error) or type(error).__name__)[:200],
            fix="save it again with numpy.savez; nothing was executed",
        )


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> TensorInfo:
    with archive.open(member) as file:
        shape, dtype = _shape_and_dtype(file)
        start = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{member.filename!r} holds Python objects")
    info = TensorInfo(dtype.name, shape)
    # Before anything is allocated: the shape is a claim, the member's size is not.
    if info.parameters * dtype.itemsize != member.file_size - start:
        raise ValueError(f"{member.filename!r} is not as large as its shape {shape}")
    return info


def _shape_and_dtype(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the array format")
    shape, _, dtype = _HEADERS[version](file)
    return shape, dtype
