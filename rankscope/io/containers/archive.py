"""Zip archives: what may be in one before anything in it is read."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable

from rankscope.errors import SourceError
from rankscope.io.containers.store import printable

__all__ = ["check_sizes", "check_stored"]

_MEMBERS = 1_000_000
# Zeros pack a thousandfold, trained weights hardly at all.
_EXPANSION = 100
_SMALL = 1_000_000


def check_stored(archive: zipfile.ZipFile, size: int, label: str) -> None:
    """Refuse an archive that ``torch.save`` cannot have written: it never compresses.

    Raises
    ------
    SourceError
        If a member is compressed, two have one name, or they are larger than the file.
    """
    packed = [m for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise _refusal(label, f"the compressed member {packed[0].filename!r}")
    _check(archive.infolist(), size, label)


def check_sizes(archive: zipfile.ZipFile, size: int, label: str) -> None:
    """Refuse an archive that unpacks to far more than trained weights can.

    Raises
    ------
    SourceError
        If it does, or two members have one name.
    """
    _check(archive.infolist(), max(_EXPANSION * size, _SMALL), label)


def _check(members: Iterable[zipfile.ZipInfo], limit: int, label: str) -> None:
    sizes = [member.file_size for member in members]
    if sum(sizes) > limit:
        raise _refusal(label, f"members of {sum(sizes):,} bytes, at most {limit:,} can be")
    if len(sizes) > _MEMBERS:
        raise _refusal(label, f"{len(sizes):,} members")
    if len({member.filename for member in members}) < len(sizes):
        raise _refusal(label, "two members of one name")


def _refusal(label: str, got: str) -> SourceError:
    return SourceError(
        "the archive is not as the library writes it",
        where=label,
        expected="tensors, stored once and in their own size",
        got=printable(got)[:200],
        fix="do not trust this file; save the weights again, best as safetensors",
    )
