"""Leading directions by block Krylov spaces: of a matrix, or of its square."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.linalg.blocks import times, times_transposed

__all__ = ["Ritz", "Space", "Triplets", "draw", "krylov", "lanczos", "power_step", "rayleigh_ritz"]

# No seed that anyone draws a matrix from: the start must not be related to the matrix.
_SEED = 0x9E3779B97F4A7C15 >> 1
# Where this share of every column is left after a projection, nothing cancelled.
_WHOLE = 0.1


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
    """

    values: Float[Tensor, " q"]
    residuals: Float[Tensor, " q"]
    basis: Float[Tensor, "n q"]
    coefficients: Float[Tensor, "q q"]

    def right(self, count: int) -> Float[Tensor, "n count"]:
        """Return the first directions of the right side, orthonormal to the basis' rounding."""
        return self.basis @ self.coefficients[:, :count].to(self.basis.dtype)


@dataclass(frozen=True, eq=False)
class Space:
    """A Krylov space, of which nothing is known until it is asked.

    Attributes
    ----------
    bands : (q, q) Tensor
        The matrix in bases of the space: banded, and of a square only the lower triangle.
    coupling : (b, b) Tensor
        What leads out of it from its last block.
    basis : (n, q) Tensor
        On the right side.
    room : int
        How large it may yet become.
    squared : bool
        Whether it is one of ``X.T @ X``.
    """

    bands: Float[Tensor, "q q"]
    coupling: Float[Tensor, "b b"]
    basis: Float[Tensor, "n q"]
    room: int
    squared: bool = False

    def ritz(self) -> Ritz:
        """Return the approximate singular triplets."""
        coupling = self.coupling.double().cpu()
        if self.squared:
            squares, left = (x.flip(-1) for x in torch.linalg.eigh(self.bands))
            values, right = squares.clamp_min(0).sqrt(), left
        else:
            left, values, right_t = torch.linalg.svd(self.bands)
            right = right_t.T
        residuals = torch.linalg.vector_norm(coupling @ left[-len(coupling) :], dim=0)
        if self.squared:
            residuals /= values.clamp_min(1e-300)
        return Ritz(values, residuals, self.basis, right.to(self.basis.device))


def krylov(
    matrix: Float[Tensor, "m n"], block: int, limit: int, dtype: torch.dtype
) -> Iterator[Space]:
    """Yield ever larger Krylov spaces, each by a block larger than the last.

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
        yield Space(bands[: q + block, : q + block], coupling, right[:, : q + block], limit)


def lanczos(square: Float[Tensor, "n n"], block: int, limit: int) -> Iterator[Space]:
    """Yield ever larger Krylov spaces of ``X.T @ X``, in float64.

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
    coupling = basis.new_zeros(block, block)
    for q in range(0, limit - block + 1, block):
        here, ahead = slice(q, q + block), slice(q + block, q + 2 * block)
        product = square @ basis[:, here]
        product -= basis[:, max(q - block, 0) : max(q, block)] @ coupling.T
        diagonal = basis[:, here].T @ product
        product -= basis[:, here] @ diagonal
        bands[here, here] = diagonal.cpu()
        basis[:, ahead], coupling = _orthonormal(product, basis[:, : q + block])
        bands[ahead, here] = coupling.cpu()
        known = slice(0, q + block)
        yield Space(bands[known, known], coupling, basis[:, known], limit, squared=True)


@dataclass(frozen=True, eq=False)
class Triplets:
    """Orthonormal `left` and `right` with ``X right = left * values``.

    Attributes
    ----------
    left, values, right : (m, c), (c,), (n, c) Tensor
        float64, values descend.
    image : (n, c) Tensor
        ``X.T @ left``.
    blur : float
        Bounds the norm of what ``X right`` lacks of ``left * values``, beyond float64.
    """

    left: Float[Tensor, "m c"]
    values: Float[Tensor, " c"]
    right: Float[Tensor, "n c"]
    image: Float[Tensor, "n c"]
    blur: float

    @property
    def residual(self) -> Float[Tensor, "n c"]:
        """``X.T @ left - right * values``: what the span lacks."""
        return self.image - self.right * self.values


