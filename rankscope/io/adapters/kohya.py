"""kohya sd-scripts, LoCon and LyCORIS: ``<flat name>.<suffix>``, with an alpha per module.

The flat name is a prefix and the module's path with ``_`` for ``.``. It is never split: with a
base, every base matrix's flat name is built and looked up, and the module bears the base's name.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rankscope.errors import AdapterError
from rankscope.io.adapters.family import Context, Family, Reading, factored_site, formula_site
from rankscope.io.adapters.lycoris import METHODS, Draft, draft_of
from rankscope.io.adapters.lycoris_parts import Parts
from rankscope.io.matching import base_name, catalogue
from rankscope.io.names import FLAT_PREFIXES, bare_name
from rankscope.io.recipes import Weight
from rankscope.io.tensors import TensorInfo, TensorStore
from rankscope.io.updateset import Site

__all__ = ["FAMILY"]

_SUFFIXES = dict.fromkeys(
    suffix for method in METHODS.values() for suffix in (*method.parts, *method.extras)
)
# A PEFT model's names are its own family's, whatever the method.
_KEY = re.compile(
    rf"(?!base_model\.)(?P<module>.+?)\.(?P<part>{'|'.join(map(re.escape, _SUFFIXES))})$"
)
_TELLING = re.compile(r"lora_(down|up)\.weight|hada_w|lokr_w|oft_blocks|on_input")
# Words so common that only the prefix tells them from a checkpoint's own.
_PREFIXED = re.compile(
    rf"({'|'.join(FLAT_PREFIXES)})[^.]+\.(diff|diff_b|w_norm|b_norm|[ab][12]\.weight)$"
)
_SPLIT_QKV = (
    "trained with split_qkv, which keeps the alpha of one part: of fused q, k, v every program "
    "applies 1/3 of the trained update (of single_blocks linear1 1/4), as the numbers here do"
)
_RS_GLORA = "GLoRA with rs_lora stores its alpha unscaled: the trained update is √r times as large"


def _recognises(tensors: Mapping[str, TensorInfo]) -> bool:
    return any(
        ((key := _KEY.match(name)) and _TELLING.match(key["part"])) or _PREFIXED.match(name)
        for name in tensors
    )


def _read(context: Context) -> Reading:
    store = context.store
    modules = {m: p for m, p in _modules(context).items() if _methods(p)}
    methods = {module: _method(parts) for module, parts in modules.items()}
    drafts = {module: draft_of(parts, methods[module]) for module, parts in modules.items()}
    names = _base_names(context, drafts)
    read = {name for m, parts in modules.items() for name in _read_names(parts, methods[m])}
    return Reading(
        format="kohya" if set(methods.values()) <= {"lora"} else "lycoris",
        sites=tuple(_site(context, m, draft, names.get(m)) for m, draft in drafts.items()),
        unread=tuple(name for name in store.tensors if name not in read),
        notes=tuple(_notes(context, modules, drafts, names)),
    )


def _modules(context: Context) -> dict[str, Parts]:
    names: dict[str, dict[str, str]] = {}
    for name, info in context.store.tensors.items():
        key = _KEY.match(name)
        # The difference of a norm or of a bias is no matrix.
        if key and not (key["part"] == "diff" and len(info.shape) < 2):
            names.setdefault(key["module"], {})[key["part"]] = name
    return {m: Parts(context.store, m, parts, context.alpha) for m, parts in names.items()}


def _methods(parts: Parts) -> list[str]:
    found = [name for name, method in METHODS.items() if any(p in parts for p in method.parts)]
    # A magnitude alone is the rest of a DoRA, whose factors are then reported missing.
    return found or (["lora"] if "dora_scale" in parts else [])


def _method(parts: Parts) -> str:
    found = _methods(parts)
    if len(found) > 1:
        raise AdapterError(
            "a module carries several kinds of update",
            where=f"{parts.store.label}, module {parts.module!r}",
            expected=f"one of {', '.join(METHODS)}",
            got=", ".join(found),
            fix="save the adapter that you mean by itself",
        )
    return found[0]


def _read_names(parts: Parts, method: str) -> Iterable[str]:
    known = (*METHODS[method].parts, *METHODS[method].extras)
    return (parts.names[part] for part in known if part in parts)


def _site(context: Context, module: str, draft: Draft, name: str | None) -> Site:
    store, tensors = context.store, draft.tensors
    shown = module if name is None else _path(name)
    if tensors.keys() == {"up", "down"}:
        return factored_site(store, shown, tensors["up"], tensors["down"], draft.scale)
    weight = _weight(context, module, name, draft) if draft.why else None
    return formula_site(
        store,
        shown,
        draft.function,
        tensors,
        shape=_shape(draft, weight),
        rank=draft.rank,
        scale=draft.scale,
        weight=weight,
        **draft.options,
    )


def _weight(context: Context, module: str, name: str | None, draft: Draft) -> Weight:
    if name is not None and context.base is not None:
        return Weight(context.base, name)
    weight = context.weight(module, draft.why)
    shape = weight.store.tensors[weight.name].shape
    if len(shape) < 2 or not draft.fits(shape):
        raise AdapterError(
            f"the base weight of {module} has another shape than its update",
            where=f"{weight.store.label}, tensor {weight.name!r}",
            expected=_wanted(draft),
            got=str(shape),
            fix="give the base that this adapter was trained on",
        )
    return weight


def _shape(draft: Draft, weight: Weight | None) -> tuple[int, int]:
    base = () if weight is None else weight.store.tensors[weight.name].shape
    rows = base[0] if draft.rows is None else draft.rows
    return rows, math.prod(base[1:]) if draft.columns is None else draft.columns


def _wanted(draft: Draft) -> str:
    known = {"out": draft.rows, "in · kernel": draft.columns, "in": draft.channels}
    return ", ".join(f"{what} {size}" for what, size in known.items() if size is not None)


def _path(name: str) -> str:
    return bare_name(name).removesuffix(".weight")


def _base_names(context: Context, drafts: Mapping[str, Draft]) -> dict[str, str]:
    """Return the base tensor of every module that has one of its flat name and shape."""
    if context.base is None:
        return {}
    known, names = context.base.tensors, {}
    matrices = catalogue(n for n, i in known.items() if n.endswith(".weight") and len(i.shape) > 1)
    for module, draft in drafts.items():
        if "." in module:
            continue
        found = matrices.candidates(module, lambda name: draft.fits(known[name].shape))  # noqa: B023
        if len(found) > 1:
            raise _ambiguous(context, module, found)
        if found:
            names[module] = found[0]
    _check_distinct(context, names)
    return names


def _ambiguous(context: Context, module: str, names: list[str]) -> AdapterError:
    return AdapterError(
        "a flat name means several modules of the base",
        where=f"{context.store.label}, module {module!r}",
        expected="one base weight of this name and shape",
        got=", ".join(names),
        fix="read it without the base; which of them was trained cannot be told",
    )


def _check_distinct(context: Context, names: Mapping[str, str]) -> None:
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise AdapterError(
            "two modules of the adapter are one of the base",
            where=f"{context.store.label}, base tensor {twice[0]!r}",
            expected="a base that holds every part of the model",
            got=", ".join(module for module, name in names.items() if name == twice[0]),
            fix="give the whole model as the base, or none",
        )


def _notes(
    context: Context,
    modules: Mapping[str, Parts],
    drafts: Mapping[str, Draft],
    names: Mapping[str, str],
) -> Iterable[str]:
    without = [m for m, p in modules.items() if drafts[m].rank and "alpha" not in p]
    if without and context.alpha is None:
        yield f"no alpha, taken as the rank: {_some(without)}"
    if context.base is not None:
        known = context.base.tensors
        lost = [m for m in drafts if m not in names and _is_lost(m, known)]
        if lost:
            yield f"not in the base, or of another shape there: {_some(lost)}"
    yield from dict.fromkeys(draft.note for draft in drafts.values() if draft.note)
    arguments = _network_args(context.store)
    if _on(arguments, "split_qkv"):
        yield _SPLIT_QKV
    if _on(arguments, "rs_lora") and any(_methods(p) == ["glora"] for p in modules.values()):
        yield _RS_GLORA


def _is_lost(module: str, known: Mapping[str, TensorInfo]) -> bool:
    # A dotted name is matched as every other family's; a flat one has had its look-up.
    return "." not in module or base_name(module, known) is None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _network_args(store: TensorStore) -> dict[str, Any]:
    """Return what the trainer was called with; it only informs, so nonsense counts as nothing."""
    try:
        content = json.loads(store.metadata.get("ss_network_args", "{}"))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _on(arguments: Mapping[str, Any], key: str) -> bool:
    return str(arguments.get(key)).lower() == "true"


FAMILY = Family("kohya", _recognises, _read)
