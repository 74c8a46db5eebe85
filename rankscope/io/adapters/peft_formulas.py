"""ΔW of PEFT's methods as functions of their stored tensors, given in float64.

Weights are canonical, (out, in), or (out, in, kernel…), which is flattened to (out, in·kernel).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rankscope.io.adapters.products import kronecker
from rankscope.updates import DenseUpdate, FactoredUpdate, Update

__all__ = [
    "adalora",
    "boft",
    "copied",
    "dora",
    "dora_embedding",
    "expert",
    "ia3",
    "lokr",
    "oft",
    "olora",
    "pissa",
    "replaced",
    "tokens",
    "vera",
]


def dora(
    up: Tensor, down: Tensor, magnitude: Tensor, weight: Tensor, scale: float = 1.0
) -> DenseUpdate:
    """Return m·V/‖V‖ − W with V = W + s·B·A, the norm taken of every output's row."""
    flat = weight.flatten(1)
    moved = flat + scale * (up.flatten(1) @ down.flatten(1))
    gain = magnitude.flatten() / torch.linalg.vector_norm(moved, dim=1)
    return DenseUpdate(gain[:, None] * moved - flat)


def dora_embedding(
    up: Tensor, down: Tensor, magnitude: Tensor, weight: Tensor, scale: float = 1.0
) -> DenseUpdate:
    """Return m·V/‖V‖ − W with V = W + s·(B·A)ᵀ, the norm taken over the vocabulary."""
    moved = weight + scale * (up @ down).T
    gain = magnitude.flatten() / torch.linalg.vector_norm(moved, dim=0)
    return DenseUpdate(gain * moved - weight)


def adalora(up: Tensor, down: Tensor, diagonal: Tensor, scale: float = 1.0) -> FactoredUpdate:
    """Return s·B·(A∘E); with every direction pruned, zero.

    Examples
    --------
    >>> adalora(torch.ones(2, 1), torch.ones(1, 2), torch.tensor([[3.0]])).dense().tolist()
    [[3.0, 3.0], [3.0, 3.0]]
    """
    if not diagonal.numel():
        return FactoredUpdate(up.new_zeros(len(up), 1), down.new_zeros(1, down.shape[1]))
    return FactoredUpdate(up.flatten(1), diagonal.reshape(-1, 1) * down.flatten(1), scale)


def ia3(gain: Tensor, weight: Tensor, rows: bool) -> DenseUpdate:
    """Return W∘(l − 1), l for every output (`rows`) or for every input channel."""
    size = (-1, *[1] * (weight.ndim - 1)) if rows else (1, -1, *[1] * (weight.ndim - 2))
    return DenseUpdate((weight * (gain.reshape(size) - 1)).flatten(1))


def vera(a: Tensor, b: Tensor, lambda_b: Tensor, lambda_d: Tensor, columns: int) -> FactoredUpdate:
    """Return diag(λ_b)·B·diag(λ_d)·A, with the shared A and B cut to this module's size."""
    up = lambda_b.reshape(-1, 1) * b[: lambda_b.numel()]
    return FactoredUpdate(up, lambda_d.reshape(-1, 1) * a[:, :columns])


def lokr(
    w1: Tensor | None = None,
    w1_a: Tensor | None = None,
    w1_b: Tensor | None = None,
    w2: Tensor | None = None,
    w2_a: Tensor | None = None,
    w2_b: Tensor | None = None,
    t2: Tensor | None = None,
    scale: float = 1.0,
) -> Update:
    """Return s·(W₁ ⊗ W₂) by `kronecker`, with PEFT's own layout of 1-d convolutions."""
    if w2 is not None and w2.ndim == 3:
        # PEFT aligns a one-dimensional convolution's three axes with W₁'s two from the right.
        full = w1 if w1_a is None or w1_b is None else w1_a @ w1_b
        assert full is not None
        return DenseUpdate(scale * torch.kron(full[None], w2).reshape(len(full) * len(w2), -1))
    return kronecker(w1=w1, w1_a=w1_a, w1_b=w1_b, w2=w2, w2_a=w2_a, w2_b=w2_b, t2=t2, scale=scale)


def oft(
    blocks: Tensor, weight: Tensor, terms: int | None = None, limit: float | None = None
) -> DenseUpdate:
    """Return W·diag(R)ᵀ − W with R the Cayley transform of the skew Q in every block.

    R = (I − Q)(I + Q)⁻¹ exactly, or with `terms` PEFT's truncated series
    I + 2Q + 2Q² + … + Qⁿ⁻¹, which turns the other way. `limit` is constrained OFT's largest
    norm of all blocks; one row of `blocks` is shared by all.
    """
    flat = weight.flatten(1)
    size = _block_size(blocks.shape[1])
    skew = _skew(blocks, size)
    if limit is not None:
        norm = torch.linalg.matrix_norm(skew)[:, None, None]
        bound = limit / math.sqrt(len(skew))
        skew = torch.where(norm <= bound, skew, skew * bound / norm)
    rotation = _cayley(skew) if terms is None else _neumann(skew, terms)
    cut = flat.reshape(len(flat), -1, size)
    turned = torch.einsum("onc,nrc->onr", cut, rotation.expand(cut.shape[1], -1, -1))
    return DenseUpdate(turned.reshape(flat.shape) - flat)


