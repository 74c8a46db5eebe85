"""PEFT LoRA: ``<module>.lora_A.weight`` (r, in) and ``<module>.lora_B.weight`` (out, r).

Also raw state dicts, where the adapter's name stands in the keys, embeddings, and files of the
same keys without a configuration, whose scale is then unknown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rankscope.errors import AdapterError
from rankscope.io.adapters.family import Context, Family, Reading, factored_site, scale_of
from rankscope.io.names import bare_name
from rankscope.io.tensors import TensorInfo, TensorStore
from rankscope.io.updateset import Site

__all__ = ["FAMILY"]

_KEY = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])"
    r"(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?:\.weight)?$"
)
# Tensors beside the factors that change what the model adds: B @ A alone would be wrong.
_MORE_THAN_A_PRODUCT = {
    "lora_magnitude_vector": "DoRA, whose ΔW needs the base weight",
    "lora_E": "AdaLoRA, with a diagonal between the factors",
    "lora_diag": "KaSA, which also truncates the base weight",
}
_SHIFTED_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")
_REFUSED_OPTIONS = ("use_dora", "use_qalora", "use_bdlora", "target_parameters", "enable_lora")


@dataclass(frozen=True)
class _Config:
    """The part of ``adapter_config.json`` that decides the scale."""

    alpha: float
    rslora: bool
    alpha_pattern: dict[str, float]

    def scale(self, module: str, rank: int) -> float:
        alpha = next((a for k, a in self.alpha_pattern.items() if _matches(k, module)), self.alpha)
        return scale_of(alpha, rank, rslora=self.rslora)


def _recognises(tensors: Mapping[str, TensorInfo]) -> bool:
    return any(".lora_A" in name or ".lora_embedding_A" in name for name in tensors) or any(
        ".lora_B" in name for name in tensors
    )


def _read(context: Context) -> Reading:
    store, config, alpha = context.store, context.config, context.alpha
    _refuse_what_is_more_than_a_product(store, config)
    pairs, read = _pairs(store)
    parsed = None if config is None else _parse(config, store.label)
    notes: list[str] = []
    sites = tuple(_site(store, key, pair, parsed, alpha, notes) for key, pair in pairs.items())
    if parsed is None and alpha is None:
        notes.append("no adapter_config.json: the scale is unknown, numbers are at scale 1")
    elif config is not None:
        notes.extend(_rank_notes(config, sites))
    return Reading(
        format="peft",
        sites=sites,
        unread=tuple(name for name in store.tensors if name not in read),
        notes=tuple(notes),
    )


def _pairs(store: TensorStore) -> tuple[dict[tuple[str, bool], dict[str, str]], set[str]]:
    """Return the factors' names by (module, is embedding) and letter, and all names read."""
    pairs: dict[tuple[str, bool], dict[str, str]] = {}
    adapters: dict[str | None, None] = {}
    read = set()
    for name in store.tensors:
        match = _KEY.match(name)
        # The full copy of the weight beside the factors belongs to the base.
        if match is None:
            if name.endswith(".base_layer.weight"):
                read.add(name)
            continue
        adapters[match["adapter"]] = None
        pairs.setdefault((bare_name(match["module"]), bool(match["embedding"])), {})[
            match["side"]
        ] = name
        read.add(name)
    if len(adapters) > 1:
        raise AdapterError(
            "several adapters in one file",
            where=store.label,
            expected="the tensors of one adapter",
            got=", ".join(str(name) for name in adapters),
            fix="save the adapter you mean by itself",
        )
    return pairs, read


