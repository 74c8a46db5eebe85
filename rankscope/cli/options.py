"""Options that several commands share, and what they mean in Python."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rankscope.errors import SourceError

if TYPE_CHECKING:
    from rankscope.io.updateset import UpdateSet

__all__ = [
    "Selection",
    "adapter_output_options",
    "base_options",
    "cache_option",
    "check_one_size",
    "debug_option",
    "device_option",
    "figure_options",
    "output_options",
    "pickle_option",
    "report_output_options",
    "run_options",
    "seed_option",
    "selection_options",
    "size_options",
    "split_option",
]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Selection:
    """Which modules of a source are measured, split in which way; if leftovers are an error."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    layer: frozenset[int] | None
    kind: frozenset[str] | None
    strict: bool
    split: str
    allow_pickle: bool

    def open(
        self, source: str, base: str | None, alpha: float | None, *, of: str = "update"
    ) -> UpdateSet:
        """Open a source, for its updates or its weights, and return the selected part of it."""
        from rankscope.analysis.subject import open_for

        updates = open_for(
            of, source, base, alpha, split=self.split, allow_pickle=self.allow_pickle
        )
        if self.strict and updates.unread:
            raise SourceError(
                "the source holds tensors that are no update or are not understood",
                where=updates.source,
                expected="updates only, as --strict asks",
                got=f"{len(updates.unread)} others, such as {updates.unread[0]!r}",
                fix="look at them with rankscope info --tensors, or leave out --strict",
            )
        return self.of(updates)

    def of(self, updates: UpdateSet) -> UpdateSet:
        """Return the selected part of an open set."""
        chosen = updates.select(kind=self.kind, layer=self.layer)
        keep = [name for name in chosen.names if self._wants(name)]
        if updates.names and not keep:
            raise self._nothing_left(updates)
        return chosen.select(names=keep)

    def _nothing_left(self, updates: UpdateSet) -> SourceError:
        layers = sorted({site.layer for site in updates.sites if site.layer is not None})
        return SourceError(
            "the selection leaves no module",
            where=updates.source,
            expected="--layer, --kind, --include and --exclude that some modules meet",
            got=f"{len(updates)} modules, such as {updates.names[0]}; "
            f"kinds {', '.join(sorted({str(site.kind) for site in updates.sites}))}; "
            f"layers {f'{layers[0]} to {layers[-1]}' if layers else 'none'}",
            fix="a pattern must match the whole name: --include '*attn*'",
        )

    def _wants(self, name: str) -> bool:
        included = not self.include or any(fnmatch.fnmatchcase(name, p) for p in self.include)
        return included and not any(fnmatch.fnmatchcase(name, p) for p in self.exclude)


def _stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


class _Layers(click.ParamType):  # type: ignore[type-arg]
    """Block numbers: 3, 8-15 or 0,4,8-11."""

    name = "LAYERS"

    def convert(self, value: Any, param: Any, ctx: Any) -> frozenset[int]:
        if isinstance(value, frozenset):
            return value
        numbers: set[int] = set()
        for part in value.split(","):
            match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
            if match is None or int(match[2] or match[1]) < int(match[1]):
                self.fail(f"{value!r} is not a list of blocks such as 3, 8-15 or 0,4,8-11")
            numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
        return frozenset(numbers)


class _Kinds(click.ParamType):  # type: ignore[type-arg]
    """Kinds of weight: q or q,v."""

    name = "KINDS"

    def convert(self, value: Any, param: Any, ctx: Any) -> frozenset[str]:
        from rankscope.io.names import KINDS

        kinds = frozenset(part.strip() for part in value.split(","))
        if not kinds <= set(KINDS):
            self.fail(f"{value!r} holds an unknown kind; known are {', '.join(KINDS)}")
        return kinds


def _remember_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta["debug"] = value


base_options = _stack(
    click.option("--base", metavar="W", help="Base weights: a file or folder."),
    click.option("--alpha", type=float, help="LoRA's alpha, for files that do not say it."),
)

split_option = click.option(
    "--split",
    type=click.Choice(["auto", "none", "heads"]),
    default="auto",
    show_default=True,
    help="Projections stored as one: auto takes q, k, v, gate and up apart where their layout is "
    "known, heads also each attention head of q, k, v and o, none leaves them whole.",
)

