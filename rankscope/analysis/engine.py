"""The engine that maps a measurement over modules and keeps what went wrong beside what did."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from rankscope.errors import RankscopeError, UpdateError

__all__ = ["map_modules", "resolve_device"]

T = TypeVar("T")


def map_modules(
    modules: Sequence[str], measure: Callable[[str], Iterable[T]], *, progress: bool
) -> tuple[list[T], list[dict[str, Any]]]:
    """Return the rows of every module that could be measured, and why the others could not.

    Parameters
    ----------
    modules : sequence of str
        In the order of the rows.
    measure : callable
        From a module's name to its rows.
    progress : bool
        Whether to show a bar; it goes to stderr and is silent off a terminal.

    Returns
    -------
    rows, failures : list, list of dict
        A failure has the module's name and the five parts of its error.

    Raises
    ------
    RankscopeError
        The first error, if no module at all could be measured.
    """
    rows: list[T] = []
    failures: list[dict[str, Any]] = []
    first: RankscopeError | None = None
    bar = tqdm(modules, unit="module", file=sys.stderr, disable=None if progress else True)
    for module in bar:
        try:
            rows.extend(measure(module))
        except RankscopeError as error:
            first = first or error
            failures.append({"module": module, **error.parts()})
    if first is not None and len(failures) == len(modules):
        raise first
    return rows, failures


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
