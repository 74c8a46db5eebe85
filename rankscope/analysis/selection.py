"""Opening several sources alike, and the part of them that is analysed."""

from __future__ import annotations

from pathlib import Path

from rankscope.errors import SourceError
from rankscope.io.sources import Source, open_updates
from rankscope.io.updateset import UpdateSet

__all__ = ["nonempty", "opened", "short_name"]


def opened(source: Source | UpdateSet, base: Source | None, alpha: float | None) -> UpdateSet:
    """Return an opened, non-empty set."""
    return nonempty(open_updates(source, base, alpha=alpha))


def nonempty(updates: UpdateSet) -> UpdateSet:
    """Return `updates`, or raise a `SourceError` where a selection left nothing."""
    if not len(updates):
        raise SourceError(
            "nothing is left to measure",
            where=updates.source,
            expected="at least one update",
            got="none",
            fix="widen the selection (--include, --exclude, --layer, --kind)",
        )
    return updates


def short_name(updates: UpdateSet) -> str:
    """Return a short name of a source: its folder where the file's name is the usual one."""
    path = Path(updates.source)
    usual = ("adapter_model", "model", "pytorch_model")
    return path.parent.name if path.stem in usual and path.parent.name else path.stem
