"""What a command prints and writes: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import click

from rankscope.cli.group import PARTLY_DONE
from rankscope.errors import RankscopeError, printable

if TYPE_CHECKING:
    from rankscope.results import Result

__all__ = ["check_adapter_outputs", "check_outputs", "deliver", "set_threads"]

_NOTES = 3
NO_LOOK: Mapping[str, str] = MappingProxyType({})


def check_outputs(
    outputs: Iterable[str], look: Mapping[str, str] = NO_LOOK, *, figures: bool = True
) -> None:
    """Refuse an unknown suffix, and a place that is taken, before the work and not after it."""
    from rankscope.results import (
        FIGURE_SUFFIXES,
        REPORT_SUFFIXES,
        TABLE_SUFFIXES,
        check_beside,
        unknown_suffix,
    )

    outputs = list(outputs)
    allowed = TABLE_SUFFIXES + FIGURE_SUFFIXES * figures + REPORT_SUFFIXES
    for output in outputs:
        if Path(output).suffix.lower() not in allowed:
            raise unknown_suffix(Path(output), allowed)
    if look and not any(Path(output).suffix.lower() in FIGURE_SUFFIXES for output in outputs):
        given = ", ".join(f"--{name}" for name in look)
        raise click.UsageError(f"{given}: for figures; add -o FILE.svg, .pdf or .png")
    check_beside(outputs)


def check_adapter_outputs(outputs: Iterable[str]) -> None:
    """Refuse what is no table, and a folder that holds something, before the work."""
    from rankscope.io.write import check_empty, is_folder
    from rankscope.results import REPORT_SUFFIXES, TABLE_SUFFIXES, unknown_suffix

    for output in outputs:
        if is_folder(output):
            check_empty(output)
        elif Path(output).suffix.lower() not in TABLE_SUFFIXES + REPORT_SUFFIXES:
            raise unknown_suffix(
                Path(output), TABLE_SUFFIXES + REPORT_SUFFIXES, or_else="a folder for an adapter"
            )


def set_threads(threads: int | None) -> None:
    """Set the threads of the linear algebra, if a number was given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def deliver(
    result: Result,
    *,
    as_json: bool,
    outputs: Iterable[str],
    quiet: bool,
    verbose: bool,
    look: Mapping[str, str] = NO_LOOK,
) -> None:
    """Write the files, print the table or the JSON object, report notes, and exit.

    Exits with 3 where some updates could not be measured. What cannot be written is printed all
    the same, and the error comes last.
    """
    from rankscope.results import save_all

    written: list[str] = []
    unwritten = None
    try:
        written = save_all(result, outputs, look)
    except RankscopeError as error:
        unwritten = error
    if as_json:
        click.echo(json.dumps(result.to_dict(), allow_nan=False))
    elif not quiet:
        click.echo(result.to_text(_terminal_width()))
        if verbose and (details := result.to_details()):
            click.echo(f"\n{details}")
    if not quiet:
        _print_notes(result, verbose)
        for sentence in written:
            click.echo(printable(sentence), err=True)
    for failure in result.failures:
        parts = (f"  {part}: {failure[part]}" for part in ("where", "expected", "got", "fix"))
        click.echo("\n".join([f"Error: {failure['module']}: {failure['what']}", *parts]), err=True)
    if unwritten is not None:
        raise unwritten
    if result.failures:
        sys.exit(PARTLY_DONE)


def _terminal_width() -> int | None:
    """Return how many characters a reader's line holds, or None where no one reads lines."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return shutil.get_terminal_size().columns
    return None


def _print_notes(result: Result, verbose: bool) -> None:
    shown = result.notes if verbose else result.notes[:_NOTES]
    for note in shown:
        click.echo(f"note: {note}", err=True)
    if len(result.notes) > len(shown):
        click.echo(f"note: {len(result.notes) - len(shown)} more with -v", err=True)
