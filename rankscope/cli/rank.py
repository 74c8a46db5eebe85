"""``rankscope rank``."""

from __future__ import annotations

import click

from rankscope.cli.options import (
    Selection,
    base_options,
    output_options,
    run_options,
    selection_options,
)
from rankscope.cli.output import check_outputs, deliver, set_threads


@click.command("rank")
@click.argument("source")
@base_options
@selection_options
@run_options
@output_options
def command(
    source: str,
    base: str | None,
    alpha: float | None,
    selection: Selection,
    device: str,
    threads: int | None,
    as_json: bool,
    outputs: tuple[str, ...],
    quiet: bool,
    verbose: bool,
) -> None:
    """Measure the rank of every update in SOURCE, by every definition.

    A full checkpoint needs --base; an adapter's relative norms need it too.

    Example: rankscope rank data/sql-full --base data/base --kind q,v
    """
    from rankscope.analysis.rank import rank

    check_outputs(outputs)
    set_threads(threads)
    updates = selection.open(source, base, alpha)
    result = rank(updates, device=device, progress=not quiet)
    deliver(result, as_json=as_json, outputs=outputs, quiet=quiet, verbose=verbose)
