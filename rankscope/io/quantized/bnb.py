"""bitsandbytes: 4-bit codes with a table (nf4, fp4), and 8-bit rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rankscope.io.quantized.parts import Packed, shape_of, unfit
from rankscope.io.tensors import TensorStore

__all__ = ["find", "four_bit", "int8"]

_STATE = re.compile(r"(.+)\.quant_state\.bitsandbytes__\w+$")
_STATE_BYTES = 10_000
_BLOCK = 65_536


def four_bit(
    codes: Tensor,
    absmax: Tensor,
    table: Tensor,
    nested_absmax: Tensor | None = None,
    nested_table: Tensor | None = None,
    *,
    shape: tuple[int, ...],
    block: int,
    nested_block: int = 1,
    offset: float = 0.0,
) -> Tensor:
    """Return ``table[code] * absmax[i // block]``, element i of the flattened weight.

    Doubly quantised, ``absmax[b]`` stands for
    ``nested_table[absmax[b]] * nested_absmax[b // nested_block] + offset``.

    Parameters
    ----------
    codes : Tensor
        Two codes per byte, the first in the high half; bytes may be stored as another dtype.
    absmax : (blocks,) Tensor
    table : (16,) Tensor
    nested_absmax, nested_table : Tensor, optional
        The scales' own scales and their (256,) table.
    shape : tuple of int
        Of the weight.
    block, nested_block : int
        Elements per scale.
    offset : float

    Examples
    --------
    >>> codes = torch.tensor([[0x1F]], dtype=torch.uint8)
    >>> four_bit(codes, torch.tensor([2.0]), torch.arange(16.0), shape=(1, 2), block=64).tolist()
    [[2.0, 30.0]]
    """
    scales = absmax.float()
    if nested_absmax is not None and nested_table is not None:
        scales = nested_table.float()[absmax.int()]
        scales = scales * _spread(nested_absmax.float(), nested_block, len(scales)) + offset
    bytes_ = codes.contiguous().flatten().view(torch.uint8)
    count = math.prod(shape)
    indices = torch.stack((bytes_ >> 4, bytes_ & 15), 1).flatten()[:count]
    return (table.float()[indices.int()] * _spread(scales, block, count)).reshape(shape)


def int8(weight: Tensor, row_max: Tensor, layout: Tensor | None = None) -> Tensor:
    """Return ``weight * row_max / 127``, row by row.

    Parameters
    ----------
    weight : (out, in) Tensor
        8-bit integers.
    row_max : (out,) Tensor
        The largest magnitude of each row, saved as ``SCB``.
    layout : Tensor, optional
        0 for row-major; the others are the orders of single GPUs.

    Examples
    --------
    >>> int8(torch.tensor([[127, -127]], dtype=torch.int8), torch.tensor([2.0])).tolist()
    [[2.0, -2.0]]
    """
    if layout is not None and bool((layout != 0).any()):
        raise ValueError(f"weight_format {layout.flatten().tolist()[:3]}: not row-major")
    return weight.float() * (row_max.float() / 127)[:, None]


def find(store: TensorStore) -> dict[str, Packed]:
    """Return the 4-bit and 8-bit weights of a checkpoint, by name.

    Raises
    ------
    SourceError
        If one is incomplete or contradicts itself.
    """
    return dict((*_four_bits(store), *_eight_bits(store)))


def _four_bits(store: TensorStore) -> Iterator[tuple[str, Packed]]:
    states = {match[1]: name for name in store.tensors if (match := _STATE.match(name))}
    for name in store.tensors:
        weight = name.removesuffix(".absmax")
        if weight != name and weight in store.tensors and weight not in states:
            raise unfit(store, weight, "its quant_state, as bitsandbytes 0.41 saves it", "none")
    for weight, name in states.items():
        yield weight, _four_bit_parts(store, weight, name)


def _four_bit_parts(store: TensorStore, weight: str, state_name: str) -> Packed:
    state = _state(store, state_name)
    tensors = {"codes": weight, "absmax": f"{weight}.absmax", "table": f"{weight}.quant_map"}
    options = {"shape": tuple(state["shape"]), "block": state["blocksize"]}
    if f"{weight}.nested_absmax" in store.tensors:
        tensors["nested_absmax"] = f"{weight}.nested_absmax"
        tensors["nested_table"] = f"{weight}.nested_quant_map"
        options |= {"nested_block": state["nested_blocksize"], "offset": state["nested_offset"]}
    _check_sizes(store, tensors, options)
    return Packed(options["shape"], four_bit, tensors, options, (state_name,))


def _state(store: TensorStore, name: str) -> dict[str, Any]:
    """Return what bitsandbytes says of a weight, in JSON that is stored as a tensor."""
    info = store.tensors[name]
    try:
        if info.dtype != "uint8" or info.bytes > _STATE_BYTES:
            raise ValueError(f"{info.dtype}, {info.bytes} bytes")
        state = json.loads(bytes(store.read(name).flatten().tolist()))
        _check_state(state)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise unfit(store, name, "shape, blocksize and nested_* as JSON", repr(error)) from error
    return dict(state)


def _check_state(state: Mapping[str, Any]) -> None:
    blocks = [state["blocksize"], state.get("nested_blocksize", 1)]
    if not all(type(n) is int and n > 0 for n in [*state["shape"], *blocks]):
        raise ValueError(f"sizes {state['shape']}, {blocks}")
    # A scale is spread over a whole block before the last one is cut.
    if max(blocks) > _BLOCK:
        raise ValueError(f"blocks of {max(blocks)}")
    if not math.isfinite(state.get("nested_offset", 0.0)):
        raise ValueError("nested_offset is not finite")


def _check_sizes(store: TensorStore, tensors: Mapping[str, str], options: dict[str, Any]) -> None:
    count = math.prod(options["shape"])
    blocks = -(-count // options["block"])
    wanted = {"codes": -(-count // 2), "absmax": blocks, "table": 16, "nested_table": 256}
    wanted["nested_absmax"] = -(-blocks // options.get("nested_block", 1))
    for argument, name in tensors.items():
        shape_of(store, name)
        info = store.tensors[name]
        got = info.bytes if argument == "codes" else info.parameters
        if got != wanted[argument]:
            raise unfit(store, name, f"{wanted[argument]} numbers", got)
    if ("nested_table" in tensors) != (store.tensors[tensors["absmax"]].dtype == "uint8"):
        raise unfit(store, tensors["absmax"], "8-bit scales with, others without nested_absmax",
                    store.tensors[tensors["absmax"]].dtype)  # fmt: skip


def _eight_bits(store: TensorStore) -> Iterator[tuple[str, Packed]]:
    for name in store.tensors:
        if not name.endswith(".SCB"):
            continue
        module = name.removesuffix(".SCB")
        weight, layout = f"{module}.weight", f"{module}.weight_format"
        shape, rows = shape_of(store, weight), store.tensors[name].shape
        if len(shape) != 2 or rows != shape[:1] or store.tensors[weight].dtype != "int8":
            raise unfit(store, weight, "8-bit integers (out, in), and SCB (out,)", (shape, rows))
        extra = {"layout": layout} if layout in store.tensors else {}
        yield weight, Packed(shape, int8, {"weight": weight, "row_max": name, **extra})


def _spread(scales: Tensor, block: int, count: int) -> Tensor:
    return scales.flatten().repeat_interleave(block)[:count]
