"""Opening several sources alike, and the part of them that is analysed."""

from __future__ import annotations

from pathlib import Path

from rankscope.errors import SourceError
from rankscope.io.sources import Source, open_updates
from rankscope.io.updateset import UpdateSet

__all__ = ["opened", "short_names", "with_base"]


def opened(
    source: Source | UpdateSet, base: Source | None, alpha: float | None, split: str = "auto"
) -> UpdateSet:
    """Return an opened set, or raise a `SourceError` where a selection left nothing of it."""
    updates = open_updates(source, base, alpha=alpha, split=split)
    if not len(updates):
        raise SourceError(
            "nothing is left to measure",
            where=updates.source,
            expected="at least one update",
            got="none",
            fix="widen the selection (--include, --exclude, --layer, --kind)",
        )
    return updates


def with_base(updates: UpdateSet, why: str) -> None:
    """Raise a `SourceError` where a set was opened without the base weights; `why` they count."""
    if updates.base is None:
        raise SourceError(
            why,
            where=updates.source,
            expected="a source opened with its base",
            got="no base",
            fix="pass base=… (on the command line --base)",
        )


def short_names(a: UpdateSet, b: UpdateSet) -> tuple[str, str]:
    """Return short names of two sources: as many of the last folders as tell them apart."""
    parts = [_telling_parts(updates) for updates in (a, b)]
    for depth in range(1, max(map(len, parts)) + 1):
        one, two = ("/".join(part[-depth:]) for part in parts)
        if one != two:
            return one, two
    return f"{one} (A)", f"{two} (B)"


def _telling_parts(updates: UpdateSet) -> tuple[str, ...]:
    """Return the parts of a source's path, less a file name that every adapter has."""
    path = Path(updates.source)
    parts = path.with_suffix("").parts
    usual = ("adapter_model", "model", "pytorch_model")
    return parts[:-1] if path.stem in usual and len(parts) > 1 else parts
