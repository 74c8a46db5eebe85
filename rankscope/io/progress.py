"""How far long work has come: a bar on a terminal, and in a notebook."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

__all__ = ["in_notebook", "progress_bar"]

_PATIENCE = 2.0  # seconds without a bar in a notebook, where it would stay among the results


def progress_bar(*, progress: bool | None, **options: Any) -> tqdm[Any]:
    """Return a bar; `options` go to tqdm.

    Parameters
    ----------
    progress : bool or None
        False shows none, True shows one on a terminal and in a notebook, None only in a
        notebook.

    Notes
    -----
    In a notebook it is text in the cell's output and needs no widgets; it comes after two
    seconds, so that short work leaves nothing behind.
    """
    notebook = in_notebook()
    show = progress is not False and (notebook or (progress is True and sys.stderr.isatty()))
    # What a kernel writes to stderr looks like a failure.
    file: TextIO = sys.stdout if notebook else sys.stderr
    delay = _PATIENCE if notebook else 0.0
    return tqdm(file=file, disable=not show, delay=delay, **options)


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")
