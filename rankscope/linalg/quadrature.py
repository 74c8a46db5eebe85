"""Gauss quadrature on the unit interval, for the laws that have no closed form."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["legendre"]

_Array = NDArray[np.float64]


@lru_cache(maxsize=8)
def legendre(n: int) -> tuple[_Array, _Array, _Array]:
    """Gauss nodes and weights on [0, 1], and the matrix of integrals from 0 to each node."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    values = np.polynomial.legendre.legvander(nodes, n)
    odd = 2 * np.arange(n) + 1
    integrals = np.empty((n, n))
    integrals[:, 0] = values[:, 1] + 1
    integrals[:, 1:] = (values[:, 2:] - values[:, :-2]) / odd[1:]
    coefficients = odd[:, None] / 2 * values[:, :n].T * weights
    return (nodes + 1) / 2, weights / 2, integrals @ coefficients / 2
