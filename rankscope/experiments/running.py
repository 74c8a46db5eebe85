"""Training the runs of an experiment, side by side, and going on where it was stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from rankscope.analysis.engine import Row, Task
from rankscope.analysis.engine.pools import Outcomes, in_processes
from rankscope.analysis.engine.progress import shown
from rankscope.analysis.engine.task import Outcome, WorkerLostError
from rankscope.errors import OutputError, RankscopeError
from rankscope.experiments.costs import run_bytes, run_seconds
from rankscope.experiments.design import BASE, Design
from rankscope.experiments.folder import Configs, alone, begin, finished_record, prepared
from rankscope.training import TrainingConfig, train

__all__ = ["planned", "remaining", "train_all"]


def train_all(
    design: Design, out: Path, *, jobs: int = 1, resume: bool = False, progress: bool = False
) -> list[dict[str, Any]]:
    """Train every run of `design` that is not finished in `out`, and return those that failed.

    The base first, with all cores; then the others, the longest first, with one thread each.
    All of it happens in processes of their own: one that dies costs the steps since its run was
    last saved, and so does an interrupt, which is raised again.

    Parameters
    ----------
    design : Design
    out : Path
        Receives ``design.json`` and ``runs/<name>/``.
    jobs : int
        Runs that are trained at the same time; no bit depends on it.
    resume : bool
        Go on with what `out` holds. The design may have grown since.
    progress : bool
        Show a bar on a terminal.

    Returns
    -------
    list of dict
        Of each run that failed, as one does that diverges, the name as ``module`` and the five
        parts of the error. The others are finished.

    Raises
    ------
    OutputError
        If `out` is taken, in use, or of another experiment, or the disk is full; what is
        finished is kept.
    RankscopeError
        If the base cannot be trained.
    """
    configs = prepared(out, design, resume=resume)
    with alone(out):
        begin(out, design, configs)
        tasks = remaining(out, configs)
        outcomes = _outcomes(tasks, configs[BASE].threads, jobs)
        by_name = {task.item: task for task in tasks}
        with contextlib.closing(shown(outcomes, by_name, progress=progress)) as coming:
            return [
                {"module": outcome.item, **outcome.error.parts()}
                for outcome in coming
                if outcome.error is not None
            ]


def planned(design: Design, out: Path, *, resume: bool = False) -> pd.DataFrame:
    """Return what `train_all` would train: ``run steps seconds bytes``, in its order.

    `seconds` are of one core and right to a factor of two, `bytes` those that a run leaves.
    """
    configs = prepared(out, design, resume=resume)
    tasks = remaining(out, configs)
    return pd.DataFrame(
        {
            "run": [task.item for task in tasks],
            "steps": [configs[task.item].steps for task in tasks],
            "seconds": [round(task.work) for task in tasks],
            "bytes": [run_bytes(configs[task.item], configs[BASE]) for task in tasks],
        }
    )


def remaining(out: Path, configs: Configs) -> list[Task]:
    """Return a task for each run that is not finished in `out`: the base, then the longest first.

    Their ``work`` is in seconds of one core.
    """
    tasks = [
        Task(name, train_run, (str(out.resolve()), config), run_seconds(config, configs[BASE]))
        for name, config in configs.items()
        if finished_record(out, name) is None
    ]
    return sorted(tasks, key=lambda task: (task.item != BASE, -task.work))


def train_run(name: str, out: str, config: TrainingConfig) -> Sequence[Row]:
    """Train one run, or what is left of it; in a process that has nothing else to do."""
    # The runs name their base relative to the experiment.
    with contextlib.chdir(out):
        folder = Path("runs", name)
        for half_written in folder.rglob(".*"):  # by a process that was killed
            half_written.unlink()
        try:
            train(config, folder, resume=(folder / "resume.safetensors").exists(), progress=False)
        except RankscopeError:
            raise
        except Exception as error:
            got = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise _failed(name, got) from error
    return ()


def _outcomes(tasks: Sequence[Task], base_threads: int, jobs: int) -> Outcomes:
    """Yield how each run ends; raise where those that follow could not end better."""
    base = [task for task in tasks if task.item == BASE]
    others = [task for task in tasks if task.item != BASE]
    with contextlib.closing(in_processes(base, 1, base_threads, None)) as coming:
        for outcome in map(_told, coming):
            if outcome.error is not None:
                raise outcome.error
            yield outcome
    with contextlib.closing(in_processes(others, jobs, 1, None)) as coming:
        for outcome in map(_told, coming):
            if isinstance(outcome.error, OutputError):
                raise outcome.error
            yield outcome


def _told(outcome: Outcome) -> Outcome:
    """Return an outcome whose error says what to do about a run."""
    error = outcome.error
    if isinstance(error, WorkerLostError):
        return replace(outcome, error=_failed(outcome.item, error.got))
    if isinstance(error, OutputError):
        fix = "free some space, then go on with --resume: what is finished is kept"
        parts = {**error.parts(), "fix": fix}
        return replace(outcome, error=OutputError(parts.pop("what"), **parts))
    return outcome


def _failed(name: str, got: str) -> RankscopeError:
    return RankscopeError(
        "a run could not be trained",
        where=name,
        expected="a finished run",
        got=got,
        fix="try it again with --resume --jobs 1, and report what it prints if it fails again",
    )
