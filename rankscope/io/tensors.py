"""Named tensors of any container, read one at a time: header first, numbers when asked."""

from __future__ import annotations

import hashlib
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from rankscope.errors import SourceError, os_reason

__all__ = ["SafetensorsFile", "StateDict", "TensorInfo", "TensorStore", "TorchFile", "open_store"]

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "int8": 1, "uint8": 1, "bool": 1}


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """The number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        """The size of the stored numbers."""
        width = _BYTES.get(self.dtype, 1 if "float8" in self.dtype else 2)
        return self.parameters * width

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


@final
class SafetensorsFile(TensorStore):
    """One safetensors file, memory-mapped; picklable, it opens again where it is used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = str(path)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "label": self.label}

    @cached_property
    def _file(self) -> Any:
        try:
            return safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise SourceError(
                "not a readable safetensors file",
                where=self.label,
                expected="a complete safetensors file",
                got=str(error).lower(),
                fix="copy or download the file again; it is damaged or cut short",
            ) from error

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
        with self.path.open("rb") as file:
            length = file.read(8)
            header = length + file.read(int.from_bytes(length, "little"))
        return _file_record(self.path, hashlib.sha256(header))


@final
class TorchFile(TensorStore):
    """A ``torch.save`` archive of tensors, loaded without executing anything in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = str(path)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "label": self.label}

    @cached_property
    def _content(self) -> dict[str, Tensor]:
        try:
            mapped = zipfile.is_zipfile(self.path)
            content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # torch.load raises whatever the damaged bytes provoke
            raise SourceError(
                "not a readable torch file",
                where=self.label,
                expected="a torch.save archive that holds tensors only",
                got=(str(error).strip() or type(error).__name__).splitlines()[0][:200],
                fix="save a plain state dict again, best as safetensors; nothing was executed",
            ) from error
        return _checked_state_dict(content, self.label)

    @cached_property
    @override
    def tensors(self) -> Mapping[str, TensorInfo]:
        return _describe(self._content)

    @override
    def read(self, name: str) -> Tensor:
        return self._content[name]

    @cached_property
    @override
    def provenance(self) -> dict[str, Any]:
        if zipfile.is_zipfile(self.path):
            with zipfile.ZipFile(self.path) as archive:
                # The pickle names every tensor, shape and dtype: the archive's header.
                name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                return _file_record(self.path, hashlib.sha256(archive.read(name)))
        with self.path.open("rb") as file:
            return _file_record(self.path, hashlib.file_digest(file, "sha256"))


@final
class StateDict(TensorStore):
    """Tensors that are already in memory."""

    def __init__(self, content: Mapping[str, Tensor], label: str) -> None:
        self.label = label
        self._content = _checked_state_dict(content, label)

    @cached_property
    @override
    def tensors(self) -> Mapping[str, TensorInfo]:
        return _describe(self._content)

    @override
    def read(self, name: str) -> Tensor:
        return self._content[name].detach()

    @cached_property
    @override
    def provenance(self) -> dict[str, Any]:
        header = repr([(n, i.dtype, i.shape) for n, i in self.tensors.items()]).encode()
        size = sum(info.bytes for info in self.tensors.values())
        return {"path": None, "bytes": size, "sha256": hashlib.sha256(header).hexdigest()}


def open_store(path: Path) -> TensorStore:
    """Return the tensors of a file, by what its first bytes say and not by its name.

    Raises
    ------
    SourceError
        If the file is missing, empty, unreadable, or no container of tensors.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise SourceError(
            "cannot open the file",
            where=str(path),
            expected="a file that can be read",
            got=os_reason(error),
            fix="check the path and its permissions",
        ) from error
    store: TensorStore
    if head[:2] == b"PK" or head[:1] == b"\x80":
        store = TorchFile(path)
    elif head[8:9] == b"{" or path.suffix == ".safetensors":
        _check_not_empty(path, head)
        store = SafetensorsFile(path)
    else:
        _check_not_empty(path, head)
        raise SourceError(
            "not a file of tensors",
            where=str(path),
            expected="safetensors, or a torch.save archive (.bin, .pt, .pth)",
            got=f"a file that begins with {head!r}",
            fix="name the adapter or checkpoint itself, or the folder that holds it",
        )
    store.tensors  # noqa: B018 - a damaged header is found here, not in the middle of the work
    return store


def _check_not_empty(path: Path, head: bytes) -> None:
    if not head:
        raise SourceError(
            "the file is empty",
            where=str(path),
            expected="a file of tensors",
            got="0 bytes",
            fix="copy or download the file again",
        )


def _checked_state_dict(content: object, label: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict; other entries (step counters and the like) are left."""
    tensors = (
        {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise SourceError(
            "no tensors found",
            where=label,
            expected="a flat dictionary from names to tensors",
            got=type(content).__name__,
            fix="pass model.state_dict(), or the dictionary inside the checkpoint",
        )
    return tensors


def _describe(content: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in content.items()
    }


def _file_record(path: Path, digest: Any) -> dict[str, Any]:
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": digest.hexdigest()}
