"""One ``torch.save`` file."""

from __future__ import annotations

import hashlib
import io
import mmap
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint
from typing_extensions import override

from rankscope.errors import SourceError
from rankscope.io.containers.archive import check_stored
from rankscope.io.containers.listed import by_number
from rankscope.io.containers.nesting import peeled
from rankscope.io.containers.store import (
    NestedStore,
    TensorInfo,
    describe,
    file_record,
    printable,
)

__all__ = ["TorchFile"]

# Stable-Baselines3 keeps its optimizer and loose variables beside the policy.
_POLICY = "policy.pth"
_FILLER = re.compile(rb"c(__builtin__|builtins)\nbytearray\n")


@final
class TorchFile(NestedStore):
    """A ``torch.save`` archive of tensors, loaded without executing anything in it.

    Parameters
    ----------
    path : Path
        The file.
    nest : str, optional
        Which of several models in it: the key that it stands under.
    """

    @cached_property
    def _content(self) -> dict[str, Tensor]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickles that are then refused
                content = _load(self.path, self.label)
        except SourceError:
            raise
        except Exception as error:  # torch.load raises whatever the damaged bytes provoke
            raise SourceError(
                "not a readable torch file",
                where=self.label,
                expected="a torch.save archive that holds tensors only",
                got=printable(_reason(self.path, error))[:200],
                fix="save a plain state dict again, best as safetensors; nothing was executed",
            ) from error
        tensors = peeled(by_number(content, self.path), self.label, self.nest)
        for name, tensor in tensors.items():
            _check_plain(name, tensor, self.label)
        return tensors

    @cached_property
    @override
    def tensors(self) -> Mapping[str, TensorInfo]:
        return describe(self._content)

    @override
    def read(self, name: str) -> Tensor:
        return self._content[name].detach()

    @cached_property
    @override
    def provenance(self) -> dict[str, Any]:
        if zipfile.is_zipfile(self.path):
            with zipfile.ZipFile(self.path) as archive:
                # The pickle names every tensor, shape and dtype: the archive's header.
                ends = ("data.pkl", _POLICY)
                name = next(n for n in archive.namelist() if n.endswith(ends))
                digest = hashlib.sha256(archive.read(name))
        else:
            with self.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        return file_record(self.path, digest) | self.which


def _load(file: Path | io.BytesIO, label: str) -> object:
    zipped = zipfile.is_zipfile(file)
    if zipped:
        with zipfile.ZipFile(file) as archive:
            check_stored(archive, _size(file), label)
            if isinstance(file, Path) and _POLICY in archive.namelist():
                return _load(io.BytesIO(archive.read(_POLICY)), label)
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    _check_pickle(archive.read(name), label)
    else:
        _check_pickle(_mapped(file), label)
    # torch takes a path that ends so for the other format, whatever is in it.
    if isinstance(file, Path) and file.suffix != ".safetensors":
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    with file.open("rb") if isinstance(file, Path) else file as stream:
        stream.seek(0)
        return torch.load(stream, map_location="cpu", weights_only=True)


def _mapped(file: Path | io.BytesIO) -> bytes | mmap.mmap:
    if isinstance(file, io.BytesIO):
        return file.getvalue()
    with file.open("rb") as handle:
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


def _check_pickle(content: bytes | mmap.mmap, label: str) -> None:
    """Refuse the one call that `weights_only` allows and that fills memory without a limit."""
    if _FILLER.search(content):
        raise SourceError(
            "the file asks for memory that no tensor needs",
            where=label,
            expected="tensors, dictionaries and plain values",
            got="a call of builtins.bytearray",
            fix="do not trust this file; save the weights again, best as safetensors",
        )


def _size(file: Path | io.BytesIO) -> int:
    return file.stat().st_size if isinstance(file, Path) else file.getbuffer().nbytes


def _reason(path: Path, error: Exception) -> str:
    """Return what the file wants to execute, where that is why it was refused."""
    text = str(error).strip() or type(error).__name__
    if not isinstance(error, pickle.UnpicklingError):
        return text.splitlines()[0]
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a legacy file, or damaged: the message names the first offender
        names = re.findall(r"GLOBAL (\S+)", text)[:1]
    if names:
        return f"it asks for {', '.join(sorted(names))}"
    # The rest of the message advises to load the file without any restriction.
    found = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    return found[1] if found else "a pickle of other things than tensors"


def _check_plain(name: str, tensor: Tensor, label: str) -> None:
    """Refuse a tensor that is no plain array, or that is larger than what is stored of it.

    A few bytes can be declared a view of a billion elements, which the first copy allocates.
    """
    problem = _problem(tensor)
    if problem:
        raise SourceError(
            "a tensor is not stored as a plain array",
            where=f"{label}, tensor {name!r}",
            expected="a dense tensor, as large as its storage",
            got=problem,
            fix="save it again as tensor.to_dense().contiguous()",
        )


def _problem(tensor: Tensor) -> str | None:
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized:
        return "nested, sparse or quantized"
    if tensor.device.type != "cpu":
        return f"on the device {tensor.device}"
    needed, stored = tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes()
    if needed > stored:
        return f"shape {tuple(tensor.shape)}, {needed:,} bytes, out of {stored:,} stored"
    return None
