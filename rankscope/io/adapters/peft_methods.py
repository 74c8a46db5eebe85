"""PEFT's other methods that change weight matrices, one function each."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rankscope.errors import AdapterError
from rankscope.io.adapters import peft_formulas as formulas
from rankscope.io.adapters.family import formula_site
from rankscope.io.adapters.peft_job import Job
from rankscope.io.adapters.peft_keys import Part
from rankscope.io.adapters.products import hadamard
from rankscope.io.updateset import Site

__all__ = [
    "adalora_sites",
    "boft_sites",
    "ia3_sites",
    "loha_sites",
    "lokr_sites",
    "oft_sites",
    "vera_sites",
]

_LOHA = {f"{w}_{x}": f"hada_{w}_{x}" for w in ("w1", "w2") for x in "ab"} | {
    t: f"hada_{t}" for t in ("t1", "t2")
}
_LOKR = {name: f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")}
_RESCALED = "it is rescaled, W∘(l − 1)"
_ROTATES = "it is rotated, W·Rᵀ"


def adalora_sites(job: Job, part: Part) -> Iterator[Site]:
    """Yield ΔW = B·(A∘E)·alpha/(init_r + 1e-5), of the rank that pruning left."""
    job.only(part, ("lora_A", "lora_B", "lora_E"), ("ranknum",))
    up, down, diagonal = (part.tensors[f"lora_{x}"] for x in "BAE")
    (rank, *in_), (out, *rank_up) = job.shape(down) or (0,), job.shape(up) or (0,)
    if not in_ or not out or rank_up[:1] != [rank]:
        raise job.wrong(up, f"(out, {rank})")
    if job.store.tensors[diagonal].parameters != rank:
        raise job.wrong(diagonal, f"{rank} numbers")
    yield formula_site(
        job.store,
        part.module,
        formulas.adalora,
        {"up": up, "down": down, "diagonal": diagonal},
        shape=(out, math.prod(in_)),
        rank=rank,
        scale=_adalora_scale(job),
    )


def ia3_sites(job: Job, part: Part) -> Iterator[Site]:
    """Yield ΔW = W∘(l − 1), l per output, or per input in feed-forward modules."""
    job.only(part, ("ia3_l",))
    name = part.tensors["ia3_l"]
    size, rows = job.store.tensors[name].parameters, _scales_rows(job, part)
    linear = len(job.shape(name)) == 2
    weight, shape = job.weight(
        part.module,
        _RESCALED,
        out=size if rows else None,
        in_=size if linear and not rows else None,
    )
    stored = weight.store.tensors[weight.name].shape
    if not rows and not linear and stored[1:2] != (size,):
        raise job.wrong(name, f"a number for each channel of {stored}")
    yield formula_site(
        job.store, part.module, formulas.ia3, {"gain": name}, shape=shape, weight=weight, rows=rows
    )


def vera_sites(job: Job, part: Part) -> Iterator[Site]:
    """Yield ΔW = diag(λ_b)·B·diag(λ_d)·A with the projections that all modules share."""
    if part.tensors.keys() <= {"vera_A", "vera_B"}:
        return  # the shared projections themselves
    job.only(part, ("vera_lambda_b", "vera_lambda_d"), ("vera_A", "vera_B"))
    a, b = (_projection(job, part, f"vera_{letter}") for letter in "AB")
    lambda_b, lambda_d = (part.tensors[f"vera_lambda_{x}"] for x in "bd")
    out, rank = (job.store.tensors[name].parameters for name in (lambda_b, lambda_d))
    _, shape = job.weight(part.module, "its width cuts the shared projection", out=out)
    (rows_a, most_in), (most_out, columns_b) = job.matrix(a), job.matrix(b)
    if rows_a != rank or most_in < shape[1]:
        raise job.wrong(a, f"({rank}, at least {shape[1]})")
    if columns_b != rank or most_out < out:
        raise job.wrong(b, f"(at least {out}, {rank})")
    tensors = {"lambda_b": lambda_b, "lambda_d": lambda_d, "a": a, "b": b}
    yield formula_site(
        job.store, part.module, formulas.vera, tensors, shape=shape, rank=rank, columns=shape[1]
    )


def loha_sites(job: Job, part: Part) -> Iterator[Site]:
    """Yield ΔW = alpha/r·(W₁ₐ·W₁ᵦ)∘(W₂ₐ·W₂ᵦ), factored, of rank at most r²."""
    cores = ("hada_t1", "hada_t2") if "hada_t1" in part.tensors else ()
    job.only(part, [f"hada_{w}_{x}" for w in ("w1", "w2") for x in "ab"] + list(cores))
    tensors = job.named(part, _LOHA)
    sizes = [_side(job, tensors, w, t) for w, t in (("w1", "t1"), ("w2", "t2"))]
    if sizes[0][:2] != sizes[1][:2]:
        raise job.wrong(tensors["w2_a"], f"sides of one shape, {sizes[0][:2]}")
    (out, in_, _), rank = sizes[0], job.matrix(tensors["w1_b"])[0]
    yield formula_site(
        job.store,
        part.module,
        hadamard,
        tensors,
        shape=(out, in_),
        rank=rank,
        scale=job.config.scale(part.module, rank, "alpha"),
    )


def lokr_sites(job: Job, part: Part) -> Iterator[Site]:
    """Yield ΔW = alpha/r·(W₁ ⊗ W₂), with PEFT's scale also where both sides are whole."""
    tensors = job.named(part, _LOKR)
    first = ("w1",) if "w1" in tensors else ("w1_a", "w1_b")
    second = ("w2",) if "w2" in tensors else ("w2_a", "w2_b")
    core = ("t2",) if "t2" in tensors and "w2_a" in tensors else ()
    job.only(part, [f"lokr_{name}" for name in (*first, *second, *core)])
    out1, in1, r1 = _side(job, tensors, "w1", "")
    out2, in2, r2 = _side(job, tensors, "w2", "t2")
    rank = r1 or r2 or int(job.config.rank(part.module))
    yield formula_site(
        job.store,
        part.module,
        formulas.lokr,
        tensors,
        shape=(out1 * out2, in1 * in2),
        rank=rank,
        scale=job.config.scale(part.module, rank, "alpha"),
    )