pickle_option = click.option(
    "--allow-pickle",
    is_flag=True,
    help="Open distributed checkpoints (.distcp), which can execute code: only if you trust them.",
)

_selection = _stack(
    pickle_option,
    click.option("--include", multiple=True, metavar="GLOB", help="Only modules of this name."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="No modules of this name."),
    click.option("--layer", type=_Layers(), help="Only these blocks: 3, 8-15 or 0,4,8-11."),
    click.option("--kind", type=_Kinds(), help="Only these kinds of weight: q or q,v."),
    split_option,
    click.option("--strict", is_flag=True, help="Tensors or modules left over are an error."),
)


def selection_options(function: F) -> F:
    """Add the selection options; the function receives them as one `selection`."""

    def gather(*args: Any, **given: Any) -> Any:
        own = {field.name: given.pop(field.name) for field in fields(Selection)}
        return function(*args, selection=Selection(**own), **given)

    gather.__doc__, gather.__name__ = function.__doc__, function.__name__
    gather.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    decorated: F = _selection(gather)  # type: ignore[assignment]
    return decorated


device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="cpu|cuda[:n]|auto",
    help="Where to compute; float64 everywhere.",
)

run_options = _stack(
    device_option,
    click.option("--threads", type=click.IntRange(1), help="Threads of the linear algebra."),
)

cache_option = click.option(
    "--cache", metavar="DIR", help="Keep the base's decompositions in DIR, by their content."
)

seed_option = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Of random draws."
)

debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_remember_debug,
    is_eager=True,
    help="Show the traceback of an error.",
)


def _outputs(help_: str) -> Callable[[F], F]:
    return _stack(
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option("-o", "--output", "outputs", multiple=True, metavar="FILE", help=help_),
        click.option("-q", "--quiet", is_flag=True, help="Print no table and no progress."),
        click.option(
            "-v",
            "--verbose",
            is_flag=True,
            help="Print every note, and of similarity the verdicts.",
        ),
        debug_option,
    )


output_options = _outputs(
    "Also write FILE: .json .csv .parquet .tex .md .svg .pdf .png .html; repeatable. Beside a "
    "figure stand its numbers, .csv, and their provenance, .json."
)

# As rankscope.plots has them, which would load matplotlib for a --help.
_STYLES = ("paper", "talk", "notebook")
_COLOURS = (
    "rocket", "mako", "viridis", "cividis", "magma", "gray", "vlag", "coolwarm", "PuOr", "RdBu",
)  # fmt: skip

_figure = _stack(
    click.option(
        "--style", type=click.Choice(_STYLES), help="Sizes of figures; paper if not given."
    ),
    click.option("--title", help="Words above figures."),
    click.option(
        "--cmap",
        type=click.Choice(_COLOURS),
        help="Colours of heat maps; the last four where the scale has a middle, such as cosines.",
    ),
)


def figure_options(function: F) -> F:
    """Add the options of figures; the function receives those given as one `look`."""

    def gather(*args: Any, **given: Any) -> Any:
        own = {name: given.pop(name) for name in ("style", "title", "cmap")}
        look = {name: value for name, value in own.items() if value is not None}
        return function(*args, look=look, **given)

    gather.__doc__, gather.__name__ = function.__doc__, function.__name__
    gather.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    decorated: F = _figure(gather)  # type: ignore[assignment]
    return decorated


report_output_options = _outputs(
    "Write FILE: .html, one page that opens anywhere; .md, with its figures in a folder beside "
    "it; .json, every number; repeatable."
)

adapter_output_options = _outputs(
    "A new folder, without suffix, for the adapter; or the table: .json .csv .parquet .tex .md "
    ".html; repeatable."
)

size_options = _stack(
    click.option("--rank", type=click.IntRange(1), help="Directions of every update."),
    click.option("--energy", type=click.FloatRange(0, 1, min_open=True),
                 help="Share of each update's energy that is kept."),
    click.option("--budget", metavar="N|35MB", help="Parameters, or bytes, of the adapter."),
    click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]),
                 default="float32", show_default=True, help="Of the numbers written."),
)  # fmt: skip


def check_one_size(rank: int | None, energy: float | None, budget: str | None) -> None:
    """Refuse all but one of the three ways to say a size, as a mistake of usage."""
    if sum(value is not None for value in (rank, energy, budget)) != 1:
        raise click.UsageError("Give exactly one of --rank, --energy and --budget.")
