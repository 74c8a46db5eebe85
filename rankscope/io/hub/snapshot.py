"""One commit of a repository: its files, and which of them is meant."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rankscope.errors import SourceError
from rankscope.io.containers.folder import locate
from rankscope.io.hub.address import Address, failures, is_plain
from rankscope.io.hub.ranges import RemoteFile
from rankscope.io.hub.transport import check_safe

__all__ = ["Snapshot", "meant", "take"]

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit.

    Attributes
    ----------
    address : Address
        Where they were looked for.
    commit : str
        What the revision was at that time.
    files : dict
        Every file by its name.
    offline : bool
        Whether only the cache was looked at.
    """

    address: Address
    commit: str
    files: dict[str, RemoteFile]
    offline: bool


def take(address: Address) -> Snapshot:
    """Return the commit that a revision is now; offline, the one that was fetched.

    Raises
    ------
    SourceError
        If huggingface_hub is not installed, or the hub refuses or fails.
    """
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise address.error(
            "the hub needs another package",
            expected="huggingface_hub",
            got="not installed",
            fix="pip install 'rankscope[hf]', or download it and name the folder",
        ) from error
    with failures(address):
        if constants.HF_HUB_OFFLINE:
            return _cached(address)
        check_safe(address, constants.ENDPOINT)
        return _listed(address)


def _listed(address: Address) -> Snapshot:
    import huggingface_hub

    info = huggingface_hub.HfApi().model_info(
        address.repository, revision=address.revision, files_metadata=True
    )
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise ValueError(f"the commit {commit!r}")
    files = {}
    for file in info.siblings or ():
        name, digest = str(file.rfilename), getattr(file.lfs, "sha256", None)
        files[name] = RemoteFile(address, commit, name, file.size, digest)
    return Snapshot(address, commit, files, offline=False)


def _cached(address: Address) -> Snapshot:
    import huggingface_hub

    folder = Path(
        huggingface_hub.snapshot_download(
            address.repository, revision=address.revision, local_files_only=True
        )
    )
    files = (path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    found = {name: RemoteFile(address, folder.name, name) for name in names}
    return Snapshot(address, folder.name, found, offline=True)


def meant(snapshot: Snapshot) -> RemoteFile:
    """Return the one file that is meant, by the rule for folders on a disk.

    Raises
    ------
    SourceError
        If the place holds no single adapter or checkpoint.
    """
    address, names = snapshot.address, snapshot.files
    if address.inside in names:
        return names[address.inside]
    inside = PurePosixPath(address.inside)
    under = [
        PurePosixPath(name).relative_to(inside)
        for name in names
        if is_plain(name) and PurePosixPath(name).is_relative_to(inside)
    ]
    if not under:
        raise address.error(
            "the repository has no such file or folder",
            expected=f"one of its {len(names)} files, or a folder of them",
            got=address.inside or "no files at all",
            fix="look at its page under Files; offline only what was fetched is there",
        )
    with tempfile.TemporaryDirectory() as folder:
        with failures(address):
            _imitate(Path(folder), under)
        try:
            return names[str(inside / locate(Path(folder)).name)]
        except SourceError as error:
            # What is trusted is a folder on a disk, not whatever stands at an address.
            trust = "--allow-pickle" in error.fix
            fix = f"download the folder, and {error.fix}" if trust else error.fix
            raise address.error(
                error.what, expected=error.expected, got=error.got, fix=fix
            ) from None


def _imitate(folder: Path, names: list[PurePosixPath]) -> None:
    """Make empty files of these names: nothing is fetched before it is known to be meant."""
    for name in names:
        if len(name.parts) <= 2:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
