"""One item of work, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from rankscope.analysis.devices import with_room
from rankscope.errors import RankscopeError, UpdateError

__all__ = ["Outcome", "Row", "Task", "WorkerLostError", "lost", "perform"]

Row = dict[str, Any]


class WorkerLostError(UpdateError):
    """The process that worked on a module has died."""


@dataclass(frozen=True)
class Task:
    """One item's measurement; it travels to another process if its arguments do.

    Attributes
    ----------
    item : str
        Its name, unique in a study; the first argument of `function`.
    function : callable
        Of a module's top level; returns the item's rows.
    arguments : tuple
        The others. Sources among them hold this item alone, so that little travels.
    work : float
        About how many floating-point operations it takes.
    memory : int
        About how many bytes it holds at its peak.
    size : int
        How many bytes it reads.
    device : str, optional
        Where `function` computes; it then takes it by this name. A module that does not fit
        into the device's memory is measured on the CPU.
    """

    item: str
    function: Callable[..., Iterable[Row]]
    arguments: tuple[Any, ...] = ()
    work: float = 1.0
    memory: int = 0
    size: int = 0
    device: str | None = None

    def rows(self) -> tuple[tuple[Row, ...], bool]:
        """Return the item's rows, and whether the device had no room for it."""
        if self.device is None:
            return tuple(self.function(self.item, *self.arguments)), False
        return with_room(
            self.device,
            lambda device: tuple(self.function(self.item, *self.arguments, device=device)),
        )


@dataclass(frozen=True)
class Outcome:
    """The rows of one item, or why there are none.

    `seconds` is how long it took, `moved` whether the device had no room for it, so that the CPU
    took it.
    """

    item: str
    rows: tuple[Row, ...] = ()
    error: RankscopeError | None = None
    seconds: float = 0.0
    moved: bool = False


def perform(task: Task, threads: int) -> Outcome:
    """Do one task with so many threads; whatever goes wrong in it stays its own."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    start = time.perf_counter()
    rows: tuple[Row, ...] = ()
    error: RankscopeError | None = None
    moved = False
    try:
        rows, moved = task.rows()
    except RankscopeError as told:
        error = told
    except (torch.OutOfMemoryError, MemoryError) as told:
        error = _out_of_memory(task, str(told) or "an allocation that failed")
    except Exception as unexpected:  # one module must not cost the others
        error = _unexpected(task, unexpected)
        error.__cause__ = unexpected  # for --debug
    return Outcome(task.item, rows, error, time.perf_counter() - start, moved)


def lost(task: Task, got: str) -> Outcome:
    """Return the outcome of a task whose worker died with it."""
    error = WorkerLostError(
        "the process that measured this module died, twice",
        where=task.item,
        expected="a result",
        got=got,
        fix="give it more memory, or measure it by itself with --jobs 1 --include",
    )
    return Outcome(task.item, error=error)


def _out_of_memory(task: Task, got: str) -> RankscopeError:
    return UpdateError(
        "there is not enough memory for this module",
        where=task.item,
        expected=f"about {task.memory / 1e9:.1f} GB" if task.memory else "enough memory",
        got=" ".join(got.split())[:200],
        fix="use fewer --jobs, or give a --memory limit",
    )


def _unexpected(task: Task, error: Exception) -> RankscopeError:
    return RankscopeError(
        "rankscope itself has failed on this module",
        where=task.item,
        expected="a result, or an error that says what to do",
        got=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
        fix="measure it alone with --include and --jobs 1, and report what it prints",
    )
