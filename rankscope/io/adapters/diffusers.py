"""diffusers LoRA, in the three spellings of its keys: ΔW = scale · up @ down.

The oldest keys name the attention processor (``attn1.processor.to_q_lora.down.weight``), then
come ``attn1.to_q.lora.down.weight`` with ``q_proj.lora_linear_layer.down.weight`` of the text
encoder, and now ``transformer.….attn.to_q.lora_A.weight``. Modules keep their component
(``unet.``, ``text_encoder.``, ``transformer.``) where the file names it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from rankscope.errors import AdapterError
from rankscope.io.adapters.family import Context, Family, Reading, factored_site, scale_of
from rankscope.io.recipes import finite
from rankscope.io.tensors import TensorInfo, TensorStore
from rankscope.io.updateset import Site

__all__ = ["FAMILY"]

_FACTOR = re.compile(
    r"(?P<owner>.+?(?:_lora|\.lora|\.lora_linear_layer))\.(?P<side>up|down)\.weight$"
    r"|(?P<module>(?!base_model\.).+)\.lora_(?P<letter>[AB])\.weight$"
)
# lora_A and lora_B are PEFT's keys too: the path must be one that only diffusers has.
_COMPONENT = r"unet|transformer(?:_\d)?|text_encoder(?:_\d)?|diffusion_model"
_PATH = re.compile(
    r"(?:unet|text_encoder(?:_\d)?|diffusion_model)\."
    r"|(?:.*\.)?(?:to_[qkv]|to_out|attn[12]|(?:single_)?transformer_blocks"
    r"|(?:down|up|mid)_blocks?)\."
)
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_SIDES = {"A": "down", "B": "up"}
_METADATA = "lora_adapter_metadata"
_UNSAID = (
    "the file names no alpha: read at scale 1, as diffusers does; training may have used another"
)


def _recognises(tensors: Mapping[str, TensorInfo]) -> bool:
    matches = (match for name in tensors if (match := _FACTOR.match(name)))
    return any(match["owner"] or _PATH.match(match[0]) for match in matches)


def _read(context: Context) -> Reading:
    store = context.store
    _refuse_dora(store)
    pairs: dict[str, dict[str, str]] = {}
    read = set()
    for name in store.tensors:
        if match := _FACTOR.match(name):
            side = match["side"] or _SIDES[match["letter"]]
            module = _module(match["owner"]) if match["owner"] else match["module"]
            _add(store, pairs.setdefault(module, {}), side, name)
            read.add(name)
    alphas = _alphas(store, pairs)
    settings = _settings(context)
    notes: list[str] = []
    sites = tuple(
        _site(context, module, pair, _value(store, alphas.get(module)), settings, notes)
        for module, pair in pairs.items()
    )
    read |= set(alphas.values())
    unread = tuple(name for name in store.tensors if name not in read)
    return Reading(FAMILY.name, sites, unread, tuple(dict.fromkeys(notes)))


def _value(store: TensorStore, name: str | None) -> float | None:
    return None if name is None else float(finite(store, name))


def _module(owner: str) -> str:
    """Return the module that a factor belongs to, whatever the spelling of its key."""
    old = re.match(r"(.*\.)?([^.]+)_lora$", owner)
    if old is None:
        return owner.removesuffix(".lora").removesuffix(".lora_linear_layer")
    path, name = old[1] or "", old[2]
    if path.endswith("self_attn."):
        return path + _OLD_TEXT.get(name, name)
    return path.removesuffix("processor.") + ("to_out.0" if name == "to_out" else name)


def _add(store: TensorStore, pair: dict[str, str], side: str, name: str) -> None:
    if side in pair:
        raise AdapterError(
            "two tensors are the same factor of one module",
            where=store.label,
            expected="one spelling of the keys",
            got=f"{pair[side]} and {name}",
            fix="save one adapter by itself",
        )
    pair[side] = name


def _site(
    context: Context,
    module: str,
    pair: Mapping[str, str],
    alpha: float | None,
    settings: Mapping[str, Any],
    notes: list[str],
) -> Site:
    store = context.store
    if len(pair) < 2:
        raise AdapterError(
            "a pair of factors is incomplete",
            where=f"{store.label}, module {module!r}",
            expected="a down and an up, or a lora_A and a lora_B",
            got=", ".join(pair.values()),
            fix="save the adapter again; half of it is missing",
        )
    shape = store.tensors[pair["down"]].shape
    rank = shape[0] if shape else 0
    scale = _scale(context, module, rank, alpha, settings) if rank else None
    notes.extend([_UNSAID] if scale is None else [])
    return factored_site(store, module, pair["up"], pair["down"], 1.0 if scale is None else scale)


def _scale(
    context: Context, module: str, rank: int, alpha: float | None, settings: Mapping[str, Any]
) -> float | None:
    """Return alpha/r by the user, the module's own tensor, or the header; None if none says it."""
    component = match[0][:-1] if (match := re.match(rf"(?:{_COMPONENT})\.", module)) else ""
    own = _of_component(settings, component) or context.config or {}
    rslora = bool(own.get("use_rslora"))
    if context.alpha is not None:
        return scale_of(context.alpha, rank, rslora=rslora)
    if alpha is not None:
        return scale_of(alpha, rank)
    found = own.get("lora_alpha")
    patterns = own.get("alpha_pattern")
    # diffusers writes plain names of modules here, never expressions.
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if f".{module}".endswith(f".{str(pattern).removeprefix('^')}"):
            found = value
            break
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise _bad_metadata(context.store, f"lora_alpha {found!r}")
    return scale_of(float(found), rank, rslora=rslora)


