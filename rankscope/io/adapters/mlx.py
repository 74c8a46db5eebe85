"""MLX (mlx-lm): ``lora_a`` (in, r) and ``lora_b`` (r, out), transposed against PEFT.

ΔW = scale · (lora_a @ lora_b)ᵀ for a linear layer, scale · lora_a @ lora_b for an embedding, and
scale · lora_b[e] @ lora_a[e] for expert e of a stack, whose factors are (E, r, in) and
(E, out, r). The configuration's scale is used as it is: there is no division by the rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from rankscope.errors import AdapterError
from rankscope.io.adapters.family import (
    Context,
    Family,
    Reading,
    factored_site,
    formula_site,
    scale_of,
)
from rankscope.io.names import kind_of
from rankscope.io.recipes import Weight, finite
from rankscope.io.tensors import TensorInfo, TensorStore
from rankscope.io.updateset import Site
from rankscope.updates import DenseUpdate, FactoredUpdate

__all__ = ["FAMILY", "dora", "expert"]

_KEY = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|m|scale)$")
_DEFAULT_SCALE = 20.0
_UNKNOWN_SCALE = (
    "no adapter_config.json: the scale is unknown, numbers are at scale 1 (mlx-lm's default is 20)"
)
_UNSAID_SCALE = "adapter_config.json names no scale: read at mlx-lm's default, 20"


def expert(up: Tensor, down: Tensor, *, index: int, scale: float = 1) -> FactoredUpdate:
    """Return the update of one expert, ``scale * up[index] @ down[index]``.

    Parameters
    ----------
    up : (experts, out, r) Tensor
    down : (experts, r, in) Tensor
    index : int
        From 0.
    scale : float

    Examples
    --------
    >>> expert(torch.ones(2, 1, 1), torch.tensor([[[1.0]], [[4.0]]]), index=1).dense().tolist()
    [[4.0]]
    """
    return FactoredUpdate(up[index], down[index], scale)


def dora(
    a: Tensor, b: Tensor, m: Tensor, weight: Tensor, *, embedding: bool = False, scale: float = 1
) -> DenseUpdate:
    """Return a DoRA's update, ``m · V / ‖V‖ - W`` with ``V = W + scale · (a @ b)ᵀ``, row by row.

    Parameters
    ----------
    a : (in, r) Tensor, or (vocabulary, r)
    b : (r, out) Tensor, or (r, hidden)
    m : (out,) Tensor, or (vocabulary,)
        The magnitudes.
    weight : (out, in) Tensor, or (vocabulary, hidden)
    embedding : bool
        Whether the product is not transposed.
    scale : float

    Examples
    --------
    >>> zero, W = torch.zeros(1, 1), torch.tensor([[2.0]])
    >>> dora(zero, zero, torch.tensor([3.0]), W).dense().tolist()
    [[1.0]]
    """
    product = a @ b
    v = weight + scale * (product if embedding else product.T)
    return DenseUpdate((m / torch.linalg.vector_norm(v, dim=1))[:, None] * v - weight)


def _recognises(tensors: Mapping[str, TensorInfo]) -> bool:
    # GGUF names the weight and not the module: <module>.weight.lora_a.
    return any(re.search(r"(?<!\.weight)\.lora_[ab]$", name) for name in tensors)


def _read(context: Context) -> Reading:
    store = context.store
    modules = _modules(store)
    notes: list[str] = []
    scale = _scale(context, notes)
    sites = tuple(
        s for module, own in modules.items() for s in _sites(context, module, own, scale)
    )
    read = {name for own in modules.values() for name in own.values()}
    unread = tuple(name for name in store.tensors if name not in read)
    return Reading(FAMILY.name, sites, unread, tuple(notes))


def _modules(store: TensorStore) -> dict[str, dict[str, str]]:
    """Return the tensors' names by module and part."""
    parts: dict[str, dict[str, str]] = {}
    for name in store.tensors:
        if match := _KEY.match(name):
            parts.setdefault(match["module"], {})[match["part"]] = name
    return {module: own for module, own in parts.items() if {"lora_a", "lora_b"} & own.keys()}


def _scale(context: Context, notes: list[str]) -> float | None:
    """Return the scale of every module by the configuration; None if nothing says it."""
    if context.alpha is not None:
        return None
    if context.config is None:
        notes.append(_UNKNOWN_SCALE)
        return None
    parameters = context.config.get("lora_parameters") or {}
    value = parameters.get("scale") if isinstance(parameters, dict) else parameters
    if value is None:
        notes.append(_UNSAID_SCALE)
        return _DEFAULT_SCALE
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _bad_scale(context.store, value)
    return float(value)


