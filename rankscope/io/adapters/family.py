"""What every adapter family gets and gives, and the checks that all share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rankscope.errors import AdapterError, BaseNeededError
from rankscope.io.matching import base_name
from rankscope.io.recipes import Factors, Formula, Weight
from rankscope.io.rotary import alike, product_in_halves, row_order
from rankscope.io.tensors import TensorInfo, TensorStore
from rankscope.io.updateset import Site
from rankscope.updates import Update

__all__ = ["Context", "Family", "Reading", "factored_site", "formula_site", "in_order", "scale_of"]


@dataclass(frozen=True)
class Context:
    """What a family reads from.

    Attributes
    ----------
    store : TensorStore
        The adapter's tensors.
    config : dict or None
        The ``adapter_config.json`` beside them.
    alpha : float or None
        LoRA's alpha from the user; overrides what the source says.
    base : TensorStore or None
        The base weights, for families whose ΔW depends on them.
    """

    store: TensorStore
    config: dict[str, Any] | None = None
    alpha: float | None = None
    base: TensorStore | None = None

    def weight(self, module: str, why: str) -> Weight:
        """Return where a module's base weight lies.

        Raises
        ------
        BaseNeededError
            If there is no base; `why` says what needs it.
        AdapterError
            If there is no certain weight in the base.
        """
        name = None if self.base is None else base_name(module, self.base.tensors)
        if self.base is None or name is None:
            error = BaseNeededError if self.base is None else AdapterError
            raise error(
                f"the update of {module} depends on its base weight: {why}",
                where=self.store.label,
                expected="the base weights, with a tensor for this module",
                got="no base" if self.base is None else f"{self.base.label} without it",
                fix="give the base it was trained on: --base, or base= in Python",
            )
        if not alike(module, "", name, row_order(self.base, name)):
            raise AdapterError(
                "the rows of a base weight stand in another order than the update's",
                where=f"{self.base.label}, tensor {name!r}",
                expected="Hugging Face's order",
                got="Meta's rotary order, as llama.cpp and torchtune have it",
                fix="give the base as a Hugging Face checkpoint, or as a whole GGUF file",
            )
        return Weight(self.base, name)


@dataclass(frozen=True)
class Reading:
    """What a family makes of a source: the sites, and what it left."""

    format: str
    sites: tuple[Site, ...]
    unread: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One adapter format.

    Attributes
    ----------
    name : str
        As reported by ``rankscope info``.
    recognises : callable
        Whether the tensors' names are this family's.
    read : callable
        From a `Context` to a `Reading`.
    """

    name: str
    recognises: Callable[[Mapping[str, TensorInfo]], bool]
    read: Callable[[Context], Reading]


def scale_of(alpha: float, rank: int, *, rslora: bool = False) -> float:
    """Return LoRA's scale, alpha/r, or alpha/√r for rsLoRA.

    Examples
    --------
    >>> scale_of(8, 4), scale_of(8, 4, rslora=True)
    (2.0, 4.0)
    """
    return alpha / (math.sqrt(rank) if rslora else rank)


def formula_site(
    store: TensorStore,
    module: str,
    function: Callable[..., Update],
    tensors: Mapping[str, str],
    *,
    shape: tuple[int, int],
    rank: int | None = None,
    scale: float | None = None,
    weight: Weight | None = None,
    **options: Any,
) -> Site:
    """Return the site of an update that `function` makes of stored tensors.

    `shape` is (out, in) of ΔW, `rank` the adapter's own where it has one; `options` go to the
    function, as `scale` does where it is not None.
    """
    if scale is not None:
        options["scale"] = scale
    return Site(
        module=module,
        shape=shape,
        rank=rank,
        scale=scale,
        dtype=store.tensors[next(iter(tensors.values()))].dtype,
        recipe=Formula(store, function, tensors, options, weight),
    )


def in_order(site: Site, tensors: Mapping[str, str], order: tuple[str, int | None]) -> Site:
    """Return the site of a product with its rows put right, or marked as they are.

    `tensors` are the names of ``up`` and ``down``, `order` what `rankscope.io.rotary` says of
    them: the order, and the heads where they tell how to put them right.
    """
    name, heads = order
    marked = replace(site, row_order=name)
    if heads is None or not isinstance(site.recipe, Factors):
        return marked
    options = {"heads": heads} | ({} if site.scale is None else {"scale": site.scale})
    recipe = Formula(site.recipe.store, product_in_halves, tensors, options)
    return replace(marked, recipe=recipe)


def factored_site(
    store: TensorStore,
    module: str,
    up: str,
    down: str,
    scale: float | None,
    *,
    transposed: bool = False,
) -> Site:
    """Return the site of ``scale * up @ down``, after checking that the shapes chain.

    Raises
    ------
    AdapterError
        If a factor is no matrix, is empty, or the two ranks disagree.
    """
    shapes = {name: store.tensors[name].shape for name in (up, down)}
    for name, shape in shapes.items():
        if len(shape) < 2 or 0 in shape:
            raise AdapterError(
                "a factor is not a matrix",
                where=f"{store.label}, tensor {name!r}",
                expected="two dimensions or a convolution's, none of them 0",
                got=f"shape {shape}",
                fix="gather sharded weights before saving",
            )
    # A convolution's factors are (out, r, 1, 1) and (r, in, k, k).
    (out, r_up), (r_down, in_) = ((s[0], math.prod(s[1:])) for s in (shapes[up], shapes[down]))
    if r_up != r_down:
        raise AdapterError(
            "the two factors of an update disagree about the rank",
            where=f"{store.label}, tensors {up!r} and {down!r}",
            expected="(out, r) and (r, in) with one r",
            got=f"{shapes[up]} and {shapes[down]}",
            fix="the file mixes two adapters, or is of a family that is not read yet",
        )
    return Site(
        module=module,
        shape=(in_, out) if transposed else (out, in_),
        rank=r_up,
        scale=scale,
        dtype=store.tensors[up].dtype,
        recipe=Factors(store, up, down, scale, transposed),
    )
