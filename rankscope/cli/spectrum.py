"""``rankscope spectrum``."""

from __future__ import annotations

import click

from rankscope.cli.measuring import Measurement, measuring_options


@click.command("spectrum")
@measuring_options
def command(measurement: Measurement) -> None:
    """List the singular values of every update in SOURCE; figures are log plots.

    Example: rankscope spectrum data/sql-r64-seed0 -o spectrum.svg
    """
    measurement.run("spectrum")
