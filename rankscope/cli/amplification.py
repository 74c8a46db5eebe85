"""``rankscope amplification``."""

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


@click.command("amplification")
@click.argument("source")
@click.option(
    "-k",
    "ks",
    type=click.IntRange(1),
    multiple=True,
    metavar="K",
    help="How many leading directions; repeatable, 4 unless given.",
)
@click.option("--cache", metavar="DIR", help="Keep the base's decompositions in DIR.")
@click.option("--seed", default=0, show_default=True, help="Of the random directions.")
@base_options
@selection_options
@device_option
@engine_options
@output_options
def command(
    source: str,
    ks: tuple[int, ...],
    cache: str | None,
    seed: int,
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
    """Compare ΔW with W: Table 7 of the LoRA paper, with chance beside it.

    An amplification of a small k is large by chance alone: read it beside what random
    directions give.

    Example: rankscope amplification data/sql-r8-seed0 --base data/base -k 4 -k 8
    """
    check_outputs(outputs)
    engine.begin()
    from rankscope.analysis.amplification import amplification_study

    updates = selection.open(source, base, alpha)
    study = amplification_study(updates, k=ks or (4,), seed=seed, cache=cache, device=device)
    result = engine.run(study, progress=not quiet)
    deliver(result, as_json=as_json, outputs=outputs, quiet=quiet, verbose=verbose)
