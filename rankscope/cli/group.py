"""The group of commands: loaded when called, and what their failures become."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any

import click

from rankscope import __version__
from rankscope.errors import RankscopeError

__all__ = ["INTERRUPTED", "PARTLY_DONE", "cli"]

FAILED, PARTLY_DONE, INTERRUPTED = 1, 3, 130

# Each command is the attribute `command` of a module of its own name in this package; the
# line is its help, so that the list of commands loads none of them.
_COMMANDS = {
    "info": "Say what is in a file: format, modules, ranks, scale, base.",
    "similarity": "Compare the directions of two sources, beside chance.",
    "rank": "Measure the rank of every update, by every definition.",
    "spectrum": "List the singular values of every update.",
    "amplification": "Compare ΔW with W: the paper's Table 7, beside chance.",
    "intruders": "Count the directions of W + ΔW that W does not have.",
    "compare": "Compare many sources, every pair, and what all share.",
    "report": "Write one page of all that can be measured of some sources.",
    "resize": "Cut an adapter down to a rank, an energy or a size.",
    "extract": "Make an adapter out of a full fine-tune.",
    "join": "Join the shards of a run.",
    "formats": "List what can be read, and against what it is tested.",
    "train": "Train a small model, or adapt it with LoRA or in full.",
    "reproduce": "Train and draw the paper's section 7, with claims that can fail.",
    "notebook": "Open JupyterLab in the folder of notebooks.",
}


class _LazyGroup(click.Group):
    """A group that imports a command when it is called, and turns errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = difflib.get_close_matches(args[0], _COMMANDS, 1)
        if args[0] not in _COMMANDS and near:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"rankscope.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)
        except RankscopeError as error:
            if ctx.meta.get("debug"):
                raise
            click.echo(f"Error: {error}", err=True)
            ctx.exit(FAILED)
        except (click.ClickException, click.exceptions.Exit, click.Abort, OSError):
            raise  # click's own business: usage, exits, closed pipes
        except Exception as error:
            if ctx.meta.get("debug"):
                raise
            click.echo(f"Error: {_unexpected(error, ctx)}", err=True)
            ctx.exit(FAILED)


def _unexpected(error: Exception, ctx: click.Context) -> RankscopeError:
    return RankscopeError(
        "rankscope itself has failed",
        where=f"rankscope {ctx.invoked_subcommand or ''}".strip(),
        expected="a result, or an error that says what to do",
        got=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
        fix="run it again with --debug and report what it prints",
    )


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rankscope")
def cli() -> None:
    """Measure the intrinsic rank of weight updates.

    rankscope reads LoRA adapters and fully fine-tuned checkpoints, and says how low their rank
    is and which directions they share, with a chance level beside every number.

    Example: rankscope similarity data/sql-r8-seed0 data/sql-r64-seed0
    """
