"""The base weight of a module, wherever in the base it lies: whole, in a stack, fused or split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rankscope.errors import SourceError
from rankscope.io.fused_layouts import (
    Layout,
    canonical_slice,
    fused_name,
    layout_of,
    split_names,
)
from rankscope.io.matching import base_name, catalogue
from rankscope.io.model_config import ModelConfig
from rankscope.io.names import expert_of, experts_transposed, stored_transposed
from rankscope.io.recipes import Difference
from rankscope.io.renames import spell
from rankscope.io.rotary import alike, row_order
from rankscope.io.tensors import TensorStore
from rankscope.io.tied import tied_embedding

if TYPE_CHECKING:
    from rankscope.io.updateset import Site

__all__ = ["BaseWeights"]

_PLAIN = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class BaseWeights:
    """The base weights, and what is known of the model they belong to."""

    store: TensorStore
    model: ModelConfig

    def weight(self, site: Site) -> Tensor:
        """Return the weight of a site, canonical (out, in), as it is stored.

        Raises
        ------
        SourceError
            If the base lacks it, has it in another shape, or quantised.
        """
        if isinstance(site.recipe, Difference):
            tensor = site.recipe.base.read(site.recipe.name)
            return tensor.T if site.recipe.transposed else tensor
        found = self._found(site)
        if found is not None:
            return found
        raise SourceError(
            "the base has no weight for this module",
            where=self.store.label,
            expected=f"one tensor that ends with {site.module + '.weight'!r}",
            got=f"none, or several, of {len(self.store.tensors)}",
            fix="pass the base that this adapter was trained on",
        )

    def is_straight(self, module: str) -> bool:
        """Return whether a stack of gate and up is (expert, out, in) for certain, by its down."""
        stored = base_name(expert_of(module)[0], self.store.tensors) or ""
        both = (stored, stored.replace("gate_up_proj", "down_proj"))
        fused, down = (
            self.store.tensors[n].shape if n in self.store.tensors else () for n in both
        )
        return len(fused) == len(down) == 3 and fused[1:] == (2 * down[2], down[1])

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.store.tensors.items()}

    def _found(self, site: Site) -> Tensor | None:
        own = self._read(canonical_slice(site.module), site.shape, site.row_order)
        if own is not None:
            return own
        if site.whole is not None and site.block is not None:
            whole = self._found(site.whole)
            return None if whole is None else site.block.take(whole)
        joined = self._joined(site)
        return joined if joined is not None else self._of_fused(site)

    def _joined(self, site: Site) -> Tensor | None:
        """Return the weight of a fused projection whose parts the base keeps apart."""
        names = split_names(site.module)
        layout = layout_of(site.module, site.shape, self.model, straight=True)
        in_turn = isinstance(layout, Layout) and layout.groups > 1
        if len(names) < 2 or in_turn:
            return None
        parts = [self._read(name, (None, site.shape[1])) for name in names]
        there = [part for part in parts if part is not None]
        if len(there) < len(parts):
            return None
        joined = torch.cat(there)
        _check(tuple(joined.shape), site.shape, f"{self.store.label}, {' and '.join(names)}")
        return joined

    def _of_fused(self, site: Site) -> Tensor | None:
        """Return the weight of a projection that the base keeps fused with others."""
        # Mixtral's w1 and w3 are gate and up by the one spelling.
        fused, part = fused_name(spell(site.module).path)
        whole = None if not part else self._read(fused, (None, site.shape[1]))
        if whole is None:
            return None
        shape = (whole.shape[0], whole.shape[1])
        layout = layout_of(fused, shape, self.model, straight=self.is_straight(fused))
        if not isinstance(layout, Layout):
            return None
        block = layout.blocks[part]
        _check(block.shape(shape), site.shape, f"{self.store.label}, {part} in {fused!r}")
        return block.take(whole)

    def _read(self, module: str, shape: tuple[int | None, int], order: str = "") -> Tensor | None:
        """Return a module's own weight as (out, in), None where the base has none of its name.

        `shape` is (out, in), out None where any number of rows will do; `order` that of its rows.
        """
        found = catalogue(self.store.tensors).expert(module)
        tied = tied_embedding(self.store, module) if found is None else None
        if found is None and tied is None:
            return None
        stored, expert = found or (str(tied), None)
        where = f"{self.store.label}, tensor {stored!r}"
        _check_order(alike(module, order, stored, row_order(self.store, stored)), where)
        self._check_plain(stored, where)
        tensor = self.store.read(stored)
        if expert is not None and tensor.ndim == 3 and expert < len(tensor):
            tensor = tensor[expert]
        tensor = tensor.flatten(1) if tensor.ndim > 2 else tensor
        turned = self._turned(stored, tuple(tensor.shape), shape)
        tensor = tensor.T if turned else tensor
        _check(tuple(tensor.shape), shape, where)
        return tensor

    def _turned(self, stored: str, have: tuple[int, ...], want: tuple[int | None, int]) -> bool:
        """Whether a base weight is (in, out), by the update's shape or, if square, by others'."""
        shapes = self._shapes()
        told = stored_transposed if len(shapes[stored]) == 2 else experts_transposed
        turned = len(shapes[stored]) in (2, 3) and bool(told(stored, shapes))
        return turned if _fits(have, want) == _fits(have[::-1], want) else _fits(have[::-1], want)

    def _check_plain(self, stored: str, where: str) -> None:
        dtype = self.store.tensors[stored].dtype
        if dtype not in _PLAIN or f"{stored}_scale" in self.store.tensors:
            raise SourceError(
                "the base weight is quantised",
                where=where,
                expected=f"one of {', '.join(_PLAIN)}",
                got=f"{dtype}, whose scales are stored apart",
                fix="give the whole checkpoint with its config.json, or one in half precision",
            )


def _check_order(alike_: bool, where: str) -> None:
    if not alike_:
        raise SourceError(
            "the rows of the base weight stand in another order than the update's",
            where=where,
            expected="both as Hugging Face stores them",
            got="one of them in Meta's rotary order, as llama.cpp and torchtune have it",
            fix="give a base that tells its heads: a GGUF file, or a folder with config.json",
        )


def _fits(have: tuple[int, ...], want: tuple[int | None, int]) -> bool:
    return len(have) == 2 and have[1] == want[1] and want[0] in (None, have[0])


def _check(have: tuple[int, ...], want: tuple[int | None, int], where: str) -> None:
    if not _fits(have, want):
        raise SourceError(
            "the base weight has another shape than the update",
            where=where,
            expected=f"{want}, or transposed",
            got=str(have),
            fix="pass the base that this adapter was trained on",
        )
