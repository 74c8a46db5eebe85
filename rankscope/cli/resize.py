"""``rankscope resize``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from rankscope.cli.options import (
    Selection,
    adapter_output_options,
    base_options,
    check_one_size,
    run_options,
    selection_options,
    size_options,
)
from rankscope.cli.output import check_adapter_outputs, deliver, set_threads


@click.command("resize")
@click.argument("source")
@size_options
@base_options
@selection_options
@run_options
@adapter_output_options
def command(
    source: str,
    rank: int | None,
    energy: float | None,
    budget: str | None,
    base: str | None,
    alpha: float | None,
    selection: Selection,
    threads: int | None,
    as_json: bool,
    outputs: tuple[str, ...],
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Cut the adapter SOURCE down to a rank, a share of the energy, or a size.

    Says what is kept, and the error beside the least possible; -o FOLDER writes a PEFT adapter.

    Example: rankscope resize data/sql-r64-seed0 --energy 0.95 -o runs/r64-small
    """
    from rankscope.analysis.resize import resize

    check_one_size(rank, energy, budget)
    check_adapter_outputs(outputs)
    set_threads(threads)
    updates = replace(selection, split="none").open(source, base, alpha)
    result = resize(
        updates, rank=rank, energy=energy, budget=budget, progress=not quiet, **options
    )
    deliver(result, as_json=as_json, outputs=outputs, quiet=quiet, verbose=verbose)
