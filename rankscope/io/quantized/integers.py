"""compressed-tensors, pack-quantized: integers of 4 or 8 bits with scales per group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor

from rankscope.io.quantized.parts import Packed, shape_of, unfit
from rankscope.io.quantized.settings import Settings
from rankscope.io.quantized.words import unpacked
from rankscope.io.tensors import TensorStore

__all__ = ["find", "pack_quantized"]

_BITS = (4, 8)


def pack_quantized(
    words: Tensor,
    scales: Tensor,
    size: Tensor,
    zeros: Tensor | None = None,
    groups: Tensor | None = None,
    *,
    bits: int,
) -> Tensor:
    """Return ``(q - z[g]) * s[g]``, where g is the group of each input feature.

    Parameters
    ----------
    words : (out, in · bits / 32) Tensor
        q plus ``2 ** (bits - 1)``, packed along the inputs.
    scales : (out, groups) Tensor
    size : (2,) Tensor
        ``(out, in)``.
    zeros : (out · bits / 32, groups) Tensor, optional
        z, with the same offset, packed along the outputs; else 0.
    groups : (in,) Tensor, optional
        g, in the order of activations; else all groups have one size.
    bits : int

    Examples
    --------
    >>> q = torch.tensor([[0x76543210]], dtype=torch.int32)
    >>> pack_quantized(q, torch.ones(1, 1), torch.tensor([1, 4]), bits=4).tolist()
    [[-8.0, -7.0, -6.0, -5.0]]
    """
    out, in_ = size.tolist()
    middle, count = 2 ** (bits - 1), scales.shape[1]
    q: Tensor = unpacked(words, bits)[:, :in_] - middle
    index = torch.arange(in_) // (in_ // count) if groups is None else groups.long()
    if bool((index == -1).all()):
        index = torch.arange(in_) // (in_ // count)
    if bool(((index < 0) | (index >= count)).any()):
        raise ValueError(f"weight_g_idx outside the {count} groups")
    if zeros is not None:
        q = q - (unpacked(zeros.T, bits)[:, :out] - middle).T[:, index]
    weight: Tensor = q * scales.float()[:, index]
    return weight


def find(store: TensorStore, settings: Settings) -> dict[str, Packed]:
    """Return the packed weights of a checkpoint, by name.

    Raises
    ------
    SourceError
        If one is incomplete or contradicts itself.
    """
    return dict(_weights(store, settings))


def _weights(store: TensorStore, settings: Settings) -> Iterator[tuple[str, Packed]]:
    for name in store.tensors:
        if name.endswith(".weight_packed"):
            weight = name.removesuffix("_packed")
            yield weight, _parts(store, weight, settings)


def _parts(store: TensorStore, weight: str, settings: Settings) -> Packed:
    kinds = {"words": "packed", "scales": "scale", "size": "shape"}
    tensors = {argument: f"{weight}_{kind}" for argument, kind in kinds.items()}
    out, in_ = _size(store, tensors["size"])
    bits = _bits(store, tensors["words"], (out, in_))
    scales = shape_of(store, tensors["scales"])
    if len(scales) != 2 or scales[0] != out or not scales[1] or in_ % scales[1]:
        raise unfit(store, tensors["scales"], f"({out}, a divisor of {in_})", scales)
    optional = {"zeros": ("zero_point", (-(-out * bits // 32), scales[1])),
                "groups": ("g_idx", (in_,))}  # fmt: skip
    for argument, (kind, shape) in optional.items():
        name = f"{weight}_{kind}"
        if name in store.tensors or argument in _promised(settings):
            if shape_of(store, name) != shape or store.tensors[name].floating:
                raise unfit(store, name, f"integers {shape}", store.tensors[name])
            tensors[argument] = name
    return Packed((out, in_), pack_quantized, tensors, {"bits": bits})


def _promised(settings: Settings) -> set[str]:
    """Return which optional tensors every weight has, by the configuration."""
    groups = settings.content.get("config_groups")
    schemes = [g.get("weights") for g in groups.values()] if _is_plain(groups) else []
    said = [scheme for scheme in schemes if isinstance(scheme, dict)]
    zeros = said and all(scheme.get("symmetric") is False for scheme in said)
    ordered = said and all(scheme.get("actorder") == "group" for scheme in said)
    return ({"zeros"} if zeros else set()) | ({"groups"} if ordered else set())


def _is_plain(groups: object) -> TypeGuard[dict[str, dict[str, Any]]]:
    return isinstance(groups, dict) and all(isinstance(g, dict) for g in groups.values())


def _size(store: TensorStore, name: str) -> tuple[int, int]:
    shape = shape_of(store, name)
    if shape != (2,) or store.tensors[name].floating:
        raise unfit(store, name, "(out, in), as integers", store.tensors[name])
    out, in_ = map(int, store.read(name).tolist())
    return out, in_


def _bits(store: TensorStore, name: str, size: tuple[int, int]) -> int:
    """Return the bits under which the words hold a matrix of this size."""
    out, in_ = size
    info = store.tensors[name]
    found = [bits for bits in _BITS if info.shape == (out, -(-in_ * bits // 32))]
    if not found or info.dtype != "int32" or out < 1 or in_ < 1:
        raise unfit(store, name, f"32-bit words of 4 or 8 bits for {size}", info)
    if len(found) > 1:
        raise unfit(store, name, "more than 4 inputs, which tell 4 bits from 8", size)
    return found[0]
