"""Which container a file is."""

from __future__ import annotations

import zipfile
from pathlib import Path

from rankscope.errors import SourceError, os_reason
from rankscope.io.containers.arrays import ArraysFile
from rankscope.io.containers.gguf_split import open_gguf
from rankscope.io.containers.safetensors_file import SafetensorsFile
from rankscope.io.containers.sharded import INDEX_SUFFIXES, Sharded
from rankscope.io.containers.store import TensorStore, check_names, printable
from rankscope.io.containers.torch_file import TorchFile

__all__ = ["FOREIGN", "holds_one", "open_store"]

# Known by their names, as some have no magic bytes: what they are, and the way out.
FOREIGN = {
    ".msgpack": ("a Flax checkpoint", "load it with from_flax=True and save_pretrained() it"),
    ".h5": ("a TensorFlow checkpoint", "load it with from_tf=True and save_pretrained() it"),
    ".keras": ("a Keras model", "export its weights as .npz or safetensors"),
    ".ckpt.index": ("a TensorFlow checkpoint", "load it with from_tf=True and save it again"),
    ".onnx": ("an ONNX graph", "use the checkpoint that it was exported from"),
    ".nemo": ("a NeMo archive", "convert it to Hugging Face format with NeMo's own script"),
    ".gguf": ("a GGUF file", "name the file itself; if it is named, download it again"),
    ".distcp": ("a shard of a distributed checkpoint", "name its folder"),
}


def open_store(path: Path, nest: str | None = None) -> TensorStore:
    """Return the tensors of a file, by what its first bytes say and not by its name.

    Only the index of a sharded checkpoint is known by its name, ``….index.json``. `nest` is
    the key of the model that is meant, where a torch file holds several.

    Raises
    ------
    SourceError
        If the file is missing, empty, unreadable, no container of tensors, or one that cannot
        hold several models.
    """
    head = _head(path)
    if not head:
        raise SourceError(
            "the file is empty",
            where=printable(str(path)),
            expected="a file of tensors",
            got="0 bytes",
            fix="copy or download the file again",
        )
    store = _container(path, head)
    if nest is not None:
        if not isinstance(store, TorchFile):
            raise holds_one(store.label, nest)
        store = TorchFile(path, nest)
    # A damaged header is found here, not in the middle of the work.
    check_names(store.tensors, store.label)
    return store


def holds_one(label: str, nest: str) -> SourceError:
    """Return the error that one of several models was asked for where there can be but one."""
    return SourceError(
        "this kind of file holds one model",
        where=printable(label),
        expected="a torch file, or a distributed checkpoint, with a model under a key",
        got=f"the key {printable(nest)!r}",
        fix="leave out '::' and what follows it",
    )


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(9)
    except (OSError, ValueError) as error:
        raise SourceError(
            "cannot open the file",
            where=printable(str(path)),
            expected="a file that can be read",
            got=os_reason(error) if isinstance(error, OSError) else str(error),
            fix="check the path and its permissions",
        ) from error


def _container(path: Path, head: bytes) -> TensorStore:
    if path.name.endswith(INDEX_SUFFIXES):
        return Sharded(path)
    # First: the length before the brace may spell the other containers' first bytes.
    if head[8:9] == b"{":
        return SafetensorsFile(path)
    if head[:4] == b"GGUF":
        return open_gguf(path)
    if head[:2] == b"PK" and _holds_arrays(path):
        return ArraysFile(path)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return TorchFile(path)
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    kind, fix = next(
        (FOREIGN[suffix] for suffix in FOREIGN if path.name.endswith(suffix)),
        (
            f"a file that begins with {head!r}",
            "name the adapter or checkpoint itself, or the folder that holds it",
        ),
    )
    raise SourceError(
        "not a file of tensors",
        where=printable(str(path)),
        expected="safetensors, a torch.save archive (.bin, .pt, .pth), .npz or .gguf",
        got=kind,
        fix=fix,
    )


def _holds_arrays(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False  # the torch reader says what is wrong with it
