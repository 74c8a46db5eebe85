"""PEFT's LoRA for linear layers, embeddings, convolutions and stacked experts; with DoRA.

ΔW = s·B·A, or (B·A)ᵀ for embeddings. DoRA rescales W + ΔW, PiSSA and OLoRA took a first
product out of W: both need the base weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rankscope.errors import AdapterError
from rankscope.io.adapters import peft_formulas as formulas
from rankscope.io.adapters.family import factored_site, formula_site
from rankscope.io.adapters.peft_experts import expert_sites, is_expert
from rankscope.io.adapters.peft_job import Job
from rankscope.io.adapters.peft_keys import Part
from rankscope.io.matching import base_name
from rankscope.io.names import kind_of
from rankscope.io.updateset import Site
from rankscope.updates import Update

__all__ = ["lora_sites", "rank_notes"]

_DORA = "DoRA rescales W + s·B·A"
_REBASED = "{} took its first product out of the base, ΔW = s·(B·A − B₀·A₀)"
_TWICE = "{}: PEFT's attention layer adds this product twice, running and merging; so it is read"
_CONTESTED = "alpha_pattern has several alphas for {} modules ({} …): the first, as PEFT loads it"
_HALF = "adapter has a lora_{} without its lora_{}"


def lora_sites(job: Job, part: Part) -> Iterator[Site]:
    """Yield the sites of one module with ``lora_A`` and ``lora_B``.

    Raises
    ------
    AdapterError
        If half of the pair is missing, the ranks differ, the layer is a grouped convolution,
        or ΔW needs a base that is not there.
    """
    if "lora_diag" in part.tensors:
        raise _refused(job, part, "KaSA, which also truncates the base weight")
    infix = "embedding_" if any("embedding" in name for name in part.tensors) else ""
    up, down = _pair(job, part, infix)
    if not infix and is_expert(job, part):
        yield from expert_sites(job, part)
        return
    _refuse_grouped(job, part, up, down)
    shape = job.shape(down)
    rank = shape[0] if shape else 0
    scale = job.config.scale(part.module, rank)
    if scale is not None and _is_attention_output(job, part):
        scale *= 2
        job.note(_TWICE.format(part.module))
    plain = factored_site(
        job.store, _name(job, part), up, down, scale, transposed=bool(infix)
    )  # checks that the shapes chain
    _note_tied(job, part)
    yield _beyond_product(job, part, plain, up, down) or plain


def rank_notes(job: Job, sites: list[Site]) -> None:
    """Note where the configuration names another rank than the tensors have, or two alphas.

    PEFT sorts the patterns when it saves, so that another may have come first in training.
    """
    wrong = [
        f"{site.module} ({site.rank}, not {said:g})"
        for site in sites
        if site.rank is not None and (said := job.config.rank(site.module)) != site.rank
    ]
    shown = ", ".join(wrong[:3]) + (" …" if len(wrong) > 3 else "")
    if wrong:
        job.note(f"ranks are the tensors', not the configuration's: {shown}")
    contested = [site.module for site in sites if job.config.contested(site.module)]
    if contested and job.context.alpha is None:
        job.note(_CONTESTED.format(len(contested), contested[0]))


def _pair(job: Job, part: Part, infix: str) -> tuple[str, str]:
    for have, missing in ("AB", "BA"):
        name = part.tensors.get(f"lora_{infix}{have}")
        if name is not None and f"lora_{infix}{missing}" not in part.tensors:
            wanted = name.replace(f"_{have}", f"_{missing}")
            raise AdapterError(
                _HALF.format(have, missing),
                where=f"{job.store.label}, tensor {name!r}",
                expected=f"a tensor named {wanted!r}",
                got=f"{len(job.store.tensors)} tensors, none with that name",
                fix="save the adapter again; half of it is missing",
            )
    job.only(part, (f"lora_{infix}A", f"lora_{infix}B"), ("lora_magnitude_vector",))
    return part.tensors[f"lora_{infix}B"], part.tensors[f"lora_{infix}A"]


def _name(job: Job, part: Part) -> str:
    """Return the module's name; of attention layers that of their fused projection."""
    inner = f"{part.path}.base_layer.out_proj"
    return f"{part.module}.in_proj_weight" if inner in job.keys.paths else part.module


def _is_attention_output(job: Job, part: Part) -> bool:
    outer = part.path.removesuffix(".base_layer.out_proj")
    return outer != part.path and outer in job.keys.paths


def _refuse_grouped(job: Job, part: Part, up: str, down: str) -> None:
    b, a = job.shape(up), job.shape(down)
    if len(b) > 2 and len(a) == len(b) and 0 < b[1] < a[0] and a[0] % b[1] == 0:
        raise _refused(job, part, f"a convolution in {a[0] // b[1]} groups, which no one merges")


