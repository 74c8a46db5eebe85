"""Commands, small sources for them, and what they print and write, for the engine's tests."""

import torch
from click.testing import CliRunner
from oracles import gaussian, peft_tensors, write_peft
from safetensors.torch import save_file

from rankscope.cli import cli

COMMANDS = {
    "rank-pair": "rank {tuned} --base {base} --advise",
    "rank-adapter": "rank {a} --base {base}",
    "similarity": "similarity {a} {b}",
    "spectrum": "spectrum {tuned} --base {base}",
    "amplification": "amplification {a} --base {base} -k 2 -k 5",
    "intruders": "intruders {tuned} --base {base} -k 2",
    "compare": "compare a={a} b={b} full={tuned} --base {base} -k 4 --measure phi,cosine,cka",
}
# One thread: the last bits of a number may depend on how many there are.
ONE = ("--threads", "1", "--json")


def write_sources(folder):
    rng = torch.Generator().manual_seed(0)
    modules = [f"layers.{n}.{kind}_proj" for n in range(2) for kind in "qv"]
    for name, rank in (("a", 3), ("b", 4)):
        write_peft(folder / name, peft_tensors(modules, rank, rng, out=48, in_=32), r=rank)
    base = {f"{module}.weight": gaussian(48, 32, rng=rng) for module in modules}
    tuned = {
        name: weight + gaussian(48, 2, rng=rng) @ gaussian(2, 32, rng=rng) / 50
        for name, weight in base.items()
    }
    for name, tensors in (("base", base), ("tuned", tuned)):
        file = folder / f"{name}.safetensors"
        save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, file)
    return {
        "a": folder / "a",
        "b": folder / "b",
        "base": folder / "base.safetensors",
        "tuned": folder / "tuned.safetensors",
    }


def arguments_of(command, sources):
    return COMMANDS[command].format(**sources).split()


def ask(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="rankscope")
    assert result.exit_code == code, result.output
    return result


def with_files(folder, *arguments):
    """Return what a command prints and what it writes, as bytes."""
    folder.mkdir()
    files = [folder / f"out{suffix}" for suffix in (".json", ".csv", ".md", ".tex")]
    outputs = [part for file in files for part in ("-o", file)]
    printed = ask(*arguments, "--json", *outputs).stdout
    return [printed, *(file.read_bytes() for file in files)]
