"""The singular value decompositions of base weights: once per weight, kept by content."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rankscope.io.write import replacing
from rankscope.spectra import svd
from rankscope.updates import DenseUpdate

__all__ = ["Decomposition", "decomposed"]

_PARTS = ("left", "values", "right")


class Decomposition(NamedTuple):
    """``weight = left @ diag(values) @ right.T`` in float64, values descending.

    Only directions above round-off: those of a null space are anybody's choice.
    """

    left: Float[Tensor, "m q"]
    values: Float[Tensor, " q"]
    right: Float[Tensor, "n q"]


def decomposed(
    weight: Float[Tensor, "m n"], device: str = "cpu", cache: Path | None = None
) -> Decomposition:
    """Return the decomposition of a base weight, from the cache where it is known there.

    Parameters
    ----------
    weight : (m, n) Tensor
        W as it is stored.
    device : str
        Where to compute.
    cache : Path, optional
        A folder of decompositions by the hash of the weight's bytes; made if need be.

    Examples
    --------
    >>> decomposed(torch.diag(torch.tensor([1.0, 3.0]))).values.tolist()
    [3.0, 1.0]
    >>> decomposed(torch.diag(torch.tensor([0.0, 3.0]))).values.tolist()
    [3.0]
    """
    if cache is None:
        return _computed(weight, device)
    path = cache / f"{_hash(weight)}.safetensors"
    known = _read(path)
    if known is not None:
        return known
    found = _computed(weight, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        parts = zip(_PARTS, found, strict=True)
        save_file({name: part.contiguous() for name, part in parts}, temporary)
    return found


def _computed(weight: Tensor, device: str) -> Decomposition:
    spectrum = svd(DenseUpdate(weight).to(device))
    left, right, count = spectrum.left, spectrum.right, spectrum.directions
    assert left is not None  # svd() was asked for vectors
    assert right is not None
    return Decomposition(left[:, :count], spectrum.values[:count], right[:, :count])


def _read(path: Path) -> Decomposition | None:
    try:
        with safe_open(path, framework="pt") as file:
            return Decomposition(*(file.get_tensor(name) for name in _PARTS))
    except (OSError, SafetensorError):
        return None  # not there, or cut short: computed again


def _hash(weight: Tensor) -> str:
    """Return a hash of the numbers, their type and their shape."""
    content = weight.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{content.dtype} {tuple(content.shape)}".encode())
    digest.update(content.view(torch.uint8).numpy().data)
    return digest.hexdigest()
