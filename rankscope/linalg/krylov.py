"""Leading directions by block Krylov spaces: of a matrix, or of its square."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.linalg.blocks import times, times_transposed

__all__ = ["Ritz", "draw", "krylov", "lanczos", "rayleigh_ritz"]

# No seed that anyone draws a matrix from: the start must not be related to the matrix.
_SEED = 0x9E3779B97F4A7C15 >> 1


@dataclass(frozen=True, eq=False)
class Ritz:
    """What one Krylov space knows: approximate singular values and their residuals.

    Attributes
    ----------
    values : (q,) Tensor
        Descending, float64; never above the true ones of the same index.
    residuals : (q,) Tensor
        ``‖X.T u - s v‖`` of each; ``X v = s u`` holds for all. Or an estimate of them.
    basis : (n, q) Tensor
        Of the Krylov space on the right side.
    coefficients : (q, q) Tensor
        Of the right directions in that basis, one per column.
    room : int
        How large the space may yet become.
    """

    values: Float[Tensor, " q"]
    residuals: Float[Tensor, " q"]
    basis: Float[Tensor, "n q"]
    coefficients: Float[Tensor, "q q"]
    room: int

    def right(self, count: int) -> Float[Tensor, "n count"]:
        """Return the first directions of the right side, orthonormal to the basis' rounding."""
        return self.basis @ self.coefficients[:, :count].to(self.basis.dtype)


def krylov(
    matrix: Float[Tensor, "m n"], block: int, limit: int, dtype: torch.dtype
) -> Iterator[Ritz]:
    """Yield what ever larger Krylov spaces know, each about a third larger than the last.

    Both sides are orthogonalised in full, so that no direction is found twice.

    Parameters
    ----------
    matrix : (m, n) Tensor
        float32 or float64, of moderate size (squares neither overflow nor vanish).
    block : int
        Directions that are added at a time, on each side.
    limit : int
        The largest number of directions; well below ``min(m, n)``.
        Nothing is yielded below `block`.
    dtype : torch.dtype
        Of the arithmetic on the long vectors; what is small is float64.

    References
    ----------
    .. [1] G. Golub, F. Luk and M. Overton, "A block Lanczos method for computing the singular
       values and corresponding singular vectors of a matrix", ACM TOMS 7 (1981).
    """
    if limit < block:
        return
    m, n = matrix.shape
    left, right = _empty(matrix, m, limit, dtype), _empty(matrix, n, limit + block, dtype)
    bands = torch.zeros(limit, limit, dtype=torch.float64)
    right[:, :block] = torch.linalg.qr(draw(n, block, matrix, dtype, 0))[0]
    coupling = None
    due = 2 * block
    for q in range(0, limit - block + 1, block):
        here, ahead = slice(q, q + block), slice(q + block, q + 2 * block)
        product = times(matrix, right[:, here])
        if coupling is not None:
            product -= left[:, q - block : q] @ coupling.T
            bands[q - block : q, here] = coupling.T.double()
        left[:, here], diagonal = _orthonormal(product, left[:, :q])
        bands[here, here] = diagonal.double()
        product = times_transposed(matrix, left[:, here]) - right[:, here] @ diagonal.T
        right[:, ahead], coupling = _orthonormal(product, right[:, : q + block])
        if q + block >= due:
            due = int(1.35 * due)
            yield _ritz(bands[: q + block, : q + block], coupling, right[:, : q + block], limit)


