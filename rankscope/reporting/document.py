"""What a report consists of, before it is a page: text, tables and figures as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rankscope.reporting.definitions import Definition

__all__ = [
    "Card",
    "Cell",
    "Chart",
    "Column",
    "Document",
    "Figure",
    "Grid",
    "Group",
    "Map",
    "Module",
    "Part",
    "Section",
    "Table",
]


@dataclass(frozen=True)
class Card:
    """One verdict: a number, what it says, and what chance would have said.

    `tone` is ``beyond`` (the null does not explain it), ``within`` (it does) or ``caution``.
    """

    subject: str
    value: str
    unit: str
    words: str
    null: str = ""
    tone: str = "within"


@dataclass(frozen=True)
class Column:
    """A table's column; numbers stand to the right, `wide` text is broken into lines."""

    label: str
    title: str = ""
    numeric: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell: its rounded text, the exact number behind it, the module it leads to."""

    text: str
    exact: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under columns; `folded` ones are opened by the reader."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """An SVG figure as bytes, what it shows in a few words, and its caption."""

    svg: bytes
    label: str
    caption: str


@dataclass(frozen=True)
class Map:
    """A measure of every module, kinds down and layers across: `level` from 0 to 8.

    `rows` hold (kind, cells), a cell being None or (anchor, level, text).
    """

    caption: str
    layers: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, int, str] | None]]]
    low: str
    high: str


@dataclass(frozen=True)
class Part:
    """Tables and figures under a heading of their own."""

    title: str
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    maps: Sequence[Map] = ()
    charts: Sequence[Chart] = ()
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """One question and its answer."""

    anchor: str
    title: str
    lead: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Grid:
    """φ of one module and side: a small picture, and the numbers at its corners."""

    title: str
    png: str
    rows: int
    columns: int
    words: str


@dataclass(frozen=True)
class Chart:
    """Spectra on a logarithmic axis: (source's number, path) pairs, over a band if any."""

    lines: Sequence[tuple[int, str]]
    top: str
    bottom: str
    last: str
    label: str
    caption: str = "Singular values, logarithmic"
    band: str = ""


@dataclass(frozen=True)
class Module:
    """All that is known of one module; `facts` are rows of label and a cell per source."""

    anchor: str
    name: str
    brief: str
    facts: Sequence[tuple[str, Sequence[Cell]]]
    chart: Chart | None
    grids: Sequence[Grid]
    words: Sequence[str]


@dataclass(frozen=True)
class Group:
    """Modules of one layer."""

    title: str
    modules: Sequence[Module]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    cards: Sequence[Card]
    sections: Sequence[Section]
    sources: Sequence[str]
    groups: Sequence[Group]
    notes: Sequence[str]
    failures: Sequence[dict[str, Any]]
    unread: Sequence[Table]
    provenance: Sequence[Table]
    definitions: Sequence[Definition]
