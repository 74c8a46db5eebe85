"""A report as Markdown: the words and the tables; its figures are files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

from rankscope.errors import printable
from rankscope.reporting.document import Cell, Document, Figure, Section, Table

__all__ = ["markdown", "pictures"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&!])")


def pictures(document: Document) -> Iterator[tuple[str, bytes]]:
    """Yield a file name and the content of every figure."""
    for number, (section, figure) in enumerate(_figures(document), 1):
        yield _file(number, section), figure.svg


def markdown(document: Document, folder: str) -> str:
    """Return the report as Markdown; `folder` is where its figures lie, as `pictures` names them.

    There is no drill-down: what it shows stands in the tables and in the JSON form.
    """
    names = {
        id(figure): f"{quote(folder)}/{_file(number, section)}"
        for number, (section, figure) in enumerate(_figures(document), 1)
    }
    blocks = [f"# {_text(document.title)}", _text(document.subtitle)]
    blocks += list(_failures(document))
    blocks += list(_cards(document))
    if document.notes:
        listed = "\n".join(f"- {_text(note)}" for note in document.notes)
        blocks += ["## Read with care", listed]
    for section in document.sections:
        blocks += list(_section(section, names))
    blocks += ["## What was measured", *map(_table, document.provenance)]
    if document.unread:
        blocks += ["### Tensors that are no update", *map(_table, document.unread)]
    blocks += list(_definitions(document))
    return "\n\n".join(blocks) + "\n"


def _figures(document: Document) -> Iterator[tuple[str, Figure]]:
    for section in document.sections:
        for part in section.parts:
            for figure in part.figures:
                yield section.anchor, figure


def _file(number: int, section: str) -> str:
    return f"{number:02}-{section}.svg"


def _failures(document: Document) -> Iterator[str]:
    if document.failures:
        yield "## What could not be measured"
        yield "\n".join(
            f"- **{_text(one['module'])}** ({_text(one['command'])} of {_text(one['source'])}): "
            f"{_text(one['what'])}. {_text(one['fix'])}."
            for one in document.failures
        )


def _cards(document: Document) -> Iterator[str]:
    if document.cards:
        yield "## Verdicts"
    for card in document.cards:
        null = f" *Null:* {_text(card.null)}" if card.null else ""
        head = f"**{_text(card.subject)}: {_text(card.value)} {_text(card.unit)}.**"
        yield f"{head} {_text(card.words)}{null}"


def _section(section: Section, names: dict[int, str]) -> Iterator[str]:
    yield f"## {section.title}"
    if section.lead:
        yield _text(section.lead)
    for part in section.parts:
        if part.title:
            yield f"### {_text(part.title)}"
        yield from map(_table, part.tables)
        for figure in part.figures:
            yield f"![{_text(figure.label)}]({names[id(figure)]})"
            yield f"*{_text(figure.caption)}*"


def _table(table: Table) -> str:
    lines = [
        f"**{_text(table.caption)}**\n",
        _line([_text(column.label) for column in table.columns]),
        _line(["---:" if column.numeric else "---" for column in table.columns]),
        *(_line([_cell(cell) for cell in row]) for row in table.rows),
    ]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    return _text(cell.text)


def _definitions(document: Document) -> Iterator[str]:
    if document.definitions:
        yield "## Definitions"
        yield "\n".join(
            f"- **{_text(one.label)}**: {_text(one.words)}"
            + (f" {_text(one.formula)}" if one.formula else "")
            for one in document.definitions
        )


def _text(text: str) -> str:
    """Return text that Markdown takes as it stands: no marks, no elements, one line."""
    return (
        _SPECIAL.sub(r"\\\1", printable(str(text))).replace(r"\<", "&lt;").replace(r"\&", "&amp;")
    )
