"""Files of ``w_a_000`` / ``w_b_000`` pairs, as the SAM and ViT forks of LoRA write them.

The number counts the wrapped projections; there are no names, no alpha and no metadata, so
layer and kind are unknown and the scale is too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rankscope.errors import AdapterError
from rankscope.io.adapters.family import Context, Family, Reading, factored_site, scale_of
from rankscope.io.tensors import TensorInfo, TensorStore
from rankscope.io.updateset import Site

__all__ = ["FAMILY"]

_UNKNOWN_SCALE = "the file does not say its scale, numbers are at scale 1"
_KEY = re.compile(r"w_([ab])_(\d+)$")


def _recognises(tensors: Mapping[str, TensorInfo]) -> bool:
    return any(_KEY.match(name) for name in tensors)


def _read(context: Context) -> Reading:
    store, alpha = context.store, context.alpha
    matches = [match for name in store.tensors if (match := _KEY.match(name))]
    numbers = dict.fromkeys(match[2] for match in matches)
    known = {match[0] for match in matches}
    return Reading(
        format="w_a/w_b",
        sites=tuple(_site(store, number, alpha) for number in numbers),
        unread=tuple(name for name in store.tensors if name not in known),
        notes=() if alpha is not None else (_UNKNOWN_SCALE,),
    )


def _site(store: TensorStore, number: str, alpha: float | None) -> Site:
    a, b = f"w_a_{number}", f"w_b_{number}"
    shapes = {name: store.tensors[name].shape for name in (a, b) if name in store.tensors}
    if len(shapes) < 2 or any(len(shape) != 2 for shape in shapes.values()):
        raise _incomplete(store, number, shapes)
    # Teaching code swaps the letters: what chains through the smaller dimension decides.
    chains = {
        (up, down): shapes[up][1]
        for up, down in ((b, a), (a, b))
        if shapes[up][1] == shapes[down][0]
    }
    if not chains:
        raise _incomplete(store, number, shapes)
    (up, down), rank = min(chains.items(), key=lambda item: item[1])
    return factored_site(store, number, up, down, None if alpha is None else scale_of(alpha, rank))


def _incomplete(
    store: TensorStore, number: str, shapes: Mapping[str, tuple[int, ...]]
) -> AdapterError:
    got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    return AdapterError(
        "a pair of factors is incomplete",
        where=f"{store.label}, pair {number}",
        expected=f"w_a_{number} (r, in) and w_b_{number} (out, r)",
        got=got,
        fix="save both factors, each under its own name",
    )


FAMILY = Family("w_a/w_b", _recognises, _read)
