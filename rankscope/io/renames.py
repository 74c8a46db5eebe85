"""One module, many names: what libraries call it, brought to one spelling.

Text models get Hugging Face's names of today, diffusion models those of diffusers. Flat names
(``lora_unet_down_blocks_0_…``) are never split: they are compared with the others flattened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from rankscope.io.diffusion_names import to_diffusers
from rankscope.io.fused_layouts import canonical_slice
from rankscope.io.names import FLAT_PREFIXES, bare_name

__all__ = ["Spelling", "is_rotary", "spell"]


class Spelling(NamedTuple):
    """A module's name, and what is the same in the names that other libraries give it.

    Attributes
    ----------
    bare : str
        The name without wrappers and without ``.weight``.
    scheme : str
        Whose names these are, such as ``gguf``; empty where nothing was to be changed.
    component : str
        Which model of a pipeline: ``unet``, ``te1`` …; empty where the name does not tell.
    path : str
        The name within its model in the one spelling; of a flat name, the flat one.
    flats : tuple of str
        The flat names that the module may have, without their prefixes.
    is_flat : bool
        Whether the name itself is flat.
    """

    bare: str
    scheme: str
    component: str
    path: str
    flats: tuple[str, ...]
    is_flat: bool


_FLAT_COMPONENTS = {
    "lora_unet_": "unet", "oft_unet_": "unet", "lora_te_": "te1", "lora_te1_": "te1",
    "lora_te2_": "te2", "lora_te3_": "te3", "lora_prior_unet_": "prior", "lora_prior_te_": "te1",
    "lycoris_": "",
}  # fmt: skip
# What pipelines and checkpoints put before a model's own names. GPT-2's names start with
# "transformer." too, so that what follows must be a diffusion model's.
_ROOTS = (
    (re.compile(r"(model\.)?diffusion_model\.|unet\.|transformer\.(?=(single_)?transformer_blocks\."
                r"|(double|single)_blocks\.|(x|context)_embedder|time_text_embed|proj_out"
                r"|(img|txt)_in)"), "unet"),
    (re.compile(r"text_encoder\.|cond_stage_model\.transformer\.|text_encoders\.clip_l\.transformer\."
                r"|conditioner\.embedders\.0\.transformer\."), "te1"),
    # T5 is the second encoder of FLUX and the third of Stable Diffusion 3.
    (re.compile(r"text_encoder_3\.|text_encoder_2\.(?=encoder\.block\.)"
                r"|text_encoders\.t5xxl\.transformer\."), "te3"),
    (re.compile(r"text_encoder_2\.|text_encoders\.clip_g\.transformer\."), "te2"),
    (re.compile(r"prior\."), "prior"),
)  # fmt: skip

# What a slice of a fused projection has behind the projection's name.
_SLICE = re.compile(r"\.(q|k|v|gate|up)$")


@lru_cache(maxsize=1 << 16)
def spell(name: str) -> Spelling:
    """Return the spellings of a module's or a tensor's name.

    Examples
    --------
    >>> spell("blk.3.attn_q.weight").path
    'model.layers.3.self_attn.q_proj'
    >>> spell("lora_unet_input_blocks_4_1_proj_in").path
    'down_blocks_1_attentions_0_proj_in'
    """
    bare = bare_name(name).removesuffix(".weight")
    prefix = next((p for p in FLAT_PREFIXES if bare.startswith(p)), "")
    if prefix and "." not in _SLICE.sub("", bare):
        return _flat(bare, prefix)
    component, rest = _component(bare)
    scheme, path = _renamed(rest)
    if component.startswith("te") and path.startswith("encoder.layers."):
        scheme, path = "transformers", f"text_model.{path}"
    flats = tuple(dict.fromkeys(p.replace(".", "_") for p in (bare, rest, path)))
    return Spelling(bare, scheme, component, path, flats, is_flat=False)


def _flat(bare: str, prefix: str) -> Spelling:
    rest, component = bare.removeprefix(prefix).replace(".", "_"), _FLAT_COMPONENTS[prefix]
    # Some trainers count T5 as the second encoder.
    if component == "te2" and rest.startswith("encoder_block_"):
        component = "te3"
    scheme, path = to_diffusers(rest, flat=True)
    return Spelling(bare, scheme, component, path, tuple(dict.fromkeys((rest, path))), True)


def is_rotary(name: str) -> bool:
    """Whether the rows of a module stand in Meta's rotary order, by its name alone.

    Examples
    --------
    >>> is_rotary("layers.0.attn.q_proj"), is_rotary("model.layers.0.self_attn.q_proj")
    (True, False)
    """
    return re.fullmatch(r"layers\.\d+\.(attn\.[qk]_proj|attention\.w[qk])", name) is not None


def _component(name: str) -> tuple[str, str]:
    for root, component in _ROOTS:
        if match := root.match(name):
            return component, name[match.end() :]
    return "", name


def _renamed(path: str) -> tuple[str, str]:
    """Return whose names these are and the one spelling; nobody's where nothing changes."""
    path = canonical_slice(path)
    scheme, new = to_diffusers(path)
    if not scheme:
        scheme, new = _hugging_face(path)
    # A name of another library may still be an expert of a stack.
    final = _transformers(new)
    return scheme or ("transformers" if final != path else ""), final


# transformers 4 and 5 ------------------------------------------------------------------------

