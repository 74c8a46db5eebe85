"""A checkpoint whose quantised weights are seen as plain ones, computed when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, final

from torch import Tensor
from typing_extensions import override

from rankscope.io.quantized.parts import Packed, unfit
from rankscope.io.tensors import TensorInfo, TensorStore

__all__ = ["Dequantised"]


@final
class Dequantised(TensorStore):
    """A container with plain weights in place of the parts that they are made of.

    Parameters
    ----------
    store : TensorStore
        The container.
    packed : mapping
        The quantised weights, by the name that a plain checkpoint would give them.
    record : dict, optional
        The provenance of the configuration that decided how they are read.
    """

    def __init__(
        self,
        store: TensorStore,
        packed: Mapping[str, Packed],
        record: dict[str, Any] | None = None,
    ) -> None:
        self.store = store
        self.label = store.label
        self.packed = packed
        self.record = record

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "tensors"}

    @cached_property
    @override
    def tensors(self) -> Mapping[str, TensorInfo]:
        parts = {name for own in self.packed.values() for name in own.parts}
        plain = {name: info for name, info in self.store.tensors.items() if name not in parts}
        return plain | {n: TensorInfo("float32", own.shape) for n, own in self.packed.items()}

    @property
    @override
    def metadata(self) -> Mapping[str, str]:
        return self.store.metadata

    @override
    def read(self, name: str) -> Tensor:
        if name not in self.packed:
            return self.store.read(name)
        try:
            return self.packed[name].read(self.store)
        except (ValueError, IndexError) as error:
            raise unfit(self.store, name, "parts that agree", error) from error

    @property
    @override
    def provenance(self) -> dict[str, Any]:
        return self.store.provenance

    @property
    @override
    def files(self) -> tuple[dict[str, Any], ...]:
        return self.store.files if self.record is None else (*self.store.files, self.record)
