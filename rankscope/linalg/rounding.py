"""Rounding to a storage format, and the leading directions of large matrices in float32."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Grid", "leading", "own_generator", "rounded", "spectral_norm", "ulp"]

_EXPONENT = 0x7F800000  # of a float32
_MANTISSA = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}
_SMALLEST = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24, torch.float32: 2.0**-149}
_LANCZOS_STEPS = 30  # the edge of a random matrix to about 1e-4, of 512 as of 4096 rows


def ulp(weight: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """Return the distance from each number's magnitude to the next larger one in `dtype`.

    Parameters
    ----------
    weight : Tensor
        Finite, in the range of `dtype`.
    dtype : torch.dtype
        bfloat16, float16 or float32.

    Returns
    -------
    Tensor
        float32. Numbers below the normal range, and zeros, have the spacing of the subnormal
        ones: 2**-24 in float16.

    Examples
    --------
    >>> ulp(torch.tensor([1.0, -1.5, 2.0]), torch.bfloat16).tolist()
    [0.0078125, 0.0078125, 0.015625]
    """
    power = (weight.float().contiguous().view(torch.int32) & _EXPONENT).view(torch.float32)
    return power.mul_(2.0 ** -_MANTISSA[dtype]).clamp_min_(_SMALLEST[dtype])


def rounded(x: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """Return `x` as float32, each number at the nearest one that `dtype` can store.

    What lies beyond the range of `dtype` (65504 in float16) goes to its end, not to infinity.

    Examples
    --------
    >>> rounded(torch.tensor([1.001, 1e6]), torch.float16).tolist()
    [1.0009765625, 65504.0]
    """
    limit = torch.finfo(dtype).max
    return x.float().clamp(-limit, limit).to(dtype).float()


@dataclass(frozen=True)
class Grid:
    """The numbers that a storage format holds, in a unit of one's own.

    A unit near the size of a weight keeps squares in the range of float32, while subnormal
    numbers and the largest ones stay where the format has them.

    Parameters
    ----------
    dtype : torch.dtype
        bfloat16, float16 or float32.
    unit : float
        A power of two that float32 holds.

    Examples
    --------
    Half precision is as fine as 2**-24 and not finer:

    >>> grid = Grid(torch.float16, 2.0**-24)
    >>> x = torch.tensor([0.3, 5.2, 4096.7])
    >>> grid.rounded(x).tolist(), grid.spacing(x).tolist()
    ([0.0, 5.0, 4096.0], [1.0, 1.0, 4.0])
    """

    dtype: torch.dtype
    unit: float = 1.0

    def rounded(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return each number at the nearest one that can be stored."""
        return rounded(x * self.unit, self.dtype).div_(self.unit)

    def spacing(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the distance from each number's magnitude to the next larger one."""
        return ulp(x * self.unit, self.dtype).div_(self.unit)

    def deviation(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the standard deviation ``ulp / √12`` of the error of each stored number.

        The error is uniform over one spacing where the number before rounding had many more
        digits.
        """
        return self.spacing(x).mul_(1 / math.sqrt(12))


def own_generator(seed: int, use: int) -> torch.Generator:
    """Return a generator whose numbers are unlike those of ``manual_seed(seed)``.

    The weights under study may have been drawn from the same small seed: surrogates that share
    their stream would depend on them, and an edge come out three times too high.

    Parameters
    ----------
    seed : int
        The user's.
    use : int
        Tells generators of one seed apart.

    Examples
    --------
    >>> one, other = (torch.rand(1, generator=own_generator(0, use)) for use in (0, 1))
    >>> one == other
    tensor([False])
    """
    words = np.random.SeedSequence((seed, use)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]) >> 1)


def spectral_norm(
    matrix: Float[Tensor, "m n"], *, steps: int = _LANCZOS_STEPS, seed: int = 0
) -> float:
    """Return the largest singular value, by some steps of Lanczos from a random start.

    Never too large but for float32's round-off; after thirty steps too small by up to 1e-3
    relative where the singular values are dense at the top (a random matrix), usually by 1e-5.

    Examples
    --------
    >>> round(spectral_norm(torch.diag(torch.tensor([3.0, 1.0]))), 5)
    3.0
    """
    _, s, _ = _krylov(matrix.float(), _start(matrix, 1, seed), steps)
    return s[0].item()


def leading(
    matrix: Float[Tensor, "m n"],
    k: int,
    *,
    start: Float[Tensor, "n j"] | None = None,
    seed: int = 0,
) -> tuple[Float[Tensor, " k"], Float[Tensor, "n k"]]:
    """Return the `k` largest singular values and their right directions, by block Krylov.

    Values that stand out of the rest are right to float32's round-off; the last ones of a dense
    spectrum are too small, by up to some percent.

    Parameters
    ----------
    matrix : (m, n) Tensor
    k : int
        From 1 to ``min(m, n)``.
    start : (n, j) Tensor, optional
        Directions near the sought ones: fewer steps are then made.
    seed : int
        Of the random directions to start from.

    Examples
    --------
    >>> s, right = leading(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2)
    >>> [round(x, 5) for x in s.tolist()]
    [3.0, 2.0]
    """
    block = _start(matrix, min(k + 4, min(matrix.shape)), seed)
    if start is not None:
        fresh = max(block.shape[1] - start.shape[1], 0)
        block = torch.cat([start.float(), block[:, :fresh]], dim=1)
    steps = 3 + 24 // block.shape[1] if start is None else 2
    _, s, right = _krylov(matrix.float(), block, steps)
    return s[:k], right[:, :k]


def _start(matrix: Tensor, columns: int, seed: int) -> Tensor:
    generator = own_generator(seed, 0)
    return torch.randn(matrix.shape[1], columns, generator=generator).to(matrix.device)


def _krylov(matrix: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular triples of `matrix` on the Krylov space of its Gram matrix."""
    blocks = [torch.linalg.qr(start).Q]
    for _ in range(steps):
        basis = torch.cat(blocks, dim=1)
        if basis.shape[1] + start.shape[1] > matrix.shape[1]:
            break
        # (X.T @ A).T: with few columns, several times faster than A.T @ X.
        image = ((matrix @ blocks[-1]).T @ matrix).T
        for _ in range(2):  # once leaves only half of the digits orthogonal
            image = image - basis @ (basis.T @ image)
        blocks.append(torch.linalg.qr(image).Q)
    # Once the space is exhausted a block is round-off, and orthogonal to nothing.
    basis = torch.linalg.qr(torch.cat(blocks, dim=1)).Q
    left, s, right = torch.linalg.svd(matrix @ basis, full_matrices=False)
    return left, s, basis @ right.T
