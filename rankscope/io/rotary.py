"""The order of the rows of q and k: Hugging Face's halves, or Meta's and llama.cpp's pairs.

A rotary embedding turns pairs of rows of each head. Hugging Face stores the first of all pairs,
then the second; Meta's code, torchtune and the GGUF files of Llama's family store pair by pair.
The same update has the same input side in both, and another output side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, final

from torch import Tensor
from typing_extensions import override

from rankscope.io.configuration import configuration
from rankscope.io.containers.lens import Lens, Part
from rankscope.io.names import bare_name
from rankscope.io.renames import is_rotary
from rankscope.io.tensors import TensorStore
from rankscope.updates import FactoredUpdate

__all__ = [
    "HALVES",
    "alike",
    "as_paired",
    "by_halves",
    "halves",
    "heads_of",
    "in_halves",
    "product_in_halves",
    "row_order",
]

_GGUF = re.compile(r"blk\.\d+\.attn_(?P<kind>[qk])$")
# Architectures whose rows the converter to GGUF puts into pairs, and some that it leaves as
# they are; of any other nothing is assumed.
_PAIRED = {"granite", "granitehybrid", "granitemoe", "llama", "minicpm", "olmo", "smollm3"}
_KEPT = {
    "bert", "bloom", "cohere2", "command-r", "falcon", "gemma", "gemma2", "gemma3", "gemma3n",
    "gpt-oss", "gpt2", "gptneox", "llama4", "mpt", "olmo2", "olmoe", "phi2", "phi3", "phimoe",
    "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "stablelm",
    "starcoder", "starcoder2", "t5",
}  # fmt: skip
# Put into Hugging Face's order, or known to be in it.
HALVES = "halves"
# Families that torchtune takes over from Hugging Face row by row.
_TUNE_KEPT = {"phi3", "qwen2", "qwen3"}


def halves(matrix: Tensor, heads: int) -> Tensor:
    """Return the rows of q or k in Hugging Face's order, given them pair by pair.

    Parameters
    ----------
    matrix : (heads * head size, …) Tensor
    heads : int
        How many of them there are; of k, the key-value heads.

    Examples
    --------
    >>> import torch
    >>> halves(torch.tensor([[0], [10], [1], [11]]), heads=1).flatten().tolist()
    [0, 1, 10, 11]
    """
    rest = matrix.shape[1:]
    return matrix.reshape(heads, -1, 2, *rest).transpose(1, 2).reshape(matrix.shape)


def product_in_halves(
    up: Tensor, down: Tensor, *, heads: int, scale: float = 1.0
) -> FactoredUpdate:
    """Return ``scale * up @ down`` with the rows in Hugging Face's order.

    Examples
    --------
    >>> import torch
    >>> up, down = torch.tensor([[0.0], [10.0], [1.0], [11.0]]), torch.ones(1, 1)
    >>> product_in_halves(up, down, heads=1, scale=2).dense().flatten().tolist()
    [0.0, 2.0, 20.0, 22.0]
    """
    return FactoredUpdate(halves(up, heads), down, scale)


def alike(one: str, order: str, other: str, other_order: str) -> bool:
    """Whether the rows of two modules, of these names and orders, stand in one order.

    Two of one name do as they are stored; it is another matter once one of them has been put
    into Hugging Face's order.

    Examples
    --------
    >>> q, paired = "model.layers.0.self_attn.q_proj", "layers.0.attn.q_proj"
    >>> alike(q, "", paired, ""), alike(paired, "", paired, "rotary"), alike(q, "", q, "halves")
    (False, True, False)
    """
    if _module(one) == _module(other):
        return order == other_order or HALVES not in (order, other_order)
    orders = {_effective(one, order), _effective(other, other_order)}
    return len(orders) == 1 and "unknown" not in orders


def _effective(name: str, order: str) -> str:
    named = "rotary" if is_rotary(_module(name)) else ""
    return "" if order == HALVES else order or named


def by_halves(module: str, rows: int, *stores: TensorStore | None) -> tuple[str, int | None]:
    """Return the order of a GGUF module's rows, and the heads by which they are to be put right.

    The order is ``halves`` where it is Hugging Face's once they are.
    """
    kind = _GGUF.match(_module(module))
    if kind is None:
        return "", None
    arch = next((found for store in stores if store is not None and (found := _arch(store))), "")
    if arch in _KEPT:
        return "", None
    if arch not in _PAIRED:
        return "unknown", None
    heads = _fitting_heads(kind["kind"], rows, *stores)
    return ("rotary", None) if heads is None else (HALVES, heads)


def as_paired(kind: str, rows: int, base: TensorStore | None) -> tuple[str, int | None]:
    """Return the same for q or k of an adapter by torchtune, by what its base tells."""
    if base is None or any(map(is_rotary, map(_module, base.tensors))):
        return "rotary", None
    if configuration(base).get("model_type") in _TUNE_KEPT:
        return HALVES, None
    heads = _fitting_heads(kind, rows, base)
    return ("rotary", None) if heads is None else (HALVES, heads)


def row_order(store: TensorStore, name: str) -> str:
    """Return the order of a stored tensor's rows; empty where its name alone tells it."""
    return by_halves(name, (*store.tensors[name].shape, 0)[0], store)[0]


def _fitting_heads(kind: str, rows: int, *stores: TensorStore | None) -> int | None:
    """Return the number of heads of q or k that one of the stores tells, if it fits."""
    for store in stores:
        counts = None if store is None else heads_of(store)
        if counts is not None:
            heads = counts["qk".index(kind)]
            return heads if heads > 0 and rows % (2 * heads) == 0 else None
    return None


def _module(name: str) -> str:
    return bare_name(name).removesuffix(".weight")


def in_halves(store: TensorStore) -> TensorStore:
    """Return a GGUF checkpoint with q and k in Hugging Face's order, where it tells its heads."""
    heads = {
        name: found
        for name, info in store.tensors.items()
        if _GGUF.match(_module(name))
        and (found := by_halves(name, info.shape[0], store)[1]) is not None
    }
    return _Halved(store, heads) if heads else store


@final
class _Halved(Lens):
    """A GGUF checkpoint whose q and k are put right as they are read."""

    def __init__(self, store: TensorStore, heads: Mapping[str, int]) -> None:
        super().__init__(store)
        self.heads = heads

    @cached_property
    @override
    def parts(self) -> Mapping[str, Part]:
        return {name: Part(name) for name in self.store.tensors}

    @override
    def read(self, name: str) -> Tensor:
        tensor = super().read(name)
        return halves(tensor, self.heads[name]) if name in self.heads else tensor


def heads_of(store: TensorStore) -> tuple[int, int] | None:
    """Return the attention heads and the key-value heads of a model; None if nothing tells them.

    Told by a GGUF file's own fields, or the ``config.json`` beside a checkpoint.
    """
    said: Mapping[str, Any] = store.metadata
    prefix = f"{_arch(store)}.attention.head_count"
    keys = (prefix, f"{prefix}_kv")
    if prefix not in said:
        said, keys = configuration(store), ("num_attention_heads", "num_key_value_heads")
    heads, groups = _number(said.get(keys[0])), _number(said.get(keys[1]))
    return None if heads is None else (heads, heads if groups is None else groups)


def _arch(store: TensorStore) -> str:
    return store.metadata.get("general.architecture", "")


def _number(value: object) -> int | None:
    return int(str(value)) if re.fullmatch(r"[0-9]{1,9}", str(value)) else None
