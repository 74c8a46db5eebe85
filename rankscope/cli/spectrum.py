"""``rankscope spectrum``."""

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


@click.command("spectrum")
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
    """List the singular values of every update in SOURCE; figures are log plots.

    Example: rankscope spectrum data/sql-r64-seed0 -o spectrum.svg
    """
    from rankscope.analysis.spectrum import spectrum

    check_outputs(outputs)
    set_threads(threads)
    updates = selection.open(source, base, alpha)
    result = spectrum(updates, device=device, progress=not quiet)
    deliver(result, as_json=as_json, outputs=outputs, quiet=quiet, verbose=verbose)
