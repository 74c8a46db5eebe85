"""The arguments of commands that measure every module of one source, and how they are run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from rankscope.cli.engine import Engine, engine_options
from rankscope.cli.options import (
    Selection,
    base_options,
    device_option,
    figure_options,
    output_options,
    selection_options,
)
from rankscope.cli.output import check_outputs, deliver

__all__ = ["Measurement", "measuring_options", "of_option"]


@dataclass(frozen=True)
class Measurement:
    """One source, what of it is measured, and what becomes of the result."""

    source: str
    base: str | None
    alpha: float | None
    of: str
    selection: Selection
    device: str
    engine: Engine
    as_json: bool
    outputs: tuple[str, ...]
    quiet: bool
    verbose: bool
    look: dict[str, str]

    def run(self, command: str, **options: Any) -> None:
        """Open the source, do the study of a command with `options`, and deliver its result."""
        check_outputs(self.outputs, self.look)
        self.engine.begin()
        from rankscope.analysis.subject import open_subjects

        updates = self.selection.open(self.source, self.base, self.alpha, of=self.of)
        subjects = open_subjects(self.of, updates, None, None)
        study = getattr(import_module(f"rankscope.analysis.{command}"), f"{command}_study")
        result = self.engine.run(
            study(subjects, device=self.device, **options), progress=not self.quiet
        )
        deliver(
            result,
            as_json=self.as_json,
            outputs=self.outputs,
            quiet=self.quiet,
            verbose=self.verbose,
            look=self.look,
        )


of_option = click.option(
    "--of",
    type=click.Choice(["update", "weight"]),
    default="update",
    show_default=True,
    help="Measure ΔW, or W itself: of --base, or of a checkpoint alone.",
)


def measuring_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add SOURCE and the options; the function receives them as one `measurement`."""

    def gather(**given: Any) -> None:
        given.setdefault("of", "update")
        own = {name: given.pop(name) for name in list(given) if name not in _FIELDS}
        function(measurement=Measurement(**given), **own)

    gather.__doc__, gather.__name__ = function.__doc__, function.__name__
    gather.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    options = (base_options, selection_options, device_option, engine_options)
    decorated: Callable[..., None] = output_options(figure_options(gather))
    for option in reversed(options):
        decorated = option(decorated)
    return click.argument("source")(decorated)


_FIELDS = frozenset(Measurement.__dataclass_fields__)
