"""Where the arithmetic runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from rankscope.errors import UpdateError

__all__ = ["resolve_device", "with_room"]

T = TypeVar("T")


def resolve_device(device: str) -> str:
    """Return the torch device that ``cpu``, ``cuda``, ``cuda:n`` or ``auto`` means here.

    Raises
    ------
    UpdateError
        If a CUDA device is asked for where there is none, or the name is another.

    Examples
    --------
    >>> resolve_device("cpu")
    'cpu'
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    known = device == "cpu" or (kind == "cuda" and (not number or number.isdigit()))
    count = torch.cuda.device_count()
    if not known or (kind == "cuda" and int(number or 0) >= count):
        raise UpdateError(
            "this device cannot be used",
            where="--device",
            expected="cpu, auto" + (f", or cuda:0 to cuda:{count - 1}" if count else ""),
            got=device,
            fix="use --device auto",
        )
    return device


def with_room(device: str, work: Callable[[str], T]) -> tuple[T, bool]:
    """Return ``work(device)``, or ``work("cpu")`` where the device's memory does not suffice.

    The second value says whether it did not.

    Examples
    --------
    >>> with_room("cpu", lambda device: f"on the {device}")
    ('on the cpu', False)
    """
    try:
        return work(device), False
    except torch.OutOfMemoryError:
        if device == "cpu":
            raise
    torch.cuda.empty_cache()  # outside the handler, which keeps the failed tensors alive
    return work("cpu"), True
