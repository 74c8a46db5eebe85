"""The arguments of commands that measure every module of one source, and how they are run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from rankscope.cli.options import (
    Selection,
    base_options,
    output_options,
    run_options,
    seed_option,
    selection_options,
)
from rankscope.cli.output import check_outputs, deliver, set_threads

if TYPE_CHECKING:
    from rankscope.results import Result

__all__ = ["Measurement", "measuring_options"]


@dataclass(frozen=True)
class Measurement:
    """One source, what of it is measured, and what becomes of the result."""

    source: str
    base: str | None
    alpha: float | None
    of: str
    selection: Selection
    device: str
    threads: int | None
    seed: int
    as_json: bool
    outputs: tuple[str, ...]
    quiet: bool
    verbose: bool

    def run(self, analysis: Callable[..., Result], **options: Any) -> None:
        """Open the source, call the analysis with `options`, and deliver its result."""
        check_outputs(self.outputs)
        set_threads(self.threads)
        result = analysis(
            self.selection.open(self.source, self.base, self.alpha, of=self.of),
            of=self.of,
            seed=self.seed,
            device=self.device,
            progress=not self.quiet,
            **options,
        )
        deliver(
            result,
            as_json=self.as_json,
            outputs=self.outputs,
            quiet=self.quiet,
            verbose=self.verbose,
        )


_of_option = click.option(
    "--of",
    type=click.Choice(["update", "weight"]),
    default="update",
    show_default=True,
    help="Measure ΔW, or W itself: of --base, or of a checkpoint alone.",
)


def measuring_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add SOURCE and the options; the function receives them as one `measurement`."""

    def gather(**given: Any) -> None:
        own = {name: given.pop(name) for name in list(given) if name not in _FIELDS}
        function(measurement=Measurement(**given), **own)

    gather.__doc__, gather.__name__ = function.__doc__, function.__name__
    gather.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    options = (base_options, _of_option, selection_options, run_options, seed_option)
    decorated: Callable[..., None] = output_options(gather)
    for option in reversed(options):
        decorated = option(decorated)
    return click.argument("source")(decorated)


_FIELDS = frozenset(Measurement.__dataclass_fields__)
