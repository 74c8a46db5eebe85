"""A folder that torch's distributed checkpointing wrote: ``.metadata`` and ``.distcp`` files.

Reading ``.metadata`` executes whatever it says, so it is opened only where that is allowed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from rankscope.errors import SourceError
from rankscope.io.containers.nesting import peeled
from rankscope.io.containers.store import NestedStore, TensorInfo, describe, printable

__all__ = ["DistributedFolder"]


@final
class DistributedFolder(NestedStore):
    """A distributed checkpoint, whose tensors are put together one at a time.

    Opening it executes what its ``.metadata`` says; picklable, whoever gets it was allowed to.

    Parameters
    ----------
    path : Path
        The folder.
    nest : str, optional
        Which of several models in it.
    """

    @cached_property
    def _metadata(self) -> Any:
        try:
            from torch.distributed.checkpoint.filesystem import FileSystemReader

            metadata = FileSystemReader(self.path).read_metadata()
            if not isinstance(metadata.state_dict_metadata, dict):
                raise TypeError("no names of tensors")
            return metadata
        except Exception as error:  # a pickle raises whatever damaged bytes provoke
            raise self._unreadable(error) from error

    @cached_property
    def _names(self) -> dict[str, str]:
        """The checkpoint's own name of every tensor of the model, by the name inside of it."""
        nested: dict[str, Any] = {}
        own: dict[int, str] = {}
        paths = self._metadata.planner_data or {}
        for name, stored in self._metadata.state_dict_metadata.items():
            if hasattr(stored, "size"):
                # Of no memory: it stands for the tensor while its place is looked for.
                tensor = torch.empty(stored.size, dtype=stored.properties.dtype, device="meta")
                own[id(tensor)] = name
                *outer, last = map(str, paths.get(name, (name,)))
                place = nested
                for key in outer:
                    place = place.setdefault(key, {})
                place[last] = tensor
        model = peeled(nested, self.label, self.nest)
        return {name: own[id(tensor)] for name, tensor in model.items()}

    @cached_property
    @override
    def tensors(self) -> Mapping[str, TensorInfo]:
        return describe({name: self._empty(own, "meta") for name, own in self._names.items()})

    @override
    def read(self, name: str) -> Tensor:
        from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        own = self._names[name]
        wanted = {own: self._empty(own, "cpu")}
        # By its parts: the whole would read the metadata again, and ask other processes.
        reader, planner = FileSystemReader(self.path), DefaultLoadPlanner()
        try:
            reader.set_up_storage_reader(self._metadata, is_coordinator=True)
            planner.set_up_planner(wanted, self._metadata, is_coordinator=True)
            plan = planner.finish_plan(reader.prepare_local_plan(planner.create_local_plan()))
            reader.read_data(plan, planner).wait()
        except Exception as error:  # as above
            raise self._unreadable(error) from error
        return wanted[own]

    def _empty(self, own: str, device: str) -> Tensor:
        stored = self._metadata.state_dict_metadata[own]
        return torch.empty(stored.size, dtype=stored.properties.dtype, device=device)

    @property
    @override
    def provenance(self) -> dict[str, Any]:
        return self.files[0]

    @cached_property
    @override
    def files(self) -> tuple[dict[str, Any], ...]:
        header = self.path / ".metadata"
        # It tells what lies in each of the others, which have no header of their own.
        digest = hashlib.sha256(header.read_bytes()).hexdigest()
        return tuple(
            {"path": str(path), "bytes": path.stat().st_size, "sha256": digest} | self.which
            for path in (header, *sorted(self.path.glob("*.distcp")))
        )

    def _unreadable(self, error: Exception) -> SourceError:
        return SourceError(
            "not a readable distributed checkpoint",
            where=self.label,
            expected="the .metadata and .distcp files of one checkpoint",
            got=printable(f"{type(error).__name__}: {error}")[:200],
            fix="copy the folder again, whole",
        )
