"""Where the arithmetic runs."""

from __future__ import annotations

import torch

from rankscope.errors import UpdateError

__all__ = ["resolve_device"]


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
