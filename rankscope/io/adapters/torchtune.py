"""torchtune: ``<module>.lora_a.weight`` (r, in) and ``<module>.lora_b.weight`` (out, r).

ΔW = alpha/r · lora_b @ lora_a, with alpha from the ``adapter_config.json`` beside the file.
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
    in_order,
    scale_of,
)
from rankscope.io.adapters.loralib import alpha_of, paired
from rankscope.io.rotary import as_paired
from rankscope.io.tensors import TensorInfo, TensorStore
from rankscope.io.updateset import Site

__all__ = ["FAMILY"]

_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[ab])\.weight$")
_UNKNOWN_SCALE = "no lora_alpha beside the file: the scale is unknown, numbers are at scale 1"
_PERMUTED = (
    "the rows of q and k are in Meta's rotary order, as in torchtune's own checkpoints: against a "
    "Hugging Face copy their output side is permuted; its folder as --base puts them right"
)


def _recognises(tensors: Mapping[str, TensorInfo]) -> bool:
    return any(map(_KEY.match, tensors))


def _read(context: Context) -> Reading:
    alpha = alpha_of(context)
    pairs, unread = paired(context.store, _KEY)
    notes = [] if alpha is not None else [_UNKNOWN_SCALE]
    sites = tuple(_site(context, module, alpha) for module in pairs)
    if any(site.row_order == "rotary" for site in sites):
        notes.append(_PERMUTED)
    return Reading(FAMILY.name, sites, unread, tuple(notes))


def _site(context: Context, module: str, alpha: float | None) -> Site:
    store = context.store
    a, b = f"{module}.lora_a.weight", f"{module}.lora_b.weight"
    _check_product(store, module, a, b)
    rank = (*store.tensors[a].shape, 0)[0]
    scale = scale_of(alpha, rank) if alpha is not None and rank else None
    site = factored_site(store, module, b, a, scale)
    if site.kind not in ("q", "k"):
        return site
    return in_order(site, {"up": b, "down": a}, as_paired(site.kind, site.shape[0], context.base))


def _check_product(store: TensorStore, module: str, a: str, b: str) -> None:
    missing = [name for name in (a, b) if name not in store.tensors]
    extra = [name for name in (f"{module}.magnitude",) if name in store.tensors]
    if missing or extra:
        raise AdapterError(
            "this update is no product of two factors",
            where=f"{store.label}, module {module!r}",
            expected=f"{a} (r, in) and {b} (out, r)",
            got=f"no {missing[0]}" if missing else f"{extra[0]}, a DoRA",
            fix="save the adapter again" if missing else "merge it, compare it with its base",
        )


FAMILY = Family("torchtune", _recognises, _read)