def _refused(job: Job, part: Part, why: str) -> AdapterError:
    return AdapterError(
        "this adapter adds more, or something else, than scale * B @ A",
        where=f"{job.store.label}, module {part.module!r}",
        expected="LoRA or DoRA of a linear layer, an embedding or a convolution",
        got=why,
        fix="merge it and compare the merged checkpoint with its base",
    )


def _beyond_product(job: Job, part: Part, plain: Site, up: str, down: str) -> Site | None:
    """Return the site where ΔW is not the bare product; None where it is."""
    embedding = "lora_embedding_A" in part.tensors
    if "lora_magnitude_vector" in part.tensors:
        return _dora(job, part, plain, embedding)
    if job.config.flag("use_dora"):
        raise _refused(job, part, "use_dora in the configuration, without its magnitude vector")
    # PEFT leaves the base of embeddings and convolutions where it is.
    if job.config.rebased and not embedding and len(job.shape(down)) == 2:
        return _rebased(job, part, plain)
    copy = f"{part.path}.base_layer.weight"
    vocabulary = embedding or kind_of(part.module) in ("embed", "head")
    if vocabulary and copy in job.keys.base and not job.keys.raw:
        return _with_copy(job, part, plain, copy, embedding)
    return None


def _dora(job: Job, part: Part, plain: Site, embedding: bool) -> Site:
    name = part.tensors["lora_magnitude_vector"]
    size = plain.shape[1] if embedding else plain.shape[0]
    if job.store.tensors[name].parameters != size:
        raise job.wrong(name, f"{size} numbers")
    function = formulas.dora_embedding if embedding else formulas.dora
    return _of_weight(job, part, plain, function, _DORA, magnitude=name)


def _rebased(job: Job, part: Part, plain: Site) -> Site:
    init = job.config.init
    if job.own_base and job.context.base is not None:
        raise AdapterError(
            f"the update of {plain.module} depends on its base weight before {init}",
            where=job.store.label,
            expected="the weights that the run started from",
            got="the model's own base, which the initialisation has changed",
            fix="give the original base: --base, or base= in Python",
        )
    if "niter" in init:
        job.note(f"{init} draws at random; its first product is taken to be the exact one")
    job.note(f"{init}: the first product is computed again from the base, up to its rounding")
    function = formulas.pissa if init.startswith("pissa") else formulas.olora
    return _of_weight(job, part, plain, function, _REBASED.format(init))


def _of_weight(
    job: Job,
    part: Part,
    plain: Site,
    function: Callable[..., Update],
    why: str,
    **more: str,
) -> Site:
    weight, _ = job.weight(plain.module, why, *plain.shape)
    infix = "embedding_" if "lora_embedding_A" in part.tensors else ""
    letters = {"up": f"lora_{infix}B", "down": f"lora_{infix}A"}
    return formula_site(
        job.store,
        plain.module,
        function,
        {**job.named(part, letters), **more},
        shape=plain.shape,
        rank=plain.rank,
        scale=plain.scale,
        weight=weight,
    )


def _with_copy(job: Job, part: Part, plain: Site, copy: str, embedding: bool) -> Site | None:
    """Return the site of an adapter that also holds the whole embedding it was trained on."""
    if job.own_base or base_name(plain.module, job.base_shapes) is None:
        job.note(f"{plain.module}: the file holds a copy of this matrix, taken to be the base's")
        return None
    weight, (rows, _) = job.weight(plain.module, "a copy of it is saved", in_=plain.shape[1])
    shared = min(rows, plain.shape[0])
    if job.shape(copy) != plain.shape:
        raise job.wrong(copy, f"shape {plain.shape}")
    if rows != plain.shape[0]:
        job.note(f"{plain.module}: {plain.shape[0]} rows, {rows} in the base; the shared are read")
    infix = "embedding_" if embedding else ""
    return formula_site(
        job.store,
        plain.module,
        formulas.copied,
        {
            "up": part.tensors[f"lora_{infix}B"],
            "down": part.tensors[f"lora_{infix}A"],
            "copy": copy,
        },
        shape=(shared, plain.shape[1]),
        rank=plain.rank,
        scale=plain.scale,
        weight=weight,
        embedding=embedding,
    )


def _note_tied(job: Job, part: Part) -> None:
    base = job.context.base
    if base is None or job.own_base or kind_of(part.module) != "head":
        return
    if base_name(part.module, base.tensors) is None:
        job.note(f"{part.module}: not in the base, tied to the embedding? ΔW counts for this use")