# A part that the name must have, what is replaced, and by what; one after the other.
_TRANSFORMERS = [
    (part, re.compile(pattern), new)
    for part, pattern, new in (
        ("language_model.", r"^(?:model\.)?language_model\.lm_head$", "lm_head"),
        ("language_model.", r"^(?:model\.)?language_model\.(?:model\.)?", "model.language_model."),
        ("vision_tower.", r"(^|\.)vision_tower\.vision_model\.", r"\1vision_tower."),
        ("", r"^(vision_tower|vision_model|audio_tower|visual|multi_modal_projector)\.",
         r"model.\1."),
        ("block_sparse_moe", r"\.block_sparse_moe\.", ".mlp."),
        ("switch_mlp", r"\.switch_mlp\.", ".experts."),
        (".w1", r"\.experts\.(\d+)\.w1$", r".experts.gate_proj[\1]"),
        (".w2", r"\.experts\.(\d+)\.w2$", r".experts.down_proj[\1]"),
        (".w3", r"\.experts\.(\d+)\.w3$", r".experts.up_proj[\1]"),
        ("experts.", r"\.experts\.(\d+)\.(\w+)$", r".experts.\2[\1]"),
        ("encoder.layer.", r"(^|\.)encoder\.layer\.(\d+)\.", r"\1layers.\2."),
        ("attention.attention", r"\.attention\.attention\.(q|k|v)(?:uery|ey|alue)$",
         r".attention.\1_proj"),
        ("output.dense", r"\.attention\.output\.dense$", ".attention.o_proj"),
        ("intermediate.dense", r"(layers\.\d+)\.intermediate\.dense$", r"\1.mlp.fc1"),
        ("output.dense", r"(layers\.\d+)\.output\.dense$", r"\1.mlp.fc2"),
        ("embed_out", r"^embed_out$", "lm_head"),
    )
]  # fmt: skip


def _transformers(path: str) -> str:
    for part, pattern, new in _TRANSFORMERS:
        if part in path:
            path = pattern.sub(new, path)
    return path


# Text models of other libraries --------------------------------------------------------------

_HEAD = {"head": "lm_head", "embed": "model.embed_tokens", "norm": "model.norm"}
_ATTENTION = {letter: f"self_attn.{letter}_proj" for letter in "qkvo"}
_MLP = {kind: f"mlp.{kind}_proj" for kind in ("gate", "up", "down")}
_EXPERTS = {kind: f"mlp.experts.{kind}_proj" for kind in ("gate", "up", "down")}
_SHARED = {kind: f"mlp.shared_expert.{kind}_proj" for kind in ("gate", "up", "down")}


class _Scheme(NamedTuple):
    """A library's names: outside of the blocks, and within them."""

    name: str
    block: re.Pattern[str]
    outside: Mapping[str, str]
    inside: Mapping[str, str]


_SCHEMES = (
    _Scheme(
        "gguf",
        re.compile(r"blk\.(\d+)\.([\w.]+?)(\[\d+\])?$"),
        {"token_embd": _HEAD["embed"], "output": _HEAD["head"], "output_norm": _HEAD["norm"]},
        {
            **{f"attn_{letter}": _ATTENTION[letter] for letter in "qkv"},
            "attn_output": _ATTENTION["o"],
            "attn_qkv": "self_attn.qkv_proj",
            "attn_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "attn_q_a": "self_attn.q_a_proj",
            "attn_q_b": "self_attn.q_b_proj",
            "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
            "attn_kv_b": "self_attn.kv_b_proj",
            "ffn_gate_inp": "mlp.gate",
            "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
            **{f"ffn_{kind}": name for kind, name in _MLP.items()},
            **{f"ffn_{kind}_exps": name for kind, name in _EXPERTS.items()},
            **{f"ffn_{kind}_shexp": name for kind, name in _SHARED.items()},
        },
    ),
    _Scheme(
        "torchtune",
        re.compile(r"layers\.(\d+)\.((?:attn|mlp|attention|feed_forward)\.\w+)()$"),
        {"tok_embeddings": _HEAD["embed"], "output": _HEAD["head"]},
        {
            **{f"attn.{letter}_proj": _ATTENTION[letter] for letter in "qkv"},
            "attn.output_proj": _ATTENTION["o"],
            **{f"attention.w{letter}": name for letter, name in _ATTENTION.items()},
            **{f"{mlp}.w{number}": _MLP[kind]
               for mlp in ("mlp", "feed_forward")
               for number, kind in ((1, "gate"), (2, "down"), (3, "up"))},
        },
    ),
    _Scheme(
        "litgpt",
        re.compile(r"transformer\.h\.(\d+)\.((?:attn|mlp)\.[\w.]+)()$"),
        {"transformer.wte": _HEAD["embed"]},
        {
            "attn.proj": _ATTENTION["o"],
            **{f"attn.qkv.{letter}": _ATTENTION[letter] for letter in "qkv"},
            "mlp.fc_1": _MLP["gate"],
            "mlp.fc_2": _MLP["up"],
            "mlp.proj": _MLP["down"],
        },
    ),
)  # fmt: skip


def _hugging_face(path: str) -> tuple[str, str]:
    for scheme in _SCHEMES:
        if path in scheme.outside:
            return scheme.name, scheme.outside[path]
        match = scheme.block.match(path)
        if match and match[2] in scheme.inside:
            return (
                scheme.name,
                f"model.layers.{match[1]}.{scheme.inside[match[2]]}{match[3] or ''}",
            )
    return "", path
