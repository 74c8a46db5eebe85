"""The spectrum of an update without structure: what its form alone gives its rank."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from rankscope.linalg.marchenko import noise_share_below

__all__ = ["unstructured_spectrum"]

_DRAWS = 8
_GRID = 4096


@lru_cache(maxsize=256)
def unstructured_spectrum(rows: int, columns: int, rank: int | None) -> Float[Tensor, " q"]:
    r"""Return the singular values of a random update, in units of the largest.

    Of two factors it is the mean spectrum of B A with independent Gaussian entries: the
    triangles of their QR decompositions are drawn directly (Bartlett: χ on the diagonal,
    normal above it), so that only r × r matrices are decomposed; where r is no less than a
    side, B and A themselves are drawn. Of a full matrix it is the Marchenko–Pastur law's
    quantiles.

    Parameters
    ----------
    rows, columns : int
        The shape of the update.
    rank : int or None
        r of two factors, which may exceed a side; None for a full matrix.

    Returns
    -------
    (q,) Tensor
        Descending from 1, ``q = min(rows, columns, rank)``; the same in every call.

    References
    ----------
    .. [1] M. S. Bartlett, "On the theory of statistical regression", Proc. R. Soc. Edinburgh 53
       (1933) 260.

    Examples
    --------
    >>> unstructured_spectrum(100, 50, 1).tolist()
    [1.0]
    >>> s = unstructured_spectrum(4000, 4000, None)
    >>> round((s.square().sum() / 4000).item(), 3)  # a square matrix of noise: about 1/4
    0.251
    """
    short, long = sorted((rows, columns))
    if rank is not None:
        rng = np.random.default_rng([rows, columns, rank])
        # The larger a matrix, the less its spectrum varies from draw to draw.
        draws = [_product(rows, columns, rank, rng) for _ in range(_DRAWS if rank < short else 1)]
        values = np.mean(draws, axis=0)
    else:
        values = _quantiles(short, short / long) if short else np.zeros(0)
    return torch.from_numpy(values / values[:1])


def _product(rows: int, columns: int, r: int, rng: np.random.Generator) -> NDArray[np.float64]:
    up, down = (_triangle(size, r, rng) for size in (rows, columns))
    values: NDArray[np.float64] = np.linalg.svd(up @ down.T, compute_uv=False).astype(np.float64)
    return values


def _triangle(size: int, r: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw R of the QR decomposition of a size × r Gaussian matrix; the matrix if r is larger."""
    if r >= size:
        return rng.standard_normal((size, r))
    upper = np.triu(rng.standard_normal((r, r)), 1)
    triangle: NDArray[np.float64] = upper + np.diag(np.sqrt(rng.chisquare(size - np.arange(r))))
    return triangle


def _quantiles(count: int, beta: float) -> NDArray[np.float64]:
    """Return the square roots of evenly spaced quantiles, the largest first."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    # Denser where the law is steep: at its ends.
    at = (low + high) / 2 - (high - low) / 2 * np.cos(np.linspace(0, math.pi, _GRID))
    shares = [noise_share_below(float(x), beta) for x in at]
    wanted = (np.arange(count, 0, -1) - 0.5) / count
    roots: NDArray[np.float64] = np.sqrt(np.interp(wanted, shares, at))
    return roots
