"""Low-rank updates as a PEFT adapter: the factors, and the configuration that scales them."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rankscope.errors import AdapterError
from rankscope.io.containers.aligned import Aligned
from rankscope.io.matching import base_name
from rankscope.io.recipes import Difference, Factors, Formula
from rankscope.io.renames import spell
from rankscope.io.rotary import HALVES
from rankscope.io.write import write_adapter
from rankscope.updates import FactoredUpdate

if TYPE_CHECKING:
    from rankscope.io.recipes import Recipe
    from rankscope.io.updateset import Site, UpdateSet

__all__ = ["joined", "kernel_of", "save_adapter", "saved_name"]

_KEPT = (torch.float16, torch.bfloat16, torch.float32)
# What the source says of itself that holds for the copy too.
_CARRIED = ("base_model_name_or_path", "task_type", "layer_replication")


@dataclass(frozen=True)
class _Module:
    """One module as PEFT stores it; ``alpha`` is its own, so that alpha/r is the scale."""

    name: str
    down: Tensor
    up: Tensor
    alpha: float
    embedding: bool

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        stem = f"base_model.model.{self.name}.lora_"
        letters = ("embedding_A", "embedding_B") if self.embedding else ("A.weight", "B.weight")
        return {
            stem + letter: factor.contiguous().clone()
            for letter, factor in zip(letters, (self.down, self.up), strict=True)
        }


def save_adapter(updates: UpdateSet, folder: str | os.PathLike[str]) -> None:
    """Write low-rank updates as a PEFT adapter that reads back to the same ΔW.

    Factors in half or single precision are written as they are. Others, such as those that
    were computed in double precision, are balanced first, so that single precision rounds
    ΔW by no more than about 10⁻⁷ of its norm. A scale that the source does not tell is
    written as 1. The slices of a fused projection are written as that projection where all of
    them are there. Modules of the kind ``embed`` are written as embeddings, convolutions with
    their kernels, all others as linear layers. What is no weight update (biases, replaced
    tensors) is not written.

    Parameters
    ----------
    updates : UpdateSet
        Every update a product of factors.
    folder : path
        Gets ``adapter_config.json`` and ``adapter_model.safetensors``; made if it is
        missing. If the writing fails, what it held before is left as it was.

    Raises
    ------
    AdapterError
        If there is no update, or one is dense or no module of its own that PEFT could load.
    UpdateError
        If a factor holds numbers that are not finite.
    OutputError
        If the files cannot be written.

    Examples
    --------
    >>> from rankscope.io.sources import open_updates
    >>> adapter = {"h.0.q.lora_A.weight": torch.ones(2, 3),
    ...            "h.0.q.lora_B.weight": torch.ones(3, 2)}
    >>> save_adapter(open_updates(adapter, alpha=4), "/tmp/doctest-out/adapter")
    >>> open_updates("/tmp/doctest-out/adapter").site("h.0.q").scale
    2.0
    """
    if not len(updates):
        raise _refused(updates, "at least one update", "none")
    modules = [_module(updates, site) for site in joined(updates.sites)]
    tensors = {key: tensor for module in modules for key, tensor in module.tensors().items()}
    write_adapter(folder, tensors, _carried(updates.config) | _config(modules))


def joined(sites: Collection[Site]) -> list[Site]:
    """Return the sites with every projection in place of its slices, where none is missing."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault((site.whole or site).module, []).append(site)
    found = [site for parts in groups.values() for site in _whole(parts)]
    # A head is a part of a slice, which is one of a projection.
    changed = {site.module for site in found} != {site.module for site in sites}
    return joined(found) if changed else found


def _whole(parts: list[Site]) -> list[Site]:
    whole = parts[0].whole
    if whole is None or sum(math.prod(part.shape) for part in parts) < math.prod(whole.shape):
        return parts
    return [whole]


def _carried(config: Mapping[str, Any]) -> dict[str, Any]:
    said = {key: config.get(key) for key in _CARRIED}
    return {key: value for key, value in said.items() if isinstance(value, str) or _pairs(value)}


def _pairs(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list | tuple) and all(type(number) is int for number in pair)
        for pair in value
    )


