"""LoRA of stacked experts, PEFT's ``target_parameters``: one site per expert.

The keys name the module that owns the parameter, not the parameter; shapes tell which it is.
A is (r·E, in), stacked by expert, B is (out, r·E), stacked by rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rankscope.errors import AdapterError
from rankscope.io.adapters import peft_formulas as formulas
from rankscope.io.adapters.family import formula_site
from rankscope.io.adapters.peft_job import Job
from rankscope.io.adapters.peft_keys import Part
from rankscope.io.names import bare_name
from rankscope.io.updateset import Site

__all__ = ["expert_sites", "is_expert"]

# Since then A reads a stack's inputs, whichever way it is stored.
_SWAPS = (0, 19)
_UNSWAPPED = "{}: the adapter is from before PEFT 0.19; ΔW is read as the base stores it"


@dataclass(frozen=True)
class _Stack:
    """What a pair of factors updates: a parameter, its experts, and if ΔW is (B·A)ᵀ."""

    name: str
    experts: int
    transposed: bool


def is_expert(job: Job, part: Part) -> bool:
    """Return whether the factors belong to a parameter of the module, not to its weight."""
    names = _targets(job, part)
    if not names or _stored(job, names):
        return bool(names)
    # A target without a path could be of any module; a plain layer has the configured rank.
    rows = job.shape(part.tensors["lora_A"])[:1]
    bare = all("." not in name for name in job.config.names("target_parameters"))
    return not bare or rows != (int(job.config.rank(part.module)),)


def expert_sites(job: Job, part: Part) -> Iterator[Site]:
    """Yield one site per expert of a targeted parameter, named ``parameter[expert]``.

    Raises
    ------
    AdapterError
        If the base does not tell which parameter, or there is none where it must.
    """
    up, down = part.tensors["lora_B"], part.tensors["lora_A"]
    (out, rows), (rows_a, in_) = job.matrix(up), job.matrix(down)
    if rows != rows_a:
        raise job.wrong(up, f"{rows_a} columns, as many as lora_A has rows")
    if "lora_magnitude_vector" in part.tensors:
        raise job.wrong(part.tensors["lora_magnitude_vector"], "no DoRA of a parameter")
    stack = _stack(job, part, (out, in_), rows)
    if rows % stack.experts:
        raise job.wrong(down, f"rows for each of {stack.experts} experts")
    rank = rows // stack.experts
    for index in range(stack.experts):
        yield formula_site(
            job.store,
            f"{stack.name}[{index}]" if stack.experts > 1 else stack.name.removesuffix(".weight"),
            formulas.expert,
            {"up": up, "down": down},
            shape=(in_, out) if stack.transposed else (out, in_),
            rank=rank,
            scale=job.config.scale(part.module, rank),
            index=index,
            experts=stack.experts,
            transposed=stack.transposed,
        )


def _stack(job: Job, part: Part, shape: tuple[int, int], rows: int) -> _Stack:
    names = _targets(job, part)
    stored = _stored(job, names)
    if stored:
        found = [stack for n, s in stored.items() if (stack := _fitting(job, n, s, shape))]
    else:
        found = _by_configuration(job, part, names, rows)
    if len(found) == 1:
        return found[0]
    raise AdapterError(
        "it is not certain which parameter a pair of factors belongs to",
        where=f"{job.store.label}, module {part.path!r}",
        expected=f"one of {', '.join(names) or 'no targets'} that is (E, {shape[0]}, {shape[1]})",
        got=f"{len(found)} that fit",
        fix="give the base it was trained on, with its three-dimensional experts: --base",
    )


def _targets(job: Job, part: Part) -> list[str]:
    """Return the names of the targeted parameters that this module owns."""
    pairs = (name.rpartition(".") for name in job.config.names("target_parameters"))
    return list(
        dict.fromkeys(
            f"{part.module}.{parameter}"
            for parent, _, parameter in pairs
            if parent == "" or part.module == parent or part.module.endswith(f".{parent}")
        )
    )


def _stored(job: Job, names: list[str]) -> dict[str, tuple[int, ...]]:
    shapes = {bare_name(name): shape for name, shape in job.base_shapes.items()}
    return {name: shapes[name] for name in names if len(shapes.get(name, ())) in (2, 3)}


def _fitting(
    job: Job, name: str, stored: tuple[int, ...], shape: tuple[int, int]
) -> _Stack | None:
    experts = stored[0] if len(stored) == 3 else 1
    swapped = job.config.version >= _SWAPS and len(stored) == 3
    straight, turned = stored[-2:] == shape, stored[-2:] == shape[::-1]
    if swapped and (straight or turned):
        return _Stack(name, experts, transposed=False)
    if straight and not turned:
        return _Stack(name, experts, transposed=False)
    if turned and len(stored) == 3:
        job.note(_UNSWAPPED.format(name))
        return _Stack(name, experts, transposed=True)
    return None


def _by_configuration(job: Job, part: Part, names: list[str], rows: int) -> list[_Stack]:
    rank = int(job.config.rank(part.module))
    if job.config.version < _SWAPS or rank < 1 or rows % rank:
        return []
    pairs = sum(other.module == part.module for other in job.keys.parts)
    job.note(f"{part.module}: {rows // rank} experts, by the configuration's rank {rank}")
    return [_Stack(name, rows // rank, transposed=False) for name in names] if pairs == 1 else []
