"""What a PEFT adapter holds in full: whole modules, and trained rows of an embedding.

ΔW = W_new − W, so the base is needed; without it these are listed as unread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from rankscope.io.adapters import peft_formulas as formulas
from rankscope.io.adapters.family import formula_site
from rankscope.io.adapters.peft_job import Job
from rankscope.io.adapters.peft_keys import Part
from rankscope.io.matching import base_name
from rankscope.io.names import stored_transposed
from rankscope.io.recipes import Weight
from rankscope.io.rotary import alike, row_order
from rankscope.io.updateset import Site

__all__ = ["replaced_sites", "token_sites"]

_NEEDS_BASE = "{} replaced in full ({}): give the base to read what changed"
_MOST_TOKENS = 1_000_000


def replaced_sites(job: Job) -> Iterator[tuple[str, Site]]:
    """Yield (name of the tensor, site) for every matrix that replaces one of the base."""
    missing: list[str] = []
    for module, name in job.keys.replaced.items():
        site = _replaced(job, module, name)
        if site is None:
            missing.append(module)
        else:
            yield name, site
    if missing and job.context.base is None:
        shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        job.note(_NEEDS_BASE.format(len(missing), shown))
    elif missing:
        job.note(f"replaced in full, and not in the base in this shape: {', '.join(missing[:3])}")


def token_sites(job: Job, part: Part) -> Iterator[Site]:
    """Yield the update that replaces the trained rows of an embedding.

    Raises
    ------
    AdapterError
        If the configuration's indices do not fit the rows or the base.
    """
    job.only(part, ("trainable_tokens_delta",))
    name = part.tensors["trainable_tokens_delta"]
    count, width = job.matrix(name)
    indices = _indices(job, part.module, count)
    if job.context.base is None:
        job.note(_NEEDS_BASE.format(f"{count} rows of {part.module}", "trainable tokens"))
        return
    weight, shape = job.weight(part.module, "rows of it are replaced", in_=width)
    if max(indices) >= shape[0]:
        raise job.config.unusable(
            "list of token indices", f"numbers below {shape[0]}", max(indices)
        )
    yield formula_site(
        job.store,
        part.module,
        formulas.tokens,
        {"rows": name},
        shape=shape,
        rank=count,
        weight=weight,
        indices=indices,
    )


def _replaced(job: Job, module: str, name: str) -> Site | None:
    base, shape = job.context.base, job.shape(name)
    stored = None if base is None else base_name(module, base.tensors)
    if base is None or stored is None or (base is job.store and stored == name):
        return None
    info = base.tensors[stored]
    if not info.floating or len(shape) < 2 or info.shape[1:] != shape[1:]:
        return None
    if not alike(module, "", stored, row_order(base, stored)):
        return None
    transposed = len(shape) == 2 and stored_transposed(stored, job.base_shapes)
    if info.shape != shape:
        if transposed:
            return None
        job.note(f"{module}: {shape[0]} rows, {info.shape[0]} in the base; the shared are read")
    rows, columns = min(shape[0], info.shape[0]), math.prod(shape[1:])
    return formula_site(
        job.store,
        module,
        formulas.replaced,
        {"tuned": name},
        shape=(columns, rows) if transposed else (rows, columns),
        weight=Weight(base, stored, transposed),
        transposed=transposed,
    )


def _indices(job: Job, module: str, count: int) -> tuple[int, ...]:
    config = job.config
    key = "token_indices" if config.type == "TRAINABLE_TOKENS" else "trainable_token_indices"
    value = config.content.get(key)
    if isinstance(value, dict):
        ends = (v for k, v in value.items() if module == k or module.endswith(f".{k}"))
        value = next(ends, None)
    if (
        not isinstance(value, list | tuple)
        or not all(type(i) is int and 0 <= i < _MOST_TOKENS for i in value)
        or len(value) != count
        or len(set(value)) != count
    ):
        raise config.unusable(key, f"{count} different numbers of tokens", value)
    return tuple(value)
