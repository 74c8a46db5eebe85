"""``rankscope spectrum``."""

from __future__ import annotations

import click

from rankscope.cli.measuring import Measurement, measuring_options, of_option
from rankscope.cli.options import seed_option


@click.command("spectrum")
@seed_option
@of_option
@measuring_options
def command(measurement: Measurement, seed: int) -> None:
    """List the singular values of every update in SOURCE; figures are log plots.

    Example: rankscope spectrum data/sql-r64-seed0 -o spectrum.svg
    """
    measurement.run("spectrum", of=measurement.of, seed=seed)
