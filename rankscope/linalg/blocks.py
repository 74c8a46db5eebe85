"""Large matrices a block at a time: float64 arithmetic on float32 numbers, without a copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "all_finite",
    "by_rows",
    "cached_rows",
    "gram",
    "inner",
    "mirror",
    "norm",
    "subtract",
    "times",
    "times_transposed",
]

# Numbers that stay in a processor's cache while several operations pass over them, such that
# a matrix product of them is still worth its name, and rows for the product of a whole matrix.
_CACHED = 1 << 16
_BLOCK = 1 << 18
_WIDE = 512


def times(matrix: Float[Tensor, "m n"], x: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
    """Return ``matrix @ x`` in the dtype of `x`.

    Examples
    --------
    >>> times(torch.eye(2), torch.tensor([[1.0], [2.0]], dtype=torch.float64)).flatten().tolist()
    [1.0, 2.0]
    """
    if _by_columns(matrix):
        return times_transposed(matrix.T, x)
    if matrix.dtype == x.dtype:
        return matrix @ x
    product = x.new_empty(len(matrix), x.shape[1])
    for part, block in _upcast(matrix, x.dtype):
        torch.mm(block, x, out=product[part])
    return product


def times_transposed(
    matrix: Float[Tensor, "m n"], x: Float[Tensor, "m k"]
) -> Float[Tensor, "n k"]:
    """Return ``matrix.T @ x`` in the dtype of `x`.

    Examples
    --------
    >>> times_transposed(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])).flatten().tolist()
    [3.0, 6.0]
    """
    if _by_columns(matrix):
        return times(matrix.T, x)
    # The thin factor first: BLAS libraries are up to three times slower the other way round,
    # and a third slower again where the large one leaves the cache.
    if matrix.is_cuda and matrix.dtype == x.dtype:
        return (x.T @ matrix).T
    product = x.new_zeros(x.shape[1], matrix.shape[1])
    for part, block in _upcast(matrix, x.dtype):
        product.addmm_(x[part].T, block)
    return product.T


def gram(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "n n"]:
    """Return ``matrix.T @ matrix`` in float64; only the lower triangle is set.

    Half the operations of a matrix product, and of a float32 matrix no float64 copy is made.

    Examples
    --------
    >>> gram(torch.tensor([[3.0], [4.0]])).tolist()
    [[25.0]]
    """
    side = matrix.shape[1]
    if matrix.is_cuda:
        total = matrix.new_zeros(side, side, dtype=torch.float64)
        for part in _parts(len(matrix), _WIDE):
            block = matrix[part].double()
            total.addmm_(block.T, block)
        return total
    upper = np.zeros((side, side), order="F")
    for _, block in _upcast(matrix, torch.float64, _WIDE * side):
        rows = block.contiguous().numpy()
        upper = scipy.linalg.blas.dsyrk(1.0, rows.T, beta=1.0, c=upper, overwrite_c=True)
    return torch.from_numpy(upper.T)


def mirror(square: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Fill the upper triangle with the lower one, in place, and return the matrix.

    Examples
    --------
    >>> mirror(torch.tensor([[1.0, 0.0], [2.0, 3.0]])).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    for part in _parts(len(square), _WIDE):
        corner = square[part, part]
        corner.copy_(corner.tril() + corner.tril(-1).T)
        square[part, part.stop :] = square[part.stop :, part].T
    return square


def norm(matrix: Float[Tensor, "m n"]) -> float:
    """Return the Frobenius norm, added up in float64; NaN or infinite if a number is.

    Examples
    --------
    >>> norm(torch.tensor([[3.0, 4.0]]))
    5.0
    """
    if matrix.dtype == torch.float64 or matrix.is_cuda:
        return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
    squares = 0.0
    for _, block in _upcast(matrix, torch.float64, _CACHED):
        flat = block.view(-1)
        squares += torch.dot(flat, flat).item()
    return math.sqrt(squares)


def inner(one: Float[Tensor, "m n"], other: Float[Tensor, "m n"]) -> float:
    """Return the sum of all products of two entries in one place, in float64.

    Examples
    --------
    >>> inner(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 1.0]], dtype=torch.bfloat16))
    10.0
    """
    total = 0.0
    for part in cached_rows(one):
        left, right = (matrix[part].double().flatten() for matrix in (one, other))
        total += torch.dot(left, right).item()
    return total


def all_finite(tensor: Tensor) -> bool:
    """Whether a real tensor holds neither NaN nor infinity.

    Examples
    --------
    >>> all_finite(torch.tensor([1.0, torch.inf]))
    False
    """
    if tensor.ndim != 2 or not tensor.dtype.is_floating_point or tensor.is_cuda:
        return bool(torch.isfinite(tensor).all())
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    rows = max(1, _CACHED // max(1, tensor.shape[1]))
    zeros = torch.zeros(rows * tensor.shape[1], dtype=dtype)
    # Zero times infinity is NaN, and a dot product several times as fast as a comparison.
    return all(
        torch.dot(block, zeros[: len(block)]).item() == 0
        for block in (tensor[part].to(dtype).flatten() for part in _parts(len(tensor), rows))
    )


def subtract(
    one: Float[Tensor, "m n"], other: Float[Tensor, "m n"], dtype: torch.dtype
) -> tuple[Float[Tensor, "m n"], float]:
    """Return ``one - other`` in `dtype` and its Frobenius norm, in one pass over both.

    Neither is ever upcast whole. The norm is NaN or infinite if a number is.

    Examples
    --------
    >>> subtract(torch.tensor([[5.0, 5.0]]), torch.tensor([[2.0, 1.0]]), torch.float64)
    (tensor([[3., 4.]], dtype=torch.float64), 5.0)
    """
    difference = _blank(one, dtype)
    rows = max(1, _CACHED // max(1, one.shape[1]))
    taken = torch.empty(rows, one.shape[1], dtype=dtype)
    exact = torch.empty(rows, one.shape[1], dtype=torch.float64)
    squares = 0.0
    for part in _parts(len(one), rows):
        block = difference[part]
        less, wide = taken[: len(block)], exact[: len(block)]
        block.copy_(one[part]).sub_(less.copy_(other[part]))
        flat = wide.copy_(block).flatten()
        squares += torch.dot(flat, flat).item()
    return difference, math.sqrt(squares)


def _upcast(
    matrix: Float[Tensor, "m n"], dtype: torch.dtype, numbers: int = _BLOCK
) -> Iterator[tuple[slice, Float[Tensor, "rows n"]]]:
    """Yield blocks of rows in a dtype, each in the place of the one before."""
    rows = max(1, min(len(matrix), numbers // max(1, matrix.shape[1])))
    same = matrix.dtype == dtype
    place = matrix.new_empty(0 if same else rows, matrix.shape[1], dtype=dtype)
    for part in _parts(len(matrix), rows):
        taken = matrix[part]
        yield part, taken if same else place[: len(taken)].copy_(taken)


def by_rows(
    function: Callable[..., Tensor], matrix: Float[Tensor, "m n"], *others: Float[Tensor, "m _"]
) -> Float[Tensor, "m n"]:
    """Return ``function(matrix, *others)`` in float32, some rows at a time.

    Each row of the result may depend on the same row of each argument alone. What the function
    makes on its way never leaves the cache.

    Examples
    --------
    >>> by_rows(torch.sub, torch.tensor([[5.0, 5.0]]), torch.tensor([[2.0, 1.0]])).tolist()
    [[3.0, 4.0]]
    """
    if matrix.is_cuda:
        return function(matrix, *others).float()
    result = _blank(matrix, torch.float32)
    for part in cached_rows(matrix):
        result[part] = function(matrix[part], *(other[part] for other in others))
    return result


def cached_rows(matrix: Float[Tensor, "m n"]) -> Iterator[slice]:
    """Yield slices of rows that stay in a processor's cache; of all where there is none."""
    rows = max(1, _CACHED // max(1, matrix.shape[1]))
    return _parts(len(matrix), max(1, len(matrix)) if matrix.is_cuda else rows)


def _blank(like: Tensor, dtype: torch.dtype) -> Tensor:
    # NumPy asks for large pages, which are several times faster to touch for the first time.
    return torch.from_numpy(np.empty(tuple(like.shape), str(dtype).removeprefix("torch.")))


def _by_columns(matrix: Float[Tensor, "m n"]) -> bool:
    return matrix.stride(0) == 1 and matrix.stride(1) != 1


def _parts(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
