"""Which file of a folder is meant."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rankscope.errors import SourceError, os_reason
from rankscope.io.containers.opening import FOREIGN
from rankscope.io.containers.paths import check_inside
from rankscope.io.containers.sharded import INDEX_SUFFIXES
from rankscope.io.containers.store import printable
from rankscope.io.names import natural_key

__all__ = ["locate"]

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".lora")
# What libraries call the one file that is meant; the first that is there.
_USUAL = (
    "adapter_model.safetensors",
    "adapters.safetensors",
    "pytorch_lora_weights.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "adapter_model.bin",
    "lit_model.pth.lora",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# What trainers leave beside a model; none of it holds weights.
_NOT_WEIGHTS = (
    "training_args",
    "trainer_state",
    "optimizer",
    "optim.",
    "scheduler",
    "rng_state",
    "random_states",
    "scaler",
    "sampler",
    "resume",
)


def locate(path: Path, *, allow_pickle: bool = False) -> Path:
    """Return the one file of tensors that a path means; a file means itself.

    With `allow_pickle` a distributed checkpoint, which is a folder, means itself as well.

    Raises
    ------
    SourceError
        If a folder holds none, several, a kind that is not read, or a link out of it.
    """
    try:
        if not path.is_dir():
            return path  # opening it says what is wrong, if anything is
        inside = sorted(path.iterdir(), key=lambda p: natural_key(p.name))
        found = _meant([p for p in inside if _holds_weights(p)])
        if not found and any(p.suffix == ".distcp" for p in inside):
            if allow_pickle:
                return path
            raise _distributed(path)
        if len(found) != 1:
            raise _not_one(path, found, inside)
    except OSError as error:
        raise SourceError(
            "cannot look into the folder",
            where=printable(str(path)),
            expected="a folder that can be listed",
            got=os_reason(error),
            fix="check its permissions",
        ) from error
    check_inside(path, found[0])
    return found[0]


def _holds_weights(path: Path) -> bool:
    return (
        path.name.endswith((*_SUFFIXES, *INDEX_SUFFIXES))
        and not path.name.startswith((".", *_NOT_WEIGHTS))
        and path.is_file()
    )


def _meant(found: list[Path]) -> list[Path]:
    names = {path.name: path for path in found}
    # The same tensors in two containers: the safe one is meant.
    for suffixes in ((".safetensors", INDEX_SUFFIXES[0]), _SUFFIXES + INDEX_SUFFIXES):
        usual = [n for n in _USUAL if n in names and n.endswith(suffixes)]
        some = [p for p in found if p.name.endswith(suffixes)]
        if usual:
            return [names[usual[0]]]
        if some:
            # Beside an index lie its shards, and copies of them that it does not list.
            return [p for p in some if p.name.endswith(INDEX_SUFFIXES)] or some
    return []


def _not_one(folder: Path, found: list[Path], inside: list[Path]) -> SourceError:
    if not found:
        found = [p for p in inside if p.is_dir() and any(map(_holds_weights, p.iterdir()))]
    foreign = [p for p in inside if p.name.endswith(tuple(FOREIGN))]
    if not found and foreign:
        return _foreign(foreign[0])
    return SourceError(
        "the folder holds no single adapter or checkpoint",
        where=printable(str(folder)),
        expected="exactly one file of tensors (.safetensors, .bin, .pt, .pth, .npz)",
        got=f"{len(found)}: {_names(found)}" if found else "none",
        fix="name the one you mean" if found else "name the folder of an adapter or checkpoint",
    )


def _names(paths: Iterable[Path]) -> str:
    names = [printable(path.name) for path in paths]
    return ", ".join(names[:6]) + (" …" if len(names) > 6 else "")


def _foreign(path: Path) -> SourceError:
    kind, fix = next(FOREIGN[suffix] for suffix in FOREIGN if path.name.endswith(suffix))
    return SourceError(
        "the folder holds weights of a kind that is not read",
        where=printable(str(path)),
        expected="safetensors, a torch.save archive (.bin, .pt, .pth), or .npz",
        got=kind,
        fix=fix,
    )


def _distributed(folder: Path) -> SourceError:
    # Its .metadata is a pickle that torch itself opens without any restriction.
    return SourceError(
        "a distributed checkpoint is not read: opening it can execute code",
        where=printable(str(folder)),
        expected="safetensors, a torch.save archive (.bin, .pt, .pth), or .npz",
        got=".metadata and .distcp files",
        fix="if you trust it: --allow-pickle, or allow_pickle=True in Python",
    )