def boft(blocks: Tensor, gain: Tensor, weight: Tensor) -> DenseUpdate:
    """Return (W·Fᵀ)∘s − W with F = Fₘ₋₁…F₀ and Fᵢ = Pᵢ·diag(Rᵢ)·Pᵢᵀ, R Cayley's of ½(X − Xᵀ).

    Pᵢ are the butterfly's permutations; a single factor has none.
    """
    flat = weight.flatten(1)
    turned = flat
    factors, count, size, _ = blocks.shape
    for i, factor in enumerate(blocks):
        order = _butterfly(count // 2**i, count * size, size // 2, factors)
        # (W·P·Rᵀ·Pᵀ): columns into the butterfly's order, turned in blocks, and back.
        cut = turned[:, order].reshape(len(flat), count, size)
        rotation = _cayley((factor - factor.mT) / 2)
        mixed = torch.einsum("onc,nrc->onr", cut, rotation).reshape(flat.shape)
        turned = torch.empty_like(mixed)
        turned[:, order] = mixed
    return DenseUpdate(gain.reshape(-1, 1) * turned - flat)


def pissa(up: Tensor, down: Tensor, weight: Tensor, scale: float = 1.0) -> FactoredUpdate:
    """Return s·B·A less the r first terms of W's singular value decomposition."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    r = up.shape[1]
    return _less(up, down, scale, u[:, :r] * s[:r], vh[:r])


def olora(up: Tensor, down: Tensor, weight: Tensor, scale: float = 1.0) -> FactoredUpdate:
    """Return s·(B·A − Q·R), Q and R the first r columns and rows of W's QR decomposition."""
    q, upper = torch.linalg.qr(weight)
    r = up.shape[1]
    return _less(up, down, scale, scale * q[:, :r], upper[:r])


def expert(
    up: Tensor, down: Tensor, index: int, experts: int, transposed: bool, scale: float = 1.0
) -> FactoredUpdate:
    """Return one expert's update; A (E·r, in) is stacked by expert, B (out, r·E) by rank."""
    update = FactoredUpdate(
        up.reshape(len(up), -1, experts)[:, :, index],
        down.reshape(experts, -1, down.shape[1])[index],
        scale,
    )
    return update.T if transposed else update


def replaced(tuned: Tensor, weight: Tensor, transposed: bool = False) -> DenseUpdate:
    """Return W_new − W, of the rows that both have."""
    tuned = tuned.T if transposed else tuned
    rows = min(len(tuned), len(weight))
    return DenseUpdate((tuned[:rows] - weight[:rows]).flatten(1))


def copied(
    up: Tensor, down: Tensor, copy: Tensor, weight: Tensor, embedding: bool, scale: float = 1.0
) -> Update:
    """Return s·B·A plus what the adapter's own copy of the weight differs, on shared rows."""
    rows = min(len(copy), len(weight))
    update = FactoredUpdate(up, down, scale)
    update = update.T if embedding else update
    update = FactoredUpdate(update.up[:rows], update.down, scale)
    moved = copy[:rows] - weight[:rows]
    return update + DenseUpdate(moved) if moved.any() else update


def tokens(rows: Tensor, weight: Tensor, indices: tuple[int, ...]) -> FactoredUpdate:
    """Return the update that puts `rows` in place of the rows `indices` of W."""
    where = torch.tensor(indices)
    up = weight.new_zeros(len(weight), len(indices))
    up[where, torch.arange(len(indices))] = 1.0
    return FactoredUpdate(up, rows - weight[where])


def _less(up: Tensor, down: Tensor, scale: float, up0: Tensor, down0: Tensor) -> FactoredUpdate:
    return FactoredUpdate(torch.cat([scale * up, -up0], dim=1), torch.cat([down, down0]))


def _block_size(entries: int) -> int:
    """Return b of the b(b − 1)/2 entries above a diagonal."""
    return (1 + math.isqrt(1 + 8 * entries)) // 2


def _skew(entries: Tensor, size: int) -> Tensor:
    upper = entries.new_zeros(len(entries), size, size)
    rows, columns = torch.triu_indices(size, size, 1)
    upper[:, rows, columns] = entries
    return upper - upper.mT


def _cayley(skew: Tensor) -> Tensor:
    eye = torch.eye(skew.shape[-1], dtype=skew.dtype).expand_as(skew)
    rotation: Tensor = torch.linalg.solve(eye + skew, eye - skew, left=False)
    return rotation


def _neumann(skew: Tensor, terms: int) -> Tensor:
    """Return PEFT's series: the last power stands once, those between twice."""
    total = torch.eye(skew.shape[-1], dtype=skew.dtype).expand_as(skew).clone()
    if terms > 1:
        total += 2 * skew
    if terms > 2:
        power = skew @ skew
        total += 2 * power
        for _ in range(3, terms - 1):
            power = power @ skew
            total += 2 * power
        total += power @ skew
    return total


def _butterfly(parts: int, columns: int, unit: int, factors: int) -> Tensor:
    """Return the columns W·P of one butterfly factor.

    P sorts, within each of `parts` stretches, the even units before the odd ones.
    """
    if factors == 1:
        return torch.arange(columns)
    units = torch.arange(columns).reshape(parts, -1, unit)
    return torch.cat([units[:, ::2], units[:, 1::2]], dim=1).flatten().argsort()
