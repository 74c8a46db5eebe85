"""Draws the README's gallery: `python figures/gallery.py`, in half a minute.

Every line of COMMANDS is a command of the terminal, run from the root of the repository.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from safetensors.torch import load_file, save_file

from rankscope.cli import cli

ROUNDED = Path("runs/full-bf16/model.safetensors")
COMMANDS = (
    f"spectrum {ROUNDED.parent} --base data/base --kind q,v -o figures/gallery/spectrum.svg",
    f"rank {ROUNDED.parent} --base data/base -o figures/gallery/rank.svg",
    "amplification data/sql-r8-seed0 --base data/base -k 8 -o figures/gallery/amplification.svg",
    "intruders data/sql-r64-seed0 --base data/base -o figures/gallery/intruders.svg",
    "compare a8=data/sql-r8-seed0 b8=data/sql-r8-seed1 a64=data/sql-r64-seed0"
    " b64=data/sql-r64-seed1 full=data/sql-full --base data/base"
    " --group r8=a8,b8 --group r64=a64,b64 -o figures/gallery/compare.svg",
)


def write_rounded() -> None:
    """Write the full fine-tune in bf16, so that its update has storage noise to show."""
    ROUNDED.parent.mkdir(parents=True, exist_ok=True)
    weights = load_file("data/sql-full/model.safetensors")
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, ROUNDED)


if __name__ == "__main__":
    write_rounded()
    for command in COMMANDS:
        print(f"$ rankscope {command}")
        cli.main([*shlex.split(command), "--quiet"], standalone_mode=False)
