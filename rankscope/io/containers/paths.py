"""Which files a folder may lead to."""

from __future__ import annotations

from pathlib import Path

from rankscope.errors import SourceError
from rankscope.io.containers.store import printable

__all__ = ["check_inside"]


def check_inside(folder: Path, path: Path) -> None:
    """Refuse a file of a folder that is a link to somewhere else.

    The hub's cache is let through: its snapshots are links to the blobs beside them.

    Raises
    ------
    SourceError
        If the link leads out of the folder, and out of the cache that the folder is in.
    """
    target = path.resolve()
    if any(target.is_relative_to(root) for root in _roots(folder.resolve())):
        return
    raise SourceError(
        "a file of the folder is a link to another place",
        where=printable(str(path)),
        expected="a file in the folder itself, or in the hub's cache around it",
        got=printable(f"a link to {target}"),
        fix="if you trust it, name the file it leads to, or copy it here",
    )


def _roots(folder: Path) -> list[Path]:
    snapshots = [parent for parent in (folder, *folder.parents) if parent.name == "snapshots"]
    return [folder, *(parent.parent / "blobs" for parent in snapshots[:1])]
