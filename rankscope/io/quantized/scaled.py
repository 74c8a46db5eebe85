"""Small floating-point numbers times stored scales: FP8 in blocks, rows or whole; MXFP4."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from rankscope.errors import SourceError
from rankscope.io.quantized.parts import Packed, unfit
from rankscope.io.quantized.settings import Settings
from rankscope.io.tensors import TensorStore

__all__ = ["find", "fp8", "mxfp4"]

_SUFFIXES = (".weight_scale_inv", ".weight_scale", ".scale_weight")
_BLOCKS = re.compile(r"(.+_proj)_blocks$")
# One sign bit, two of exponent and one of mantissa.
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_BIAS = 127


def fp8(weight: Tensor, scale: Tensor, *, block: tuple[int, int]) -> Tensor:
    """Return ``weight[i, j] * scale[i // rows, j // columns]``.

    Parameters
    ----------
    weight : (out, in) Tensor
        8-bit floating-point numbers.
    scale : (⌈out / rows⌉, ⌈in / columns⌉) Tensor
        Multiplied, also where it is called ``weight_scale_inv``.
    block : (int, int)
        Rows and columns that share a scale; the last block may be cut.

    Examples
    --------
    >>> w = torch.ones(1, 3).to(torch.float8_e4m3fn)
    >>> fp8(w, torch.tensor([[2.0, 3.0]]), block=(1, 2)).tolist()
    [[2.0, 2.0, 3.0]]
    """
    (out, in_), (rows, columns) = weight.shape, block
    blocks = scale.float().reshape(-(-out // rows), -(-in_ // columns))
    places = torch.arange(out)[:, None] // rows, torch.arange(in_) // columns
    return weight.float() * blocks[places]


def mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """Return a stack of experts, ``table[code] * 2 ** (scale - 127)``, as (E, in, out).

    Parameters
    ----------
    blocks : (E, out, groups, 16) Tensor
        Two codes per byte, the first in the low half.
    scales : (E, out, groups) Tensor
        Exponents.

    Examples
    --------
    >>> blocks = torch.full((1, 1, 1, 16), 0x21, dtype=torch.uint8)
    >>> mxfp4(blocks, torch.full((1, 1, 1), 128, dtype=torch.uint8))[0, :4, 0].tolist()
    [1.0, 2.0, 1.0, 2.0]
    """
    codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2)
    values = torch.tensor(_FP4)[codes.long()]
    return torch.ldexp(values, scales.int()[..., None] - _BIAS).flatten(-2).transpose(1, 2)


def find(store: TensorStore, settings: Settings) -> dict[str, Packed]:
    """Return the FP8 and MXFP4 weights of a checkpoint, by name.

    Raises
    ------
    SourceError
        If the size of FP8's blocks is not told, or a weight contradicts itself.
    """
    return dict((*_eight_bits(store, settings), *_four_bits(store)))


def _eight_bits(store: TensorStore, settings: Settings) -> Iterator[tuple[str, Packed]]:
    for name, info in store.tensors.items():
        if not name.endswith(".weight") or not info.dtype.startswith("float8_e"):
            continue
        module = name.removesuffix(".weight")
        scales = [module + s for s in _SUFFIXES if module + s in store.tensors]
        if len(scales) == 1 and len(info.shape) == 2 and 0 not in info.shape:
            block = _block(store, name, scales[0], settings)
            tensors = {"weight": name, "scale": scales[0]}
            yield name, Packed(info.shape, fp8, tensors, {"block": block})


def _block(store: TensorStore, name: str, scale: str, settings: Settings) -> tuple[int, int]:
    """Return the rows and columns that share a scale: all, a row each, or as is said."""
    (out, in_), got = store.tensors[name].shape, store.tensors[scale].shape
    if store.tensors[scale].parameters == 1:
        return out, in_
    if got in ((out, 1), (out,)):
        return 1, in_
    said = settings.content.get("weight_block_size")
    if not isinstance(said, list) or len(said) != 2 or not all(_is_size(n) for n in said):
        raise _untold(store, scale, got)
    rows, columns = said
    wanted = -(-out // rows), -(-in_ // columns)
    if got != wanted:
        raise unfit(store, scale, f"{wanted}, one number per block of {said}", got)
    return rows, columns


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _untold(store: TensorStore, scale: str, got: tuple[int, ...]) -> SourceError:
    return SourceError(
        "nothing says how large the blocks are that share a scale",
        where=f"{store.label}, tensor {scale!r}",
        expected="config.json beside it, with two positive numbers as weight_block_size",
        got=f"scales of shape {got}, and no such entry",
        fix="name the checkpoint in its folder, with the config.json that was saved with it",
    )


def _four_bits(store: TensorStore) -> Iterator[tuple[str, Packed]]:
    for name, info in store.tensors.items():
        match = _BLOCKS.match(name)
        if match is None or info.dtype != "uint8":
            continue
        scales = store.tensors.get(f"{match[1]}_scales")
        if len(info.shape) != 4 or scales is None or scales.shape != info.shape[:3]:
            raise unfit(store, name, "(E, out, groups, 16), and _scales (E, out, groups)",
                        (info.shape, scales))  # fmt: skip
        experts, out, groups, half = info.shape
        tensors = {"blocks": name, "scales": f"{match[1]}_scales"}
        yield match[1], Packed((experts, groups * half * 2, out), mxfp4, tensors)