def _config(modules: Collection[_Module]) -> dict[str, Any]:
    ranks = {module.name: module.rank for module in modules}
    alphas = {module.name: module.alpha for module in modules}
    rank, alpha = (_commonest(values) for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _pattern(ranks, rank),
        "alpha_pattern": _pattern(alphas, alpha),
        "target_modules": list(ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _commonest(values: Mapping[str, float]) -> float:
    return Counter(values.values()).most_common(1)[0][0]


def _pattern(values: Mapping[str, float], default: float) -> dict[str, float]:
    # PEFT takes a key for the end of a name unless it is anchored: "fc" is "block.fc" too.
    return {f"^{re.escape(name)}": value for name, value in values.items() if value != default}


def _module(updates: UpdateSet, site: Site) -> _Module:
    kernel = kernel_of(updates, site)
    update = site.recipe.build()
    if not isinstance(update, FactoredUpdate):
        raise _refused(updates, "products of factors", f"{site.module}, which is a dense matrix")
    if update.up.dtype not in _KEPT or update.down.dtype not in _KEPT:
        update = _balanced(update)
    up, down, scale = update.up, update.down, update.scale
    if scale <= 0:  # no alpha says it
        up, scale = up * math.copysign(float(scale != 0), scale), abs(scale) or 1.0
    embedding = not kernel and site.kind == "embed"
    if embedding:
        up, down = down.T, up.T
    elif kernel:
        up, down = up.reshape(*up.shape, *(1 for _ in kernel[1:])), down.reshape(-1, *kernel)
    return _Module(saved_name(site), down, up, _number(scale * update.up.shape[1]), embedding)


def _number(value: float) -> float:
    return int(value) if value == int(value) else value


def kernel_of(updates: UpdateSet, site: Site) -> tuple[int, ...]:
    """Return ``(in, k, …)`` of a convolution, as its first factor is stored; () for a matrix.

    Raises
    ------
    AdapterError
        If PEFT could not wrap the module: part of a fused parameter, a parameter that is no
        module's weight, or a convolution whose kernel nothing tells.
    """
    _check_name(updates, site)
    recipe = site.recipe
    if isinstance(recipe, Factors):
        shape = recipe.store.tensors[recipe.down].shape
    elif isinstance(recipe, Difference) and isinstance(recipe.tuned, Aligned):
        shape = recipe.tuned.store.tensors[recipe.tuned.parts[recipe.name].name].shape
    else:
        shape = _shape_in_base(updates, site)
        # The factors of early PEFT's fused projections have three sides as well.
        if not shape and _is_convolution(recipe) and updates.format != "peft-merged-linear":
            raise _refused(
                updates,
                "matrices, a convolution's two LoRA factors, or the base that tells its kernel",
                f"{site.module}, a convolution by another method",
            )
    return shape[1:] if len(shape) > 2 else ()


def saved_name(site: Site) -> str:
    """Return the name that a module is saved under: one that says how its rows stand.

    Rows that have been put into Hugging Face's order are not those of llama.cpp's or
    torchtune's name any more.
    """
    return spell(site.module).path if site.row_order == HALVES else site.module


def _check_name(updates: UpdateSet, site: Site) -> None:
    recipe = site.recipe
    if site.row_order not in ("", HALVES):
        raise _refused(
            updates,
            "rows in Hugging Face's order, which PEFT's readers take for granted",
            f"{site.module}, in Meta's rotary order; a base that tells its heads puts it right",
        )
    bare = isinstance(recipe, Difference) and not recipe.name.endswith(".weight")
    part = site.whole is not None or site.module.endswith(".in_proj_weight")
    if bare or part or "[" in site.module:
        raise _refused(
            updates,
            "modules of their own, which PEFT can wrap",
            f"{site.module}, a parameter by itself or a part of a fused one",
        )


def _is_convolution(recipe: Recipe) -> bool:
    return isinstance(recipe, Formula) and any(
        len(recipe.store.tensors[name].shape) > 2 for name in recipe.tensors.values()
    )


def _shape_in_base(updates: UpdateSet, site: Site) -> tuple[int, ...]:
    """Return the stored shape of a weight; () if there is none, or of another size."""
    stored = {} if updates.base is None else updates.base.tensors
    name = base_name(site.module, stored)
    shape = () if name is None else stored[name].shape
    fits = len(shape) > 1 and (shape[0], math.prod(shape[1:])) == site.shape
    return shape if fits else ()


def _balanced(update: FactoredUpdate) -> FactoredUpdate:
    """Return the same ΔW in single precision, in factors that do not cancel."""
    left, core, right = update.compress()
    u, values, vh = torch.linalg.svd(core)
    root = values.sqrt()
    count = len(values)
    up, down = u[:, :count] * root, root[:, None] * vh[:count]
    up = up if left is None else left @ up
    down = down if right is None else down @ right.T
    return FactoredUpdate(up.float(), down.float())


def _refused(updates: UpdateSet, expected: str, got: str) -> AdapterError:
    return AdapterError(
        "only low-rank updates can be written as an adapter",
        where=updates.source,
        expected=expected,
        got=got,
        fix="choose those that are with select(), open fused projections with split='none'",
    )
