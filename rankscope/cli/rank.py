"""``rankscope rank``."""

from __future__ import annotations

import click

from rankscope.cli.measuring import Measurement, measuring_options, of_option
from rankscope.cli.options import seed_option


@click.command("rank")
@click.option("--advise", is_flag=True, help="Say which rank each module needs, by many rules.")
@click.option(
    "--budget",
    metavar="N|35MB",
    help="Advise the ranks that keep most in so many parameters, or bytes, for all modules.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the advised factors.",
)
@seed_option
@of_option
@measuring_options
def command(
    measurement: Measurement, advise: bool, budget: str | None, dtype: str, seed: int
) -> None:
    """Measure the rank of every update in SOURCE, by every definition.

    A full checkpoint needs --base; an adapter's relative norms need it too.

    Example: rankscope rank data/sql-full --base data/base --kind q,v
    """
    measurement.run(
        "rank", of=measurement.of, advise=advise, budget=budget, dtype=dtype, seed=seed
    )
