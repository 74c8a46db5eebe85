"""One safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from rankscope.errors import SourceError
from rankscope.io.containers.header import DTYPES, unique
from rankscope.io.containers.store import (
    FileStore,
    TensorInfo,
    file_record,
    printable,
)

__all__ = ["SafetensorsFile"]


@final
class SafetensorsFile(FileStore):
    """One safetensors file, memory-mapped; picklable, it opens again where it is used."""

    @cached_property
    def _file(self) -> Any:
        try:
            file = safe_open(self.path, framework="pt")
            stat = self.path.stat()
            _check_unique(self.path, stat.st_size, stat.st_mtime_ns)
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise SourceError(
                "not a readable safetensors file",
                where=self.label,
                expected="a complete safetensors file",
                got=printable(str(error).lower())[:200],
                fix="copy or download the file again; it is damaged or cut short",
            ) from error
        return file

    @cached_property
    @override
    def tensors(self) -> Mapping[str, TensorInfo]:
        file = self._file
        parts = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118 - no dict
        return {
            name: TensorInfo(
                DTYPES.get(part.get_dtype(), part.get_dtype()), tuple(part.get_shape())
            )
            for name, part in parts
        }

    @property
    @override
    def metadata(self) -> Mapping[str, str]:
        return dict(self._file.metadata() or {})

    @override
    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    @cached_property
    @override
    def provenance(self) -> dict[str, Any]:
        return file_record(self.path, hashlib.sha256(_header(self.path)))


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(int.from_bytes(length, "little"))


@lru_cache(maxsize=1024)
def _check_unique(path: Path, size: int, changed: int) -> None:
    # The library keeps the last of two entries of one name; which was meant is unknown. A worker
    # opens a file for every module anew: once for as long as it is the same is enough.
    json.loads(_header(path)[8:], object_pairs_hook=unique)
