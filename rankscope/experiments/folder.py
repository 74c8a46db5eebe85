"""The folder of an experiment: its design, its runs, and whether they belong together.

``OUT/design.json`` says every run's configuration; ``OUT/runs/<name>/`` is that run as the
trainer writes it. Paths in them are relative to OUT, so that it can be moved.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope.errors import OutputError, RankscopeError, SourceError, os_reason
from rankscope.experiments.design import BASE, Design
from rankscope.io.write import write_json
from rankscope.training import TrainingConfig

__all__ = ["Begun", "Configs", "alone", "begin", "begun", "cores", "finished_record", "prepared"]

Configs = Mapping[str, TrainingConfig]

SCHEMA = "rankscope.experiment/1"
_DESIGN, _LOCK = "design.json", ".lock"


@dataclass(frozen=True)
class Begun:
    """What ``design.json`` says.

    Attributes
    ----------
    design : str
        Its name.
    configs : dict of TrainingConfig
        Of every run, the base first.
    groups : dict of tuple of str
        What each run is for.
    """

    design: str
    configs: Configs
    groups: Mapping[str, tuple[str, ...]]


def prepared(out: Path, design: Design, *, resume: bool) -> Configs:
    """Return the configuration of every run, the base first, as this machine takes them.

    The base gets all cores, or as many as it was begun with: its last bits depend on them.

    Raises
    ------
    OutputError
        If `out` holds something that is not to be resumed, or runs that `design` does not have
        or has with other options. A design with further runs is no other one.
    """
    before = _before(out, resume=resume)
    threads = before.configs[BASE].threads if before else cores()
    configs = {BASE: design.base.config(threads=threads)}
    configs |= {spec.name: spec.config(threads=1) for spec in design.runs}
    if before:
        _check_same(out / _DESIGN, before.configs, configs)
    return configs


def begin(out: Path, design: Design, configs: Configs) -> None:
    """Write ``design.json``."""
    runs = {
        spec.name: {"groups": list(spec.groups), "config": configs[spec.name].to_dict()}
        for spec in (design.base, *design.runs)
    }
    write_json(out / _DESIGN, {"schema": SCHEMA, "design": design.name, "runs": runs})


def begun(out: Path) -> Begun:
    """Return what ``design.json`` says.

    Raises
    ------
    SourceError
        If it is missing or damaged.
    ConfigError
        If it says an option that this version does not know.
    """
    path = out / _DESIGN
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        design, runs = content["design"], content["runs"]
        configs = {
            name: TrainingConfig.from_dict(run["config"], where=f"{path}, {name}")
            for name, run in runs.items()
        }
        groups = {name: tuple(run["groups"]) for name, run in runs.items()}
        return Begun(design, configs, groups)
    except RankscopeError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            "there is no experiment here",
            where=str(path),
            expected="a design.json as `rankscope reproduce` writes it",
            got=os_reason(error) if isinstance(error, OSError) else f"{error!r}",
            fix="check --out; without --resume and --only-draw a new experiment is begun",
        ) from error


def finished_record(out: Path, name: str) -> dict[str, Any] | None:
    """Return the content of a run's ``run.json`` if the run is finished, else None.

    Raises
    ------
    SourceError
        If the record is damaged.
    """
    path = out / "runs" / name / "run.json"
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record if record["finished"] else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            "cannot read the record of a run",
            where=str(path),
            expected="JSON as the trainer writes it",
            got=os_reason(error) if isinstance(error, OSError) else f"{error!r}",
            fix="remove the folder of this run, and train it again with --resume",
        ) from error


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold `out` against other processes that would train in it at the same time.

    Raises
    ------
    OutputError
        If another process holds it, or it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out / _LOCK, os.O_WRONLY | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(
            "the folder cannot be written",
            where=str(out),
            expected="a writable folder with enough free space",
            got=os_reason(error),
            fix="free some space or choose another --out",
        ) from error
    try:
        _lock(lock, out)
        yield
    finally:
        os.close(lock)


def _lock(lock: int, out: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            "the folder is in use",
            where=str(out),
            expected="one command at a time",
            got="another process that trains here",
            fix="wait for it, or choose another --out",
        ) from error


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _before(out: Path, *, resume: bool) -> Begun | None:
    """Return what was begun in `out`, or None where it is new."""
    held = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    held = [name for name in held if name != _LOCK]
    if not held and (out.is_dir() or not out.exists()):
        return None
    if resume:
        return begun(out)
    raise OutputError(
        "the place for the experiment is taken",
        where=str(out),
        expected="a new or empty folder, or --resume",
        got=", ".join(held[:3]) + (" …" if len(held) > 3 else "") if held else "a file",
        fix="go on with it: --resume; or choose another --out",
    )


def _check_same(path: Path, before: Configs, now: Configs) -> None:
    """Raise with the first thing that makes `now` another experiment than `before`."""
    for name, config in before.items():
        if name not in now:
            raise _other(f"{path}, {name}", "a run of this name", "no such run in this design")
        old, new = config.to_dict(), now[name].to_dict()
        for option, value in old.items():
            if new[option] != value and option != "lr_reason":  # words decide no number
                raise _other(
                    f"{path}, {name}", f"{option} = {value!r}", f"{option} = {new[option]!r}"
                )


def _other(where: str, expected: str, got: str) -> OutputError:
    return OutputError(
        "the folder holds another experiment",
        where=where,
        expected=expected,
        got=got,
        fix="resume it with the options, version and machine it was begun with, or choose another "
        "--out",
    )
