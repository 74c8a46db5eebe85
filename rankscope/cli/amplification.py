"""``rankscope amplification``."""

from __future__ import annotations

import click

from rankscope.cli.measuring import Measurement, measuring_options
from rankscope.cli.options import cache_option, seed_option


@click.command("amplification")
@click.option(
    "-k",
    "ks",
    type=click.IntRange(1),
    multiple=True,
    metavar="K",
    default=(4,),
    help="How many leading directions; repeatable, 4 unless given.",
)
@cache_option
@seed_option
@measuring_options
def command(measurement: Measurement, ks: tuple[int, ...], cache: str | None, seed: int) -> None:
    """Compare ΔW with W: Table 7 of the LoRA paper, with chance beside it.

    An amplification of a small k is large by chance alone: read it beside what random
    directions give.

    Example: rankscope amplification data/sql-r8-seed0 --base data/base -k 4 -k 8
    """
    measurement.run("amplification", k=ks, cache=cache, seed=seed)
