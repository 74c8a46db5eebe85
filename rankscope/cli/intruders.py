"""``rankscope intruders``."""

from __future__ import annotations

import click

from rankscope.cli.engine import Engine, engine_options
from rankscope.cli.options import (
    Selection,
    base_options,
    device_option,
    output_options,
    selection_options,
)
from rankscope.cli.output import check_outputs, deliver


@click.command("intruders")
@click.argument("source")
@click.option(
    "-k",
    "ks",
    type=click.IntRange(1),
    multiple=True,
    metavar="K",
    help="How many leading directions of W + ΔW; repeatable, 10 unless given.",
)
@click.option(
    "--epsilon",
    "epsilons",
    type=float,
    multiple=True,
    metavar="E",
    help="A cosine below which a direction is new; repeatable, 0.5 unless given.",
)
@click.option("--cache", metavar="DIR", help="Keep the base's decompositions in DIR.")
@base_options
@selection_options
@device_option
@engine_options
@output_options
def command(
    source: str,
    ks: tuple[int, ...],
    epsilons: tuple[float, ...],
    cache: str | None,
    base: str | None,
    alpha: float | None,
    selection: Selection,
    device: str,
    engine: Engine,
    as_json: bool,
    outputs: tuple[str, ...],
    quiet: bool,
    verbose: bool,
) -> None:
    """Count the leading directions of W + ΔW that W does not have.

    At 0.5 every random direction of a large matrix counts: read it beside epsilon_chance.

    Example: rankscope intruders data/sql-r8-seed0 --base data/base -k 10 --epsilon 0.5
    """
    check_outputs(outputs)
    engine.begin()
    from rankscope.analysis.intruders import intruders_study

    updates = selection.open(source, base, alpha)
    study = intruders_study(
        updates, k=ks or (10,), epsilon=epsilons or (0.5,), cache=cache, device=device
    )
    result = engine.run(study, progress=not quiet)
    deliver(result, as_json=as_json, outputs=outputs, quiet=quiet, verbose=verbose)
