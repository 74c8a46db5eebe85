"""Tensors that are already in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, final

from torch import Tensor
from typing_extensions import override

from rankscope.io.containers.nesting import peeled
from rankscope.io.containers.store import TensorInfo, TensorStore, describe

__all__ = ["StateDict"]


@final
class StateDict(TensorStore):
    """Tensors that are already in memory."""

    def __init__(self, content: Mapping[str, Tensor], label: str) -> None:
        self.label = label
        self._content = peeled(content, label)

    @cached_property
    @override
    def tensors(self) -> Mapping[str, TensorInfo]:
        return describe(self._content)

    @override
    def read(self, name: str) -> Tensor:
        return self._content[name].detach()

    @cached_property
    @override
    def provenance(self) -> dict[str, Any]:
        header = repr([(n, i.dtype, i.shape) for n, i in self.tensors.items()]).encode()
        size = sum(info.bytes for info in self.tensors.values())
        return {"path": None, "bytes": size, "sha256": hashlib.sha256(header).hexdigest()}
