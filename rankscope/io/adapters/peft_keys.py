"""The names in a PEFT file or state dict: which tensor is what part of which module."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from rankscope.errors import AdapterError
from rankscope.io.names import bare_name
from rankscope.io.tensors import TensorInfo, TensorStore

__all__ = ["Keys", "Part", "has_peft_names", "scan"]

_PARAMETER = (
    r"lora_(?:embedding_)?[AB]|lora_magnitude_vector|lora_E|lora_diag|ranknum"
    r"|ia3_l|vera_lambda_[bd]|vera_[AB]|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)"
    r"|oft_(?:embedding_)?R|boft_[Rs]|trainable_tokens_delta"
)
_ADAPTER = r"(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?"
_KEY = re.compile(rf"(?P<path>.+)\.(?P<parameter>{_PARAMETER}){_ADAPTER}(?:\.weight)?$")
_COPY = re.compile(rf"(?P<path>.+)\.(?:modules_to_save|ln_tuning_layers){_ADAPTER}\.weight$")
_OWN_BASE = (".base_layer.weight", ".original_module.weight")
# Names that no other family uses; LoHa and LoKr are LyCORIS's without PEFT's prefix.
_SURE = re.compile(
    r"(base_model\.model\.|base_model\.vera_[AB]|prompt_embeddings|internal_xlora)"
    r"|.*\.(lora_[AB]|lora_embedding_[AB]|ia3_l|vera_lambda_[bd]|oft_R|boft_R)(\.|$)"
)


@dataclass
class Part:
    """The tensors of one adapted module.

    Attributes
    ----------
    path : str
        Its name as stored, with the wrappers' segments.
    tensors : dict
        From parameters such as ``lora_A`` to the names of the tensors.
    """

    path: str
    tensors: dict[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """Its name without wrappers."""
        return bare_name(self.path)


@dataclass(frozen=True)
class Keys:
    """All names of a source, sorted by what they are.

    Attributes
    ----------
    parts : tuple of Part
        Modules with adapter tensors.
    replaced : dict
        From modules that were trained in full to their new weight.
    base : tuple of str
        Weights of the base that lie beside the adapter.
    raw : bool
        Whether this is a whole model's state dict, with the adapter's name in the keys.
    """

    parts: tuple[Part, ...]
    replaced: dict[str, str]
    base: tuple[str, ...]
    raw: bool

    @cached_property
    def paths(self) -> frozenset[str]:
        """The stored names of the adapted modules."""
        return frozenset(part.path for part in self.parts)

    @property
    def parameters(self) -> set[str]:
        """Which parameters occur."""
        return {name for part in self.parts for name in part.tensors}

    @property
    def read(self) -> set[str]:
        """The names that are understood, replaced weights aside."""
        return {name for part in self.parts for name in part.tensors.values()} | set(self.base)


def has_peft_names(tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether any name is one that PEFT gives."""
    return any(_SURE.match(name) for name in tensors)


def scan(store: TensorStore) -> Keys:
    """Sort the names of a source.

    Raises
    ------
    AdapterError
        If there are tensors of several adapters.
    """
    parts: dict[str, Part] = {}
    adapters: dict[str | None, None] = {}
    for name in store.tensors:
        if match := _KEY.match(name):
            adapters[match["adapter"]] = None
            part = parts.setdefault(match["path"], Part(match["path"]))
            part.tensors[match["parameter"]] = name
    copies = {match["path"]: m for m in store.tensors if (match := _COPY.match(m))}
    named = [match["adapter"] for m in copies.values() if (match := _COPY.match(m))]
    adapters |= dict.fromkeys(adapter for adapter in named if adapter is not None)
    _check_one(adapters, store.label)
    raw = any(adapter is not None for adapter in adapters)
    base = tuple(name for name in store.tensors if name.endswith(_OWN_BASE))
    read = {*base, *(name for part in parts.values() for name in part.tensors.values())}
    replaced = {bare_name(path): name for path, name in copies.items()}
    if not raw:
        replaced |= _plain(store, read | set(copies.values()))
    return Keys(tuple(parts.values()), replaced, base, raw)


def _plain(store: TensorStore, read: set[str]) -> dict[str, str]:
    """Return the matrices that a saved adapter holds in full, under their modules' own names."""
    return {
        bare_name(name).removesuffix(".weight"): name
        for name, info in store.tensors.items()
        if name not in read and info.floating and len(info.shape) > 1 and 0 not in info.shape
    }


def _check_one(adapters: Iterable[str | None], label: str) -> None:
    names = [str(name) for name in adapters]
    if len(names) > 1:
        raise AdapterError(
            "several adapters in one file",
            where=label,
            expected="the tensors of one adapter",
            got=", ".join(names),
            fix="save the adapter you mean by itself",
        )
