"""A model in several GGUF files, as llama.cpp splits them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, final

from torch import Tensor
from typing_extensions import override

from rankscope.errors import SourceError
from rankscope.io.containers.gguf_file import GGUFFile
from rankscope.io.containers.paths import check_inside
from rankscope.io.containers.store import FileStore, TensorInfo, TensorStore

__all__ = ["SplitGGUF", "open_gguf", "part_names"]

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def open_gguf(path: Path) -> TensorStore:
    """Return the tensors of a GGUF file, and of the other parts where it is one of several."""
    file = GGUFFile(path)
    return SplitGGUF(path) if file.split[1] > 1 else file


def part_names(name: str) -> list[str]:
    """Return the names of all parts of a split model; none for any other name.

    Examples
    --------
    >>> part_names("m-00002-of-00002.gguf")
    ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
    """
    match = _NAME.fullmatch(name)
    count = int(match["count"]) if match else 0
    return [f"{match['stem']}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1) if match]


@final
class SplitGGUF(FileStore):
    """All parts of a model, opened from any of them."""

    @cached_property
    def _parts(self) -> list[GGUFFile]:
        names = part_names(self.path.name)
        _, count, tensors = GGUFFile(self.path).split
        if len(names) != count:
            raise self._unfit(f"{count} parts named NAME-00001-of-{count:05}.gguf", self.path.name)
        parts = [GGUFFile(self._part(name)) for name in names]
        for number, part in enumerate(parts):
            if part.split != (number, count, tensors):
                raise self._unfit(
                    f"part {number + 1} of {count}, of {tensors} tensors in all",
                    "{} says: part {} of {}, of {}".format(
                        part.path.name, part.split[0] + 1, *part.split[1:]
                    ),
                )
        return parts

    def _part(self, name: str) -> Path:
        path = self.path.parent / name
        if not path.is_file():
            raise self._unfit(f"{name} beside it", "no such file")
        check_inside(self.path.parent, path)
        return path

    def _unfit(self, expected: str, got: str) -> SourceError:
        return SourceError(
            "a split GGUF model is not whole",
            where=self.label,
            expected=expected,
            got=got,
            fix="download all its parts into one folder, under the names that they had",
        )

    @cached_property
    def _places(self) -> dict[str, GGUFFile]:
        places = {name: part for part in self._parts for name in part.tensors}
        found, expected = sum(len(part.tensors) for part in self._parts), self._parts[0].split[2]
        if not len(places) == found == expected:
            raise self._unfit(f"{expected} tensors, each once", f"{found}, {len(places)} names")
        return places

    @cached_property
    @override
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {name: part.tensors[name] for name, part in self._places.items()}

    @property
    @override
    def metadata(self) -> Mapping[str, str]:
        return self._parts[0].metadata

    @override
    def read(self, name: str) -> Tensor:
        return self._places[name].read(name)

    @property
    @override
    def provenance(self) -> dict[str, Any]:
        return self._parts[0].provenance

    @cached_property
    @override
    def files(self) -> tuple[dict[str, Any], ...]:
        return tuple(part.provenance for part in self._parts)
