"""Adapters and checkpoints on the Hugging Face hub: which files are meant, and getting them.

The only place that reaches a network, and only for an address that begins with ``hf://``.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType

from rankscope.errors import SourceError
from rankscope.io.containers.folder import locate
from rankscope.io.containers.sharded import INDEX_SUFFIXES
from rankscope.io.containers.store import printable

__all__ = ["PREFIX", "Address", "download", "parse"]

PREFIX = "hf://"
_CONFIG = "adapter_config.json"
_INDEX_BYTES = 10_000_000
_NAME = r"[\w][\w.-]{0,95}"
# A revision may hold slashes only as a pull request's, or written %2F as in the hub's own.
_ADDRESS = re.compile(
    rf"{PREFIX}(?P<repository>{_NAME}/{_NAME})"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[\w.-]+(?:%2F[\w.-]+)*))?(?:/(?P<inside>.*?))?/?",
    re.ASCII,
)
_STATUS = {
    401: (
        "the repository does not exist, or is private",
        "check its name; if it is private, set HF_TOKEN or log in with hf auth login",
    ),
    403: ("the hub forbids it", "accept the repository's terms on its page, then log in"),
    404: ("the hub has no such thing", "check the name, the revision and the subfolder"),
    429: ("the hub has had too many requests", "wait some minutes, or log in for a higher limit"),
}
_ELSEWHERE = ("the hub has failed", "try again later; what has come is kept")


@dataclass(frozen=True)
class Address:
    """A place on the hub: ``hf://org/name[@revision][/subfolder or file]``."""

    text: str
    repository: str
    revision: str
    inside: str

    def error(self, what: str, *, expected: str, got: str, fix: str) -> SourceError:
        """Return an error about this place."""
        return SourceError(
            what, where=printable(self.text), expected=expected, got=got[:300], fix=fix
        )


def parse(text: str) -> Address:
    """Return the parts of an address; the revision is ``main`` unless it is given.

    Raises
    ------
    SourceError
        If it is no address, or leads upwards.

    Examples
    --------
    >>> address = parse("hf://org/name@v1.0/sub/folder")
    >>> address.repository, address.revision, address.inside
    ('org/name', 'v1.0', 'sub/folder')
    """
    match = _ADDRESS.fullmatch(text)
    revision = ((match and match["revision"]) or "main").replace("%2F", "/")
    inside = (match and match["inside"]) or ""
    if match is None or not _is_plain(revision) or (inside and not _is_plain(inside)):
        raise SourceError(
            "this is no address on the hub",
            where=printable(text),
            expected="hf://org/name, hf://org/name@revision or hf://org/name@revision/subfolder",
            got=repr(text)[:100],
            fix="write the organisation and the name as the repository's page has them",
        )
    return Address(text, match["repository"], revision, inside)


def download(text: str) -> Path:
    """Return the local path of the one file of tensors that an address means.

    What is missing in the hub's cache is fetched: the file, the shards where it is an index,
    and the ``adapter_config.json`` beside it, all of one commit, which is part of the path.
    ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` are obeyed.

    Raises
    ------
    SourceError
        If huggingface_hub is not installed, the hub refuses or fails, the transfer breaks
        off, or the place holds no single adapter or checkpoint.
    """
    address = parse(text)
    hub = _library(address)
    offline = bool(hub.constants.HF_HUB_OFFLINE)
    with _failures(address):
        commit, names = (_cached if offline else _listed)(hub, address)
    chosen = _meant(address, names)
    with _failures(address):
        # By its revision's name, so that the cache can tell offline which commit that was.
        path = Path(hub.hf_hub_download(address.repository, chosen, revision=address.revision))
        for name in _companions(chosen, path, names):
            hub.hf_hub_download(address.repository, name, revision=commit)
    return _of_commit(address, path, chosen, commit)


def _library(address: Address) -> ModuleType:
    try:
        import huggingface_hub.constants
    except ImportError as error:
        raise address.error(
            "the hub needs another package",
            expected="huggingface_hub",
            got="not installed",
            fix="pip install 'rankscope[hf]', or download it and name the folder",
        ) from error
    return huggingface_hub


