"""How the rows of fused projections are shared out, and what their parts are called elsewhere.

By the model's configuration where the family's code decides, by the shape alone where every
model with such a name shares its rows out alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from rankscope.io.containers.sliced import Block
from rankscope.io.model_config import ModelConfig
from rankscope.io.names import expert_of

__all__ = [
    "Layout",
    "canonical_slice",
    "fused_name",
    "is_fused",
    "layout_of",
    "split_names",
    "told_of",
]

_TOWER = re.compile(r"(^|[._])(vision|visual|image|audio|speech)")
_GATE_UP = re.compile(r"(?:^|[._])gate_up_proj$")
# The known models with these names keep q, k and v one below the other, but for timm's
# convolutional ones, whose blocks lie in stages and keep each head's together.
_STACKED = re.compile(
    r"^(?!.*stages[._][0-9])(?:(?:.*\.)?(?:c_attn|in_proj_weight|Wqkv|W_pack|to_qkv)"
    r"|(?:.*[._])?(?:attn|attention)[._]qkv)$"
)
_CROSS = re.compile(r"(?:^|\.)crossattention\.c_attn$")
# The rows of these, and of qkv_proj elsewhere, differ from family to family.
_BY_FAMILY = re.compile(r"(?:^|[._])(query_key_value|wqkv|qkv_proj)$")
_SPLIT = {
    "qkv_proj": {"q": "q_proj", "k": "k_proj", "v": "v_proj"},
    "gate_up_proj": {"gate": "gate_proj", "up": "up_proj"},
    "to_qkv": {"q": "to_q", "k": "to_k", "v": "to_v"},
    "attn_qkv": {"q": "attn_q", "k": "attn_k", "v": "attn_v"},
}
_FUSED = re.compile(rf"(?P<path>(?:.*\.)?)(?P<name>{'|'.join(_SPLIT)})(?:\[(?P<expert>\d+)\])?")
_NOT_TOLD = (
    "only a known model's config.json, beside the base, tells how their rows are shared out"
)
_MISFIT = "the heads that config.json tells do not give {} rows"


@dataclass(frozen=True)
class Layout:
    """How the rows of a fused projection are shared out.

    Attributes
    ----------
    groups : int
        Groups of rows that are made alike: 1 where the parts lie one below the other, the
        number of heads where each head has its own q, k and v.
    parts : tuple of (str, int)
        What the rows of a group are, in order, and how many of them.

    Examples
    --------
    >>> Layout(2, (("q", 3), ("k", 3), ("v", 3))).blocks["k"]
    Block(groups=2, start=3, stop=6, columns=False)
    """

    groups: int
    parts: tuple[tuple[str, int], ...]

    @property
    def rows(self) -> int:
        """All of them."""
        return self.groups * sum(count for _, count in self.parts)

    @property
    def blocks(self) -> dict[str, Block]:
        """Which rows each part has."""
        found, start = {}, 0
        for name, count in self.parts:
            found[name] = Block(self.groups, start, start + count)
            start += count
        return found


def is_fused(module: str) -> bool:
    """Return whether a module's name is that of several projections in one.

    Examples
    --------
    >>> is_fused("h.0.attn.c_attn"), is_fused("mlp.experts.gate_up_proj[3]"), is_fused("q_proj")
    (True, True, False)
    """
    name, _ = expert_of(module)
    return any(pattern.search(name) for pattern in (_GATE_UP, _STACKED, _CROSS, _BY_FAMILY))


def layout_of(
    module: str, shape: tuple[int, int], config: ModelConfig, *, straight: bool = False
) -> Layout | str:
    """Return how the rows of a fused projection are shared out, or why that is not known.

    Parameters
    ----------
    module : str
        The name of a fused projection.
    shape : (int, int)
        ``(out, in)``.
    config : ModelConfig
        Of the model, empty where there is none.
    straight : bool
        Whether the base is known to keep this stack of experts as (expert, out, in).

    Examples
    --------
    >>> layout_of("h.0.attn.c_attn", (12, 4), ModelConfig()).parts
    (('q', 4), ('k', 4), ('v', 4))
    >>> layout_of("mlp.gate_up_proj", (6, 4), ModelConfig()).parts
    (('gate', 3), ('up', 3))
    """
    name, expert = expert_of(module)
    if _GATE_UP.search(name):
        return _stack(shape, config, straight) if expert is not None else _halves(shape[0])
    told = told_of(module, config)
    family, rule = _FAMILIES.get(told.type, ("", None))
    if rule is not None and re.search(rf"(?:^|[._]){family}$", name):
        return _fitting(rule(told), shape[0])
    if _BY_FAMILY.search(name):
        return _by_heads_alone(name, told, shape)
    return _by_heads(told, shape) or _by_shape(name, shape) or _not_known(told, shape[0])


def told_of(module: str, config: ModelConfig) -> ModelConfig:
    """Return what a configuration tells of a module: nothing of the tower of another modality."""
    return ModelConfig() if _TOWER.search(module) else config


def _fitting(layout: Layout | None, rows: int) -> Layout | str:
    return layout if layout is not None and layout.rows == rows else _MISFIT.format(rows)


def _not_known(config: ModelConfig, rows: int) -> str:
    return _NOT_TOLD if config.heads is None else _MISFIT.format(rows)


def _halves(rows: int) -> Layout | str:
    half, rest = divmod(rows, 2)
    return f"{rows} rows have no halves" if rest else _rows(gate=half, up=half)


def _stack(shape: tuple[int, int], config: ModelConfig, straight: bool) -> Layout | str:
    """Return the layout of one of the stacked experts, whose gate and up may lie in turn."""
    halves = _halves(shape[0])
    # An old adapter's stack is read as it is stored, perhaps with the inputs first.
    if config.width not in (None, shape[1]):
        return f"their columns are not the {config.width} inputs that config.json tells"
    if config.type == "gpt_oss" and isinstance(halves, Layout):
        return Layout(shape[0] // 2, (("gate", 1), ("up", 1)))
    if config.type == "openai_privacy_filter" or not (config.type or straight):
        return _NOT_TOLD
    return halves


def _by_heads_alone(name: str, config: ModelConfig, shape: tuple[int, int]) -> Layout | str:
    """Return the layout where thirds by shape prove nothing unless no heads are told."""
    if not name.endswith("qkv_proj"):
        return _NOT_TOLD
    if config.heads is not None:
        return _by_heads(config, shape) or _MISFIT.format(shape[0])
    return _by_shape(name, shape) or _NOT_TOLD


def _by_shape(name: str, shape: tuple[int, int]) -> Layout | None:
    out, in_ = shape
    if _CROSS.search(name) and out == 2 * in_:
        return _rows(k=in_, v=in_)
    return _rows(q=in_, k=in_, v=in_) if _STACKED.search(name) and out == 3 * in_ else None


def _by_heads(config: ModelConfig, shape: tuple[int, int]) -> Layout | None:
    """Return q, k and v by the number of their heads, where that gives this very shape."""
    layout = _stacked_heads(config)
    return layout if layout is not None and (layout.rows, config.width) == shape else None


def _rows(**parts: int) -> Layout:
    return Layout(1, tuple(parts.items()))


def _per_head(config: ModelConfig) -> Layout | None:
    heads, size = config.heads, config.head_size
    if heads is None or size is None:
        return None
    return Layout(heads, (("q", size), ("k", size), ("v", size)))


def _per_kv_head(config: ModelConfig) -> Layout | None:
    heads, kv_heads, size = config.heads, config.kv_heads, config.head_size
    if heads is None or kv_heads is None or size is None or heads % kv_heads:
        return None
    return Layout(kv_heads, (("q", heads // kv_heads * size), ("k", size), ("v", size)))


def _stacked_heads(config: ModelConfig) -> Layout | None:
    heads, kv_heads, size = config.heads, config.kv_heads, config.head_size
    if heads is None or kv_heads is None or size is None:
        return None
    return _rows(q=heads * size, k=kv_heads * size, v=kv_heads * size)


def _falcon(config: ModelConfig) -> Layout | None:
    return _per_kv_head(config) if config.new_falcon else _one_or_per_head(config)


def _one_or_per_head(config: ModelConfig) -> Layout | None:
    return _stacked_heads(config) if config.multi_query else _per_head(config)


def _chatglm(config: ModelConfig) -> Layout | None:
    grouped = config.flag("multi_query_attention")
    return _stacked_heads(config) if grouped else _per_head(config)


def _codegen(config: ModelConfig) -> Layout | None:
    """Return four groups, once one per chip, of q, v and k in this order."""
    if config.heads is None or config.head_size is None or config.heads % 4:
        return None
    rows = config.heads // 4 * config.head_size
    return Layout(4, (("q", rows), ("v", rows), ("k", rows)))


# By the model's type: the name of the projection, and how its rows are shared out.
_FAMILIES: dict[str, tuple[str, Callable[[ModelConfig], Layout | None]]] = {
    **dict.fromkeys(
        ("bloom", "gpt_neox", "gpt_neox_japanese", "persimmon"), ("query_key_value", _per_head)
    ),
    **dict.fromkeys(("falcon", "RefinedWeb", "RefinedWebModel"), ("query_key_value", _falcon)),
    "chatglm": ("query_key_value", _chatglm),
    "minimax": ("qkv_proj", _per_head),
    "gpt_bigcode": ("c_attn", _one_or_per_head),
    "codegen": ("qkv_proj", _codegen),
    "internlm2": ("wqkv", _per_kv_head),
}


def split_names(module: str) -> tuple[str, ...]:
    """Return what the parts of a fused projection are called where they stand apart.

    The module's own name alone where it is not fused, or always is.

    Examples
    --------
    >>> split_names("h.0.self_attn.qkv_proj")
    ('h.0.self_attn.q_proj', 'h.0.self_attn.k_proj', 'h.0.self_attn.v_proj')
    >>> split_names("mlp.experts.gate_up_proj[3]")
    ('mlp.experts.3.gate_proj', 'mlp.experts.3.up_proj')
    >>> split_names("h.0.attn.c_attn")
    ('h.0.attn.c_attn',)
    """
    match = _FUSED.fullmatch(module)
    if match is None:
        return (module,)
    expert = "" if match["expert"] is None else f"{match['expert']}."
    return tuple(f"{match['path']}{expert}{part}" for part in _SPLIT[match["name"]].values())


def canonical_slice(module: str) -> str:
    """Return what a slice of a fused projection is called where the projections stand apart.

    The name itself where there is no such spelling; a head stays behind it.

    Examples
    --------
    >>> canonical_slice("h.0.self_attn.qkv_proj.q"), canonical_slice("h.0.attn.c_attn.q")
    ('h.0.self_attn.q_proj', 'h.0.attn.c_attn.q')
    >>> canonical_slice("mlp.experts.gate_up_proj[3].gate")
    'mlp.experts.3.gate_proj'
    >>> canonical_slice("h.0.self_attn.qkv_proj.k[head 1]")
    'h.0.self_attn.k_proj[head 1]'
    """
    match = re.fullmatch(r"(.+)\.(q|k|v|gate|up)(\[head \d+\])?", module)
    fused = _FUSED.fullmatch(match[1]) if match else None
    if match is None or fused is None or match[2] not in _SPLIT[fused["name"]]:
        return module
    index = list(_SPLIT[fused["name"]]).index(match[2])
    return split_names(match[1])[index] + (match[3] or "")


def fused_name(module: str) -> tuple[str, str]:
    """Return the projection that a module is fused into elsewhere, and which part it is there.

    The module's own name and nothing where there is no such spelling.

    Examples
    --------
    >>> fused_name("h.0.self_attn.q_proj"), fused_name("mlp.experts.3.up_proj")
    (('h.0.self_attn.qkv_proj', 'q'), ('mlp.experts.gate_up_proj[3]', 'up'))
    >>> fused_name("mlp.experts.up_proj[3]")
    ('mlp.experts.gate_up_proj[3]', 'up')
    >>> fused_name("h.0.attn.wq")
    ('h.0.attn.wq', '')
    """
    path, _, name = re.sub(r"experts\.(\w+)\[(\d+)\]$", r"experts.\2.\1", module).rpartition(".")
    for fused, parts in _SPLIT.items():
        for part, split in parts.items():
            if split == name:
                stack = re.fullmatch(r"(.*experts)\.(\d+)", path)
                whole = f"{stack[1]}.{fused}[{stack[2]}]" if stack else f"{path}.{fused}"
                return whole.removeprefix("."), part
    return module, ""