def _of_component(settings: Mapping[str, Any], component: str) -> dict[str, Any]:
    """Return the settings of one component, without its prefix."""
    prefix = f"{component}." if component else ""
    return {key.removeprefix(prefix): value for key, value in settings.items()
            if key.startswith(prefix)}  # fmt: skip


def _settings(context: Context) -> dict[str, Any]:
    """Return what the header says, one flat object with the components as prefixes."""
    text = context.store.metadata.get(_METADATA)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad_metadata(context.store, str(error)) from error
    if not isinstance(content, dict):
        raise _bad_metadata(context.store, f"a JSON {type(content).__name__}")
    for key, value in content.items():
        if key.endswith("use_dora") and value:
            raise _dora(context.store, key)
        if key.endswith("alpha_pattern") and not isinstance(value, dict | None):
            raise _bad_metadata(context.store, f"{key} {value!r}"[:100])
    return content


def _alphas(store: TensorStore, modules: Collection[str]) -> dict[str, str]:
    """Return the names of the stored alphas by module."""
    found = {}
    for name, info in store.tensors.items():
        owner, dot, last = name.rpartition(".")
        module = owner if owner in modules else _module(owner)
        if dot and last == "alpha" and info.parameters == 1 and module in modules:
            found[module] = name
    return found


def _refuse_dora(store: TensorStore) -> None:
    for name in store.tensors:
        if "lora_magnitude_vector" in name or name.endswith(".dora_scale"):
            raise _dora(store, name)


def _dora(store: TensorStore, got: str) -> AdapterError:
    return AdapterError(
        "this adapter is a DoRA, whose ΔW is no product of two factors",
        where=store.label,
        expected="plain LoRA",
        got=got,
        fix="fuse it in diffusers and compare the fused checkpoint with its base",
    )


def _bad_metadata(store: TensorStore, got: str) -> AdapterError:
    return AdapterError(
        f"the header's {_METADATA} cannot be used",
        where=store.label,
        expected="a JSON object with lora_alpha as a finite number",
        got=got,
        fix="save the adapter again, or give the scale with --alpha",
    )


FAMILY = Family("diffusers", _recognises, _read)
