"""What can be read, and against what it is tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from rankscope.results import Result, provenance

__all__ = ["FormatsResult", "formats"]

_COLUMNS = ("format", "supported", "oracle", "needs_base")

# Every family of `rankscope.io.adapters` by its name, and pairs of checkpoints. The README holds
# the same table, and a test holds it to this one.
_ROWS = (
    (
        "peft",
        "LoRA: folder, file, live model, raw state dict; rsLoRA, patterns, embeddings, "
        "convolutions, fused experts, DoRA, PiSSA, OLoRA, modules_to_save; AdaLoRA, VeRA, IA³, "
        "LoHa, LoKr, OFT, BOFT",
        "PEFT's own merge",
        "DoRA, PiSSA, OLoRA, VeRA, IA³, OFT, BOFT, modules_to_save",
    ),
    ("peft-merged-linear", "fused projections of early PEFT", "its grouped convolution", None),
    (
        "kohya",
        "LoRA, LoCon; LyCORIS: LoHa, LoKr, Tucker, dora_scale, diff, GLoRA, Diag-OFT, BOFT, IA³",
        "LyCORIS' own forward pass",
        "dora_scale, GLoRA, Diag-OFT, BOFT, IA³",
    ),
    ("diffusers", "three generations of keys", "the formula; PEFT for the header's alpha", None),
    ("loralib", "Linear, Embedding, Conv, MergedLinear", "loralib's train against eval", None),
    ("cloneofsimo", "safetensors, and lists in .pt", "the formula", None),
    ("mlx", "LoRA and DoRA, safetensors and npz", "the formula", "DoRA"),
    ("gguf", "LoRA of llama.cpp", "the formula, with gguf-py's own writer", None),
    ("torchtune", "LoRA", "the formula", None),
    ("litgpt", "LoRA, fused projections", "the formula", None),
    ("w_a/w_b", "numbered pairs, at scale 1 unless --alpha", "the product", None),
    ("generic", "any two factors that chain, at scale 1 unless --alpha", "the product", None),
    (
        "pair",
        "fine-tuned checkpoint and base: safetensors, .bin, .pt, .pth, sharded or not, .npz, "
        "GGUF (split too); bases also quantised: bitsandbytes, GPTQ, AWQ, FP8, MXFP4, "
        "compressed-tensors",
        "the difference; the formats' own libraries for quantised bases",
        "always",
    ),
)


@dataclass(frozen=True, eq=False, repr=False)
class FormatsResult(Result):
    """What can be read; columns as in ``rankscope.formats/1``."""

    schema: ClassVar[str] = "rankscope.formats/1"


def formats() -> FormatsResult:
    """List what can be read, and against which oracle it is tested.

    Returns
    -------
    FormatsResult
        A row per family of files, named as ``info`` names them. `needs_base` says which parts
        of a family have no ΔW without the base weights; undefined where none needs them.

    Examples
    --------
    >>> table = formats().table
    >>> table[table.format == "pair"].oracle.item()
    "the difference; the formats' own libraries for quantised bases"
    """
    return FormatsResult(
        table=pd.DataFrame(_ROWS, columns=list(_COLUMNS)),
        provenance=provenance("formats", {}, {}, "cpu"),
    )
