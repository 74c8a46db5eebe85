"""Two factors under any names: the reader of last resort, for hand-written LoRA code.

Names that differ by one mark only (A and B, up and down, left and right) are a pair where their
shapes chain through one small dimension, ΔW = up @ down. All pairs of a file must, or it is an
error that lists them; the scale is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rankscope.errors import AdapterError
from rankscope.io.adapters.family import Context, Family, Reading, factored_site, scale_of
from rankscope.io.tensors import TensorInfo, TensorStore
from rankscope.io.updateset import Site

__all__ = ["FAMILY"]

_UNKNOWN_SCALE = "the file does not say its scale, numbers are at scale 1"
_TOGETHER = (("A", "B"), ("a", "b"), ("up", "down"), ("left", "right"))
# The last mark of a name, as a word of its own.
_MARK = re.compile(
    r"(?P<head>(?:.*[._:/-])?)(?P<mark>[ABab]|up|down|left|right)(?P<tail>(?:[._:/-].*)?)$"
)
_ENDING = re.compile(r"(?:(?:^|[._:/-])(?:w_)?lora)?[._:/-]*$", re.IGNORECASE)
# Other methods' factors: a product of two of them is not their update.
_OTHERS = re.compile(r"hada_|lokr_|vera_|oft_|ia3_|lora_E|lora_mid|lora_diag|magnitude|dora_scale")
# Feed-forward layers are named up and down as well, and are up to eight times wider than deep.
_NARROW = 8


@dataclass(frozen=True)
class _Pattern:
    """A name with a hole where the mark stands, and the marks that go together in it."""

    head: str
    tail: str
    marks: tuple[str, str]

    @property
    def module(self) -> str:
        head = _ENDING.sub("", self.head, count=1)
        tail = self.tail.removesuffix(".weight").strip("._:/-")
        return ".".join(part for part in (head, tail) if part) or "update"


def _patterns(tensors: Mapping[str, TensorInfo]) -> dict[_Pattern, list[str]]:
    """Return the matrices' names by pattern; where names speak of LoRA, only those that do."""
    found: dict[_Pattern, list[str]] = {}
    for name, info in tensors.items():
        match = _MARK.match(name)
        if match and info.floating and info.shape:
            marks = next(pair for pair in _TOGETHER if match["mark"] in pair)
            found.setdefault(_Pattern(match["head"], match["tail"], marks), []).append(name)
    named = {key: names for key, names in found.items() if "lora" in names[0].lower()}
    found = named or found
    # A bias called b is nobody's factor.
    return {
        key: names
        for key, names in found.items()
        if len(names) == 2 or len(tensors[names[0]].shape) > 1
    }


def _chain(tensors: Mapping[str, TensorInfo], names: list[str]) -> tuple[str, str, int] | None:
    """Return which factor is up, which is down, and the rank; None where that is not certain."""
    shapes = [tensors[name].shape for name in names]
    if len(names) != 2 or any(len(shape) != 2 or 0 in shape for shape in shapes):
        return None
    orders = [
        (names[i], names[1 - i], shapes[i][1])
        for i in (0, 1)
        if shapes[i][1] == shapes[1 - i][0] <= min(shapes[i][0], shapes[1 - i][1])
    ]
    orders.sort(key=lambda order: order[2])
    tie = len(orders) == 2 and orders[0][2] == orders[1][2]
    return orders[0] if orders and not tie else None


def _recognises(tensors: Mapping[str, TensorInfo]) -> bool:
    if any(map(_OTHERS.search, tensors)):
        return False
    pairs = [names for names in _patterns(tensors).values() if len(names) == 2]
    if any("lora" in name.lower() for names in pairs for name in names):
        return True
    paired = {name for names in pairs for name in names}
    matrices = {name for name, info in tensors.items() if info.floating and len(info.shape) > 1}
    return bool(pairs) and matrices == paired and all(_is_narrow(tensors, p) for p in pairs)


def _is_narrow(tensors: Mapping[str, TensorInfo], names: list[str]) -> bool:
    chain = _chain(tensors, names)
    if chain is None:
        return False
    up, down, rank = chain
    return rank * _NARROW < min(tensors[up].shape[0], tensors[down].shape[1])


def _read(context: Context) -> Reading:
    store = context.store
    patterns = _patterns(store.tensors)
    modules = [pattern.module for pattern in patterns]
    sites = []
    for (pattern, names), module in zip(patterns.items(), modules, strict=True):
        chain = _chain(store.tensors, names)
        if chain is None or modules.count(module) > 1:
            raise _ambiguous(store, patterns, pattern)
        sites.append(_site(context, module, *chain))
    known = {name for names in patterns.values() for name in names}
    return Reading(
        format=FAMILY.name,
        sites=tuple(sites),
        unread=tuple(name for name in store.tensors if name not in known),
        notes=() if context.alpha is not None else (_UNKNOWN_SCALE,),
    )


def _site(context: Context, module: str, up: str, down: str, rank: int) -> Site:
    scale = None if context.alpha is None else scale_of(context.alpha, rank)
    return factored_site(context.store, module, up, down, scale)


def _ambiguous(
    store: TensorStore, patterns: Mapping[_Pattern, list[str]], first: _Pattern
) -> AdapterError:
    names = [*patterns[first], *(n for p, own in patterns.items() if p != first for n in own)]
    shown = [f"{name} {store.tensors[name].shape}" for name in names[:6]]
    return AdapterError(
        "the tensors look like pairs of factors, and do not all chain through one small dimension",
        where=store.label,
        expected="for every module (out, r) and (r, in), with names that differ by one mark",
        got=", ".join(shown) + (" …" if len(names) > 6 else ""),
        fix="save it as PEFT does: <module>.lora_A.weight (r, in), .lora_B.weight (out, r)",
    )


FAMILY = Family("generic", _recognises, _read)
