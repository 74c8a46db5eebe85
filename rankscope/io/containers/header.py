"""The header of a safetensors file that is not here: read and checked without the file.

The safetensors library checks files that it opens; this makes the same demands, and that no
name comes twice.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from rankscope.io.containers.store import TensorInfo

__all__ = ["DTYPES", "Entry", "Header", "parse_header", "unique"]

DTYPES = {
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
# What torch can hold beside them, the first of which is packed by two.
_HELD = DTYPES | {
    "F4": "float4_e2m1fn_x2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_WORD = 2**64


@dataclass(frozen=True)
class Entry:
    """One tensor: its stored type and shape, and where it lies behind the header."""

    code: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def info(self) -> TensorInfo:
        """Its dtype and shape, as the library tells them."""
        return TensorInfo(DTYPES.get(self.code, self.code), self.shape)

    def tensor(self, content: bytearray) -> Tensor:
        """Return the tensor of these bytes, which are its memory from now on.

        Raises
        ------
        ValueError
            If this torch has no such type.
        """
        dtype = getattr(torch, _HELD.get(self.code, ""), None)
        if dtype is None:
            raise ValueError(f"numbers of the type {self.code}")
        shape = self.shape
        if self.code == "F4":
            shape = (*shape[:-1], shape[-1] // 2)
        if not content:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(content, dtype=torch.uint8).view(dtype).reshape(shape)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself.

    Attributes
    ----------
    entries : dict
        Every tensor, in the order in which they lie.
    metadata : dict
        Words about the file.
    length : int
        Bytes before the first tensor.
    size : int
        Bytes of the whole file.
    sha256 : str
        Of the bytes before the first tensor.
    """

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    length: int
    size: int
    sha256: str


def parse_header(content: bytes, size: int) -> Header:
    """Return the header of a file of `size` bytes that begins with `content`.

    Parameters
    ----------
    content : bytes
        The first eight bytes and all of the header that they tell the length of.
    size : int
        Of the whole file, in bytes.

    Raises
    ------
    ValueError
        If it is no JSON object of tensors that lie one behind the other, without holes, up to
        the end of the file, each as large as its shape and type.
    """
    if content[8:9] != b"{":
        raise ValueError("no header")
    fields = json.loads(content[8:].decode("utf-8"), object_pairs_hook=unique)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("metadata that is not words")
    entries = {name: _entry(name, field) for name, field in fields.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = 0
    for name, entry in ordered.items():
        if entry.start != end:
            raise ValueError(f"{name!r} begins at {entry.start}, where {end} is free")
        end = entry.stop
    if end != size - len(content):
        raise ValueError(f"tensors of {end:,} bytes in {size - len(content):,}")
    return Header(ordered, metadata, len(content), size, hashlib.sha256(content).hexdigest())


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, or raise a `ValueError` if two entries have one name.

    Which of the two was meant is unknown; the library keeps the last.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        name, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{count} entries named {name!r}")
    return content


def _entry(name: str, field: Any) -> Entry:
    if not isinstance(field, dict):
        raise ValueError(f"{name!r} is no tensor")
    code, shape, offsets = field.get("dtype"), field.get("shape"), field.get("data_offsets")
    if not isinstance(code, str) or code not in _BITS:
        raise ValueError(f"{name!r} is of the type {code!r}")
    if not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r} has no shape and offsets")
    bits = _BITS[code]
    for n in shape:
        bits *= n
        # Also where a later 0 makes it small again: such a shape is no tensor's.
        if bits >= 8 * _WORD:
            raise ValueError(f"{name!r} is too large")
    start, stop = offsets
    if bits % 8 or stop - start != bits // 8:
        raise ValueError(f"{name!r} takes {bits / 8:g} bytes, not those from {start} to {stop}")
    return Entry(code, tuple(shape), start, stop)


def _is_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < _WORD for n in value)
