"""GGUF adapters (llama.cpp): ``<tensor>.weight.lora_a`` (r, in) and ``lora_b`` (out, r).

ΔW = s · b @ a with s = alpha / r, or 1 where alpha is 0; per expert where the factors are
stacks; s · a @ bᵀ for the token embedding, whose a is (vocabulary, r) and b (hidden, r).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from rankscope.errors import AdapterError
from rankscope.io.adapters.family import (
    Context,
    Family,
    Reading,
    factored_site,
    formula_site,
    in_order,
    scale_of,
)
from rankscope.io.adapters.mlx import expert
from rankscope.io.rotary import by_halves
from rankscope.io.tensors import TensorInfo, TensorStore
from rankscope.io.updateset import Site
from rankscope.updates import FactoredUpdate

__all__ = ["FAMILY", "embedding"]

_KEY = re.compile(r"(?P<module>.+)\.weight\.lora_(?P<part>[ab])$")
_EMBEDDING = "token_embd"
_ALPHA = "adapter.lora.alpha"
_CONVERTED = (
    "llama.cpp's converter keeps lora_alpha alone: where the adapter was trained with rslora or "
    "per-module patterns, this file's update is another than the original's"
)
_PAIRED = (
    "the rows of q and k are in llama.cpp's order: a base that tells its heads (--base) lets them "
    "be put in Hugging Face's"
)


def embedding(a: Tensor, b: Tensor, *, scale: float = 1) -> FactoredUpdate:
    """Return the update of the token embedding, ``scale * a @ b.T``.

    Parameters
    ----------
    a : (vocabulary, r) Tensor
    b : (hidden, r) Tensor
    scale : float

    Examples
    --------
    >>> import torch
    >>> embedding(torch.ones(1, 1), torch.tensor([[2.0], [3.0]])).dense().tolist()
    [[2.0, 3.0]]
    """
    return FactoredUpdate(a, b.T, scale)


def _recognises(tensors: Mapping[str, TensorInfo]) -> bool:
    return any(_KEY.match(name) for name in tensors)


def _read(context: Context) -> Reading:
    store = context.store
    _check_kind(store)
    modules: dict[str, dict[str, str]] = {}
    for name in store.tensors:
        if match := _KEY.match(name):
            modules.setdefault(match["module"], {})[match["part"]] = name
    alpha = _alpha(context)
    sites = [s for module, own in modules.items() for s in _sites(context, module, own, alpha)]
    read = {name for own in modules.values() for name in own.values()}
    unread = tuple(name for name in store.tensors if name not in read)
    reordered = any(site.row_order in ("rotary", "unknown") for site in sites)
    return Reading(FAMILY.name, tuple(sites), unread, (_CONVERTED, *[_PAIRED] * reordered))


def _check_kind(store: TensorStore) -> None:
    kind = store.metadata.get("adapter.type", "lora")
    if kind != "lora":
        raise AdapterError(
            "this kind of GGUF adapter is not read",
            where=store.label,
            expected="lora as adapter.type",
            got=kind[:100],
            fix="give the adapter that it was converted from",
        )


def _alpha(context: Context) -> float:
    if context.alpha is not None:
        return context.alpha
    said = context.store.metadata.get(_ALPHA, "0")
    try:
        alpha = float(said)
    except ValueError:
        alpha = math.nan
    if not math.isfinite(alpha):
        raise AdapterError(
            "the adapter has an unusable alpha",
            where=f"{context.store.label}, {_ALPHA}",
            expected="a finite number",
            got=said[:100],
            fix="give it with --alpha",
        )
    return alpha


def _sites(context: Context, module: str, own: Mapping[str, str], alpha: float) -> list[Site]:
    store = context.store
    a, b = (store.tensors[own[part]].shape if part in own else () for part in ("a", "b"))
    if len(a) not in (2, 3) or len(b) != len(a) or 0 in (*a, *b):
        raise _unfit(store, module, own)
    scale = scale_of(alpha, b[-1]) if alpha else 1.0
    if len(a) == 3:
        return _experts(store, module, own, scale)
    if module != _EMBEDDING:
        return [_linear(context, module, own, scale)]
    if a[1] != b[1]:
        raise _unfit(store, module, own)
    return [
        formula_site(
            store, module, embedding, {"a": own["a"], "b": own["b"]},
            shape=(a[0], b[0]), rank=b[1], scale=scale,
        )
    ]  # fmt: skip


def _linear(context: Context, module: str, own: Mapping[str, str], scale: float) -> Site:
    store, up, down = context.store, own["b"], own["a"]
    site = factored_site(store, module, up, down, scale)
    order = by_halves(module, site.shape[0], store, context.base)
    return in_order(site, {"up": up, "down": down}, order)


def _experts(store: TensorStore, module: str, own: Mapping[str, str], scale: float) -> list[Site]:
    (count, rank, in_), (other, out, inner) = (store.tensors[own[p]].shape for p in ("a", "b"))
    if (count, rank) != (other, inner):
        raise _unfit(store, module, own)
    return [
        formula_site(
            store, f"{module}[{index}]", expert, {"up": own["b"], "down": own["a"]},
            shape=(out, in_), rank=rank, scale=scale, index=index,
        )
        for index in range(count)
    ]  # fmt: skip


def _unfit(store: TensorStore, module: str, own: Mapping[str, str]) -> AdapterError:
    return AdapterError(
        "the factors of a module do not fit together",
        where=f"{store.label}, module {module!r}",
        expected="lora_a (r, in) and lora_b (out, r), or (E, r, in) and (E, out, r)",
        got=", ".join(f"{name} {store.tensors[name].shape}" for name in own.values()),
        fix="convert the adapter again; it is incomplete or damaged",
    )


FAMILY = Family("gguf", _recognises, _read)
