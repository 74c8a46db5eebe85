"""The singular value decompositions everything else is built on, in float64."""

from __future__ import annotations

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.linalg.blocks import gram, times

__all__ = ["gram_svd", "gram_values", "thin_svd", "thin_values"]


def thin_svd(
    matrix: Float[Tensor, "m n"],
) -> tuple[Float[Tensor, "m k"], Float[Tensor, " k"], Float[Tensor, "n k"]]:
    """Return the thin singular value decomposition ``left @ diag(s) @ right.T``.

    Parameters
    ----------
    matrix : (m, n) Tensor
        Finite; computed in float64 on the device where it lies.

    Returns
    -------
    left, s, right : (m, k), (k,), (n, k) Tensor
        With ``k = min(m, n)``; columns are directions, `s` descends. Absolute error of each
        singular value about ``max(m, n) * eps * s[0]``.

    Notes
    -----
    Divide and conquer may fail to converge on rare matrices; the slower QR iteration
    (``gesvd``) then takes over. On CUDA ``gesvd`` is used at once: small singular values are
    the subject here, and the default Jacobi driver is loose on them.

    Examples
    --------
    >>> left, s, right = thin_svd(torch.diag(torch.tensor([1.0, 3.0])))
    >>> s.tolist()
    [3.0, 1.0]
    """
    matrix = matrix.double()
    driver = "gesvd" if matrix.is_cuda else None
    try:
        left, s, right_t = torch.linalg.svd(matrix, full_matrices=False, driver=driver)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        u, values, vt = scipy.linalg.svd(
            matrix.cpu().numpy(), full_matrices=False, lapack_driver="gesvd"
        )
        left, s, right_t = (torch.from_numpy(x).to(matrix.device) for x in (u, values, vt))
    return left, s, right_t.T


def thin_values(matrix: Float[Tensor, "m n"]) -> Float[Tensor, " k"]:
    """Return the singular values alone, as `thin_svd` but in about half the time.

    Examples
    --------
    >>> thin_values(torch.diag(torch.tensor([1.0, 3.0]))).tolist()
    [3.0, 1.0]
    """
    matrix = matrix.double()
    try:
        values: Tensor = torch.linalg.svdvals(matrix, driver="gesvd" if matrix.is_cuda else None)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        values = thin_svd(matrix)[1]
    return values


def gram_svd(
    matrix: Float[Tensor, "m n"],
    k: int | None = None,
    square: Float[Tensor, "side side"] | None = None,
) -> tuple[Float[Tensor, "m k"], Float[Tensor, " p"], Float[Tensor, "n k"]]:
    """Return the thin decomposition through the float64 Gram matrix of the short side.

    Several times faster than `thin_svd` on large matrices, but it squares the condition
    number: the *squares* of the singular values have an error of ``max(m, n) * eps * s[0]²``.

    Parameters
    ----------
    matrix : (m, n) Tensor
        Finite, float32 or float64; squares must neither overflow nor vanish.
    k : int, optional
        How many directions; all of them unless given.
    square : (side, side) Tensor, optional
        The Gram matrix of the short side (``matrix.T @ matrix`` where there is none), where it
        is known; it is overwritten.

    Returns
    -------
    left, s, right : (m, k), (p,), (n, k) Tensor
        As `thin_svd`; `s` also holds the value after the `k`-th where there is one. The long
        side's directions are orthonormal only where `s` is well above the floor; directions
        with ``s`` at zero are zero columns.

    Examples
    --------
    >>> left, s, right = gram_svd(torch.diag(torch.tensor([1.0, 3.0])))
    >>> s.tolist()
    [3.0, 1.0]
    """
    if matrix.shape[0] < matrix.shape[1]:
        right, s, left = gram_svd(matrix.T, k, square)
        return left, s, right
    squares, right = _eigenpairs(gram(matrix) if square is None else square, k)
    s = squares.clamp_min(0).sqrt()
    # Dividing by a zero singular value would turn an empty direction into NaN.
    sizes = torch.where(s > 0, s, torch.inf)[: right.shape[1]]
    return times(matrix, right) / sizes, s, right


def _eigenpairs(
    square: Float[Tensor, "p p"], k: int | None
) -> tuple[Float[Tensor, " values"], Float[Tensor, "p k"]]:
    """Return the first `k` eigenpairs, largest first, and at least one value more."""
    side = len(square)
    if k is None or 4 * k >= side or square.is_cuda:
        squares, vectors = torch.linalg.eigh(square)
        return squares.flip(0), vectors.flip(1)[:, :k]
    # The transpose is in the order that LAPACK wants, and is not copied.
    found, columns = scipy.linalg.eigh(
        square.numpy().T,
        lower=False,
        overwrite_a=True,
        check_finite=False,
        subset_by_index=(side - k - 1, side - 1),
        driver="evr",
    )
    return (
        torch.from_numpy(found).flip(0),
        torch.from_numpy(columns).flip(1)[:, :k].contiguous(),
    )


def gram_values(matrix: Float[Tensor, "m n"]) -> Float[Tensor, " k"]:
    """Return the singular values alone, as `gram_svd` but several times as fast.

    Examples
    --------
    >>> gram_values(torch.diag(torch.tensor([1.0, 3.0]))).tolist()
    [3.0, 1.0]
    """
    long = matrix.T if matrix.shape[0] < matrix.shape[1] else matrix
    squares: Tensor = torch.linalg.eigvalsh(gram(long))
    return squares.flip(0).clamp_min(0).sqrt()
