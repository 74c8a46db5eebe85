"""The shards of a run, joined to its result."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from rankscope.analysis.engine import finished
from rankscope.analysis.engine.journal import Head, read
from rankscope.analysis.engine.task import Outcome
from rankscope.errors import SourceError
from rankscope.results import Result

__all__ = ["join"]

# The commands that keep journals: a journal is data, and names no other code to run.
COMMANDS = ("rank", "similarity", "spectrum", "amplification", "intruders", "compare")


def join(*journals: str | os.PathLike[str]) -> Result:
    """Join the journals of a run to the result that it would have given in one piece.

    Parameters
    ----------
    *journals : path
        Journals, or folders of them: the shards of one run, each at least once.

    Returns
    -------
    Result
        Of the run's command, with the same bytes as without shards.

    Raises
    ------
    SourceError
        If there is no journal, one is damaged, they are of different runs, or items are
        missing.
    """
    files = [file for journal in journals for file in _files(Path(journal))]
    parts = [read(file) for file in files]
    head = parts[0][0]
    for file, (other, _, _) in zip(files, parts, strict=True):
        _check_same_run(files[0], head, file, other)
    outcomes = _best(outcome for _, part, _ in parts for outcome in part)
    missing = [item for item in head.items if item not in outcomes]
    if missing:
        raise _incomplete(head, missing, [part[0] for part in parts])
    finish = import_module(f"rankscope.analysis.{head.command}").finish
    return finished(finish, head.about, [outcomes[item] for item in head.items])


def _files(journal: Path) -> list[Path]:
    files = sorted(journal.glob("journal-*.jsonl")) if journal.is_dir() else [journal]
    if not files:
        raise SourceError(
            "the folder holds no journal",
            where=str(journal),
            expected="journal-i-of-N.jsonl, as --journal writes them",
            got="none",
            fix="name the folder that was given with --journal",
        )
    return files


def _best(outcomes: Iterable[Outcome]) -> dict[str, Outcome]:
    """Return one outcome for each item: what was done, rather than what failed."""
    best: dict[str, Outcome] = {}
    for outcome in outcomes:
        if outcome.item not in best or outcome.error is None:
            best[outcome.item] = outcome
    return best


def _check_same_run(one: Path, head: Head, file: Path, other: Head) -> None:
    if head.command not in COMMANDS or (head.key, head.items) != (other.key, other.items):
        raise SourceError(
            "the journals are of different runs",
            where=f"{one} and {file}",
            expected="the same command, options, version and content of the inputs",
            got=f"{head.command} of {len(head.items)} items and {other.command} of "
            f"{len(other.items)}",
            fix="join the shards of one run",
        )


def _incomplete(head: Head, missing: list[str], parts: list[Head]) -> SourceError:
    count = head.shard.count
    have = {part.shard.number for part in parts if part.shard.count == count}
    lacking = [str(number) for number in range(1, count + 1) if number not in have]
    return SourceError(
        "the run is not complete",
        where=f"{len(parts)} journals of {head.command}",
        expected=f"{len(head.items)} items",
        got=f"{len(missing)} missing, such as {missing[0]}",
        fix=f"give shards {', '.join(lacking)} too"
        if lacking
        else "run the unfinished shards again with --resume",
    )
