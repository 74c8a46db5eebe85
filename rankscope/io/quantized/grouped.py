"""GPTQ and AWQ: small integers with a scale and a zero per group of input features."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rankscope.errors import SourceError
from rankscope.io.quantized.parts import Packed, shape_of, unfit
from rankscope.io.quantized.settings import Settings
from rankscope.io.quantized.words import unpacked
from rankscope.io.tensors import TensorStore

__all__ = ["awq", "find", "gptq"]

_FORMATS = {"gptq": True, "gptq_v2": False}
# 3 bits straddle the words.
_GPTQ_BITS = (2, 4, 8)
_AWQ_BITS = 4
_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]


def gptq(
    words: Tensor,
    zeros: Tensor,
    scales: Tensor,
    groups: Tensor | None = None,
    *,
    bits: int,
    group_size: int,
    less_one: bool,
) -> Tensor:
    """Return ``W.T = (q - z[g]) * s[g]``, where g is the group of each input feature.

    Parameters
    ----------
    words : (in · bits / 32, out) Tensor
        q, packed along the inputs.
    zeros : (groups, out · bits / 32) Tensor
        z, packed along the outputs.
    scales : (groups, out) Tensor
    groups : (in,) Tensor, optional
        g, in the order of activations; else ``i // group_size``.
    bits, group_size : int
    less_one : bool
        Whether zeros are stored less one, modulo ``2 ** bits``, as the first version does.

    Examples
    --------
    >>> q = torch.tensor([[0x76543210]], dtype=torch.int32)
    >>> z, s = torch.tensor([[0]], dtype=torch.int32), torch.ones(1, 1)
    >>> gptq(q, z, s, bits=4, group_size=8, less_one=True).tolist()
    [[-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
    """
    q = unpacked(words.T, bits)
    z = unpacked(zeros, bits)[:, : scales.shape[1]]
    if less_one:
        z = (z + 1) & (2**bits - 1)
    index = torch.arange(q.shape[1]) // group_size if groups is None else groups.long()
    if bool(((index < 0) | (index >= len(scales))).any()):
        raise ValueError(f"g_idx outside the {len(scales)} groups")
    return (q - z.T[:, index]) * scales.float().T[:, index]


def awq(words: Tensor, zeros: Tensor, scales: Tensor, *, group_size: int) -> Tensor:
    """Return ``W.T = (q - z[g]) * s[g]``, with 4 bits in the order of the gemm kernel.

    Parameters
    ----------
    words : (in, out / 8) Tensor
        q; element j of the outputs lies at place ``[0, 4, 1, 5, 2, 6, 3, 7][j % 8]``.
    zeros : (groups, out / 8) Tensor
        z, alike.
    scales : (groups, out) Tensor
    group_size : int

    Examples
    --------
    >>> q = torch.tensor([[0x75316420]], dtype=torch.int32)
    >>> z = torch.tensor([[0]], dtype=torch.int32)
    >>> awq(q, z, torch.ones(1, 8), group_size=1).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    q, z = (
        unpacked(packed, _AWQ_BITS).reshape(len(packed), -1, 8)[..., _AWQ_ORDER].flatten(-2)
        for packed in (words, zeros)
    )
    index = torch.arange(len(q)) // group_size
    weight: Tensor = (q - z[index]) * scales.float()[index]
    return weight.T


def find(store: TensorStore, settings: Settings) -> dict[str, Packed]:
    """Return the GPTQ or AWQ weights of a checkpoint, by name.

    Raises
    ------
    SourceError
        If nothing says which of the two, or a layout is not read, or a weight is incomplete.
    """
    return dict(_weights(store, settings))


def _weights(store: TensorStore, settings: Settings) -> Iterator[tuple[str, Packed]]:
    modules = [n.removesuffix(".qweight") for n in store.tensors if n.endswith(".qweight")]
    if not modules:
        return
    reader = _awq_parts if _is_awq(store, settings) else _gptq_parts
    _check_layout(store, settings)
    for module in modules:
        yield f"{module}.weight", reader(store, module, settings)


def _is_awq(store: TensorStore, settings: Settings) -> bool:
    if settings.method in ("gptq", "awq"):
        return settings.method == "awq"
    raise SourceError(
        "nothing says how the weights are quantised",
        where=store.label,
        expected="config.json beside it, with gptq or awq as quant_method",
        got=settings.method or "no quantization_config",
        fix="name the checkpoint in its folder, with the config.json that was saved with it",
    )


def _check_layout(store: TensorStore, settings: Settings) -> None:
    awq_ = settings.method == "awq"
    layout = settings.word("version", "checkpoint_format", "format") if awq_ else _format(settings)
    bits = settings.number("bits")
    known = (not layout or layout == "gemm") if awq_ else layout in _FORMATS
    if not known or bits not in ((_AWQ_BITS,) if awq_ else _GPTQ_BITS):
        raise SourceError(
            f"this layout of {settings.method} is not read",
            where=store.label,
            expected="gemm, 4 bits" if awq_ else "gptq or gptq_v2, 2, 4 or 8 bits",
            got=f"{layout or 'no format'}, bits {settings.content.get('bits')!r:.50}",
            fix="give the base in full or half precision",
        )


def _format(settings: Settings) -> str:
    return settings.word("checkpoint_format", "format") or "gptq"


def _gptq_parts(store: TensorStore, module: str, settings: Settings) -> Packed:
    bits = settings.number("bits") or 0
    tensors, (rows, out), groups = _parts(store, module)
    in_, name = rows * 32 // bits, f"{module}.g_idx"
    zeros = (groups, -(-out * bits // 32))
    size = _group_size(store, module, settings, in_, groups)
    if name in store.tensors or settings.content.get("desc_act"):
        tensors["groups"] = name
        _check(store, name, (in_,))
    _check(store, tensors["zeros"], zeros)
    _check(store, tensors["scales"], (groups, out))
    options = {"bits": bits, "group_size": size, "less_one": _FORMATS[_format(settings)]}
    return Packed((out, in_), gptq, tensors, options)


def _awq_parts(store: TensorStore, module: str, settings: Settings) -> Packed:
    tensors, (in_, words), groups = _parts(store, module)
    _check(store, tensors["zeros"], (groups, words))
    _check(store, tensors["scales"], (groups, words * 8))
    size = _group_size(store, module, settings, in_, groups)
    return Packed((words * 8, in_), awq, tensors, {"group_size": size})


def _parts(store: TensorStore, module: str) -> tuple[dict[str, str], tuple[int, int], int]:
    """Return the tensors of a module, the shape of its words, and its number of groups."""
    kinds = {"words": "qweight", "zeros": "qzeros", "scales": "scales"}
    tensors = {argument: f"{module}.{kind}" for argument, kind in kinds.items()}
    shapes = {argument: shape_of(store, name) for argument, name in tensors.items()}
    for argument, name in tensors.items():
        if len(shapes[argument]) != 2 or 0 in shapes[argument]:
            raise unfit(store, name, "a matrix", shapes[argument])
        if argument != "scales" and store.tensors[name].dtype != "int32":
            raise unfit(store, name, "32-bit words", store.tensors[name].dtype)
    rows, columns = shapes["words"]
    return tensors, (rows, columns), shapes["scales"][0]


def _group_size(store: TensorStore, module: str, settings: Settings, in_: int, groups: int) -> int:
    said = settings.number("group_size")
    size = in_ if said is None or said <= 0 else said
    if -(-in_ // size) != groups:
        raise unfit(store, f"{module}.scales", f"{-(-in_ // size)} groups of {size}", groups)
    return size


def _check(store: TensorStore, name: str, shape: tuple[int, ...]) -> None:
    if shape_of(store, name) != shape:
        raise unfit(store, name, f"shape {shape}", store.tensors[name].shape)
