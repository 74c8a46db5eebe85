"""Options that say how a command's items are worked off, and what they mean in Python."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rankscope.errors import SourceError

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rankscope.analysis.engine import How, Study
    from rankscope.results import Result

__all__ = ["Engine", "engine_options", "whole_engine_options"]

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip
_BLAS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Engine:
    """How the items of one command are worked off."""

    jobs: int | None
    threads: int | None
    scheduler: str | None
    executor: str | None
    journal: str | None
    resume: bool
    memory: int | None
    shard: tuple[int, int] | None = None
    dry_run: bool = False

    def begin(self) -> None:
        """Set the threads of the linear algebra; before torch and NumPy are loaded."""
        threads = self.threads or (1 if (self.jobs or 1) > 1 else None)
        if threads is None:
            return
        os.environ.update(dict.fromkeys(_BLAS, str(threads)))
        import torch

        torch.set_num_threads(threads)

    def run(self, study: Study, *, progress: bool) -> Result:
        """Do a study, or say what doing it would take."""
        from rankscope.analysis.engine import planned, run

        how: How = {
            "threads": self.threads,
            "scheduler": self.scheduler,
            "journal": self.journal,
            "resume": self.resume,
            "shard": self.shard,
            "memory": self.memory,
            "progress": progress,
        }
        if self.jobs is not None:
            how["jobs"] = self.jobs
        if self.dry_run:
            return planned(study, how)
        if self.executor is None:
            return run(study, how)
        with _imported(self.executor) as executor:
            return run(study, {**how, "executor": executor})


def _imported(name: str) -> Executor:
    """Return what the function of a module gives: ``module:function``."""
    from concurrent.futures import Executor
    from importlib import import_module

    module, _, function = name.partition(":")
    try:
        executor = getattr(import_module(module), function)()
    except Exception as error:  # whatever somebody's function raises
        raise _no_executor(name, f"{type(error).__name__}: {error}") from error
    if not isinstance(executor, Executor):
        raise _no_executor(name, f"a {type(executor).__name__}")
    return executor


def _no_executor(name: str, got: str) -> SourceError:
    return SourceError(
        "this gives no executor",
        where=f"--executor {name}",
        expected="MODULE:FUNCTION, whose function returns a concurrent.futures.Executor",
        got=" ".join(got.split())[:200],
        fix="check the name, and that Python can import the module",
    )


class _Shard(click.ParamType):  # type: ignore[type-arg]
    """One part of several: 2/8."""

    name = "i/N"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            self.fail(f"{value!r} is no part such as 2/8, counted from 1")
        return int(match[1]), int(match[2])


class _Bytes(click.ParamType):  # type: ignore[type-arg]
    """An amount of memory: 8GB, 500MiB."""

    name = "BYTES"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", value.lower())
        amount = float(match[1]) * _UNITS[match[2] or ""] if match else 0
        if amount < 1:
            self.fail(f"{value!r} is no amount of memory such as 8GB or 500MiB")
        return int(amount)


_WHOLE = (
    click.option("--jobs", type=click.IntRange(1), metavar="N",
                 help="Processes; 1 unless given, in this one."),
    click.option("--threads", type=click.IntRange(1), metavar="N",
                 help="Threads of the linear algebra for each item; 1 where jobs > 1."),
    click.option("--scheduler", metavar="ADDRESS",
                 help="A dask scheduler, tcp://host:port or its file; or DASK_SCHEDULER_ADDRESS."),
    click.option("--executor", metavar="MODULE:FUNCTION",
                 help="A function that returns an executor to work on."),
    click.option("--journal", metavar="DIR", help="Keep every finished item in DIR."),
    click.option("--resume", is_flag=True, help="Go on with the journal that is there."),
    click.option("--memory", type=_Bytes(), help="What all processes may hold: 8GB."),
)  # fmt: skip
_PARTS = (
    click.option("--shard", type=_Shard(), help="Do one of N parts only; see rankscope join."),
    click.option("--dry-run", is_flag=True, help="Only list items, bytes, time and memory."),
)  # fmt: skip


def engine_options(function: F) -> F:
    """Add these options; the function receives them as one `engine`."""
    return _with(function, _WHOLE + _PARTS)


def whole_engine_options(function: F) -> F:
    """Add the options of a command that does several studies: it is done whole or not at all."""
    return _with(function, _WHOLE)


def _with(function: F, options: tuple[Callable[[F], F], ...]) -> F:
    def gather(*args: Any, **given: Any) -> Any:
        own = {name: given.pop(name) for name in Engine.__dataclass_fields__ if name in given}
        if own["resume"] and own["journal"] is None:
            raise click.UsageError("--resume needs --journal")
        return function(*args, engine=Engine(**own), **given)

    gather.__doc__, gather.__name__ = function.__doc__, function.__name__
    gather.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    decorated: Any = gather
    for option in reversed(options):
        decorated = option(decorated)
    result: F = decorated
    return result