def _site(
    store: TensorStore,
    key: tuple[str, bool],
    pair: dict[str, str],
    config: _Config | None,
    alpha: float | None,
    notes: list[str],
) -> Site:
    module, embedding = key
    if len(pair) < 2:
        (letter, name), missing = next(iter(pair.items())), "B" if "A" in pair else "A"
        raise AdapterError(
            f"adapter has a lora_{letter} without its lora_{missing}",
            where=f"{store.label}, tensor {name!r}",
            expected=f"a tensor named {name.replace(f'_{letter}', f'_{missing}')!r}",
            got=f"{len(store.tensors)} tensors, none with that name",
            fix="save the adapter again; half of it is missing",
        )
    shape = store.tensors[pair["A"]].shape
    rank = shape[0] if shape else 0
    if alpha is not None:
        config = _Config(alpha, config is not None and config.rslora, {})
    scale = None if config is None or not rank else config.scale(module, rank)
    return factored_site(store, module, pair["B"], pair["A"], scale, transposed=embedding)


def _matches(pattern: str, module: str) -> bool:
    """PEFT's rule for rank_pattern and alpha_pattern: the whole name, or its end."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _parse(config: dict[str, Any], label: str) -> _Config:
    alpha = _number(config.get("lora_alpha", 8), "lora_alpha", label)
    patterns = {
        str(k): _number(a, "alpha_pattern", label)
        for k, a in _mapping(config, "alpha_pattern", label).items()
    }
    for pattern in patterns:
        _check_pattern(pattern, label)
    return _Config(alpha, bool(config.get("use_rslora")), patterns)


def _rank_notes(config: dict[str, Any], sites: tuple[Site, ...]) -> list[str]:
    """Say where the configuration names another rank than the tensors have; the tensors win."""
    ranks = {k: r for k, r in (config.get("rank_pattern") or {}).items() if len(k) <= 512}
    wrong = []
    for site in sites:
        said = next((r for k, r in ranks.items() if _matches(k, site.module)), config.get("r", 8))
        if said != site.rank:
            wrong.append(f"{site.module} ({site.rank}, not {said})")
    shown = ", ".join(wrong[:3]) + (" …" if len(wrong) > 3 else "")
    return [f"ranks are the tensors', not the configuration's: {shown}"] if wrong else []


def _mapping(config: dict[str, Any], key: str, label: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise _bad_config(key, "an object from names to numbers", value, label)
    return value


def _number(value: object, key: str, label: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _bad_config(key, "a finite number", value, label)
    return float(value)


def _check_pattern(pattern: str, label: str) -> None:
    # A nested quantifier can run for ages on a long name; no real configuration has one.
    if len(pattern) > 512 or re.search(r"[+*}][^(]*\)\s*[+*{]", pattern):
        raise _bad_config("alpha_pattern", "simple patterns of module names", pattern[:60], label)
    try:
        re.compile(pattern)
    except re.error as error:
        raise _bad_config("alpha_pattern", "a regular expression", str(error), label) from error


def _bad_config(key: str, expected: str, got: object, label: str) -> AdapterError:
    return AdapterError(
        f"adapter_config.json has an unusable {key}",
        where=f"{label}, its adapter_config.json",
        expected=expected,
        got=repr(got)[:100],
        fix="correct the configuration, or give the scale with --alpha without it",
    )


def _refuse_what_is_more_than_a_product(store: TensorStore, config: dict[str, Any] | None) -> None:
    config = config or {}
    reasons = (
        [f"peft_type {config['peft_type']}"] if config.get("peft_type", "LORA") != "LORA" else []
    )
    for tensor in store.tensors:
        reasons += [why for part, why in _MORE_THAN_A_PRODUCT.items() if part in tensor][:1]
    reasons += [option for option in _REFUSED_OPTIONS if config.get(option)]
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(_SHIFTED_INITS):
        reasons.append(f"init_lora_weights {init!r}, which also moved the base weight")
    if reasons:
        raise AdapterError(
            "this adapter adds more, or something else, than scale * B @ A",
            where=store.label,
            expected="plain LoRA",
            got=reasons[0],
            fix="merge it and compare the merged checkpoint with its base",
        )


FAMILY = Family("peft", _recognises, _read)
