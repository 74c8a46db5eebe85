"""``rankscope reproduce``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankscope.cli.group import PARTLY_DONE
from rankscope.cli.options import debug_option

if TYPE_CHECKING:
    from rankscope.experiments.design import Design


@click.command("reproduce")
@click.option(
    "--quick",
    "size",
    flag_value="quick",
    default="quick",
    help="Figures 3 and 4 and Table 7, in three minutes; so it is unless --full.",
)
@click.option("--full", "size", flag_value="full", help="All of it, in an hour of two cores.")
@click.option("--out", required=True, metavar="DIR", help="Where runs, tables and figures go.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Runs at the same time; as many as there are cores unless given.",
)
@click.option("--resume", is_flag=True, help="Go on with what --out holds.")
@click.option("--only-draw", is_flag=True, help="Train nothing; draw what is there again.")
@click.option("--dry-run", is_flag=True, help="Only list runs, time and bytes.")
@click.option("--json", "as_json", is_flag=True, help="Print the claims as one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Print no table and no progress.")
@debug_option
def command(
    size: str,
    out: str,
    jobs: int | None,
    resume: bool,
    only_draw: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train and draw the paper's section 7: runs, tables, figures, and claims that can fail.

    Example: rankscope reproduce --quick --out runs/paper
    """  # fmt: skip
    from rankscope.experiments import design
    from rankscope.experiments.folder import cores

    if only_draw:
        _draw(Path(out), as_json=as_json, quiet=quiet)
        return
    chosen: Design = getattr(design, size)()
    if dry_run:
        click.echo(_plan(chosen, Path(out), jobs or cores(), resume=resume))
        return
    failures = _train(chosen, Path(out), jobs or cores(), resume=resume, quiet=quiet)
    for failure in failures:
        parts = (f"  {part}: {failure[part]}" for part in ("where", "expected", "got", "fix"))
        click.echo("\n".join([f"Error: {failure['module']}: {failure['what']}", *parts]), err=True)
    _draw(Path(out), as_json=as_json, quiet=quiet)
    if failures:
        sys.exit(PARTLY_DONE)


def _train(
    design: Design, out: Path, jobs: int, *, resume: bool, quiet: bool
) -> list[dict[str, Any]]:
    """Train what is missing, and say what of this machine decides the numbers."""
    from rankscope.experiments.running import train_all
    from rankscope.training.config import native_bfloat16

    if not quiet and not native_bfloat16():
        click.echo("note: this processor has no bfloat16 products: float32 is used", err=True)
    try:
        return train_all(design, out, jobs=jobs, resume=resume, progress=not quiet)
    except KeyboardInterrupt:
        click.echo("What is done is kept; go on with --resume.", err=True)
        raise


def _plan(design: Design, out: Path, jobs: int, *, resume: bool) -> str:
    """Return what would be trained, as a table and a line."""
    from rankscope.experiments.running import planned
    from rankscope.tables import as_text

    table = planned(design, out, resume=resume)
    minutes = table.seconds.sum() / 60
    total = (
        f"{len(table)} runs, about {minutes:.0f} minutes of one core, "
        f"{minutes / jobs:.0f} with {jobs} at a time; {table.bytes.sum() / 1e6:.0f} MB"
    )
    return f"{as_text(table)}\n\n{total}"


def _draw(out: Path, *, as_json: bool, quiet: bool) -> None:
    """Draw everything, and print the claims."""
    from rankscope.experiments import claims
    from rankscope.experiments.draw import draw
    from rankscope.tables import as_text

    found = draw(out)
    if as_json:
        click.echo(json.dumps(claims.as_json(found), allow_nan=False))
    elif not quiet:
        table = as_text(claims.shown(found))
        click.echo(f"{table}\n\nTables, figures and claims are in {out}: see its README.md.")
