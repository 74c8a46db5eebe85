"""``rankscope extract``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from rankscope.cli.options import (
    Selection,
    adapter_output_options,
    check_one_size,
    run_options,
    selection_options,
    size_options,
)
from rankscope.cli.output import check_adapter_outputs, deliver, set_threads


@click.command("extract")
@click.argument("tuned")
@size_options
@click.option("--base", required=True, metavar="W", help="Base weights: a file or folder.")
@selection_options
@run_options
@adapter_output_options
def command(
    tuned: str,
    rank: int | None,
    energy: float | None,
    budget: str | None,
    base: str,
    selection: Selection,
    threads: int | None,
    as_json: bool,
    outputs: tuple[str, ...],
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Make an adapter out of the full checkpoint TUNED, which began as --base.

    Says what is kept, and the error beside the least possible; -o FOLDER writes a PEFT adapter.

    Example: rankscope extract data/sql-full --base data/base --rank 16 -o runs/full-r16
    """
    from rankscope.analysis.extract import extract

    check_one_size(rank, energy, budget)
    check_adapter_outputs(outputs)
    set_threads(threads)
    updates = replace(selection, split="none").open(tuned, base, None)
    result = extract(
        updates, rank=rank, energy=energy, budget=budget, progress=not quiet, **options
    )
    deliver(result, as_json=as_json, outputs=outputs, quiet=quiet, verbose=verbose)
