"""A study: the tasks of one command, how they are run, and the result they add up to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch

from rankscope.analysis.engine.cluster import cluster
from rankscope.analysis.engine.journal import Head, Journal, Shard, known, run_key
from rankscope.analysis.engine.memory import room_for
from rankscope.analysis.engine.pools import Outcomes, in_process, in_processes, on_executor
from rankscope.analysis.engine.progress import shown
from rankscope.analysis.engine.task import Outcome, Row, Task
from rankscope.errors import UpdateError
from rankscope.results import Result

__all__ = ["Finish", "How", "Study", "finished", "remaining", "run", "threads_of"]

Finish = Callable[[list[Row], list[dict[str, Any]], Mapping[str, Any]], Result]


class How(TypedDict, total=False):
    """How a study is run; nothing here changes a number.

    Attributes
    ----------
    jobs : int
        Processes; 1, the default, is this one.
    threads : int
        Threads of the linear algebra for each item; 1 where there are several jobs, otherwise
        as torch is set.
    scheduler : str
        A dask scheduler's address or file; ``DASK_SCHEDULER_ADDRESS`` unless given.
    executor : Executor
        Any executor of `concurrent.futures`; it stays open.
    journal : path
        A folder in which every finished item is kept.
    resume : bool
        Go on with the journal that is there.
    shard : (int, int)
        Which of so many equal parts is done, counted from 1.
    memory : int
        Bytes that this process and the others may hold together, the pages of files apart;
        where they do not suffice for all jobs, fewer are used.
    progress : bool or None
        True shows a bar on a terminal and in a notebook, False none. Unless given, long work
        shows one in a notebook only.
    """

    jobs: int
    threads: int | None
    scheduler: str | None
    executor: Executor | None
    journal: str | os.PathLike[str] | None
    resume: bool
    shard: tuple[int, int] | None
    memory: int | None
    progress: bool | None


@dataclass(frozen=True)
class Study:
    """What one command measures.

    Attributes
    ----------
    command : str
        Its name; ``rankscope.analysis.<command>.finish`` is `finish`, so that journals can be
        finished by another process.
    tasks : sequence of Task
        In the order of the rows.
    about : dict
        What the result holds beside the rows, as JSON has it; its ``provenance`` lists the
        inputs and the options.
    finish : callable
        From all rows, the failures and `about` to the result.
    """

    command: str
    tasks: Sequence[Task]
    about: Mapping[str, Any]
    finish: Finish

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """A record of every file that decides a number, each once."""
        groups = self.about["provenance"]["inputs"].values()
        records = [one for group in groups for one in group]
        return [one for n, one in enumerate(records) if one not in records[:n]]

    def as_run(self, how: How) -> Study:
        """Return this study with the threads that each item gets in its provenance."""
        provenance = {**self.about["provenance"], "threads": threads_of(how)}
        return replace(self, about={**self.about, "provenance": provenance})


def run(study: Study, how: How) -> Result:
    """Do the tasks of a study as `how` says, and return the result.

    Raises
    ------
    RankscopeError
        The first error, if no item at all could be measured; or if the run cannot be set up.
    """
    study, threads = study.as_run(how), threads_of(how)
    tasks = _dealt(study, how)
    with ExitStack() as stack:
        journal = None
        done: dict[str, Outcome] = {}
        if how.get("journal") is not None:
            journal = stack.enter_context(Journal(*_journal(study, how)))
            done = dict(journal.done)
        left = {task.item: task for task in tasks if task.item not in done}
        outcomes, notes = _outcomes(study, list(left.values()), how, threads, stack)
        with closing(shown(outcomes, left, progress=how.get("progress"))) as coming:
            for outcome in coming:
                done[outcome.item] = outcome if journal is None else journal.append(outcome)
    mine = {task.item for task in tasks}
    items = [task.item for task in study.tasks if task.item in mine]
    return _noted(finished(study.finish, study.about, [done[item] for item in items]), notes)


def remaining(study: Study, how: How) -> list[Task]:
    """Return the tasks of a study that `run` would do, in the order of the rows."""
    done: set[str] = set()
    if how.get("journal") is not None:
        folder, head, resume = _journal(study.as_run(how), how)
        done = set(known(folder / head.shard.file, head, resume=resume)[0])
    left = {task.item for task in _dealt(study, how)} - done
    return [task for task in study.tasks if task.item in left]


def finished(finish: Finish, about: Mapping[str, Any], outcomes: Sequence[Outcome]) -> Result:
    """Return the result that outcomes, in the order of the rows, add up to.

    Raises
    ------
    RankscopeError
        The first error, if there are outcomes and all are failures.
    """
    failures = [{"module": o.item, **o.error.parts()} for o in outcomes if o.error is not None]
    if outcomes and len(failures) == len(outcomes) and outcomes[0].error is not None:
        raise outcomes[0].error
    rows = [row for outcome in outcomes for row in outcome.rows]
    result = finish(rows, failures, about)
    moved = ", ".join(outcome.item for outcome in outcomes if outcome.moved)
    note = f"measured on the CPU, since the device had no room: {moved}"
    return _noted(result, [note] if moved else [])


def _noted(result: Result, notes: Sequence[str]) -> Result:
    return replace(result, notes=(*result.notes, *notes)) if notes else result


def threads_of(how: How) -> int:
    """Return the threads that each item gets."""
    own = how.get("jobs", 1) == 1 and _elsewhere(how) is None
    return how.get("threads") or (torch.get_num_threads() if own else 1)


def _elsewhere(how: How) -> str | Executor | None:
    """Return the executor or the scheduler that the tasks are handed to, if any."""
    if how.get("executor") is not None or how.get("scheduler") is not None:
        return how.get("executor") or how.get("scheduler")
    return os.environ.get("DASK_SCHEDULER_ADDRESS") if "jobs" not in how else None


def _shard(how: How) -> Shard:
    shard = Shard(*(how.get("shard") or (1, 1)))
    if not 1 <= shard.number <= shard.count:
        raise UpdateError(
            "there is no such shard",
            where="--shard",
            expected="i/N with i from 1 to N",
            got=str(shard),
            fix="count the shards from 1",
        )
    return shard


def _dealt(study: Study, how: How) -> list[Task]:
    """Return a shard's tasks, the largest first, so that none is waited for at the end."""
    shard = _shard(how)
    ordered = sorted(study.tasks, key=lambda task: -task.work)
    return ordered[shard.number - 1 :: shard.count]


