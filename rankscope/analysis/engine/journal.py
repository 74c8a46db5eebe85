"""The journal of a run: every finished item, on disk before the next is waited for.

``DIR/journal-1-of-1.jsonl`` (one file for each shard) holds a first line that says what is
measured, of which files, and then a line for each item. A line is appended by one write, so
that after a crash all but the last is whole, and that one is cut off.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rankscope.analysis.engine.codec import decode, encode
from rankscope.analysis.engine.task import Outcome
from rankscope.errors import OutputError, RankscopeError, SourceError, os_reason

__all__ = ["Head", "Journal", "Shard", "known", "read", "run_key"]

SCHEMA = "rankscope.journal/1"
_SYNC_SECONDS = 1.0
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class Shard:
    """One of `count` equal parts of a run; `number` counts from 1."""

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def file(self) -> str:
        """The name of its journal."""
        return f"journal-{self.number}-of-{self.count}.jsonl"


@dataclass(frozen=True)
class Head:
    """What a journal is of; two that agree in `key` and `about` are parts of one run.

    Attributes
    ----------
    key : str
        Hash of the command, its options, the version, and the content of every input.
    items : tuple of str
        All items of the run, in the order of the rows.
    about : dict
        What the finished result holds beside the rows.
    shard : Shard
        Which part of the items this journal is for.
    """

    key: str
    command: str
    items: tuple[str, ...]
    about: Mapping[str, Any]
    shard: Shard = field(default_factory=Shard)

    def line(self) -> str:
        """Return the first line of the journal."""
        shard = [self.shard.number, self.shard.count]
        content = {"schema": SCHEMA, "key": self.key, "command": self.command, "shard": shard}
        return encode({**content, "items": list(self.items), "about": dict(self.about)})


class Journal:
    """An open journal that outcomes are appended to.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    head : Head
        What this run measures.
    resume : bool
        Whether a journal that is there already is continued.

    Raises
    ------
    OutputError
        If there is a journal and it is not to be resumed, or of another run, or in use, or the
        folder cannot be written.
    """

    def __init__(self, folder: Path, head: Head, resume: bool) -> None:
        self.path = folder / head.shard.file
        self.done, whole = known(self.path, head, resume=resume)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, _APPEND, 0o644)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._begin(head, whole)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def append(self, outcome: Outcome) -> Outcome:
        """Write an outcome down, and return it as it will be read again."""
        line = encode(_content(outcome))
        self._write(line)
        return _outcome(decode(line))

    def _begin(self, head: Head, whole: int) -> None:
        """Lock the file, and cut off what a crash has left behind the last whole line."""
        self._lock()
        self._synced = 0.0
        try:
            os.ftruncate(self._file, whole)
        except OSError as error:
            raise self._unwritable(error) from error
        if not whole:
            self._write(head.line())

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                "the journal is in use",
                where=str(self.path),
                expected="one run at a time",
                got="another process that writes it",
                fix="wait for it, or name another folder",
            ) from error

    def _write(self, line: str) -> None:
        content = line.encode() + b"\n"
        try:
            if os.write(self._file, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            "the journal cannot be written",
            where=str(self.path),
            expected="a folder with room that can be written to",
            got=os_reason(error),
            fix="make room or name another folder; what is in the journal is kept for --resume",
        )


def known(path: Path, head: Head, *, resume: bool) -> tuple[dict[str, Outcome], int]:
    """Return what a journal that may be there has of a run, and how many of its bytes are whole.

    Raises
    ------
    OutputError
        If it is not to be resumed, or of another run.
    SourceError
        If it is damaged.
    """
    if not path.exists() or not path.stat().st_size:
        return {}, 0
    if not resume:
        raise OutputError(
            "there is a journal already",
            where=str(path),
            expected="an empty folder, or --resume",
            got=f"{path.stat().st_size} bytes",
            fix="go on with it: --resume; or name another folder, or delete this one",
        )
    if b"\n" not in path.read_bytes():
        return {}, 0  # a crash has cut the first line
    found, outcomes, whole = read(path)
    if (found.key, found.items) != (head.key, head.items):
        raise OutputError(
            "the journal is of another run",
            where=str(path),
            expected="the same command, options, threads, versions and content of the inputs",
            got=_difference(found, head),
            fix="resume it with what it was begun with, or name another folder",
        )
    # What failed is tried again: the reason may be gone.
    return {one.item: one for one in outcomes if one.error is None}, whole


def read(path: Path) -> tuple[Head, list[Outcome], int]:
    """Return what a journal is of, its outcomes, and how many of its bytes are whole lines.

    Raises
    ------
    SourceError
        If it is no journal, or damaged before its last line.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise _damaged(path, os_reason(error)) from error
    lines = raw.split(b"\n")
    # Behind the last line break stands nothing, or a line that a crash has cut.
    whole = len(raw) - len(lines.pop())
    try:
        content = [decode(line.decode()) for line in lines]
        head = _head(content[0])
        outcomes = [_outcome(one) for one in content[1:]]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {str(error)[:100]}") from error
    return head, outcomes, whole


