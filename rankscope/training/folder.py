"""The folder of a run: record, log, and the state from which a run resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankscope.errors import OutputError, SourceError, os_reason
from rankscope.io.write import replacing, write_json, write_tensors
from rankscope.training.checks import ConfigError
from rankscope.training.config import TrainingConfig
from rankscope.training.methods import METHODS
from rankscope.training.weights import owned

__all__ = [
    "State",
    "check_free",
    "checkpoint_folder",
    "finished_record",
    "read_resume",
    "recorded_config",
    "recorded_identity",
    "write_log",
    "write_record",
    "write_resume",
]

_RESUME = "resume.safetensors"
_HEADER = ("step", "seconds", "identity")
_RESULTS = ("run.json", *sorted({method.file for method in METHODS.values()}))


def checkpoint_folder(out: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps.

    Examples
    --------
    >>> checkpoint_folder(Path("runs/r8"), 20).as_posix()
    'runs/r8/checkpoints/step-000020'
    """
    return out / "checkpoints" / f"step-{step:06d}"


# --- record and log --------------------------------------------------------------------------


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``; a finished run no longer needs the state it would resume from."""
    write_json(out / "run.json", record)
    if record["finished"]:
        (out / _RESUME).unlink(missing_ok=True)


def finished_record(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the content of ``run.json`` if the run in `out` is finished, else None.

    Raises
    ------
    ConfigError
        If it is finished and its configuration or base is not `identity`.
    """
    path = out / "run.json"
    if not path.exists():
        return None
    record = _read_record(path)
    if not record["finished"]:
        return None
    _check_same(path, {**record["config"], "base_sha256": record["base_sha256"]}, identity)
    return record


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        missing = {"finished", "config", "base_sha256"} - record.keys()
        if missing:
            raise ValueError(f"no {sorted(missing)[0]!r}")
    except (OSError, ValueError, AttributeError) as error:
        raise SourceError(
            "cannot read the record of the run",
            where=str(path),
            expected="JSON as `rankscope train` writes it",
            got=os_reason(error) if isinstance(error, OSError) else str(error),
            fix="remove the folder, or choose another --out",
        ) from error
    return record


def write_log(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``log.jsonl``, one step a line."""
    with replacing(out / "log.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- resuming --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class State:
    """Where an unfinished run stands."""

    step: int
    seconds: float
    rows: list[dict[str, Any]]
    tensors: Mapping[str, Tensor]


def check_free(out: Path) -> None:
    """Raise if `out` holds another run."""
    unfinished = (out / _RESUME).exists()
    found = [name for name in (*_RESULTS, _RESUME) if (out / name).exists()]
    if found:
        raise OutputError(
            f"the folder holds {'an unfinished' if unfinished else 'a finished'} run",
            where=str(out),
            expected="a new or empty folder",
            got=", ".join(found),
            fix="go on with --resume, or choose another --out"
            if unfinished
            else "choose another --out, or remove the folder",
        )


def write_resume(out: Path, state: State, identity: Mapping[str, Any]) -> None:
    """Write the log and then, in one atomic file, all that the next step depends on."""
    write_log(out, state.rows)
    values = (state.step, state.seconds, dict(identity))
    header = {name: json.dumps(value) for name, value in zip(_HEADER, values, strict=True)}
    write_tensors(out / _RESUME, state.tensors, header)


def read_resume(out: Path, identity: Mapping[str, Any]) -> State:
    """Return where the run in `out` stands.

    Raises
    ------
    SourceError
        If there is no unfinished run.
    ConfigError
        If its configuration or base is not `identity`.
    """
    path = out / _RESUME
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            tensors = {name: owned(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        step, seconds, before = (json.loads(header[name]) for name in _HEADER)
        lines = (out / "log.jsonl").read_text().splitlines()[:step]
        rows = [json.loads(line) for line in lines]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _nothing_to_resume(path, error) from error
    _check_same(path, before, identity)
    return State(step, seconds, rows, tensors)


def recorded_config(out: str | Path) -> TrainingConfig:
    """Return the configuration of the run in `out`, finished or not.

    Raises
    ------
    SourceError
        If no run is there.

    Examples
    --------
    >>> train(recorded_config("runs/r8"), "runs/r8", resume=True)  # doctest: +SKIP
    """
    options = recorded_identity(out)
    options.pop("base_sha256")
    return TrainingConfig.from_dict(options, where=str(out))


def recorded_identity(out: str | Path) -> dict[str, Any]:
    """Return the options of the run in `out` and the digest of its base, as they were written.

    Raises
    ------
    SourceError
        If no run is there.
    """
    path = Path(out) / _RESUME
    try:
        with safe_open(path, framework="pt") as file:
            identity: dict[str, Any] = json.loads(file.metadata()["identity"])
        return {**identity, "base_sha256": identity["base_sha256"]}
    except FileNotFoundError as error:
        path = Path(out) / "run.json"
        if not path.exists():
            raise _nothing_to_resume(path, error) from error
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _nothing_to_resume(path, error) from error
    record = _read_record(path)
    return {**record["config"], "base_sha256": record["base_sha256"]}


def _nothing_to_resume(path: Path, error: Exception) -> SourceError:
    return SourceError(
        "there is no run to resume",
        where=str(path),
        expected="the state that an interrupted run leaves",
        got=os_reason(error) if isinstance(error, OSError) else str(error),
        fix="check --out, or start the run without --resume",
    )


def _check_same(path: Path, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    options = {name: value for name, value in recorded.items() if name != "base_sha256"}
    # A run of before an option existed has the value that the option then stands for.
    config = TrainingConfig.from_dict(options, where=str(path)).to_dict()
    before = {**config, "base_sha256": recorded.get("base_sha256")}
    changed = [name for name in now if before[name] != now[name]]
    if changed:
        first = changed[0]
        raise ConfigError(
            "the run was begun with other options",
            where=str(path),
            expected=f"{first} = {before[first]!r}",
            got=f"{first} = {now[first]!r}"
            + (f", and {len(changed) - 1} more" if changed[1:] else ""),
            fix="resume with the same options, or start another --out",
        )