def _journal(study: Study, how: How) -> tuple[Path, Head, bool]:
    """Return the folder of the journal, what it is of, and whether it is gone on with."""
    about = study.about
    key = run_key(study.command, {**about["provenance"], "inputs": None}, study.inputs)
    items = tuple(task.item for task in study.tasks)
    head = Head(key, study.command, items, about, _shard(how))
    return Path(how["journal"] or ""), head, how.get("resume", False)


def _outcomes(
    study: Study, tasks: Sequence[Task], how: How, threads: int, stack: ExitStack
) -> tuple[Outcomes, list[str]]:
    """Return what is coming, and what a reader must know of how it comes."""
    elsewhere, memory = _elsewhere(how), how.get("memory")
    if elsewhere is not None and memory is not None:
        raise _not_ours(elsewhere)
    if isinstance(elsewhere, str):
        paths = [one["path"] for one in study.inputs if one["path"] is not None]
        elsewhere = stack.enter_context(cluster(elsewhere, paths))
    if elsewhere is not None:
        return on_executor(tasks, elsewhere, threads), []
    room = room_for(tasks, how.get("jobs", 1), memory)
    if room.jobs == 1:
        return in_process(tasks, threads), room.notes
    return in_processes(tasks, room.jobs, threads, room.memory), room.notes


def _not_ours(elsewhere: str | Executor) -> UpdateError:
    return UpdateError(
        "the memory of other machines' workers is not in this command's hand",
        where="--memory",
        expected="processes of its own (--jobs)",
        got=str(elsewhere) if isinstance(elsewhere, str) else type(elsewhere).__name__,
        fix="leave --memory out, and limit the workers: dask worker --memory-limit",
    )
