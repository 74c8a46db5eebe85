"""Quantised checkpoints: one file per scheme, each from stored parts to plain weights."""

from __future__ import annotations

from pathlib import Path

from rankscope.errors import SourceError
from rankscope.io.quantized import bnb, grouped, integers, scaled
from rankscope.io.quantized.settings import Settings, read_settings
from rankscope.io.quantized.view import Dequantised
from rankscope.io.tensors import TensorStore

__all__ = ["Dequantised", "dequantised", "dequantised_in_memory"]

_METHODS = (
    "bitsandbytes", "gptq", "awq", "fp8", "fbgemm_fp8", "modelopt", "mxfp4", "compressed-tensors",
)  # fmt: skip
# Of compressed-tensors; a mixed one is told apart by its tensors.
_FORMATS = ("", "pack-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense")
# How the tensors of other schemes end, always two together: one alone may be a model's own.
_FOREIGN = {
    (".weight_global_scale", ".weight_scale"): "NVFP4",
    (".weight_scale_2", ".weight_scale"): "NVFP4",
    (".codebooks", ".codes"): "AQLM",
    (".W_q", ".zero"): "HQQ",
    (".weight._data", ".weight._scale"): "quanto",
    (".trellis", ".suh"): "EXL3",
    (".bitmask", ".compressed"): "sparse compressed-tensors",
}


def dequantised(store: TensorStore, folder: Path | None) -> TensorStore:
    """Return a checkpoint with plain weights; itself if none is quantised.

    Parameters
    ----------
    store : TensorStore
        The checkpoint.
    folder : Path or None
        Where its ``config.json`` may lie.

    Raises
    ------
    SourceError
        If the weights are quantised in a way that is not read, or that nothing tells.
    """
    settings = read_settings(folder)
    _check_known(store, settings)
    packed = (
        bnb.find(store)
        | grouped.find(store, settings)
        | integers.find(store, settings)
        | scaled.find(store, settings)
    )
    return Dequantised(store, packed, settings.record) if packed else store


def dequantised_in_memory(store: TensorStore) -> TensorStore:
    """Return a live model's tensors with what bitsandbytes quantised as plain weights.

    Where the state that it takes is not among the tensors they stay as they are.
    """
    packed = bnb.find(store)
    return Dequantised(store, packed) if packed else store


def _check_known(store: TensorStore, settings: Settings) -> None:
    found = [
        kind
        for (one, other), kind in _FOREIGN.items()
        for name in store.tensors
        if name.endswith(one) and name.removesuffix(one) + other in store.tensors
    ]
    format_ = settings.word("format") if settings.method == "compressed-tensors" else ""
    if settings.method and settings.method not in _METHODS:
        found.append(settings.method)
    if format_ not in _FORMATS:
        found.append(f"compressed-tensors {format_}")
    if found:
        raise SourceError(
            "weights quantised in this way are not read",
            where=store.label,
            expected="bitsandbytes, GPTQ, AWQ, FP8, MXFP4, compressed-tensors int4 or plain ones",
            got=found[0],
            fix="load it in its own library, model.dequantize(), and save_pretrained() it",
        )
