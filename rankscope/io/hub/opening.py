"""Opening an address: which files of a repository are fetched, and which stay there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from rankscope.io.containers.gguf_split import part_names
from rankscope.io.containers.opening import holds_one, open_store
from rankscope.io.containers.safetensors_file import SafetensorsFile
from rankscope.io.containers.sharded import INDEX_SUFFIXES, Sharded
from rankscope.io.containers.store import TensorStore, check_names, printable
from rankscope.io.hub.address import is_plain, parse
from rankscope.io.hub.ranges import RangesIgnoredError, RemoteFile
from rankscope.io.hub.remote import open_remote
from rankscope.io.hub.snapshot import Snapshot, meant, take

__all__ = ["open_address"]

# Beside an adapter, and beside a base, whose quantisation the tensors alone do not tell.
_BESIDE = ("adapter_config.json", "config.json")
_BESIDE_BYTES = 10_000_000
# Smaller files, but no shards, are fetched whole and kept in the hub's cache.
_WHOLE = 8 * 2**20
_CONNECTIONS = 8
_ONE_MODEL = (".safetensors", ".gguf", ".npz", *INDEX_SUFFIXES)


def open_address(text: str, nest: str | None = None) -> tuple[TensorStore, Path | None]:
    """Return the tensors that an address on the hub means, and the folder of what lies beside.

    Of a large safetensors checkpoint only headers are fetched, and then each tensor that is
    read. Small files, torch files, GGUF and NumPy archives are fetched whole, as are the
    configurations beside them; all are of one commit and kept in the hub's cache, from where
    whatever is there is used. ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HOME`` and
    ``HF_HUB_OFFLINE`` are obeyed. `nest` is as for `open_store`.

    Returns
    -------
    store : TensorStore
        The tensors.
    folder : Path or None
        Where configurations lie; None if the repository has none.

    Raises
    ------
    SourceError
        If huggingface_hub is not installed, the hub refuses or fails, a transfer breaks off,
        or the place holds no single adapter or checkpoint.
    """
    snapshot = take(parse(text))
    file = meant(snapshot)
    if nest is not None and file.name.endswith(_ONE_MODEL):
        raise holds_one(file.label, nest)
    store = _opened(snapshot, file, nest)
    # Not the place in the cache, which tells commits and not names.
    store.label = file.label if nest is None else printable(f"{file.label}::{nest}")
    check_names(store.tensors, store.label)
    return store, _folder_of_configurations(snapshot, file)


def _opened(snapshot: Snapshot, file: RemoteFile, nest: str | None) -> TensorStore:
    if _stays(snapshot, file):
        return open_remote(file)
    path = _fetched(snapshot, file)
    if file.name.endswith(INDEX_SUFFIXES[0]) and not snapshot.offline:
        return Sharded(path, _Shards(snapshot, PurePosixPath(file.name).parent))
    for part in _others(path):
        name = str(PurePosixPath(file.name).parent / part)
        if name in snapshot.files:
            snapshot.files[name].download()
    return open_store(path, nest)


def _stays(snapshot: Snapshot, file: RemoteFile) -> bool:
    """Whether only ranges of a file are fetched."""
    whole = snapshot.offline or not file.name.endswith(".safetensors")
    return not whole and file.cached() is None and not _is_small(file)


def _is_small(file: RemoteFile) -> bool:
    try:
        return (file.read(0, 1)[1] if file.size is None else file.size) <= _WHOLE
    except RangesIgnoredError:
        return True


def _fetched(snapshot: Snapshot, file: RemoteFile) -> Path:
    """Return the local path of the file that is meant."""
    revision = snapshot.address.revision
    path = file.download(revision)
    if path.parts[-1 - len(PurePosixPath(file.name).parts)] == snapshot.commit:
        return path
    raise snapshot.address.error(
        "the revision has moved while it was read",
        expected=f"commit {snapshot.commit}",
        got="another one",
        fix="run it again, or name the commit: hf://org/name@commit",
    )


def _folder_of_configurations(snapshot: Snapshot, file: RemoteFile) -> Path | None:
    """Fetch the configurations beside a file, and return the folder that they are in."""
    folder = PurePosixPath(file.name).parent
    found = [snapshot.files.get(str(folder / name)) for name in _BESIDE]
    # What is larger is none, and is not worth its download.
    paths = [
        one.download() for one in found if one is not None and (one.size or 0) <= _BESIDE_BYTES
    ]
    return paths[0].parent if paths else None


def _others(path: Path) -> set[str]:
    """Return the names of the files that this one needs; opening it says what is wrong."""
    if not path.name.endswith(INDEX_SUFFIXES):
        return set(part_names(path.name))
    try:
        if path.stat().st_size > _BESIDE_BYTES:
            return set()
        shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()
    return {shard for shard in shards if isinstance(shard, str) and is_plain(shard)}


@dataclass
class _Shards:
    """The shards of one checkpoint, each opened once, several headers at a time."""

    snapshot: Snapshot
    folder: PurePosixPath
    opened: dict[str, TensorStore] = field(default_factory=dict)

    def __call__(self, names: Iterable[str]) -> Mapping[str, TensorStore]:
        missing = [name for name in names if name not in self.opened]
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            self.opened |= dict(zip(missing, pool.map(self._open, missing), strict=True))
        return self.opened

    def _open(self, name: str) -> TensorStore:
        file = self.snapshot.files.get(str(self.folder / name))
        if file is None:
            raise self.snapshot.address.error(
                "a shard of the checkpoint is missing",
                expected=f"{name} beside the index",
                got="no such file in the repository",
                fix="tell whoever published it",
            )
        path = file.cached()
        return open_remote(file) if path is None else SafetensorsFile(path)