def _bad_scale(store: TensorStore, got: object) -> AdapterError:
    return AdapterError(
        "adapter_config.json has an unusable scale",
        where=f"{store.label}, its adapter_config.json",
        expected="lora_parameters with a finite number as scale",
        got=repr(got)[:100],
        fix="correct the configuration, or give the scale with --alpha without it",
    )


def _sites(
    context: Context, module: str, own: Mapping[str, str], scale: float | None
) -> list[Site]:
    store = context.store
    rank = _rank(store, module, own)
    if context.alpha is not None:
        scale = scale_of(context.alpha, rank)
    elif "scale" in own:
        scale = float(finite(store, own["scale"]))
    if len(store.tensors[own["lora_a"]].shape) == 3:
        return _experts(store, module, own, scale)
    if "m" in own:
        return [_dora_site(context, module, own, scale)]
    a, b, embedding = own["lora_a"], own["lora_b"], kind_of(module) == "embed"
    return [factored_site(store, module, a, b, scale, transposed=not embedding)]


def _rank(store: TensorStore, module: str, own: Mapping[str, str]) -> int:
    """Return the rank of a module, whose factors are both matrices or both stacks."""
    shapes = [store.tensors[own[part]].shape for part in ("lora_a", "lora_b") if part in own]
    if len(shapes) < 2:
        raise _unfit(store, module, f"{', '.join(own.values())} alone")
    a, b = shapes
    if len(a) not in (2, 3) or len(b) != len(a) or 0 in (*a, *b):
        raise _unfit(store, module, f"{a} and {b}")
    if "scale" in own and store.tensors[own["scale"]].parameters != 1:
        raise _unfit(store, module, f"a scale of shape {store.tensors[own['scale']].shape}")
    return a[1]


def _experts(
    store: TensorStore, module: str, own: Mapping[str, str], scale: float | None
) -> list[Site]:
    tensors = {"up": own["lora_b"], "down": own["lora_a"]}
    (count, rank, in_), (other, out, inner) = (
        store.tensors[tensors[part]].shape for part in ("down", "up")
    )
    if (count, rank) != (other, inner) or "m" in own:
        raise _unfit(store, module, f"{(count, rank, in_)} and {(other, out, inner)}")
    return [
        formula_site(
            store, f"{module}[{index}]", expert, tensors,
            shape=(out, in_), rank=rank, scale=scale, index=index,
        )
        for index in range(count)
    ]  # fmt: skip


def _dora_site(context: Context, module: str, own: Mapping[str, str], scale: float | None) -> Site:
    store, embedding = context.store, kind_of(module) == "embed"
    (high, rank), (inner, wide) = (store.tensors[own[p]].shape for p in ("lora_a", "lora_b"))
    shape = (high, wide) if embedding else (wide, high)
    weight = context.weight(module, "it is a DoRA")
    if rank != inner or store.tensors[own["m"]].shape != shape[:1]:
        raise _unfit(store, module, f"{(high, rank)}, {(inner, wide)} and {own['m']}")
    _check_weight(weight, shape)
    return formula_site(
        store, module, dora, {"a": own["lora_a"], "b": own["lora_b"], "m": own["m"]},
        shape=shape, rank=rank, scale=scale, weight=weight, embedding=embedding,
    )  # fmt: skip


def _check_weight(weight: Weight, shape: tuple[int, int]) -> None:
    info = weight.store.tensors[weight.name]
    if info.shape != shape or not info.floating:
        raise AdapterError(
            "the base weight does not fit the update",
            where=f"{weight.store.label}, tensor {weight.name!r}",
            expected=f"{shape}, as floating-point numbers",
            got=f"{info.shape}, {info.dtype}",
            fix="give the base it was trained on, with its weights dequantised",
        )


def _unfit(store: TensorStore, module: str, got: str) -> AdapterError:
    return AdapterError(
        "the factors of a module do not fit together",
        where=f"{store.label}, module {module!r}",
        expected="lora_a (in, r) and lora_b (r, out), or (E, r, in) and (E, out, r)",
        got=got,
        fix="save the adapter again; it is incomplete or damaged",
    )


FAMILY = Family("mlx", _recognises, _read)
