"""How one update is read from its tensors: small picklable values that build it on demand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from rankscope.errors import UpdateError
from rankscope.io.containers.sliced import Block
from rankscope.io.tensors import TensorStore
from rankscope.linalg.blocks import subtract
from rankscope.updates import DenseUpdate, FactoredUpdate, Update

__all__ = ["Cut", "Difference", "Factors", "Formula", "Joined", "Recipe", "Stored", "Weight"]

_HALF = {torch.bfloat16, torch.float16}
# Up to here twice the memory is nothing, and every difference is exact.
_LARGE = 1 << 20


class Recipe(Protocol):
    """How one update is read from its tensors."""

    def build(self) -> Update:
        """Read the tensors and return the update."""


@dataclass(frozen=True)
class Weight:
    """A base weight where it is stored; `transposed` where that is (in, out)."""

    store: TensorStore
    name: str
    transposed: bool = False

    def read(self) -> Tensor:
        """Return the weight, (out, in) or (out, in, kernel…)."""
        tensor = finite(self.store, self.name)
        return tensor.T if self.transposed else tensor


@dataclass(frozen=True)
class Factors:
    """Two stored factors, ``scale * up @ down``; `transposed` where the product is ΔWᵀ.

    Convolutions are flattened: (out, r, 1, 1) and (r, in, k, k) give (out, in·k·k).
    """

    store: TensorStore
    up: str
    down: str
    scale: float | None
    transposed: bool = False

    def build(self) -> FactoredUpdate:
        """Return the factored update, at scale 1 where the file does not tell."""
        up, down = (finite(self.store, name).flatten(1) for name in (self.up, self.down))
        update = FactoredUpdate(up, down, 1.0 if self.scale is None else self.scale)
        return update.T if self.transposed else update


@dataclass(frozen=True)
class Formula:
    """ΔW as a function of stored tensors, and of the base weight where it depends on it.

    Attributes
    ----------
    store : TensorStore
        Of the tensors.
    function : callable
        Of a module's top level, so that it pickles. Gets the tensors by argument name, the
        options, and the base weight as `weight` where there is one.
    tensors : mapping
        From argument names to the tensors' names.
    options : mapping
        Plain numbers and words.
    weight : Weight or None
        The base weight.
    """

    store: TensorStore
    function: Callable[..., Update]
    tensors: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: Weight | None = None

    def build(self) -> Update:
        """Read the tensors, upcast to float64, and apply the function."""
        arguments = {
            argument: finite(self.store, name).double() for argument, name in self.tensors.items()
        }
        if self.weight is not None:
            arguments["weight"] = self.weight.read().double()
        try:
            return self.function(**arguments, **self.options)
        except RuntimeError as error:  # torch's, for shapes as for what does not converge
            raise self._impossible(error) from error

    def _impossible(self, error: RuntimeError) -> UpdateError:
        return UpdateError(
            "an update cannot be computed from its tensors",
            where=f"{self.store.label}, tensors {', '.join(self.tensors.values())}"[:500],
            expected="tensors of one module that fit together, and its base weight",
            got=str(error).split("\n")[0][:200],
            fix="save the adapter again, or give the base it was trained on",
        )


@dataclass(frozen=True)
class Difference:
    """A fine-tuned tensor less its base; `transposed` where both are stored (in, out)."""

    tuned: TensorStore
    base: TensorStore
    name: str
    transposed: bool = False

    def read(self) -> tuple[Tensor, Tensor]:
        """Return the fine-tuned and the base tensor, (out, in), as they are stored; finite."""
        tuned, base = (finite(store, self.name) for store in (self.tuned, self.base))
        return (tuned.T, base.T) if self.transposed else (tuned, base)

    def build(self) -> DenseUpdate:
        """Return the dense update, formed block by block: neither tensor is upcast whole.

        In float64, except for half-precision matrices of more than 2²⁰ numbers, which give a
        float32 matrix. There each difference is the float32 number next to the true one, and
        nearly always that one itself: numbers of 8 (bfloat16) or 11 (float16) significant bits
        whose exponents differ by at most 15 or 12 have differences of 24 bits. Where they
        differ by more, the error is at most 2⁻²⁴ of the difference, so 2⁻²⁴ ‖ΔW‖ for all.
        """
        tuned, base = (store.read(self.name) for store in (self.tuned, self.base))
        narrow = {tuned.dtype, base.dtype} <= _HALF and tuned.numel() > _LARGE
        dtype = torch.float32 if narrow else torch.float64
        matrix, norm = subtract(tuned, base, dtype)
        if not math.isfinite(norm):  # a number is not, or a difference or square overflowed
            tuned, base = (finite(store, self.name).double() for store in (self.tuned, self.base))
            matrix, narrow = tuned - base, False
        rounding = 2.0**-24 * norm if narrow else 0.0
        return DenseUpdate(matrix.T if self.transposed else matrix, rounding)


@dataclass(frozen=True)
class Stored:
    """A matrix as it is stored, taken for an update of its own."""

    store: TensorStore
    name: str
    transposed: bool = False

    def build(self) -> DenseUpdate:
        """Return the matrix, canonical (out, in)."""
        matrix = finite(self.store, self.name)
        return DenseUpdate(matrix.T if self.transposed else matrix)


@dataclass(frozen=True)
class Cut:
    """Some rows or columns of another update; factors stay factors."""

    recipe: Recipe
    block: Block

    def build(self) -> Update:
        """Return the part of the whole update."""
        whole = self.recipe.build()
        if not isinstance(whole, FactoredUpdate):
            return DenseUpdate(self.block.take(whole.dense()))
        if self.block.columns:
            return FactoredUpdate(whole.up, self.block.take(whole.down), whole.scale)
        return FactoredUpdate(self.block.take(whole.up), whole.down, whole.scale)


@dataclass(frozen=True)
class Joined:
    """An update of parts that are products of factors; zero where there is none."""

    shape: tuple[int, int]
    parts: tuple[tuple[Block, Recipe], ...]

    def build(self) -> Update:
        """Return the whole update, a product of factors of all parts' ranks together."""
        found = [self._placed(block, recipe.build()) for block, recipe in self.parts]
        return sum(found[1:], start=found[0])

    def _placed(self, block: Block, part: Update) -> Update:
        assert isinstance(part, FactoredUpdate)  # they are made so
        out, in_ = self.shape
        if block.columns:
            return FactoredUpdate(part.up, block.put(part.down, in_), part.scale)
        return FactoredUpdate(block.put(part.up, out), part.down, part.scale)


def finite(store: TensorStore, name: str) -> Tensor:
    """Return a stored tensor of real numbers, all of them finite.

    Raises
    ------
    UpdateError
        If it holds NaN or infinity, or numbers that mean nothing by themselves.
    """
    tensor = store.read(name)
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize == 1):
        raise UpdateError(
            "a tensor holds numbers of a kind that is not computed with",
            where=f"{store.label}, tensor {name!r}",
            expected="real numbers of half precision or better",
            got=str(tensor.dtype).removeprefix("torch."),
            fix="convert it with its scale, if it has one, and save it again",
        )
    # A sum is finite only where all its terms are, and thirty times as fast as asking each; one
    # that overflows proves nothing.
    finite_sum = bool(tensor.sum().isfinite())
    broken = 0 if finite_sum else int((~torch.isfinite(tensor)).sum())
    if broken:
        raise UpdateError(
            "a tensor holds numbers that are not finite",
            where=f"{store.label}, tensor {name!r}",
            expected="finite numbers",
            got=f"{broken} NaN or infinite of {tensor.numel()}",
            fix="train or save it again, or leave it out with --exclude",
        )
    return tensor