def lanczos(square: Float[Tensor, "n n"], block: int, limit: int) -> Iterator[Ritz]:
    """Yield what ever larger Krylov spaces of ``X.T @ X`` know of X, in float64.

    One product adds as much as two with X do, and only one side is orthogonalised. Values
    below 1e-8 of the largest are lost.

    Parameters
    ----------
    square : (n, n) Tensor
        ``X.T @ X`` in float64.
    block, limit : int
        As for `krylov`.

    References
    ----------
    .. [1] G. Golub and R. Underwood, "The block Lanczos method for computing eigenvalues",
       Mathematical Software III (1977).
    """
    if limit < block:
        return
    basis = _empty(square, len(square), limit + block, square.dtype)
    bands = torch.zeros(limit + block, limit + block, dtype=torch.float64)
    start = draw(len(square), block, square, square.dtype, 0)
    basis[:, :block] = torch.linalg.qr(start)[0]
    due = 4 * block
    for q in range(0, limit - block + 1, block):
        here, ahead = slice(q, q + block), slice(q + block, q + 2 * block)
        product = square @ basis[:, here]
        bands[here, here] = (basis[:, here].T @ product).cpu()
        basis[:, ahead], coupling = _orthonormal(product, basis[:, : q + block])
        bands[ahead, here] = coupling.cpu()
        if q + block >= due:
            due = int(1.25 * due)
            yield _rooted(bands[: q + block, : q + block], coupling, basis[:, : q + block], limit)


def rayleigh_ritz(
    matrix: Float[Tensor, "m n"], basis: Float[Tensor, "n c"]
) -> tuple[Float[Tensor, "m c"], Float[Tensor, " c"], Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """Return the best singular triplets with right sides in a span, and their residuals.

    All in float64: ``matrix @ right = left * s`` to rounding, and ``residual = matrix.T @ left
    - right * s`` is what the span lacks.

    Examples
    --------
    >>> left, s, right, residual = rayleigh_ritz(2 * torch.eye(3), torch.eye(3)[:, :1])
    >>> s.tolist(), residual.norm().item()
    ([2.0], 0.0)
    """
    start = torch.linalg.qr(basis.double())[0]
    outer, upper = torch.linalg.qr(times(matrix, start))
    inner_left, s, inner_right = torch.linalg.svd(upper)
    left, right = outer @ inner_left, start @ inner_right.T
    return left, s, right, times_transposed(matrix, left) - right * s


def draw(
    rows: int, columns: int, like: Tensor, dtype: torch.dtype, number: int
) -> Float[Tensor, "rows columns"]:
    """Return the `number`-th block of independent standard normal numbers, always the same."""
    rng = torch.Generator().manual_seed(_SEED + number)
    return torch.randn(rows, columns, generator=rng, dtype=dtype).to(like.device)


def _empty(like: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Return a matrix by columns: those that are never written take no memory."""
    return like.new_empty(columns, rows, dtype=dtype).T


def _orthonormal(
    block: Float[Tensor, "m b"], basis: Float[Tensor, "m q"]
) -> tuple[Float[Tensor, "m b"], Float[Tensor, "b b"]]:
    """Return ``q, r`` with ``block = q @ r`` but for its part in the span of `basis`."""
    first, one = torch.linalg.qr(block - basis @ (basis.T @ block))
    # Twice is enough; it also turns what QR puts for vanished columns away from the basis.
    second, two = torch.linalg.qr(first - basis @ (basis.T @ first))
    return second, two @ one


def _ritz(
    bands: Float[Tensor, "q q"],
    coupling: Float[Tensor, "b b"],
    basis: Float[Tensor, "n q"],
    room: int,
) -> Ritz:
    left, values, right = torch.linalg.svd(bands)
    last = left[-len(coupling) :]
    residuals = torch.linalg.vector_norm(coupling.double().cpu() @ last, dim=0)
    return Ritz(values, residuals, basis, right.T.to(basis.device), room)


def _rooted(
    bands: Float[Tensor, "q q"],
    coupling: Float[Tensor, "b b"],
    basis: Float[Tensor, "n q"],
    room: int,
) -> Ritz:
    squares, vectors = (x.flip(-1) for x in torch.linalg.eigh(bands))  # of the lower triangle
    values = squares.clamp_min(0).sqrt()
    residuals = torch.linalg.vector_norm(coupling.cpu() @ vectors[-len(coupling) :], dim=0)
    residuals /= values.clamp_min(1e-300)
    return Ritz(values, residuals, basis, vectors.to(basis.device), room)