def oft_sites(job: Job, part: Part) -> Iterator[Site]:
    """Yield ΔW = W·diag(R)ᵀ − W of orthogonal fine-tuning."""
    if "oft_embedding_R" in part.tensors:
        raise job.wrong(part.tensors["oft_embedding_R"], "a linear layer's or a convolution's OFT")
    job.only(part, ("oft_R",))
    name = part.tensors["oft_R"]
    count, entries = job.matrix(name)
    block = (1 + math.isqrt(1 + 8 * entries)) // 2
    if block * (block - 1) // 2 != entries:
        raise job.wrong(name, "rows of b·(b − 1)/2 numbers")
    wanted = None if count == 1 else count * block
    weight, shape = job.weight(part.module, _ROTATES, in_=wanted)
    if shape[1] % block:
        raise job.wrong(name, f"blocks that divide {shape[1]}")
    yield formula_site(
        job.store,
        part.module,
        formulas.oft,
        {"blocks": name},
        shape=shape,
        weight=weight,
        terms=_neumann_terms(job),
        limit=job.config.number("eps", 6e-5) if job.config.flag("coft") else None,
    )


def boft_sites(job: Job, part: Part) -> Iterator[Site]:
    """Yield ΔW = (W·Fᵀ)∘s − W of orthogonal fine-tuning by butterfly factors."""
    job.only(part, ("boft_R", "boft_s"))
    blocks, gain = part.tensors["boft_R"], part.tensors["boft_s"]
    shape = job.shape(blocks)
    if len(shape) != 4 or 0 in shape or shape[2] != shape[3]:
        raise job.wrong(blocks, "(m, n, b, b)")
    factors, count, block, _ = shape
    if factors > 1 and (block % 2 or factors > 32 or count % 2 ** (factors - 1)):
        raise job.wrong(blocks, "an even block size, and n a multiple of 2 to the m − 1")
    out = job.store.tensors[gain].parameters
    weight, full = job.weight(part.module, _ROTATES, out=out, in_=count * block)
    yield formula_site(
        job.store,
        part.module,
        formulas.boft,
        {"blocks": blocks, "gain": gain},
        shape=full,
        weight=weight,
    )


def _adalora_scale(job: Job) -> float | None:
    config = job.config
    if config.alpha is None and not config.known:
        return None
    rank = config.number("init_r", 12)
    alpha = config.number("lora_alpha", 8) if config.alpha is None else config.alpha
    return (alpha if alpha > 0 else rank) / (rank + 1e-5)


def _scales_rows(job: Job, part: Part) -> bool:
    """Whether IA3's vector scales outputs: its shape says, or for convolutions the names."""
    shape = job.shape(part.tensors["ia3_l"])
    if len(shape) == 2:
        return shape[1] == 1
    if len(shape) < 2 or shape[0] != 1:
        raise job.wrong(part.tensors["ia3_l"], "(out, 1), (1, in) or a convolution's (1, c, 1, 1)")
    names = job.config.names("feedforward_modules")
    return not any(part.module == name or part.module.endswith(f".{name}") for name in names)


def _projection(job: Job, part: Part, parameter: str) -> str:
    shared = [other.tensors for other in job.keys.parts if parameter in other.tensors]
    name = part.tensors.get(parameter) or next((t[parameter] for t in shared), None)
    if name is None:
        raise AdapterError(
            "the random projections that VeRA's updates share are not in the file",
            where=job.store.label,
            expected=f"a tensor base_model.{parameter}",
            got="none; only their seed was saved",
            fix="save it with save_projection=True, or open the live PEFT model",
        )
    return name


def _side(job: Job, tensors: dict[str, str], side: str, core: str) -> tuple[int, int, int | None]:
    """Return (out, in·kernel, rank) of a matrix, or of the factors and core that make it."""
    if side in tensors:
        return (*job.flat(tensors[side]), None)
    a, b = tensors[f"{side}_a"], tensors[f"{side}_b"]
    (rows, columns), (rank, in_) = job.matrix(a), job.matrix(b)
    if core in tensors:
        kernel = job.shape(tensors[core])
        if len(kernel) < 3 or kernel[:2] != (rows, rank):
            raise job.wrong(tensors[core], f"({rows}, {rank}, kernel…)")
        return columns, in_ * math.prod(kernel[2:]), rank
    if columns != rank:
        raise job.wrong(a, f"(out, {rank})")
    return rows, in_, rank


def _neumann_terms(job: Job) -> int | None:
    config = job.config
    if not config.known:
        raise AdapterError(
            "the rotation of this adapter is told by its configuration alone",
            where=job.store.label,
            expected="adapter_config.json, with use_cayley_neumann",
            got="none",
            fix="put the configuration that was saved with it beside the file",
        )
    if not config.flag("use_cayley_neumann"):
        return None
    if config.version < (0, 18):
        job.note("OFT from before PEFT 0.18: its series differed slightly from the one used here")
    terms = config.number("num_cayley_neumann_terms", 5)
    if not 1 <= terms <= 100:
        raise config.unusable("num_cayley_neumann_terms", "a count up to 100", terms)
    return int(terms)
