"""What a module's name tells: its layer, its kind, and where it stands in natural order."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = [
    "FLAT_PREFIXES",
    "KINDS",
    "TOWER",
    "bare_name",
    "expert_number",
    "expert_of",
    "experts_transposed",
    "kind_of",
    "layer_of",
    "natural_key",
    "stored_transposed",
]

# kohya's and LyCORIS' names: one of these, then the path with "_" for ".".
FLAT_PREFIXES = (
    "lora_prior_unet_", "lora_prior_te_", "lora_unet_", "lora_te1_", "lora_te2_", "lora_te3_",
    "lora_te_", "lycoris_", "oft_unet_",
)  # fmt: skip

KINDS = ("q", "k", "v", "o", "up", "gate", "down", "embed", "head", "other")

# The last segments of module names in the wild, tried in this order; the first hit decides.
_PATTERNS = (
    ("q", r"q|attn_q|q_proj|q_lin|query|to_q|wq|q_attn|add_q_proj"),
    ("k", r"k|attn_k|k_proj|k_lin|key|to_k|wk|add_k_proj"),
    ("v", r"v|attn_v|v_proj|v_lin|value|to_v|wv|add_v_proj"),
    ("o", r"o|attn_output|o_proj|out_lin|to_out(\.0)?|to_add_out|output_proj|attention\.wo"
          r"|\w*(attn|attention)(\.\w+)*\.(out_proj|proj|c_proj|dense)"),
    # A bare "gate" is a router of experts as often as a gate.
    ("gate", r"gate_proj|ffn_gate|w1|wi_0|fc_1|gate_up_proj(\[\d+\])?\.gate"),
    ("up", r"up|ffn_up|up_proj|w3|fc1|fc_2|lin1|c_fc|fc_in|wi|wi_1|intermediate\.dense"
           r"|dense_h_to_4h|ff(_context)?\.net\.0\.proj"),
    ("down", r"down|ffn_down|down_proj|w2|fc2|lin2|fc_out|wo|mlp\.(c_proj|proj)|output\.dense"
             r"|dense_4h_to_h|ff(_context)?\.net\.2"),
    ("head", r"head|lm_head|output|score|classifier(\.\w+)*|embed_out|qa_outputs"),
    ("embed", r"embed|token_embd|embeddings?|\w*embed_tokens|\w*embed_positions|positions|wte|wpe"
              r"|shared|tok_embeddings|\w*_embeddings?|embed_in"),
)  # fmt: skip
# A number in brackets counts the experts of one stack, or the heads of one projection.
_KINDS = [
    (kind, re.compile(rf"(?:^|\.)(?:{names})(?:\[(?:head )?\d+\])?$")) for kind, names in _PATTERNS
]


def _flattened(names: str) -> str:
    # "\w" would run over the separators; one word between is all that occurs.
    one_word = names.replace(r"(\.\w+)*", "(_[a-z]+)?").replace(r"\w*", "[a-z0-9]*")
    return one_word.replace(r"\.", "_")


# More digits count nothing that exists.
_NUMBER = re.compile(r"[0-9]{1,9}")

_FLAT_KINDS = [(kind, re.compile(rf"_(?:{_flattened(names)})$")) for kind, names in _PATTERNS]

# What the slice of a fused projection, and of a head, is called behind the projection's name.
_SLICE = re.compile(r"(\.(q|k|v|gate|up))?(\[head \d+\])?$")
_UNET = re.compile(
    r"(?:^|[._])(?:(?:down|up)_blocks|mid_block|(?:input|output)_blocks|middle_block)[._]"
)
_EXPERT = re.compile(r"(?:^|[._])experts\.([0-9]{1,9})\.|\[([0-9]{1,9})\](?:\.\w+)?$")
# Segments of paths that lead to one model of several.
TOWER = re.compile(
    r"(vision|visual|text|audio|image|speech)(_|$)|(en|de)coder$|unet$|transformer_[0-9]$"
    r"|(controlnet|draft|critic|mtp|apm|vpm|tts|talker)$"
)
_WRAPPER = re.compile(r"\.(base_layer|original_module|token_adapter)(?=\.|$)")
_CONV1D = re.compile(r"(.*\.)?(c_attn|c_proj|c_fc|q_attn)(\.weight)?$")


def kind_of(module: str) -> str:
    """Return the kind of weight that a module's name says, or ``other``.

    One of q, k, v, o (attention), up, gate, down (feed-forward), embed, head, other. A fused
    projection is ``other``, its slices are what they are.

    Examples
    --------
    >>> kind_of("model.layers.12.self_attn.q_proj"), kind_of("blocks.0.mlp.down")
    ('q', 'down')
    >>> kind_of("transformer.h.0.attn.c_attn"), kind_of("transformer.h.0.attn.c_attn.q[head 3]")
    ('other', 'q')
    """
    for kind, pattern in _FLAT_KINDS if _is_flat(module) else _KINDS:
        if pattern.search(module):
            return kind
    return "other"


def layer_of(module: str) -> int | None:
    """Return the number of the block that holds a module, counted from 0; None outside.

    None in a U-Net too: the blocks of its ways down and up are counted apart.

    Examples
    --------
    >>> layer_of("model.layers.12.self_attn.q_proj"), layer_of("lm_head"), layer_of("007")
    (12, None, None)
    """
    if _UNET.search(module):
        return None
    flat = _is_flat(_SLICE.sub("", module))
    match = re.search(r"_([0-9]{1,9})_" if flat else r"(?<!\bexperts)\.([0-9]{1,9})\.", module)
    return int(match[1]) if match else None


def expert_number(module: str) -> int | None:
    """Return which expert of its layer a module is, counted from 0; None if it is none.

    Examples
    --------
    >>> expert_number("mlp.experts.down_proj[3]"), expert_number("mlp.experts.7.w1")
    (3, 7)
    >>> expert_number("mlp.experts.gate_up_proj[3].gate"), expert_number("attn.q_proj[head 3]")
    (3, None)
    """
    match = _EXPERT.search(module)
    return int(match[1] or match[2]) if match else None


def _is_flat(module: str) -> bool:
    return "." not in module and module.startswith(FLAT_PREFIXES)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key in which layer 2 comes before layer 10.

    Examples
    --------
    >>> sorted(["h.10.q", "h.2.q"], key=natural_key)
    ['h.2.q', 'h.10.q']
    """
    parts = re.split(r"([0-9]+)", name)
    return tuple((0, int(p), "") if _NUMBER.fullmatch(p) else (1, 0, p) for p in parts if p)


