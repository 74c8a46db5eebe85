"""``rankscope train``."""

from __future__ import annotations

import json
from typing import Any

import click

from rankscope.cli.options import debug_option


class _Rank(click.ParamType):  # type: ignore[type-arg]
    """A rank, or ``full``."""

    name = "N|full"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | str:
        if isinstance(value, int) or value == "full":
            return value  # type: ignore[no-any-return]
        if not str(value).isdigit():
            self.fail(f"{value!r} is neither a whole number nor full")
        return int(value)


class _List(click.ParamType):  # type: ignore[type-arg]
    """Words or whole numbers with commas between them."""

    def __init__(self, name: str, of: type) -> None:
        self.name, self.of = name, of

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.of(part.strip()) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 0,1,2,4,8")


# Named here too: the trainer, which knows them, is not loaded for --help.
_METHODS = (
    *("pre-training", "full", "LoRA", "rsLoRA", "DoRA", "LoRA+", "QLoRA"),
    *("bias", "last", "IA3", "bottleneck", "prefix"),
)


@click.command("train")
@click.option("--out", required=True, metavar="DIR", help="Where the run is written.")
@click.option("--base", metavar="RUN", help="A run to adapt; without it a model is pre-trained.")
@click.option(
    "--task",
    type=click.Choice(["mixture", "sql", "slots"]),
    help="What is learned (sql with --base, else mixture).",
)
@click.option("--difficulty", type=click.IntRange(1, 3), help="Of --task slots (2).")
@click.option(
    "--labels", type=click.Choice(["true", "shuffled"]), help="The answers to learn (true)."
)
@click.option(
    "--method", type=click.Choice(_METHODS), help="The way of training (as --base, --rank say)."
)
@click.option("--rank", type=_Rank(), help="Of the adapters; full trains every weight.")
@click.option("--alpha", type=float, help="The adapters' scale is alpha/rank (alpha = rank).")
@click.option("--dropout", type=float, help="On the adapters' inputs (0).")
@click.option("--targets", type=_List("q,v", str), help="Adapted layers: q,k,v,o,up,down (q,v).")
@click.option("--steps", type=int, help="Updates (600; adapters 400, in full 250).")
@click.option("--batch", type=int, help="Rows of 128 characters (32, or 16 with --base).")
@click.option("--lr", type=float, help="Peak learning rate (chosen per method).")
@click.option("--seed", type=int, help="Of data, dropout and beginnings (0).")
@click.option("--init-seed", type=int, help="Of what begins at random (as --seed).")
@click.option("--save-at", type=_List("0,1,2,4", int), help="Keep checkpoints at these steps.")
@click.option(
    "--precision", type=click.Choice(["auto", "bf16", "float32"]), help="Of the products (auto)."
)
@click.option("--threads", type=int, help="Threads; part of what makes a run repeat to the bit.")
@click.option("--config", "file", metavar="FILE.toml", help="Options; flags go before them.")
@click.option("--resume", is_flag=True, help="Go on with the unfinished run in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the run's record as one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing and show no progress.")
@debug_option
def command(
    out: str, file: str | None, resume: bool, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Pre-train a small character model, or adapt one with LoRA or in full.

    Writes run.json, log.jsonl and the weights; the same options give the same bits on the same
    machine, in one go or after Ctrl-C and --resume.

    Example: rankscope train --base data/base --rank 8 --seed 0 --out runs/r8
    """  # fmt: skip
    from rankscope.training import TrainingConfig, recorded_config, train

    given = {name: value for name, value in options.items() if value is not None}
    if resume and not file and not given:
        config = recorded_config(out)
    else:
        config = TrainingConfig.load(file, **given)
    run = train(config, out, resume=resume, progress=not quiet)
    if as_json:
        click.echo(json.dumps({"schema": "rankscope.train/1", "rows": [run.record]}))
    elif not quiet:
        click.echo("\n".join([f"{out}: {run.record['step']} steps", *_scores(run.record)]))


def _scores(record: dict[str, Any]) -> list[str]:
    lines = []
    for task, scores in (record["evaluation"] or {}).items():
        named = ", ".join(
            f"{name.replace('_', ' ')} {value:.4g}"
            for name, value in scores.items()
            if name != "rows" and value is not None
        )
        lines.append(f"held-out {task}: {named}")
    return lines
