"""All analyses of some sources in one report."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Unpack

import pandas as pd

from rankscope.analysis.aligned import aligned
from rankscope.analysis.amplification import amplification_study
from rankscope.analysis.compare import compare_study
from rankscope.analysis.engine import How, Study, run
from rankscope.analysis.info import info
from rankscope.analysis.intruders import intruders_study
from rankscope.analysis.rank import rank_study
from rankscope.analysis.selection import opened
from rankscope.analysis.similarity import similarity_study
from rankscope.analysis.spectrum import spectrum_study
from rankscope.errors import RankscopeError, UpdateError, printable
from rankscope.io.sources import Source
from rankscope.io.updateset import UpdateSet
from rankscope.reporting.cards import cards_of
from rankscope.reporting.finding import Finding, Names, origin
from rankscope.reporting.saving import write_markdown, write_page
from rankscope.results import Result

__all__ = ["SKIPPABLE", "Report", "measure", "report"]

SKIPPABLE = ("amplification", "intruders")
_WIDTH = 96  # of a line of a terminal
Runner = Callable[[str, Study], Result]


@dataclass(frozen=True, eq=False, repr=False)
class Report(Result):
    """Every analysis of some sources; the table holds the verdicts.

    Attributes
    ----------
    findings : tuple of Finding
        The results, each with the sources that it is of.
    names : mapping
        From every module to what each source calls it.
    unread : mapping
        The tensors of every source that are no update.
    """

    schema: ClassVar[str] = "rankscope.report/1"

    findings: tuple[Finding, ...] = ()
    names: Names = field(default_factory=dict)
    unread: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __getitem__(self, command: str) -> Result:
        """Return the first result of a command, as ``report["rank"]``."""
        return next(one.result for one in self.findings if one.command == command)

    def save(self, path: str | os.PathLike[str], **look: str) -> None:
        """Write the report: ``.html``, one self-contained page, or ``.md``.

        Markdown cannot hold pictures: they stand beside it, in a folder of its name with
        ``_figures``. ``.json`` holds all results; other suffixes the verdicts, as of every
        result.

        Raises
        ------
        OutputError
            If the suffix is not known, or something cannot be written.
        """
        writer = _WRITERS.get(Path(path).suffix.lower())
        if writer is None:
            super().save(path, **look)
        else:
            writer(self.findings, Path(path), names=self.names, unread=self.unread)

    def to_text(self, width: int | None = None) -> str:
        """Return the verdicts, each with its null, a line each whatever the width."""
        return "\n".join(map(_said, self.table.itertuples()))

    def extra(self) -> dict[str, Any]:
        """Return the JSON form of every result."""
        return {
            "results": [
                {"sources": list(one.sources), **one.result.to_dict()} for one in self.findings
            ],
            "unread": {name: list(tensors) for name, tensors in self.unread.items()},
        }


def _said(row: Any) -> str:
    parts = [row.verdict, f"Null: {row.null}" if row.null else ""]
    lines = [line for part in parts for line in textwrap.wrap(printable(part), _WIDTH)]
    return "\n  ".join([printable(f"{row.subject}: {row.value}"), *lines])


_WRITERS = {".html": write_page, ".md": write_markdown}


def report(
    *sources: Source | UpdateSet | Mapping[str, Any],
    base: Source | None = None,
    alpha: float | None = None,
    skip: Sequence[str] = (),
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str = "cpu",
    **how: Unpack[How],
) -> Report:
    """Analyse sources in every way that fits them, for one report.

    Of each source its ranks and spectra; with a base also what of W it amplifies, and its
    intruder dimensions. Of two sources also their similarity, of more the comparison of every
    pair.

    Parameters
    ----------
    *sources : path, state dict, module or UpdateSet, or one mapping that names them
        What to report on.
    base : path, state dict or module, optional
        The base weights: needed for a full checkpoint.
    alpha : float, optional
        LoRA's alpha, for files that do not say it.
    skip : sequence of str
        ``amplification``, ``intruders``: what is left out, as each decomposes all of W.
    cache : path, optional
        A folder that keeps W's decompositions, which both of them need.
    seed, device
        As for `rank`.
    **how
        As `How`: jobs, threads, journal and so on; a journal gets a folder per analysis.

    Returns
    -------
    Report
        ``save("report.html")`` writes the page. An analysis that fails as a whole is listed
        among `failures`, and the others are done.

    Raises
    ------
    SourceError, AdapterError
        If a source cannot be read.
    UpdateError
        If there is no source, or `skip` names something else.

    Examples
    --------
    >>> import torch
    >>> import rankscope as rs
    >>> one = {"h.0.q.lora_A.weight": torch.eye(9)[:1], "h.0.q.lora_B.weight": torch.ones(9, 1)}
    >>> rs.report({"one": one, "two": one}).table.subject.tolist()[:3]
    ['Rank of one', 'Rank of two', 'Shared directions, input side']
    """
    named = _named(sources)
    sets = {
        name: opened(source, None if isinstance(source, UpdateSet) else base, alpha)
        for name, source in named.items()
    }
    paths = [source for source in named.values() if not isinstance(source, UpdateSet)]
    about = (
        [("info", partial(info, *paths, base=base, alpha=alpha, tensors=True))] if paths else []
    )
    runner = partial(_run, how)
    return measure(sets, runner, about=about, skip=skip, cache=cache, seed=seed, device=device)


def measure(
    sets: Mapping[str, UpdateSet],
    runner: Runner,
    *,
    about: Sequence[tuple[str, Callable[[], Result]]] = (),
    skip: Sequence[str] = (),
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Report:
    """Return the report of open sets; `runner` does each study, under a name of its own."""
    _check(sets, skip)
    findings, failures = [], []
    for command, sources, result in _analyses(sets, runner, about, skip, cache, seed, device):
        try:
            findings.append(Finding(command, sources, result()))
        except RankscopeError as error:
            if command == "rank":  # nothing can be said of a source whose ranks are unknown
                raise
            failures.append({"module": f"{command} of {', '.join(sources)}", **error.parts()})
    return _joined(findings, failures, sets)


def _analyses(
    sets: Mapping[str, UpdateSet],
    runner: Runner,
    about: Sequence[tuple[str, Callable[[], Result]]],
    skip: Sequence[str],
    cache: str | os.PathLike[str] | None,
    seed: int,
    device: str,
) -> Iterator[tuple[str, tuple[str, ...], Callable[[], Result]]]:
    """Yield every analysis that fits the sets: its command, its sources, and how it is done."""
    names = tuple(sets)
    for command, do in about:
        yield command, names, do

    def study(command: str, *of: str, make: Callable[[], Study]) -> Any:
        label = "-".join([command, *(str(names.index(name) + 1) for name in of)])
        return command, of, lambda: runner(label, make())

    for name, updates in sets.items():
        given: dict[str, Any] = {"seed": seed, "device": device}
        yield study("rank", name, make=partial(rank_study, updates, **given))
        yield study("spectrum", name, make=partial(spectrum_study, updates, **given))
    if len(sets) == 2:
        one = partial(similarity_study, *sets.values(), seed=seed, device=device)
        yield study("similarity", *names, make=one)
    elif len(sets) > 2:
        yield study("compare", *names, make=partial(compare_study, sets, device=device))
    for name, updates in sets.items():
        if updates.base is not None:
            given = {"cache": cache, "device": device}  # no seed: intruders draws nothing
            if "amplification" not in skip:
                one = partial(amplification_study, updates, seed=seed, **given)
                yield study("amplification", name, make=one)
            if "intruders" not in skip:
                yield study("intruders", name, make=partial(intruders_study, updates, **given))


def _joined(
    findings: list[Finding], failures: list[dict[str, Any]], sets: Mapping[str, UpdateSet]
) -> Report:
    cards = [
        {"command": one.command, "subject": card.subject, "value": f"{card.value} {card.unit}",
         "verdict": card.words, "null": card.null}
        for one in findings for card in cards_of(one.source, one.result)
    ]  # fmt: skip
    results = [one.result for one in findings]
    first = next(one for one in results if "versions" in one.provenance).provenance
    inputs = {name: list(updates.inputs) for name, updates in sets.items()}
    bare = {**first, "inputs": {}, "options": {}}
    lost = Finding("report", tuple(sets), _Lost(pd.DataFrame(), bare, (), tuple(failures)))
    return Report(
        pd.DataFrame(cards),
        {**first, "command": "report", "inputs": inputs},
        tuple(dict.fromkeys(note for result in results for note in result.notes)),
        tuple(failure for one in (*results, lost.result) for failure in one.failures),
        findings=(*findings, *([lost] if failures else [])),
        names=_matched(sets),
        unread={name: updates.unread for name, updates in sets.items()},
    )


class _Lost(Result):
    """The analyses that failed as a whole."""

    schema = "rankscope.report/1"


def _matched(sets: Mapping[str, UpdateSet]) -> Names:
    if len(sets) < 2:
        return {}
    try:
        return aligned(sets).modules
    except RankscopeError:  # nothing in common: every source keeps its own names
        return {}


def _run(how: How, label: str, study: Study) -> Result:
    journal = how.get("journal")
    return run(study, how if journal is None else {**how, "journal": Path(journal) / label})


def _named(sources: Sequence[Any]) -> dict[str, Any]:
    first = sources[0] if sources else None
    if len(sources) == 1 and isinstance(first, Mapping) and not _is_state_dict(first):
        return dict(first)
    names = [_name(source) for source in sources]
    if len(set(names)) < len(names):
        names = [f"{number}: {name}" for number, name in enumerate(names, 1)]
    return dict(zip(names, sources, strict=True))


def _is_state_dict(source: Mapping[str, Any]) -> bool:
    return any(hasattr(value, "shape") for value in source.values())


def _name(source: Any) -> str:
    path = source.source if isinstance(source, UpdateSet) else source
    return origin([{"path": path if isinstance(path, str | os.PathLike) else None}])


def _check(sets: Mapping[str, UpdateSet], skip: Sequence[str]) -> None:
    unknown = [name for name in skip if name not in SKIPPABLE]
    if unknown or not sets:
        raise UpdateError(
            "this is nothing to report on" if not sets else "this cannot be left out",
            where="report",
            expected="one source or more" if not sets else f"of {', '.join(SKIPPABLE)}",
            got="none" if not sets else ", ".join(unknown),
            fix="name a source" if not sets else "choose among these",
        )
