"""``rankscope formats``."""

from __future__ import annotations

import click

from rankscope.cli.options import output_options
from rankscope.cli.output import check_outputs, deliver


@click.command("formats")
@output_options
def command(as_json: bool, outputs: tuple[str, ...], quiet: bool, verbose: bool) -> None:
    """List what can be read, and against which oracle it is tested.

    A base is needed for the parts that the last column names.

    Example: rankscope formats -o formats.md
    """
    from rankscope.analysis.formats import formats

    check_outputs(outputs)
    deliver(formats(), as_json=as_json, outputs=outputs, quiet=quiet, verbose=verbose)
