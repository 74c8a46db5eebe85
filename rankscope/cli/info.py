"""``rankscope info``."""

from __future__ import annotations

import click

from rankscope.cli.options import base_options, output_options, pickle_option, split_option
from rankscope.cli.output import check_outputs, deliver


@click.command("info")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@click.option("--modules", is_flag=True, help="List every module.")
@click.option("--tensors", is_flag=True, help="List every tensor, and what it is.")
@click.option("--metadata", is_flag=True, help="Show what the files say of themselves.")
@base_options
@split_option
@pickle_option
@output_options
def command(
    sources: tuple[str, ...],
    modules: bool,
    tensors: bool,
    metadata: bool,
    base: str | None,
    alpha: float | None,
    split: str,
    allow_pickle: bool,
    as_json: bool,
    outputs: tuple[str, ...],
    quiet: bool,
    verbose: bool,
) -> None:
    """Say what is in each SOURCE: format, modules, ranks, scale, what is not understood.

    Only headers are read.

    Example: rankscope info data/sql-r8-seed0 --modules
    """
    from rankscope.analysis.info import info

    check_outputs(outputs)
    result = info(
        *sources,
        base=base,
        alpha=alpha,
        split=split,
        modules=modules,
        tensors=tensors,
        metadata=metadata,
        allow_pickle=allow_pickle,
    )
    deliver(result, as_json=as_json, outputs=outputs, quiet=quiet, verbose=verbose)
