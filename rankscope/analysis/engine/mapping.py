"""The map of work whose results are too large to travel: one item after the other, here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from rankscope.errors import RankscopeError
from rankscope.io.progress import progress_bar

__all__ = ["map_modules"]

T = TypeVar("T")


def map_modules(
    modules: Sequence[str], measure: Callable[[str], Iterable[T]], *, progress: bool | None
) -> tuple[list[T], list[dict[str, Any]]]:
    """Return what every module gives that can be measured, and why the others give nothing.

    Parameters
    ----------
    modules : sequence of str
        In the order of the results.
    measure : callable
        From a module's name to its results.
    progress : bool or None
        Whether to show a bar, see `progress_bar`.

    Returns
    -------
    results, failures : list, list of dict
        A failure has the module's name and the five parts of its error.

    Raises
    ------
    RankscopeError
        The first error, if no module at all could be measured.
    """
    results: list[T] = []
    failures: list[dict[str, Any]] = []
    first: RankscopeError | None = None
    bar = progress_bar(progress=progress, iterable=modules, unit="module")
    for module in bar:
        try:
            results.extend(measure(module))
        except RankscopeError as error:
            first = first or error
            failures.append({"module": module, **error.parts()})
    if first is not None and len(failures) == len(modules):
        raise first
    return results, failures
