"""``rankscope notebook``."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import click

import rankscope
from rankscope.cli.options import debug_option
from rankscope.errors import RankscopeError


@click.command("notebook")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- JUPYTER…]")
@debug_option
def command(arguments: tuple[str, ...]) -> None:
    """Open JupyterLab in the folder of notebooks.

    They come with a clone of the repository, and run on its data. What stands after -- goes to
    jupyter lab as it is.

    Example: rankscope notebook -- --no-browser --port 8899
    """
    folder = _folder()
    if find_spec("jupyterlab") is None:
        raise RankscopeError(
            "JupyterLab is not installed",
            where=sys.executable,
            expected="the package jupyterlab",
            got="nothing of this name",
            fix="pip install 'rankscope[notebooks]'",
        )
    sys.stdout.flush()
    # In place of this process, so that Ctrl-C is JupyterLab's own.
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", str(folder), *arguments])


def _folder() -> Path:
    """Return the folder of notebooks: of the clone that is installed, or of the one we are in."""
    clones = (Path(rankscope.__file__).parent.parent, Path.cwd())
    for folder in (clone / "notebooks" for clone in clones):
        if any(folder.glob("*.ipynb")):
            return folder
    raise RankscopeError(
        "there are no notebooks here",
        where=str(clones[1]),
        expected="a clone of the repository, with notebooks/*.ipynb",
        got="no such folder, neither here nor beside the installed package",
        fix="clone the repository, and run this inside it",
    )
