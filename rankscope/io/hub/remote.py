"""A safetensors file that stays on the hub: its header, and ranges of it when asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, final

from torch import Tensor
from typing_extensions import override

from rankscope.errors import SourceError
from rankscope.io.containers.header import Header, parse_header
from rankscope.io.containers.safetensors_file import SafetensorsFile
from rankscope.io.containers.store import TensorInfo, TensorStore, printable
from rankscope.io.hub.ranges import RangesIgnoredError, RemoteFile

__all__ = ["RemoteSafetensors", "open_remote"]

# Most headers are shorter, and come with their length in one answer.
_FIRST = 100_000
_HEADER = 25_000_000
# Tensors that lie together are fetched together up to this size: one request more costs as much.
_BLOCK = 4 * 2**20


def open_remote(file: RemoteFile) -> TensorStore:
    """Return the tensors of a safetensors file on the hub, after reading its header alone.

    The whole file is downloaded where the server does not send parts.

    Raises
    ------
    SourceError
        If the hub refuses or fails, or the header is not that of a whole safetensors file.
    """
    try:
        header = _header(file)
    except RangesIgnoredError:
        return SafetensorsFile(file.download())
    # From here on every answer must be of a file of this size.
    return RemoteSafetensors(replace(file, size=header.size), header)


def _header(file: RemoteFile) -> Header:
    content, size = file.read(0, _FIRST)
    try:
        length = 8 + int.from_bytes(content[:8], "little")
        if length > min(size, _HEADER):
            raise ValueError(f"a header of {length - 8:,} bytes, in a file of {size:,}")
        if length > len(content):
            content += file.read(len(content), length)[0]
        return parse_header(bytes(content[:length]), size)
    except (ValueError, RecursionError) as error:
        raise SourceError(
            "not a readable safetensors file",
            where=file.label,
            expected="a complete safetensors file",
            got=printable(str(error))[:200],
            fix="tell whoever published it; the file is damaged or made to harm",
        ) from error


@final
class RemoteSafetensors(TensorStore):
    """One safetensors file on the hub; picklable, with its header."""

    def __init__(self, file: RemoteFile, header: Header) -> None:
        self.file = file
        self.header = header
        self.label = file.label
        self._last: tuple[tuple[int, int], bytearray] = ((0, 0), bytearray())

    def __getstate__(self) -> dict[str, Any]:
        nothing = ((0, 0), bytearray())
        return {"file": self.file, "header": self.header, "label": self.label, "_last": nothing}

    @cached_property
    @override
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {name: entry.info for name, entry in self.header.entries.items()}

    @property
    @override
    def metadata(self) -> Mapping[str, str]:
        return self.header.metadata

    @override
    def read(self, name: str) -> Tensor:
        entry = self.header.entries[name]
        start, stop = self._blocks[name]
        try:
            block = self._fetched(start, stop)
        except RangesIgnoredError:
            return SafetensorsFile(self.file.download()).read(name)
        try:
            # A copy: the block serves its other tensors, and experts of a stack one by one.
            return entry.tensor(block[entry.start - start : entry.stop - start])
        except ValueError as error:
            raise SourceError(
                "a tensor is of a type that cannot be read",
                where=f"{self.label}, tensor {name!r}",
                expected="a type that the installed torch knows",
                got=str(error),
                fix="install a newer torch, or convert the checkpoint",
            ) from error

    def _fetched(self, start: int, stop: int) -> bytearray:
        """Return the bytes of a block; the last one is kept."""
        place, block = self._last
        if place != (start, stop):
            first = self.header.length
            block = bytearray()
            if stop > start:
                block, _ = self.file.read(first + start, first + stop)
            self._last = (start, stop), block
        return block

    @cached_property
    def _blocks(self) -> dict[str, tuple[int, int]]:
        """Where the block of each tensor begins and ends."""
        groups: list[list[str]] = []
        start = 0
        for name, entry in self.header.entries.items():
            if not groups or entry.stop - start > _BLOCK:
                start = entry.start
                groups.append([])
            groups[-1].append(name)
        entries = self.header.entries
        ends = ((names, (entries[names[0]].start, entries[names[-1]].stop)) for names in groups)
        return {name: place for names, place in ends for name in names}

    @cached_property
    @override
    def provenance(self) -> dict[str, Any]:
        known = {"content_sha256": self.file.digest} if self.file.digest else {}
        return {
            "path": None,
            "address": self.file.pinned,
            "commit": self.file.commit,
            "bytes": self.header.size,
            "sha256": self.header.sha256,
            **known,
        }
