"""``rankscope compare``."""

from __future__ import annotations

import click

from rankscope.cli.engine import Engine, engine_options
from rankscope.cli.options import (
    Selection,
    base_options,
    device_option,
    figure_options,
    output_options,
    selection_options,
)
from rankscope.cli.output import check_outputs, deliver


@click.command("compare")
@click.argument("sources", nargs=-1, required=True, metavar="[NAME=]SOURCE…")
@click.option(
    "-k",
    "k",
    type=click.IntRange(1),
    metavar="K",
    help="The most directions of each; all unless given, 64 of a full fine-tune.",
)
@click.option(
    "--measure",
    metavar="M,M",
    help="phi, cosine, containment, mean_cosine, cka, or a "
    "distance: geodesic, chordal, projection, procrustes, spectral, asimov, "
    "binet_cauchy, fubini_study, martin. The first three unless given.",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="NAME=A,B,…",
    help="Names of sources that repeat one run, such as its seeds; repeatable. How alike they "
    "are within and between groups, with intervals and a test by shuffling.",
)
@click.option(
    "--series",
    is_flag=True,
    help="The sources are a series, such as checkpoints in their order: also how rank, norm and "
    "subspace drift; .csv and figures hold that.",
)
@base_options
@selection_options
@device_option
@engine_options
@output_options
@figure_options
def command(
    sources: tuple[str, ...],
    k: int | None,
    measure: str | None,
    groups: tuple[str, ...],
    series: bool,
    base: str | None,
    alpha: float | None,
    selection: Selection,
    device: str,
    engine: Engine,
    as_json: bool,
    outputs: tuple[str, ...],
    quiet: bool,
    verbose: bool,
    look: dict[str, str],
) -> None:
    """Compare many sources, every pair of them, and what they share.

    Example: rankscope compare r8=data/sql-r8-seed0 r64=data/sql-r64-seed0 data/sql-r8-seed1
    """
    check_outputs(outputs, look)
    engine.begin()
    from rankscope.analysis.compare import DEFAULT, compare_study

    named = named_sources(sources)
    sets = {name: selection.open(source, base, alpha) for name, source in named.items()}
    measures = [part.strip() for part in measure.split(",")] if measure else DEFAULT
    study = compare_study(
        sets, k=k, measures=measures, groups=_grouped(groups), series=series, device=device
    )
    result = engine.run(study, progress=not quiet)
    deliver(result, as_json=as_json, outputs=outputs, quiet=quiet, verbose=verbose, look=look)


def named_sources(sources: tuple[str, ...]) -> dict[str, str]:
    """Return the sources by their names: as given, or the ends of their paths."""
    from pathlib import Path

    named: dict[str, str] = {}
    for source in sources:
        name, equals, path = source.partition("=")
        # A path may hold an equals sign of its own.
        if not equals or Path(source).exists() or "/" in name:
            name, path = Path(source).stem, source
        if name in named:
            raise click.UsageError(f"two sources are named {name!r}: use NAME=SOURCE")
        named[name] = path
    return named


def _grouped(groups: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the names of the sources in each group."""
    found: dict[str, list[str]] = {}
    for group in groups:
        name, equals, members = group.partition("=")
        if not equals or not name or name in found:
            raise click.UsageError(f"--group {group}: give each group once, as NAME=A,B")
        found[name] = [member.strip() for member in members.split(",") if member.strip()]
    return found