def _listed(hub: ModuleType, address: Address) -> tuple[str, list[str]]:
    """Return the commit that the revision is now, and its files."""
    info = hub.HfApi().model_info(address.repository, revision=address.revision)
    return str(info.sha), [str(file.rfilename) for file in info.siblings or ()]


def _cached(hub: ModuleType, address: Address) -> tuple[str, list[str]]:
    """Return the commit that the revision was when it was fetched, and the files that were."""
    folder = Path(
        hub.snapshot_download(address.repository, revision=address.revision, local_files_only=True)
    )
    files = (path for path in folder.rglob("*") if path.is_file())
    return folder.name, [path.relative_to(folder).as_posix() for path in files]


def _meant(address: Address, names: list[str]) -> str:
    """Return the one file that is meant, by the rule for folders on a disk."""
    if address.inside in names:
        return address.inside
    inside = PurePosixPath(address.inside)
    under = [
        PurePosixPath(name).relative_to(inside)
        for name in names
        if _is_plain(name) and PurePosixPath(name).is_relative_to(inside)
    ]
    if not under:
        raise address.error(
            "the repository has no such file or folder",
            expected=f"one of its {len(names)} files, or a folder of them",
            got=address.inside or "no files at all",
            fix="look at its page under Files; offline only what was fetched is there",
        )
    with tempfile.TemporaryDirectory() as folder:
        with _failures(address):
            _imitate(Path(folder), under)
        try:
            return str(inside / locate(Path(folder)).name)
        except SourceError as error:
            raise address.error(
                error.what, expected=error.expected, got=error.got, fix=error.fix
            ) from None


def _imitate(folder: Path, names: list[PurePosixPath]) -> None:
    """Make empty files of these names: nothing is fetched before it is known to be meant."""
    for name in names:
        if len(name.parts) <= 2:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    return name.isprintable() and not {"", ".", ".."} & set(parts) and "\\" not in name


def _companions(chosen: str, path: Path, names: list[str]) -> list[str]:
    """Return the files that the chosen one needs beside it: its shards, its configuration."""
    folder = PurePosixPath(chosen).parent
    wanted = {_CONFIG}
    if chosen.endswith(INDEX_SUFFIXES) and path.stat().st_size <= _INDEX_BYTES:
        wanted |= _shards(path)
    # What the index names and the repository lacks is reported when the index is opened.
    return [name for name in names if name in {str(folder / one) for one in wanted}]


def _shards(index: Path) -> set[str]:
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()  # opening the index says what is wrong with it
    return {shard for shard in shards if isinstance(shard, str) and _is_plain(shard)}


def _of_commit(address: Address, path: Path, chosen: str, commit: str) -> Path:
    if path.parts[-1 - len(PurePosixPath(chosen).parts)] == commit:
        return path
    raise address.error(
        "the revision has moved while it was read",
        expected=f"commit {commit}",
        got="another one",
        fix="run it again, or name the commit: hf://org/name@commit",
    )


@contextmanager
def _failures(address: Address) -> Iterator[None]:
    """Turn what huggingface_hub raises into one kind of error."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise _unreached(address, error) from error
    except HfHubHTTPError as error:
        raise _answered(address, error.response.status_code) from error
    # Its transport differs by version, and each has errors of its own.
    except Exception as error:
        raise address.error(
            "the transfer from the hub has failed",
            expected="the whole file",
            got=f"{type(error).__name__}: {' '.join(str(error).split())}",
            fix="try again; check the connection and the free space",
        ) from error


def _unreached(address: Address, error: Exception) -> SourceError:
    cause = error.__cause__ or error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status is not None:
        return _answered(address, status)
    return address.error(
        "it is not in the cache, and the hub cannot be reached",
        expected="a connection, or an earlier download of this revision",
        got=f"{type(cause).__name__}: {' '.join(str(cause).split())}",
        fix="unset HF_HUB_OFFLINE, or check the connection and HF_ENDPOINT",
    )


def _answered(address: Address, status: int) -> SourceError:
    what, fix = _STATUS.get(status, _ELSEWHERE)
    return address.error(
        what,
        expected=f"revision {address.revision!r} of {address.repository}",
        got=f"the answer {status}",
        fix=fix,
    )
