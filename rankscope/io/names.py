"""What a module's name tells: its layer, its kind, and where it stands in natural order."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["KINDS", "bare_name", "base_name", "kind_of", "layer_of", "natural_key"]

KINDS = ("q", "k", "v", "o", "up", "gate", "down", "embed", "head", "other")

# The last segments of module names in the wild, tried in this order; the first hit decides.
_PATTERNS = (
    ("q", r"q|q_proj|q_lin|query|to_q|wq|q_attn"),
    ("k", r"k|k_proj|k_lin|key|to_k|wk"),
    ("v", r"v|v_proj|v_lin|value|to_v|wv"),
    ("o", r"o|o_proj|out_lin|to_out(\.0)?|wo|(attn|self_attn|attention)(\.\w+)*\.(out_proj|proj"
          r"|c_proj|dense)|self_attention\.dense|attention\.output\.dense"),
    ("gate", r"gate|gate_proj|w1"),
    ("up", r"up|up_proj|w3|fc1|fc_1|lin1|c_fc|fc_in|wi|intermediate\.dense|dense_h_to_4h"),
    ("down", r"down|down_proj|w2|fc2|fc_2|lin2|fc_out|mlp\.(c_proj|proj)|output\.dense"
             r"|dense_4h_to_h"),
    ("head", r"head|lm_head|output|score|classifier(\.\w+)*|embed_out|qa_outputs"),
    ("embed", r"embed|embeddings?|\w*embed_tokens|\w*embed_positions|positions|wte|wpe|shared"
              r"|tok_embeddings|\w*_embeddings?|embed_in"),
)  # fmt: skip
_KINDS = [(kind, re.compile(rf"(?:^|\.)(?:{pattern})$")) for kind, pattern in _PATTERNS]


def kind_of(module: str) -> str:
    """Return the kind of weight that a module's name says, or ``other``.

    One of q, k, v, o (attention), up, gate, down (feed-forward), embed, head, other. A fused
    projection is ``other``.

    Examples
    --------
    >>> kind_of("model.layers.12.self_attn.q_proj"), kind_of("blocks.0.mlp.down")
    ('q', 'down')
    >>> kind_of("transformer.h.0.attn.c_attn")
    'other'
    """
    for kind, pattern in _KINDS:
        if pattern.search(module):
            return kind
    return "other"


def layer_of(module: str) -> int | None:
    """Return the number of the block that holds a module, counted from 0; None outside.

    Examples
    --------
    >>> layer_of("model.layers.12.self_attn.q_proj"), layer_of("lm_head"), layer_of("007")
    (12, None, None)
    """
    match = re.search(r"\.(\d+)\.", module)
    return int(match[1]) if match else None


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key in which layer 2 comes before layer 10.

    Examples
    --------
    >>> sorted(["h.10.q", "h.2.q"], key=natural_key)
    ['h.2.q', 'h.10.q']
    """
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p)


def bare_name(name: str) -> str:
    """Return a name without what PEFT's wrappers add to it.

    Examples
    --------
    >>> bare_name("base_model.model.h.0.q.base_layer.weight")
    'h.0.q.weight'
    """
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def base_name(module: str, names: Iterable[str]) -> str | None:
    """Return which of a base's tensor names is a module's weight; None if it is not certain.

    The module's own name is best; else the one path in the same layer that ends with the
    other, as where an adapter was saved from an inner or outer model.

    Examples
    --------
    >>> base_name("h.0.q", ["model.h.0.q.weight", "model.h.1.q.weight"])
    'model.h.0.q.weight'
    """
    stored = {bare_name(name): name for name in names}
    wanted = f"{module}.weight"
    exact = stored.get(wanted) or stored.get(module)
    if exact is not None:
        return exact
    layer = layer_of(module)
    found = [n for n in stored if layer_of(n) == layer and _one_ends_the_other(n, wanted)]
    return stored[found[0]] if len(found) == 1 else None


def _one_ends_the_other(one: str, other: str) -> bool:
    return one.endswith(f".{other}") or other.endswith(f".{one}")
