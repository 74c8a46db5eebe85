"""One safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any, final

from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from rankscope.errors import SourceError
from rankscope.io.containers.store import (
    FileStore,
    TensorInfo,
    file_record,
    printable,
)

__all__ = ["SafetensorsFile"]

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


@final
class SafetensorsFile(FileStore):
    """One safetensors file, memory-mapped; picklable, it opens again where it is used."""

    @cached_property
    def _file(self) -> Any:
        try:
            file = safe_open(self.path, framework="pt")
            self._check_unique()
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
                _DTYPES.get(part.get_dtype(), part.get_dtype()), tuple(part.get_shape())
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
        return file_record(self.path, hashlib.sha256(self._header()))

    def _header(self) -> bytes:
        with self.path.open("rb") as file:
            length = file.read(8)
            return length + file.read(int.from_bytes(length, "little"))

    def _check_unique(self) -> None:
        # The library keeps the last of two entries of one name; which was meant is unknown.
        json.loads(self._header()[8:], object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        name, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{count} entries named {name!r}")
    return content
