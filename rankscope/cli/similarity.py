"""``rankscope similarity``."""

from __future__ import annotations

from typing import Any

import click

from rankscope.cli.engine import Engine, engine_options
from rankscope.cli.options import (
    Selection,
    base_options,
    device_option,
    output_options,
    seed_option,
    selection_options,
)
from rankscope.cli.output import check_outputs, deliver
from rankscope.errors import SourceError


@click.command("similarity")
@click.argument("a")
@click.argument("b")
@click.option(
    "--side",
    type=click.Choice(["right", "left", "both"]),
    default="both",
    show_default=True,
    help="Input side (right, the paper's), output side, or both.",
)
@click.option(
    "--vectors",
    type=click.Choice(["delta", "factor"]),
    default="delta",
    show_default=True,
    help="Directions of ΔW, or of the factors A and B alone.",
)
@click.option("--max-i", type=click.IntRange(1), help="Most directions of A (dense: 64).")
@click.option("--max-j", type=click.IntRange(1), help="Most directions of B (dense: 64).")
@base_options
@selection_options
@seed_option
@device_option
@engine_options
@output_options
def command(
    a: str,
    b: str,
    base: str | None,
    alpha: float | None,
    selection: Selection,
    engine: Engine,
    as_json: bool,
    outputs: tuple[str, ...],
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Compare the directions of A and B in every module that both update.

    Prints φ(1,1) and φ of all directions, with the chance level, z and p beside them; figures
    show the whole φ(i, j) grids. --base serves whichever of A and B is a full checkpoint.

    Example: rankscope similarity data/sql-r8-seed0 data/sql-r64-seed0 -o figures/similarity.svg
    """  # fmt: skip
    check_outputs(outputs)
    engine.begin()
    from rankscope.analysis.similarity import similarity_study

    one, two = (selection.open(source, base, alpha) for source in (a, b))
    study = similarity_study(one, two, **options)
    left_over = study.about["unmatched_a"] + study.about["unmatched_b"]
    if selection.strict and left_over:
        raise SourceError(
            "some modules are on one side only",
            where=f"{a} and {b}",
            expected="the same modules in both, as --strict asks",
            got=f"{len(left_over)} without a partner, such as {left_over[0]!r}",
            fix="leave out --strict, or select modules with --include",
        )
    result = engine.run(study, progress=not quiet)
    deliver(result, as_json=as_json, outputs=outputs, quiet=quiet, verbose=verbose)
