"""Reproducible random numbers: each one depends on its key alone, on no order and no library."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

__all__ = ["Chance", "gaussian", "seed_of"]

T = TypeVar("T")


def gaussian(shape: tuple[int, ...], std: float, *, seed: int, name: str) -> torch.Tensor:
    """Return normal numbers that depend on `seed` and `name` only.

    The raw bits of a Philox counter, which is specified to the bit, go through Box and Muller's
    transform in float64; the result is rounded to float32 at the end, so that a last-digit
    difference between two mathematics libraries disappears in the rounding almost always.

    Parameters
    ----------
    shape : tuple of int
    std : float
        Standard deviation.
    seed : int
    name : str
        The parameter's name: every parameter has its own stream.

    Returns
    -------
    Tensor
        float32, of `shape`.
    """
    count = math.prod(shape)
    pairs = (count + 1) // 2
    raw = np.random.Philox(key=_digest(f"{seed}/{name}", 16)).random_raw(2 * pairs)
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # never 0 or 1
    radius, angle = np.sqrt(-2 * np.log(uniform[:pairs])), 2 * np.pi * uniform[pairs:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return torch.from_numpy((std * normal).astype(np.float32).reshape(shape))


def seed_of(*key: object) -> int:
    """Return a 63-bit seed that depends on all parts of `key`.

    Examples
    --------
    >>> seed_of("dropout", 0, 7) == seed_of("dropout", 0, 7) != seed_of("dropout", 0, 8)
    True
    """
    return _digest("/".join(map(str, key)), 8) >> 1


def _digest(text: str, size: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:size], "little")


class Chance:
    """Choices for one example, a pure function of its key.

    Only ``random.Random(text).random()`` is used: its bits are the same in every Python, those
    of ``choice`` and ``sample`` are not promised to be.

    Examples
    --------
    >>> Chance("sql", 0, 12).between(1, 6) == Chance("sql", 0, 12).between(1, 6)
    True
    """

    def __init__(self, *key: object) -> None:
        self._uniform = random.Random("/".join(map(str, key))).random

    def between(self, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`, both included."""
        return low + int(self._uniform() * (high - low + 1))

    def of(self, options: Sequence[T]) -> T:
        """Return one of `options`."""
        return options[int(self._uniform() * len(options))]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """Return `count` different members of `options`, in random order."""
        rest = list(options)
        return [rest.pop(int(self._uniform() * len(rest))) for _ in range(count)]
