"""A dask cluster that is running already, as an executor."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rankscope.errors import SourceError

__all__ = ["cluster"]

_SECONDS = 10
_PACKAGES = ("rankscope", "torch", "numpy", "scipy", "distributed")


@contextmanager
def cluster(scheduler: str, paths: Sequence[str]) -> Iterator[Executor]:
    """Give the executor of a scheduler whose workers can do the work.

    Parameters
    ----------
    scheduler : str
        ``tcp://host:port``, or the file that a scheduler wrote of itself.
    paths : sequence of str
        Files that every worker must see.

    Raises
    ------
    SourceError
        If dask's ``distributed`` is not installed, no scheduler answers within ten seconds, it
        has no worker, a worker has other versions, or does not see a file.
    """
    client = _connected(scheduler)
    try:
        _check_workers(client, scheduler, paths)
        yield client.get_executor(pure=False)
    finally:
        client.close()


def _connected(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise SourceError(
            "a dask cluster needs another package",
            where="--scheduler",
            expected="distributed",
            got="not installed",
            fix="pip install 'rankscope[distributed]', here and on the workers",
        ) from error
    try:
        return Client(_address(scheduler), timeout=_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TypeError) as error:
        raise SourceError(
            "the scheduler cannot be reached",
            where=scheduler,
            expected=f"dask's scheduler, answering within {_SECONDS} seconds",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            fix="start it with dask scheduler, and check the address",
        ) from error


def _address(scheduler: str) -> str:
    """Return the address that is given, or that a scheduler's file says."""
    path = Path(scheduler)
    if not path.is_file():
        return scheduler
    address = json.loads(path.read_text(encoding="utf-8")).get("address")
    if not isinstance(address, str):
        raise ValueError("the file names no address")
    return address


def _check_workers(client: Any, scheduler: str, paths: Sequence[str]) -> None:
    try:  # workers that have just died are started again by their nannies
        client.wait_for_workers(1, timeout=_SECONDS)
    except TimeoutError as error:
        raise SourceError(
            "the cluster has no worker",
            where=scheduler,
            expected=f"at least one, within {_SECONDS} seconds",
            got="none",
            fix=f"start some: dask worker {scheduler} --nthreads 1",
        ) from error
    told = client.run(_seen, [str(Path(path).resolve()) for path in paths])
    here, _ = _seen([])
    for worker, (versions, missing) in told.items():
        if versions != here:
            raise _mismatch(worker, versions, here)
        if missing:
            raise SourceError(
                "a worker does not see a file",
                where=str(worker),
                expected=f"{missing[0]}, as it is seen here",
                got="no such file there",
                fix="put it where all workers can read it, under the same path",
            )


def _mismatch(worker: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> SourceError:
    def listed(versions: Mapping[str, str]) -> str:
        return ", ".join(f"{n} {v}" for n, v in versions.items() if theirs.get(n) != ours.get(n))

    return SourceError(
        "a worker has other versions than this process",
        where=str(worker),
        expected=listed(ours),
        got=listed(theirs),
        fix="install the same versions everywhere; numbers could differ",
    )


def _seen(paths: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return this process' versions, and which of the files it does not see."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    return versions, [path for path in paths if not os.access(path, os.R_OK)]
