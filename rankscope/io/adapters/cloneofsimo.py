"""The first LoRA for Stable Diffusion (cloneofsimo/lora): ΔW = up @ down, by number.

``unet:0:down`` (r, in) and ``unet:0:up`` (out, r) count the layers of a model in the order in
which its classes were walked; the header has the classes and the ranks, and no names. There is
no alpha: what training applied is folded into `up`. Beside them lie token embeddings. Before
that it was a bare list in a torch file, one for the model and one for its text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rankscope.errors import AdapterError
from rankscope.io.adapters.family import Context, Family, Reading, factored_site, scale_of
from rankscope.io.tensors import TensorInfo, TensorStore
from rankscope.io.updateset import Site

__all__ = ["FAMILY"]

_KEY = re.compile(r"(?P<module>\w+:\d+):(?P<side>up|down)$")
_UNNAMED = "modules are numbers, counted through the classes of the model: the file has no names"


def _recognises(tensors: Mapping[str, TensorInfo]) -> bool:
    return any(map(_KEY.match, tensors))


def _read(context: Context) -> Reading:
    store = context.store
    matches = [match for name in store.tensors if (match := _KEY.match(name))]
    modules = dict.fromkeys(match["module"] for match in matches)
    known = {match[0] for match in matches}
    return Reading(
        format=FAMILY.name,
        sites=tuple(_site(context, module) for module in modules),
        unread=tuple(name for name in store.tensors if name not in known),
        notes=(_UNNAMED,),
    )


def _site(context: Context, module: str) -> Site:
    store, up, down = context.store, f"{module}:up", f"{module}:down"
    for name in (up, down):
        if name not in store.tensors:
            raise _incomplete(store, module, name)
    rank = (*store.tensors[down].shape, 0)[0]
    scale = scale_of(context.alpha, rank) if context.alpha is not None and rank else 1.0
    return factored_site(store, module, up, down, scale)


def _incomplete(store: TensorStore, module: str, missing: str) -> AdapterError:
    return AdapterError(
        "a pair of factors is incomplete",
        where=f"{store.label}, module {module!r}",
        expected=f"{module}:up (out, r) and {module}:down (r, in)",
        got=f"no {missing}",
        fix="save the adapter again; half of it is missing",
    )


FAMILY = Family("cloneofsimo", _recognises, _read)
