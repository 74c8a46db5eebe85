"""Updates that are entrywise or Kronecker products of two low-rank matrices: LoHa and LoKr."""

from __future__ import annotations

import torch
from torch import Tensor

from rankscope.updates import DenseUpdate, FactoredUpdate, Update

__all__ = ["hadamard", "kron", "kronecker", "tucker"]


def hadamard(
    *,
    w1_a: Tensor,
    w1_b: Tensor,
    w2_a: Tensor,
    w2_b: Tensor,
    t1: Tensor | None = None,
    t2: Tensor | None = None,
    scale: float = 1.0,
) -> FactoredUpdate:
    """Return LoHa's s · (w1_a @ w1_b) ∘ (w2_a @ w2_b), factored, of rank r².

    An entrywise product of two products is one product of row-wise Khatri-Rao products:
    up[o, (p, q)] = w1_a[o, p] · w2_a[o, q], down[(p, q), i] = w1_b[p, i] · w2_b[q, i].

    Examples
    --------
    >>> two = torch.full((1, 1), 2.0)
    >>> hadamard(w1_a=two, w1_b=two, w2_a=two, w2_b=two, scale=0.5).dense().item()
    8.0
    """
    (up1, down1), (up2, down2) = _product(w1_a, w1_b, t1), _product(w2_a, w2_b, t2)
    up = (up1[:, :, None] * up2[:, None, :]).flatten(1)
    down = (down1[:, None, :] * down2[None, :, :]).flatten(0, 1)
    return FactoredUpdate(up, down, scale)


def kronecker(
    *,
    w1: Tensor | None = None,
    w1_a: Tensor | None = None,
    w1_b: Tensor | None = None,
    w2: Tensor | None = None,
    w2_a: Tensor | None = None,
    w2_b: Tensor | None = None,
    t2: Tensor | None = None,
    scale: float = 1.0,
) -> Update:
    """Return LoKr's s · w1 ⊗ w2, where each may itself be a product w_a @ w_b.

    (up₁ @ down₁) ⊗ (up₂ @ down₂) = (up₁ ⊗ up₂) @ (down₁ ⊗ down₂): factored where that is of
    lower rank than the matrix can be, else dense.

    Examples
    --------
    >>> kronecker(w1=torch.eye(2), w2=torch.full((1, 1), 3.0), scale=1.0).dense().tolist()
    [[3.0, 0.0], [0.0, 3.0]]
    """
    up1, down1 = _half(w1, w1_a, w1_b, None)
    up2, down2 = _half(w2, w2_a, w2_b, t2)
    rows, columns = len(up1) * len(up2), down1.shape[1] * down2.shape[1]
    if len(down1) * len(down2) < min(rows, columns):
        return FactoredUpdate(kron(up1, up2), kron(down1, down2), scale)
    return DenseUpdate(scale * kron(up1 @ down1, up2 @ down2))


def kron(a: Tensor, b: Tensor) -> Tensor:
    """Return the Kronecker product of two matrices."""
    # torch.kron cannot take a transpose with a side of 1.
    blocks = a[:, None, :, None] * b[None, :, None, :]
    return blocks.reshape(len(a) * len(b), -1)


def _product(a: Tensor, b: Tensor, middle: Tensor | None) -> tuple[Tensor, Tensor]:
    return (a, b.flatten(1)) if middle is None else tucker(middle, a, b)


def tucker(middle: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two factors of Σ middle[i, j, …] a[i, :] b[j, :], of the rank of `a`."""
    return a.T, torch.einsum("ijk,jc->ick", middle.flatten(2), b).flatten(1)


def _half(
    whole: Tensor | None, a: Tensor | None, b: Tensor | None, middle: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the factors of one side of a Kronecker product; a whole one keeps its rank."""
    if whole is None:
        assert a is not None
        assert b is not None
        return _product(a, b, middle)
    matrix = whole.flatten(1)
    identity = torch.eye(min(matrix.shape), dtype=matrix.dtype, device=matrix.device)
    return (identity, matrix) if len(matrix) <= matrix.shape[1] else (matrix, identity)
