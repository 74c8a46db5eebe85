"""A checkpoint in several files, with the index that says which tensor lies in which."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, final

from torch import Tensor
from typing_extensions import override

from rankscope.errors import SourceError, os_reason
from rankscope.io.containers.paths import check_inside
from rankscope.io.containers.safetensors_file import SafetensorsFile
from rankscope.io.containers.store import (
    FileStore,
    TensorInfo,
    TensorStore,
    file_record,
    printable,
)
from rankscope.io.containers.torch_file import TorchFile

__all__ = ["INDEX_SUFFIXES", "Sharded"]

# From the shards' names to the shards.
_Opener = Callable[[Iterable[str]], Mapping[str, TensorStore]]

_READERS: dict[str, Callable[[Path], TensorStore]] = {
    ".safetensors.index.json": SafetensorsFile,
    ".bin.index.json": TorchFile,
}
INDEX_SUFFIXES = tuple(_READERS)
_INDEX_BYTES = 10_000_000
_SHARDS = 10_000


@final
class Sharded(FileStore):
    """The shards that an index lists; what else lies in the folder is not looked at.

    Parameters
    ----------
    path : Path
        The index.
    shards : callable, optional
        From the shards' names to the shards by name, where they do not lie beside the index.
    """

    def __init__(self, path: Path, shards: _Opener | None = None) -> None:
        super().__init__(path)
        self._open = shards

    @override
    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_open": self._open}

    @cached_property
    def _index(self) -> dict[str, str]:
        try:
            return _weight_map(self.path)
        except (OSError, ValueError, RecursionError) as error:
            raise SourceError(
                "the index of a sharded checkpoint cannot be used",
                where=self.label,
                expected="a weight_map from tensors to files in the same folder",
                got=printable(os_reason(error) if isinstance(error, OSError) else str(error))[
                    :200
                ],
                fix="download the index again, or name a single file of the checkpoint",
            ) from error

    @cached_property
    def _shards(self) -> Mapping[str, TensorStore]:
        reader = _READERS[_suffix(self.path)]
        names = sorted(set(self._index.values()))
        if self._open is not None:
            return self._open(names)
        return {name: reader(self._shard(name)) for name in names}

    def _shard(self, name: str) -> Path:
        path = self.path.parent / name
        check_inside(self.path.parent, path)
        if not path.is_file():
            raise SourceError(
                "a shard of the checkpoint is missing",
                where=self.label,
                expected=f"{name} beside the index",
                got="no such file",
                fix="download the missing file",
            )
        return path

    @cached_property
    @override
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {name: self._shards[shard].tensors[name] for name, shard in self._places.items()}

    @cached_property
    def _places(self) -> dict[str, str]:
        """The shard of every tensor: the index decides, unlisted ones lie where they are."""
        found = {name: s for s, store in self._shards.items() for name in store.tensors}
        for name, shard in self._index.items():
            if name not in self._shards[shard].tensors:
                raise SourceError(
                    "the index names a tensor that its shard lacks",
                    where=self.label,
                    expected=f"{name!r} in {shard}",
                    got=f"{len(self._shards[shard].tensors)} other tensors",
                    fix="download the index and the shards again, from one revision",
                )
        return found | self._index

    @property
    @override
    def metadata(self) -> Mapping[str, str]:
        return next(iter(self._shards.values())).metadata

    @override
    def read(self, name: str) -> Tensor:
        return self._shards[self._places[name]].read(name)

    @cached_property
    @override
    def provenance(self) -> dict[str, Any]:
        return file_record(self.path, hashlib.sha256(self.path.read_bytes()))

    @cached_property
    @override
    def files(self) -> tuple[dict[str, Any], ...]:
        return (self.provenance, *(shard.provenance for shard in self._shards.values()))


def _suffix(path: Path) -> str:
    return next(suffix for suffix in INDEX_SUFFIXES if path.name.endswith(suffix))


def _weight_map(path: Path) -> dict[str, str]:
    if path.stat().st_size > _INDEX_BYTES:
        raise ValueError(f"an index of more than {_INDEX_BYTES:,} bytes")
    content = json.loads(path.read_text(encoding="utf-8"))
    index = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(index, dict) or not index:
        raise ValueError("no weight_map")
    shards = set(map(str, index.values()))
    if len(shards) > _SHARDS:
        raise ValueError(f"{len(shards):,} shards, more than {_SHARDS:,}")
    ending = _suffix(path).removesuffix(".index.json")
    for value in index.values():
        if not isinstance(value, str) or not _is_plain(value, ending):
            raise ValueError(f"a shard named {value!r}")
    return index


def _is_plain(name: str, ending: str) -> bool:
    """Whether a name means a file below the folder, on every system."""
    windows = PureWindowsPath(name)
    return (
        not windows.anchor
        and ".." not in windows.parts
        and "\\" not in name
        and name.isprintable()
        and PurePosixPath(name).name.endswith(ending)
    )
