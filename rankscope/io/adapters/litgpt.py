"""LitGPT: loralib's keys, and one pair of factors for each of q, k and v that is enabled.

``attn.qkv.lora_A`` (r·n, in) and ``.lora_B`` (rows of the n enabled parts, r). With grouped
queries the parts differ: q has head_size · heads rows, k and v have head_size · groups. Alpha, r
and the enabled parts lie in ``hyperparameters.yaml``, not in the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rankscope.errors import AdapterError
from rankscope.io.adapters.family import (
    Context,
    Family,
    Reading,
    factored_site,
    formula_site,
    scale_of,
)
from rankscope.io.adapters.loralib import complete, merged_linear, paired
from rankscope.io.matching import base_name
from rankscope.io.tensors import TensorInfo
from rankscope.io.updateset import Site

__all__ = ["FAMILY"]

_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])$")
_FUSED = re.compile(r"transformer\.h\.\d+\.attn\.(qkv|attn)(\.lora_[AB])?$")
_UNKNOWN_SCALE = "the file does not say its alpha: the scale is unknown, numbers are at scale 1"
_GUESSED = "which of q, k and v are updated is not stored: two parts are taken for q and v"


def _recognises(tensors: Mapping[str, TensorInfo]) -> bool:
    return any(map(_FUSED.match, tensors))


def _read(context: Context) -> Reading:
    store = context.store
    pairs, unread = paired(store, _KEY)
    notes = [] if context.alpha is not None else [_UNKNOWN_SCALE]
    sites = tuple(
        _site(context, module, *complete(store, pair), notes) for module, pair in pairs.items()
    )
    return Reading(FAMILY.name, sites, unread, tuple(dict.fromkeys(notes)))


def _site(context: Context, module: str, a: str, b: str, notes: list[str]) -> Site:
    store, up = context.store, context.store.tensors[b].shape
    rank = up[1] if len(up) == 2 else 0
    scale = scale_of(context.alpha, rank) if context.alpha is not None and rank else None
    if not _FUSED.match(module):
        return factored_site(store, module, b, a, scale)
    rows, enabled = _parts(context, module, store.tensors[a].shape, up)
    notes.extend([] if all(enabled) else [_GUESSED])
    total, in_ = store.tensors[a].shape
    return formula_site(
        store, module, merged_linear, {"up": b, "down": a},
        shape=(sum(rows), in_), rank=total, scale=scale, rows=rows, enabled=enabled,
    )  # fmt: skip


def _parts(
    context: Context, module: str, down: tuple[int, ...], up: tuple[int, ...]
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return the rows of q, k and v, and which of them have factors."""
    if len(down) != 2 or len(up) != 2 or 0 in (*down, *up) or module.endswith(".attn.attn"):
        raise _unclear(context, module, f"factors {down} and {up}")
    count, rest = divmod(down[0], up[1])
    queries = _queries(context, module, down[1])
    others = up[0] - queries
    if rest or count not in (2, 3) or others <= 0 or others % (count - 1):
        raise _unclear(context, module, f"factors {down} and {up}, {queries} rows of q")
    other = others // (count - 1)
    return (queries, other, other), (True, count == 3, True)


def _queries(context: Context, module: str, in_: int) -> int:
    """Return the rows of q: the inputs of the projection after it, which are mostly in_."""
    output = f"{module.removesuffix('qkv')}proj"
    factor = context.store.tensors.get(f"{output}.lora_A")
    name = None if context.base is None else base_name(output, context.base.tensors)
    if factor is not None and len(factor.shape) == 2:
        return factor.shape[1]
    if context.base is not None and name is not None:
        return context.base.tensors[name].shape[-1]
    return in_


def _unclear(context: Context, module: str, got: str) -> AdapterError:
    return AdapterError(
        "the factors do not tell which of q, k and v they update",
        where=f"{context.store.label}, module {module!r}",
        expected="a pair of factors for q and v, or for q, k and v, one below the other",
        got=got,
        fix="give the base weights; interleaved files of old LitGPT must be merged first",
    )


FAMILY = Family("litgpt", _recognises, _read)
