r"""ΔW against W: how much of W lies along the directions of ΔW, beside what chance gives.

`left` (out, k) and `right` (in, k) are orthonormal directions, `weight` is W, (out, in). The
LoRA paper's Table 7 is :math:`\|U^\top W V\|_F` for the directions of ΔW, of W and of a random
matrix [1]_.

References
----------
.. [1] E. Hu et al., "LoRA: Low-rank adaptation of large language models", 2021, section 7.3 and
   appendix H.4. arXiv:2106.09685
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "captured_energy",
    "direction_amplification",
    "projected_norm",
    "projected_z",
    "random_projection",
    "rewiring",
]


def projected_norm(
    weight: Float[Tensor, "m n"], left: Float[Tensor, "m k"], right: Float[Tensor, "n l"]
) -> float:
    r"""Return :math:`\|U^\top W V\|_F`, in the unit of the weight.

    Examples
    --------
    >>> W = torch.diag(torch.tensor([3.0, 4.0]))
    >>> projected_norm(W, torch.eye(2)[:, 1:], torch.eye(2)[:, 1:])
    4.0
    """
    return float(torch.linalg.vector_norm(_projected(weight, left, right)))


def random_projection(norm: float, shape: tuple[int, int], k: int, l: int | None = None) -> float:  # noqa: E741
    r"""Return the root mean square of :math:`\|U^\top W V\|_F` over random U and V.

    Exact for independent uniformly random directions, whatever W's spectrum:
    :math:`\sqrt{k l / (m n)}\,\|W\|_F`.

    Parameters
    ----------
    norm : float
        ``‖W‖_F``.
    shape : (int, int)
        ``(m, n)`` of W.
    k, l : int
        Dimensions of the two spans; `l` is `k` unless given.

    Examples
    --------
    The paper's own random column, from its ‖W‖ and d:

    >>> round(random_projection(61.95, (12288, 12288), 4), 4)
    0.0202
    """
    m, n = shape
    return math.sqrt(k * (k if l is None else l) / (m * n)) * norm


def projected_z(
    projected: float, values: Float[Tensor, " q"], shape: tuple[int, int], k: int
) -> float:
    r"""Return how many standard deviations :math:`\|U^\top W V\|_F^2` lies above chance.

    With N = ‖W‖⁴, T = Σσ⁴, β = k(m−k)/(m(m−1)(m+2)), α = (k² − 2mβ)/m² and α′, β′ the same of n:
    E t⁴ = α′(αN + 2βT) + 2β′((α+β)T + βN), exact for independent uniformly random directions.

    Parameters
    ----------
    projected : float
        ``‖UᵀWV‖_F`` of k directions on each side.
    values : (q,) Tensor
        All singular values of W.
    shape : (int, int)
        ``(m, n)`` of W.
    k : int

    Returns
    -------
    float
        NaN where chance leaves no spread: W is zero, or the directions are all there are.

    Examples
    --------
    >>> projected_z(1.0, torch.ones(1), (1, 1), 1)
    nan
    """
    energies = values.double().square()
    total = energies.sum().item()
    if not total:
        return math.nan
    # In units of ‖W‖², so that fourth powers stay in range.
    fourth = energies.div(total).square().sum().item()
    m, n = shape
    (a, b), (c, d) = _moments(k, m), _moments(k, n)
    mean = k * k / (m * n)
    variance = c * (a + 2 * b * fourth) + 2 * d * ((a + b) * fourth + b) - mean**2
    if variance <= 1e-12 * mean**2:
        return math.nan
    return (projected**2 / total - mean) / math.sqrt(variance)


def captured_energy(weight: Float[Tensor, "m n"], basis: Float[Tensor, "d k"], side: str) -> float:
    r"""Return the share of W's energy on a span: ‖UᵀW‖²/‖W‖² (left), ‖WV‖²/‖W‖² (right).

    Chance is k/m on the left and k/n on the right. NaN where W is zero.

    Examples
    --------
    >>> round(captured_energy(torch.ones(2, 2), torch.eye(2)[:, 1:], "left"), 12)
    0.5
    """
    weight, basis = weight.double(), basis.double()
    part = basis.T @ weight if side == "left" else weight @ basis
    total = torch.linalg.vector_norm(weight).item()
    return min((torch.linalg.vector_norm(part).item() / total) ** 2, 1.0) if total else math.nan


def direction_amplification(
    weight: Float[Tensor, "m n"],
    left: Float[Tensor, "m k"],
    s: Float[Tensor, " k"],
    right: Float[Tensor, "n k"],
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    r"""Return :math:`\sigma_i(ΔW)/|u_i^\top W v_i|` of each direction, and signed cosines.

    The cosine of direction i is :math:`u_i^\top W v_i / \|W\|_F`, between W and the rank-one
    term of ΔW: positive where ΔW strengthens what W does, negative where it works against it.
    Its square averages 1/(mn) by chance.

    Returns
    -------
    factors, cosines : (k,) Tensor
        A factor is infinite where W has nothing along the direction; NaN for a zero direction.

    Examples
    --------
    >>> W, eye = torch.diag(torch.tensor([3.0, 4.0])), torch.eye(2)
    >>> factors, cosines = direction_amplification(W, eye, torch.tensor([6.0, 2.0]), -eye)
    >>> factors.tolist(), cosines.tolist()
    ([2.0, 0.5], [-0.6, -0.8])
    """
    along = (left.double() * (weight.double() @ right.double())).sum(0)
    norm = torch.linalg.vector_norm(weight.double())
    return s.double() / along.abs(), along / norm


def rewiring(
    update: Float[Tensor, "m n"], left: Float[Tensor, "m q"], right: Float[Tensor, "n q"]
) -> tuple[float, float, float]:
    r"""Return how ΔW's energy splits in W's own directions: re-weighting, re-wiring, outside.

    Of :math:`C = U^\top ΔW V` with W's singular vectors, the diagonal re-weights directions that
    W has, the rest re-wires inputs to other outputs; what is outside both spans is new. For a
    random ΔW the shares are q/(mn), q(q−1)/(mn) and the rest.

    Parameters
    ----------
    update : (m, n) Tensor
        ΔW.
    left, right : (m, q), (n, q) Tensor
        W's singular vectors.

    Returns
    -------
    diagonal, off_diagonal, outside : float
        Shares of ‖ΔW‖², that add up to 1; NaN for an update that is zero.

    Examples
    --------
    >>> rewiring(torch.tensor([[3.0, 0.0], [4.0, 0.0]]), torch.eye(2), torch.eye(2))
    (0.36, 0.64, 0.0)
    """
    total = torch.linalg.vector_norm(update.double()).item()
    if not total:
        return math.nan, math.nan, math.nan
    energies = (_projected(update, left, right) / total).square()
    diagonal, inside = energies.diagonal().sum().item(), energies.sum().item()
    return diagonal, max(inside - diagonal, 0.0), max(1 - inside, 0.0)


def _projected(
    matrix: Float[Tensor, "m n"], left: Float[Tensor, "m k"], right: Float[Tensor, "n l"]
) -> Float[Tensor, "k l"]:
    left, matrix, right = left.double(), matrix.double(), right.double()
    # The cheaper order: the thinner side first.
    if left.shape[1] <= right.shape[1]:
        return (left.T @ matrix) @ right
    return left.T @ (matrix @ right)


def _moments(k: int, d: int) -> tuple[float, float]:
    """Return E[P_aa P_bb] and E[P_ab²], a ≠ b, of a random projector of rank k in d dimensions."""
    if d == 1:
        return float(k), 0.0
    beta = k * (d - k) / (d * (d - 1) * (d + 2))
    return (k * k - 2 * d * beta) / (d * d), beta