def run_key(command: str, options: Mapping[str, Any], inputs: Iterable[Mapping[str, Any]]) -> str:
    """Return the hash that tells one run from another: what is measured, of which bytes."""
    content = {"command": command, "options": options, "inputs": [_hash(one) for one in inputs]}
    return hashlib.sha256(encode(content).encode()).hexdigest()


def _hash(record: Mapping[str, Any]) -> str:
    # The hub's commit names one content for ever, whether it says that content's hash or not.
    for known_by in ("content_sha256", "commit"):
        if record.get(known_by) is not None:
            return f"{record.get('address', '')} {record[known_by]}".strip()
    if record["path"] is None:
        raise SourceError(
            "a journal cannot tell what is in memory",
            where="--journal",
            expected="sources that are files",
            got="a state dict or a module",
            fix="save it and name the file, or leave the journal out",
        )
    with Path(record["path"]).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _head(content: Mapping[str, Any]) -> Head:
    if content["schema"] != SCHEMA:
        raise ValueError(f"schema {content['schema']!r}")
    return Head(
        content["key"],
        content["command"],
        tuple(content["items"]),
        content["about"],
        Shard(*content["shard"]),
    )


def _content(outcome: Outcome) -> dict[str, Any]:
    if outcome.error is not None:
        return {"item": outcome.item, "failure": outcome.error.parts()}
    moved = {"moved": True} if outcome.moved else {}
    return {"item": outcome.item, "rows": list(outcome.rows), **moved}


def _outcome(content: Mapping[str, Any]) -> Outcome:
    failure = content.get("failure")
    if failure is not None:
        return Outcome(content["item"], error=RankscopeError(**failure))
    return Outcome(content["item"], tuple(content["rows"]), moved=content.get("moved", False))


def _difference(found: Head, head: Head) -> str:
    if found.command != head.command:
        return f"a run of {found.command}"
    if found.items != head.items:
        return f"{len(found.items)} items against {len(head.items)} now, or others"
    then, now = (one.about["provenance"] for one in (found, head))
    for name in ("options", "threads", "versions", "device"):
        if then.get(name) != now.get(name):
            return f"{name} {_changed(then.get(name), now.get(name))}"
    return "inputs whose content has changed"


def _changed(then: Any, now: Any) -> str:
    """Say what was and what is, of two dicts only where they differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        names = [n for n in {**then, **now} if then.get(n) != now.get(n)]
        return ", ".join(f"{n}: {_changed(then.get(n), now.get(n))}" for n in names)
    return f"{str(then)[:60]} then, {str(now)[:60]} now"


def _damaged(path: Path, got: str) -> SourceError:
    return SourceError(
        "this is no journal, or it is damaged",
        where=str(path),
        expected=f"lines of JSON, the first of {SCHEMA}",
        got=got,
        fix="name the folder of a run with --journal, or begin it again",
    )
