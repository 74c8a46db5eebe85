"""The character table of the small model: padding, newline and printable ASCII."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["PAD", "SIZE", "decode", "encode"]

PAD = 0
_CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # ids 1 to 96, in this order for ever
SIZE = 1 + len(_CHARACTERS)

_TO_ID = bytes.maketrans(_CHARACTERS.encode("ascii"), bytes(range(1, SIZE)))


def encode(text: str) -> npt.NDArray[np.int64]:
    """Return the ids of `text`, which holds newlines and printable ASCII only.

    Examples
    --------
    >>> encode("a b")
    array([67,  2, 68])
    """
    return np.frombuffer(text.encode("ascii").translate(_TO_ID), np.uint8).astype(np.int64)


def decode(ids: npt.NDArray[np.int64]) -> str:
    """Return the text of `ids`; padding is left out.

    Examples
    --------
    >>> decode(np.array([67, 2, 68, 0]))
    'a b'
    """
    return "".join(_CHARACTERS[int(index) - 1] for index in ids if index != PAD)
