"""``rankscope report``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rankscope.cli.compare import named_sources
from rankscope.cli.engine import Engine, whole_engine_options
from rankscope.cli.options import (
    Selection,
    base_options,
    cache_option,
    device_option,
    report_output_options,
    seed_option,
    selection_options,
)
from rankscope.cli.output import check_outputs, deliver

if TYPE_CHECKING:
    from rankscope.analysis.engine import Study
    from rankscope.results import Result


@click.command("report")
@click.argument("sources", nargs=-1, required=True, metavar="[NAME=]SOURCE…")
@click.option(
    "--skip",
    type=click.Choice(["amplification", "intruders"]),
    multiple=True,
    help="What is left out where there is a base: each decomposes all of W; repeatable.",
)
@cache_option
@base_options
@selection_options
@seed_option
@device_option
@whole_engine_options
@report_output_options
def command(
    sources: tuple[str, ...],
    skip: tuple[str, ...],
    cache: str | None,
    base: str | None,
    alpha: float | None,
    selection: Selection,
    seed: int,
    device: str,
    engine: Engine,
    as_json: bool,
    outputs: tuple[str, ...],
    quiet: bool,
    verbose: bool,
) -> None:
    """Write all that can be measured of some sources into one page, and print the verdicts.

    Of each source its ranks and spectra; with --base also what of W it amplifies, and its new
    directions. Of two sources also their similarity, of more every pair. The page is one file
    that loads nothing; tables in it can be sorted, and every module opened.

    Example: rankscope report data/sql-r8-seed0 data/sql-r64-seed0 -o report.html
    """
    if not (outputs or as_json):
        raise click.UsageError("say where to write: -o report.html")
    check_outputs(outputs, figures=False)
    engine.begin()
    from rankscope.analysis.info import info
    from rankscope.reporting import measure

    named = named_sources(sources)
    sets = {name: selection.open(source, base, alpha) for name, source in named.items()}
    about = partial(
        info,
        *named.values(),
        base=base,
        alpha=alpha,
        split=selection.split,
        tensors=True,
        allow_pickle=selection.allow_pickle,
    )
    result = measure(
        sets,
        partial(_run, engine, not quiet),
        about=[("info", about)],
        skip=skip,
        cache=cache,
        seed=seed,
        device=device,
    )
    deliver(result, as_json=as_json, outputs=outputs, quiet=quiet, verbose=verbose)


def _run(engine: Engine, progress: bool, label: str, study: Study) -> Result:
    """Do one study of several: in a journal's folder of its own."""
    if engine.journal is not None:
        engine = replace(engine, journal=str(Path(engine.journal) / label))
    return engine.run(study, progress=progress)
