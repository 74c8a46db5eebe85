"""ΔW of kohya's and LyCORIS' modules, as functions of their tensors and of the base weight.

W is the base weight (out, in[, kernel…]), s the scale. Convolutions are flattened to
(out, in·kernel). Tucker forms fold their middle tensor into the factor on the input side, so
they keep the rank of the plain ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rankscope.io.adapters.products import hadamard, kron, kronecker, tucker
from rankscope.updates import DenseUpdate, FactoredUpdate, Update

__all__ = [
    "butterfly",
    "decomposed",
    "full",
    "generalized",
    "ia3",
    "lora",
    "rotated",
]


def lora(*, up: Tensor, down: Tensor, mid: Tensor | None = None, scale: float) -> FactoredUpdate:
    """Return s · up @ down, or s · Σ mid[m, n, …] up[:, m] down[n, :] with a Tucker middle.

    Examples
    --------
    >>> one = torch.ones(1, 1)
    >>> lora(up=one, down=one, mid=torch.full((1, 1, 2), 3.0), scale=2.0).dense().tolist()
    [[6.0, 6.0]]
    """
    up, down = up.flatten(1), down.flatten(1)
    if mid is not None:
        up, down = tucker(mid, up.T, down)
    return FactoredUpdate(up, down, scale)


def full(*, diff: Tensor) -> DenseUpdate:
    """Return LyCORIS' stored difference."""
    return DenseUpdate(diff.flatten(1))


def generalized(
    *, weight: Tensor, a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor, scale: float
) -> FactoredUpdate:
    """Return GLoRA's s · (W a1 a2 + b1 b2), factored; for a linear layer of rank 2r.

    Examples
    --------
    >>> one = torch.ones(1, 1)
    >>> generalized(weight=5 * one, a1=one, a2=2 * one, b1=one, b2=one, scale=1.0).dense().item()
    11.0
    """
    a1, a2, b1, b2 = (factor.flatten(1) for factor in (a1, a2, b1, b2))
    kernel = weight.flatten(1).shape[1] // weight.shape[1]
    turned = torch.einsum("oik,ij->ojk", weight.reshape(*weight.shape[:2], kernel), a1).flatten(1)
    # a1 a2 acts on channels and leaves each position of the kernel where it is.
    down = kron(a2, torch.eye(kernel, dtype=a2.dtype, device=a2.device))
    return FactoredUpdate(torch.cat([turned, b1], 1), torch.cat([down, b2]), scale)


def rotated(
    *, weight: Tensor, blocks: Tensor, rescale: Tensor | None = None, limit: float | None
) -> DenseUpdate:
    """Return Diag-OFT's rescale · blockdiag(R₁ᵀ, …, Rₙᵀ) W − W.

    R = (I + Q)(I − Q)⁻¹ with Q = X − Xᵀ of the n stored (b, b) blocks X, which act on
    consecutive rows of W; Q of all blocks together is shrunk to the norm `limit`.

    Examples
    --------
    >>> zero = torch.zeros(1, 2, 2)
    >>> rotated(weight=torch.ones(2, 3), blocks=zero, limit=None).norm()
    0.0
    """
    flat = weight.flatten(1)
    count, size, _ = blocks.shape
    turned = torch.einsum("knm,kni->kmi", _cayley(blocks, limit), flat.reshape(count, size, -1))
    return _rescaled(turned.reshape(flat.shape), flat, rescale)


def butterfly(
    *, weight: Tensor, blocks: Tensor, rescale: Tensor | None = None, limit: float | None
) -> DenseUpdate:
    """Return LyCORIS BOFT's rescale · F_{m−1} … F₀ W − W.

    Stage i multiplies the n blocks R (as in `rotated`, not transposed) onto groups of b rows
    that lie 2ⁱ·b/2 apart: a butterfly.
    """
    turned = flat = weight.flatten(1)
    _, count, size, _ = blocks.shape
    columns = flat.shape[1]
    for stage, turn in enumerate(_cayley(blocks, limit)):
        stride = 2**stage * size // 2
        grouped = turned.reshape(-1, 2, stride, columns).transpose(1, 2)
        mixed = turn @ grouped.reshape(count, size, columns)
        turned = mixed.reshape(-1, stride, 2, columns).transpose(1, 2).reshape(flat.shape)
    return _rescaled(turned, flat, rescale)


def ia3(*, weight: Tensor, vector: Tensor, on_input: bool) -> DenseUpdate:
    """Return LyCORIS IA3's W ∘ l, along the input channels or the output rows.

    The stored l is what is added to 1, so it is 0 where nothing was learnt.

    Examples
    --------
    >>> l = torch.tensor([1.0, 2.0])
    >>> ia3(weight=torch.ones(2, 2), vector=l, on_input=True).dense().tolist()
    [[1.0, 2.0], [1.0, 2.0]]
    """
    shape = [1] * weight.ndim
    shape[1 if on_input else 0] = -1
    return DenseUpdate((weight * vector.reshape(shape)).flatten(1))


def decomposed(
    *, weight: Tensor, dora_scale: Tensor, on_input: bool, method: str, **arguments: Any
) -> DenseUpdate:
    """Return DoRA's m · V / ‖V‖ − W, V = W + the update of `method`.

    The norm is of each output row, or of each input channel over rows and kernel.

    Examples
    --------
    >>> one = torch.ones(1, 1)
    >>> decomposed(weight=one, dora_scale=3 * one, on_input=False, method="lora",
    ...            up=one, down=one, scale=1.0).dense().item()
    2.0
    """
    inner = _DECOMPOSABLE[method](**arguments).dense()
    merged = weight + inner.reshape(weight.shape)
    others = [axis for axis in range(weight.ndim) if axis != int(on_input)]
    norm = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
    # A row that is all zero has no direction, and stays zero whatever its magnitude.
    direction = merged / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return DenseUpdate((dora_scale.reshape(norm.shape) * direction - weight).flatten(1))


_DECOMPOSABLE: Mapping[str, Callable[..., Update]] = {
    "lora": lora,
    "loha": hadamard,
    "lokr": kronecker,
}


def _cayley(blocks: Tensor, limit: float | None) -> Tensor:
    skew = blocks - blocks.mT
    norm = torch.linalg.vector_norm(skew)
    if limit is not None and norm > limit:
        skew = skew * (limit / norm)
    identity = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    # The two commute, so the solve from the left is the product with the inverse.
    rotation: Tensor = torch.linalg.solve(identity - skew, identity + skew)
    return rotation


def _rescaled(turned: Tensor, weight: Tensor, rescale: Tensor | None) -> DenseUpdate:
    if rescale is not None:
        turned = turned * rescale.reshape(-1, 1)
    return DenseUpdate(turned - weight)