def rayleigh_ritz(matrix: Float[Tensor, "m n"], basis: Float[Tensor, "n c"]) -> Triplets:
    """Return the best singular triplets with right sides in a span, all in float64.

    Examples
    --------
    >>> found = rayleigh_ritz(2 * torch.eye(3), torch.eye(3)[:, :1])
    >>> found.values.tolist(), found.residual.norm().item()
    ([2.0], 0.0)
    """
    start = torch.linalg.qr(basis.double())[0]
    left, s, right = _triplets(start, times(matrix, start))
    return Triplets(left, s, right, times_transposed(matrix, left), 0.0)


def power_step(matrix: Float[Tensor, "m n"], found: Triplets, size: float) -> Triplets:
    """Return the best triplets with right sides in the span of ``X.T @ left``.

    The products with `matrix` are known but for those of the small changes, and float32 is
    precise enough for them: its round-off, relative to ``size = ‖X‖_F``, is part of the blur.
    Where the values are too far apart to divide by, all is computed anew.

    Examples
    --------
    >>> matrix = torch.diag(torch.tensor([2.0, 1.0]))
    >>> found = rayleigh_ritz(matrix, torch.ones(2, 1))
    >>> better = power_step(matrix, found, 5**0.5)  # of (1, 1) it makes (4, 1)
    >>> [round(x, 6) for x in (better.right[:, 0] / better.right[1, 0]).tolist()]
    [4.0, 1.0]
    """
    largest, smallest = found.values[0].item(), found.values[-1].item()
    if smallest < 1e-4 * largest:
        return rayleigh_ritz(matrix, found.image)
    start, upper = torch.linalg.qr(found.image)
    change = found.residual
    product = found.left * found.values.square() + times(matrix, change.float()).double()
    left, s, right = _triplets(start, _divided(product, upper))
    new = left - found.left @ (found.left.T @ left)
    image = found.image @ (found.left.T @ left) + times_transposed(matrix, new.float()).double()
    lost = torch.linalg.matrix_norm(_divided(change, upper)) + torch.linalg.matrix_norm(new)
    coarse, fine = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))
    blur = 2 * coarse * size * lost.item() + len(s) * fine * largest**2 / smallest
    return Triplets(left, s, right, image, 2 * found.blur + blur)


def draw(
    rows: int, columns: int, like: Tensor, dtype: torch.dtype, number: int
) -> Float[Tensor, "rows columns"]:
    """Return the `number`-th block of independent standard normal numbers, always the same."""
    rng = torch.Generator().manual_seed(_SEED + number)
    return torch.randn(rows, columns, generator=rng, dtype=dtype).to(like.device)


def _empty(like: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Return a matrix by columns: those that are never written take no memory."""
    return like.new_empty(columns, rows, dtype=dtype).T


def _triplets(
    start: Float[Tensor, "n c"], product: Float[Tensor, "m c"]
) -> tuple[Float[Tensor, "m c"], Float[Tensor, " c"], Float[Tensor, "n c"]]:
    outer, upper = torch.linalg.qr(product)
    inner_left, s, inner_right = torch.linalg.svd(upper)
    return outer @ inner_left, s, start @ inner_right.T


def _divided(x: Float[Tensor, "m c"], upper: Float[Tensor, "c c"]) -> Float[Tensor, "m c"]:
    quotient: Tensor = torch.linalg.solve_triangular(upper, x, upper=True, left=False)
    return quotient


def _orthonormal(
    block: Float[Tensor, "m b"], basis: Float[Tensor, "m q"]
) -> tuple[Float[Tensor, "m b"], Float[Tensor, "b b"]]:
    """Return ``q, r`` with ``block = q @ r`` but for its part in the span of `basis`."""
    first, one = torch.linalg.qr(block - basis @ (basis.T @ block))
    if one.diagonal().abs().min() > _WHOLE * torch.linalg.vector_norm(block, dim=0).max():
        return first, one
    # Twice is enough; it also turns what QR puts for vanished columns away from the basis.
    second, two = torch.linalg.qr(first - basis @ (basis.T @ first))
    return second, two @ one
