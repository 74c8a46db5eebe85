"""How much of a GGUF file's header is read: what a model needs, and no more."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

__all__ = ["bounded_reader"]

_FIELDS = 100_000
_TENSORS = 1_000_000
_WORDS = 5_000_000
_TEXT = 10_000_000
_DIMENSIONS = 4


@cache
def bounded_reader(library: Any) -> Any:
    """Return a subclass of gguf's reader that makes no list of what the header counts.

    A few bytes can claim a billion entries. The library's own reads fewer from a short file,
    and would make an object of each from a sparse one; of arrays, which hold the vocabulary,
    only the extent is found here.
    """
    return type(
        "Bounded",
        (library.GGUFReader,),
        {
            "_get": _get,
            "_get_field_parts": _field_parts,
            "_build_fields": _counted("_build_fields", _FIELDS),
            "_build_tensor_info": _counted("_build_tensor_info", _TENSORS),
            "_library": library,
        },
    )


def _get(
    reader: Any, offset: int, dtype: Any, count: int = 1, override_order: str | None = None
) -> Any:
    """Return numbers of the file, or raise at its end."""
    in_header = getattr(reader, "data_offset", None) is None
    limit = _TEXT if dtype is np.uint8 else _DIMENSIONS
    end = int(offset) + np.dtype(dtype).itemsize * int(count)
    if end > len(reader.data) or (in_header and count > limit):
        raise IndexError(f"{int(count):,} entries that the file does not have")
    part = reader.data[int(offset) : end].view(dtype)
    return part.view(part.dtype.newbyteorder(override_order or reader.byte_order))


def _counted(name: str, limit: int) -> Any:
    def method(reader: Any, offset: int, count: int) -> Any:
        if int(count) > limit:
            raise ValueError(f"{int(count):,} entries, more than {limit:,}")
        return getattr(reader._library.GGUFReader, name)(reader, offset, count)

    return method


def _field_parts(reader: Any, offset: int, kind: int) -> Any:
    """Return a field's size, its parts, which of them are its content, and its types."""
    library = reader._library
    if library.GGUFValueType(kind) != library.GGUFValueType.ARRAY:
        return library.GGUFReader._get_field_parts(reader, offset, kind)
    own = library.GGUFValueType(reader._get(offset, np.uint32)[0])
    count = int(reader._get(offset + 4, np.uint64)[0])
    size = 12 + _extent(reader, offset + 12, own, count)
    if offset + size > len(reader.data):
        raise IndexError(f"{count:,} entries that the file does not have")
    return size, [], [], [library.GGUFValueType.ARRAY, own]


def _extent(reader: Any, start: int, kind: Any, count: int) -> int:
    """Return how many bytes the entries of an array take."""
    if kind in reader.gguf_scalar_to_np:
        return int(np.dtype(reader.gguf_scalar_to_np[kind]).itemsize) * count
    if kind != reader._library.GGUFValueType.STRING or count > _WORDS:
        raise ValueError(f"an array of {count:,} entries of the type {kind.name}")
    content, at = memoryview(reader.data), start
    for _ in range(count):
        length = content[at : at + 8]
        at += 8 + int.from_bytes(length, "little" if reader.byte_order == "I" else "big")
        if at > len(content):
            raise IndexError(f"{count:,} entries that the file does not have")
    return at - start