def bare_name(name: str) -> str:
    """Return a name without what PEFT's wrappers add to it.

    Examples
    --------
    >>> bare_name("base_model.model.h.0.q.base_layer.weight")
    'h.0.q.weight'
    """
    return _WRAPPER.sub("", name.removeprefix("base_model.model."))


def stored_transposed(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether a weight is stored (in, out), as GPT-2 and its kin do.

    The name alone is no proof: the fused ``c_attn`` beside it, (d, 3d), is.

    Examples
    --------
    >>> stored_transposed("h.0.c_proj.weight", {"h.0.c_attn.weight": (8, 24)})
    True
    """
    if not _CONV1D.match(bare_name(name)):
        return False
    # In a live PEFT model with its own wrapper between.
    ends = ("c_attn.weight", "c_attn.base_layer.weight")
    fused = (shape for other, shape in shapes.items() if other.endswith(ends))
    return any(len(shape) == 2 and shape[1] == 3 * shape[0] for shape in fused)


def expert_of(module: str) -> tuple[str, int | None]:
    """Return the name of a stack of experts and which of them is meant; None if it is no stack.

    Examples
    --------
    >>> expert_of("mlp.experts.down_proj[3]"), expert_of("mlp.down_proj")
    (('mlp.experts.down_proj', 3), ('mlp.down_proj', None))
    """
    match = re.fullmatch(r"(.+)\[([0-9]{1,9})\]", module)
    return (match[1], int(match[2])) if match else (module, None)


def experts_transposed(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether a stack of experts is stored (E, in, out), as gpt-oss does.

    Told by both stacks of a layer, gate and up together and down: (E, 2f, d) and (E, d, f), or
    turned (E, d, 2f) and (E, f, d). Without the other one nothing is told.

    Examples
    --------
    >>> experts_transposed("e.down_proj", {"e.gate_up_proj": (3, 8, 16), "e.down_proj": (3, 8, 8)})
    True
    """
    stem = re.sub(r"(down|gate_up)_proj(\.weight)?$", "", name)
    both = [shapes.get(f"{stem}{one}_proj", ()) for one in ("gate_up", "down")]
    if stem == name or any(len(shape) != 3 for shape in both):
        return False
    (_, rows, columns), (_, inner, outer) = both
    return (rows, columns) == (outer, 2 * inner)
