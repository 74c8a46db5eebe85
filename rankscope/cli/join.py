"""``rankscope join``."""

from __future__ import annotations

import click

from rankscope.cli.options import figure_options, output_options
from rankscope.cli.output import check_outputs, deliver


@click.command("join")
@click.argument("journals", nargs=-1, required=True, metavar="JOURNAL…")
@output_options
@figure_options
def command(
    journals: tuple[str, ...],
    as_json: bool,
    outputs: tuple[str, ...],
    quiet: bool,
    verbose: bool,
    look: dict[str, str],
) -> None:
    """Join the shards of a run: the result it would have given in one piece.

    Each JOURNAL is a folder that was given with --journal, or one file of it.

    Example: rankscope join runs/journal -o rank.csv
    """
    from rankscope.analysis.join import join

    check_outputs(outputs, look)
    deliver(
        join(*journals), as_json=as_json, outputs=outputs, quiet=quiet, verbose=verbose, look=look
    )
