"""The tensors of one kohya or LyCORIS module: their shapes, the scale, and what can be wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rankscope.errors import AdapterError
from rankscope.io.adapters.family import scale_of
from rankscope.io.tensors import TensorStore

__all__ = ["Parts"]


@dataclass(frozen=True)
class Parts:
    """The tensors of one module.

    Attributes
    ----------
    store : TensorStore
        Where they lie.
    module : str
        The name before the suffix.
    names : mapping
        From suffix (``lora_down.weight``, ``alpha``) to tensor name.
    alpha : float or None
        From the user; overrides the stored one.
    """

    store: TensorStore
    module: str
    names: Mapping[str, str]
    alpha: float | None = None

    def __contains__(self, part: str) -> bool:
        return part in self.names

    def shape(self, part: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self.store.tensors[self.names[part]].shape

    def matrix(self, part: str) -> tuple[int, int]:
        """Return the shape of a tensor as a matrix, (first, product of the others)."""
        shape = self.shape(part)
        if len(shape) < 2 or 0 in shape:
            raise self.error(
                "a factor is not a matrix", "two dimensions or more, none of them 0", part
            )
        return shape[0], math.prod(shape[1:])

    def scalar(self, part: str) -> float:
        """Return the number that a tensor of one element holds."""
        tensor = self.store.read(self.names[part])
        value = float(tensor.double().reshape(-1)[0]) if tensor.numel() == 1 else math.nan
        if not math.isfinite(value):
            raise self.error(f"the module's {part} is no number", "one finite number", part)
        return value

    def scale(self, rank: int) -> float:
        """Return alpha / rank; 1 without an alpha, which is then the rank."""
        if self.alpha is not None:
            return scale_of(self.alpha, rank)
        alpha = self.scalar("alpha") if "alpha" in self else float(rank)
        if alpha == 0:
            raise AdapterError(
                f"alpha of {self.module} is 0",
                where=f"{self.store.label}, tensor {self.names['alpha']!r}",
                expected="a number other than 0",
                got="0, which some programs take as the rank and others as no update",
                fix=f"say which with --alpha: {rank} here for the rank, 0 for no update",
            )
        return scale_of(alpha, rank)

    def require(self, *parts: str) -> None:
        """Raise an `AdapterError` unless every part is there."""
        missing = [part for part in parts if part not in self]
        if missing:
            present = next(part for part in self.names if part != "alpha")
            raise AdapterError(
                f"adapter has a {present} without its {missing[0]}",
                where=f"{self.store.label}, module {self.module!r}",
                expected=f"a tensor named {f'{self.module}.{missing[0]}'!r}",
                got=self.listing(*self.names),
                fix="save the adapter again; a part of it is missing",
            )

    def check(self, fits: bool, expected: str, *parts: str) -> None:
        """Raise an `AdapterError` about the shapes of `parts` unless they fit."""
        if not fits:
            raise self.error("the tensors of a module do not fit together", expected, *parts)

    def error(self, what: str, expected: str, *parts: str) -> AdapterError:
        """Return an error about the shapes of some parts."""
        return AdapterError(
            what,
            where=f"{self.store.label}, module {self.module!r}",
            expected=expected,
            got=self.listing(*parts),
            fix="the file mixes adapters, or is of a kind that is not read; save it again",
        )

    def listing(self, *parts: str) -> str:
        """Return ``suffix shape`` of some parts, for messages."""
        return ", ".join(f"{part} {self.shape(part)}" for part in parts if part in self)
