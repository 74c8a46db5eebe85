"""Reports as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rankscope.io.write import replacing
from rankscope.reporting.compose import compose
from rankscope.reporting.finding import Finding, Names, finding_of
from rankscope.reporting.markdown import markdown, pictures
from rankscope.reporting.page import page
from rankscope.results import Result

__all__ = ["write_markdown", "write_page", "write_result"]


def write_page(
    findings: Sequence[Finding],
    path: Path,
    *,
    names: Names | None = None,
    unread: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write findings as one HTML file."""
    text = page(compose(findings, names=names, unread=unread))
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_markdown(
    findings: Sequence[Finding],
    path: Path,
    *,
    names: Names | None = None,
    unread: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write findings as Markdown, and their figures into a folder beside it."""
    document = compose(findings, names=names, unread=unread)
    folder = path.with_name(f"{path.stem}_figures")
    for name, svg in pictures(document):
        with replacing(folder / name) as temporary:
            temporary.write_bytes(svg)
    with replacing(path) as temporary:
        temporary.write_text(markdown(document, folder.name), encoding="utf-8")


def write_result(result: Result, path: Path) -> None:
    """Write one result as an HTML page, into exactly `path`."""
    path.write_text(page(compose([finding_of(result)])), encoding="utf-8")
