"""From results to a whole report: verdicts, sections, drill-down, provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from rankscope.reporting.cards import cards_of
from rankscope.reporting.definitions import Definition, definitions
from rankscope.reporting.document import Document, Group, Section, Table
from rankscope.reporting.finding import Finding, Names, of_command
from rankscope.reporting.modules import directory, groups_of
from rankscope.reporting.numbers import rounded, short_name
from rankscope.reporting.sections import sections_of
from rankscope.reporting.tabular import frame_table

__all__ = ["compose"]

_TITLES = {
    "info": "What is in", "rank": "The rank of", "spectrum": "The spectra of",
    "similarity": "The directions of", "compare": "Comparison of",
    "amplification": "Amplification of", "intruders": "New directions of",
}  # fmt: skip
_FIRST = ("similarity", "compare")  # what was asked where several sources were given
_READ = ("update", "weight")


def compose(
    findings: Sequence[Finding],
    *,
    names: Names | None = None,
    unread: Mapping[str, Sequence[str]] | None = None,
) -> Document:
    """Return the report of some findings.

    Parameters
    ----------
    findings : sequence of Finding
        At least one, in the order of the report.
    names : mapping, optional
        How the modules of several sources match.
    unread : mapping, optional
        The tensors of every source that are no update.
    """
    where = directory(findings, names)
    measured = [name for name in where.sources if name]
    sections = list(sections_of(findings, where))
    groups = list(groups_of(findings, where))
    provenance = list(_provenance(findings))
    return Document(
        title=_title(findings, measured),
        subtitle=_subtitle(findings, len(where.names)),
        cards=[
            card
            for one in sorted(findings, key=lambda one: one.command not in _FIRST)
            for card in cards_of(one.source, one.result)
        ],
        sections=sections,
        sources=measured,
        groups=groups,
        notes=list(_notes(findings, measured)),
        failures=_failures(findings),
        unread=list(_unread(findings, unread or {})),
        provenance=provenance,
        definitions=_defined(findings, sections, groups, provenance),
    )


def _defined(
    findings: Sequence[Finding],
    sections: Sequence[Section],
    groups: Sequence[Group],
    provenance: Sequence[Table],
) -> list[Definition]:
    """Return the definitions of what the page shows."""
    tables = [table for section in sections for part in section.parts for table in part.tables]
    shown = {column.label for table in [*tables, *provenance] for column in table.columns}
    # A fact names its side and k behind the measure.
    shown |= {
        fact[0].partition(", ")[0]
        for group in groups
        for module in group.modules
        for fact in module.facts
    }
    commands = dict.fromkeys(one.command for one in findings)
    return [one for one in definitions(commands) if one.label in shown]


def _title(findings: Sequence[Finding], sources: Sequence[str]) -> str:
    shown = [short_name(name, 48) for name in sources]
    listed = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
    listed = (
        listed
        if len(listed) <= 64 or len(shown) <= 3
        else f"{', '.join(shown[:2])} and {len(shown) - 2} more"
    )
    kinds = {one.command for one in findings}
    return (
        f"{_TITLES.get(findings[0].command, 'Report on')} {listed}" if len(kinds) == 1 else listed
    )


def _subtitle(findings: Sequence[Finding], modules: int) -> str:
    versions = findings[0].result.provenance.get("versions", {})
    parts = [f"{modules:,} module{'' if modules == 1 else 's'}"] if modules else []
    parts += list(_sizes(findings))
    return " · ".join([*parts, f"rankscope {versions.get('rankscope', '')}"])


def _sizes(findings: Sequence[Finding]) -> Iterator[str]:
    tables = [one.result.table for one in of_command(findings, "rank")]
    if tables:
        together = pd.concat([table[["rows", "columns"]] for table in tables])
        low, high = int(together.min(axis=1).min()), int(together.max(axis=1).max())
        same = f"matrices of {low:,} × {low:,}"
        yield same if low == high else f"dimensions {low:,} to {high:,}"


def _notes(findings: Sequence[Finding], sources: Sequence[str]) -> Iterator[str]:
    """Yield every note once, after the names of the sources that it is about."""
    about: dict[str, list[str]] = {}
    for one in findings:
        for note in one.result.notes:
            name, colon, text = note.partition(": ")
            named = colon and name in sources
            whose = [name] if named else list(one.sources) if len(one.sources) == 1 else []
            about.setdefault(text if named else note, []).extend(whose)
    for note, names in about.items():
        text = note if note.endswith((".", "?", "!")) else f"{note}."
        distinct = list(dict.fromkeys(names))
        if not distinct or len(distinct) == len(sources):
            # A path at the beginning keeps its letters.
            word = text.partition(" ")[0].isalpha()
            yield f"{text[:1].upper()}{text[1:]}" if word else text
        else:
            yield f"{', '.join(short_name(name, 40) for name in distinct)}: {text}"


def _failures(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [{"command": one.command, "source": one.source, **failure}
            for one in findings for failure in one.result.failures]  # fmt: skip


def _unread(findings: Sequence[Finding], unread: Mapping[str, Sequence[str]]) -> Iterator[Table]:
    """Yield the tensors that are no update: with what they are where that was looked up."""
    listed = [getattr(one.result, "tensors", None) for one in of_command(findings, "info")]
    roles: dict[str, Any] = {}
    for tensors in listed:
        if tensors is not None and len(tensors):
            rows = tensors[~tensors.role.isin(_READ)]
            roles = {**roles, **{row.tensor: row for row in rows.itertuples()}}
    for source, names in unread.items():
        if not names:
            continue
        rows = [
            {
                "tensor": name,
                "role": roles[name].role if name in roles else "",
                "shape": " × ".join(map(str, roles[name].shape)) if name in roles else "",
            }
            for name in names
        ]
        title = f"{short_name(source)}: {len(rows):,} tensors"
        yield frame_table(pd.DataFrame(rows), "info", title, folded=len(rows) > 12)


def _provenance(findings: Sequence[Finding]) -> Iterator[Table]:
    files = [
        {"of": one.source if len(one.sources) == 1 else role, **record}
        for one in findings
        for role, records in one.result.provenance.get("inputs", {}).items()
        for record in records
    ]
    for one in of_command(findings, "info"):
        yield frame_table(one.result.shown(), "info", "Sources")
    known = {record.get("path"): record for record in reversed(files)}
    if known:
        rows = [_file(record) for record in known.values()][::-1]
        yield frame_table(pd.DataFrame(rows), "info", "Files, with the SHA-256 of their content "
                          "(of a checkpoint: of its header)")  # fmt: skip
    options = [row for one in findings for row in _options(one)]
    if options:
        table = pd.DataFrame(options).drop_duplicates()
        yield frame_table(table, "", "Options", folded=len(table) > 12)
    versions = findings[0].result.provenance
    about = {**versions.get("versions", {}), "device": versions.get("device", ""),
             "threads": str(versions.get("threads", ""))}  # fmt: skip
    rows = [{"package": name, "version": str(value)} for name, value in about.items()]
    yield frame_table(pd.DataFrame(rows), "", "Versions and machine")


def _file(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "path": record.get("path") or "in memory",
        "bytes": record.get("bytes"),
        "sha256": record.get("content_sha256") or record.get("sha256") or "",
    }


def _options(one: Finding) -> Iterator[dict[str, str]]:
    for name, value in one.result.provenance.get("options", {}).items():
        if name == "modules" or value in (None, [], [None], [None, None]):
            continue
        text = rounded(value, "norm") if isinstance(value, list | float) else str(value)
        yield {"command": one.command, "option": name.replace("_", " "), "value": text}
