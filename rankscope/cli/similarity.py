"""``rankscope similarity``."""

from __future__ import annotations

from typing import Any

import click

from rankscope.cli.engine import Engine, engine_options
from rankscope.cli.options import (
    Selection,
    base_options,
    device_option,
    figure_options,
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
@click.option(
    "--measure",
    "measures",
    metavar="NAMES",
    default="phi",
    show_default=True,
    help="Further columns, such as phi,geodesic,cka.",
)
@click.option(
    "--floor",
    multiple=True,
    metavar="SOURCE",
    help="An unrelated run on the same base: what A shares with anything; repeatable.",
)
@click.option(
    "--ceiling",
    multiple=True,
    metavar="SOURCE",
    help="Another seed of A's run: the most to expect; repeatable.",
)
@click.option("--shuffle", is_flag=True, help="Compare A with other layers of B as well.")
@base_options
@selection_options
@seed_option
@device_option
@engine_options
@output_options
@figure_options
def command(
    a: str,
    b: str,
    measures: str,
    floor: tuple[str, ...],
    ceiling: tuple[str, ...],
    base: str | None,
    alpha: float | None,
    selection: Selection,
    engine: Engine,
    as_json: bool,
    outputs: tuple[str, ...],
    quiet: bool,
    verbose: bool,
    look: dict[str, str],
    **options: Any,
) -> None:
    """Compare the directions of A and B in every module that both update.

    Prints φ(1,1) and φ of all directions, with the chance level, z and p beside them; figures
    show the whole φ(i, j) grids. --base serves whichever of the sources is a full checkpoint.
    -v adds the verdicts: what chance, the floor and the factors' random start do not explain.

    Example: rankscope similarity data/sql-r8-seed0 data/sql-r64-seed0 -o figures/similarity.svg
    """  # fmt: skip
    check_outputs(outputs, look)
    engine.begin()
    from rankscope.analysis.similarity import similarity_study

    one, two, *others = (
        selection.open(source, base, alpha) for source in (a, b, *floor, *ceiling)
    )
    study = similarity_study(
        one,
        two,
        measures=[name.strip() for name in measures.split(",")],
        floor=others[: len(floor)],
        ceiling=others[len(floor) :],
        **options,
    )
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
    deliver(result, as_json=as_json, outputs=outputs, quiet=quiet, verbose=verbose, look=look)
