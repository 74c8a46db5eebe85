r"""Measures between whole updates: cosine, CKA, containment, and interference of tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.updates import Update

__all__ = [
    "cka",
    "contained_energy",
    "gram_interference",
    "task_interference",
    "update_cosine",
]


def update_cosine(one: Update, other: Update) -> float:
    r"""Return the cosine :math:`\langle ΔW_1, ΔW_2\rangle / (\|ΔW_1\|\|ΔW_2\|)`.

    In [-1, 1]; the square averages 1/(mn) for randomly turned updates. No product of factors
    is formed. NaN where one is zero.

    Examples
    --------
    >>> from rankscope.updates import DenseUpdate
    >>> one, other = torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    >>> round(update_cosine(DenseUpdate(one), DenseUpdate(other)), 12)
    0.6
    """
    norms = one.norm() * other.norm()
    return max(-1.0, min(1.0, one.inner(other) / norms)) if norms else math.nan


def cka(overlap: Float[Tensor, "i j"], s: Float[Tensor, " i"], t: Float[Tensor, " j"]) -> float:
    r"""Return the linear, uncentred CKA of two updates on one side.

    With overlap M = UᵀV of their directions and singular values s, t it is
    :math:`\sum s_a^2 t_b^2 M_{ab}^2 / (\|s^2\|\,\|t^2\|)`, which on the input side is
    ‖ΔW₁ΔW₂ᵀ‖² / (‖ΔW₁ΔW₁ᵀ‖ ‖ΔW₂ΔW₂ᵀ‖). In [0, 1]; NaN where one is zero. Of two equally strong
    sets of directions it is φ·√(min/max).

    Examples
    --------
    >>> round(cka(torch.eye(2), torch.tensor([2.0, 1.0]), torch.tensor([2.0, 1.0])), 12)
    1.0
    """
    one, other = (_shares(x) for x in (s, t))
    norms = float(torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other))
    if not norms:
        return math.nan
    return float(one @ overlap.double().square() @ other) / norms


def contained_energy(overlap: Float[Tensor, "i j"], s: Float[Tensor, " i"]) -> float:
    r"""Return how much of an update's energy lies in the span of another's directions.

    :math:`\sum_a s_a^2 \|V^\top u_a\|^2 / \sum s^2`, the square of the subspace alignment ratio
    [1]_. By chance j/d. NaN where the update is zero.

    Parameters
    ----------
    overlap : (i, j) Tensor
        ``U.T @ V``: all i directions of this update, the j of the other.
    s : (i,) Tensor
        Singular values of this update.

    References
    ----------
    .. [1] D. Marczak et al., "No task left behind: isotropic model merging with common and
       task-specific subspaces", 2025. arXiv:2502.04959

    Examples
    --------
    >>> contained_energy(torch.tensor([[1.0], [0.0]]), torch.tensor([3.0, 3.0]))
    0.5
    """
    shares = _shares(s)
    if not shares.any():
        return math.nan
    return min((shares @ overlap.double().square().sum(1)).item(), 1.0)


def task_interference(
    lefts: Sequence[Float[Tensor, "m _"]],
    values: Sequence[Float[Tensor, " _"]],
    rights: Sequence[Float[Tensor, "n _"]],
) -> float:
    r"""Return the singular task interference :math:`\|(U^\top U - I) Σ (V^\top V - I)\|_1`.

    U and V hold the directions of all tasks side by side, Σ their singular values, and the norm
    adds the absolute values of the entries [1]_. 0 for orthogonal tasks, 2Σσ for one task given
    twice; in the unit of the weight.

    References
    ----------
    .. [1] A. Gargiulo et al., "Task singular vectors: reducing task interference in model
       merging", CVPR 2025. arXiv:2412.00081

    Examples
    --------
    >>> u, s = torch.eye(3)[:, :2], torch.tensor([2.0, 1.0])
    >>> task_interference([u, u], [s, s], [u, u])
    6.0
    """
    u, v = (torch.cat([one.double() for one in side], dim=1) for side in (lefts, rights))
    s = torch.cat([one.double() for one in values])
    return gram_interference(u.T @ u, s, v.T @ v)


def gram_interference(
    left: Float[Tensor, "K K"], s: Float[Tensor, " K"], right: Float[Tensor, "K K"]
) -> float:
    """Return `task_interference` from the Gram matrices of both sides' directions.

    Examples
    --------
    >>> same = torch.ones(2, 2)  # one direction twice
    >>> gram_interference(same, torch.tensor([2.0, 2.0]), same)
    4.0
    """
    eye = torch.eye(len(s), dtype=torch.float64, device=s.device)
    return float((((left.double() - eye) * s.double()) @ (right.double() - eye)).abs().sum())


def _shares(s: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Return the shares of the energy; zeros for an update that is zero."""
    largest = s.max().item() if len(s) else 0.0
    if not largest:
        return s.double() * 0
    energies = (s.double() / largest).square()
    return energies / energies.sum()
