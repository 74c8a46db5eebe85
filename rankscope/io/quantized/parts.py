"""What every scheme of quantisation gives: where one weight's parts lie, and how they combine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rankscope.errors import SourceError
from rankscope.io.tensors import TensorStore

__all__ = ["Packed", "shape_of", "unfit"]


@dataclass(frozen=True)
class Packed:
    """One weight that is stored in several tensors.

    Attributes
    ----------
    shape : tuple of int
        Of the weight, as a plain checkpoint would store it.
    function : callable
        From the stored tensors, by argument name, and the options to the weight.
    tensors : mapping
        From argument names to the tensors' names.
    options : mapping
        Plain numbers.
    spent : tuple of str
        Stored tensors that `options` hold already.
    """

    shape: tuple[int, ...]
    function: Callable[..., Tensor]
    tensors: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    spent: tuple[str, ...] = ()

    @property
    def parts(self) -> set[str]:
        """Every stored tensor that belongs to the weight."""
        return {*self.tensors.values(), *self.spent}

    def read(self, store: TensorStore) -> Tensor:
        """Return the weight; ValueError where the numbers contradict each other."""
        parts = {argument: store.read(name) for argument, name in self.tensors.items()}
        for argument, part in parts.items():
            if part.is_complex():
                raise ValueError(f"{argument} of complex numbers")
        return self.function(**parts, **self.options)


def shape_of(store: TensorStore, name: str) -> tuple[int, ...]:
    """Return a stored tensor's shape.

    Raises
    ------
    SourceError
        If it is not there: the weight that it belongs to is incomplete.
    """
    if name not in store.tensors:
        raise unfit(store, name, "a tensor of this name", "none")
    return store.tensors[name].shape


def unfit(store: TensorStore, name: str, expected: str, got: object) -> SourceError:
    """Return the error for parts of a weight that do not fit together."""
    return SourceError(
        "the parts of a quantised weight do not fit together",
        where=f"{store.label}, tensor {name!r}",
        expected=expected,
        got=str(got)[:200],
        fix="download the checkpoint again, or give it in full or half precision",
    )
