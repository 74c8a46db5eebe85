"""``rankscope intruders``."""

from __future__ import annotations

import click

from rankscope.cli.measuring import Measurement, measuring_options
from rankscope.cli.options import cache_option


@click.command("intruders")
@click.option(
    "-k",
    "ks",
    type=click.IntRange(1),
    multiple=True,
    metavar="K",
    default=(10,),
    help="How many leading directions of W + ΔW; repeatable, 10 unless given.",
)
@click.option(
    "--epsilon",
    "epsilons",
    type=float,
    multiple=True,
    metavar="E",
    default=(0.5,),
    help="A cosine below which a direction is new; repeatable, 0.5 unless given.",
)
@cache_option
@measuring_options
def command(
    measurement: Measurement, ks: tuple[int, ...], epsilons: tuple[float, ...], cache: str | None
) -> None:
    """Count the leading directions of W + ΔW that W does not have.

    At 0.5 every random direction of a large matrix counts: read it beside epsilon_chance.

    Example: rankscope intruders data/sql-r8-seed0 --base data/base -k 10 --epsilon 0.5
    """
    measurement.run("intruders", k=ks, epsilon=epsilons, cache=cache)
