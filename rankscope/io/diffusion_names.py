"""The original names of Stable Diffusion and FLUX, and what diffusers calls the same modules."""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["to_diffusers"]

_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_UNET = {
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
}  # fmt: skip
# final_layer.adaLN_modulation.1 is left out: norm_out.linear has the halves of its rows swapped.
_FLUX = {
    "img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out",
    **{f"{old}.{part}": f"time_text_embed.{new}.linear_{number}"
       for old, new in (("time_in", "timestep_embedder"), ("vector_in", "text_embedder"),
                        ("guidance_in", "guidance_embedder"))
       for number, part in ((1, "in_layer"), (2, "out_layer"))},
}  # fmt: skip
_DOUBLE = {
    "img_attn.proj": "attn.to_out.0", "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2",
    "img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear",
    # Slices of the fused projections.
    **{f"img_attn.qkv.{letter}": f"attn.to_{letter}" for letter in "qkv"},
    **{f"txt_attn.qkv.{letter}": f"attn.add_{letter}_proj" for letter in "qkv"},
}  # fmt: skip
_SINGLE = {"linear2": "proj_out", "modulation.lin": "norm.linear"}


def _input(number: str, part: str, rest: str) -> str | None:
    """Return diffusers' name of ``input_blocks.<number>.<part>.<rest>``: three to a block."""
    block, layer = divmod(int(number) - 1, 3)
    if layer == 2:
        down = f"down_blocks.{block}.downsamplers.0.conv"
        return down if (part, rest) == ("0", "op") else None
    return _layer(f"down_blocks.{block}", layer, part, rest) if block >= 0 else None


def _output(number: str, part: str, rest: str) -> str | None:
    block, layer = divmod(int(number), 3)
    if rest == "conv" and part != "0":
        return f"up_blocks.{block}.upsamplers.0.conv" if layer == 2 else None
    return _layer(f"up_blocks.{block}", layer, part, rest)


def _middle(number: str, rest: str) -> str | None:
    part, layer = ("1", 0) if number == "1" else ("0", int(number) // 2)
    return _layer("mid_block", layer, part, rest)


def _layer(block: str, layer: int, part: str, rest: str) -> str | None:
    if part == "1":
        return f"{block}.attentions.{layer}.{rest}"
    return f"{block}.resnets.{layer}.{_RESNET[rest]}" if rest in _RESNET else None


def _double(number: str, rest: str) -> str | None:
    return f"transformer_blocks.{number}.{_DOUBLE[rest]}" if rest in _DOUBLE else None


def _single(number: str, rest: str) -> str | None:
    return f"single_transformer_blocks.{number}.{_SINGLE[rest]}" if rest in _SINGLE else None


_BLOCKS: tuple[tuple[str, str, Callable[..., str | None]], ...] = (
    ("ldm", r"input_blocks\.(\d{1,4})\.([01])\.(.+)", _input),
    ("ldm", r"output_blocks\.(\d{1,4})\.([012])\.(.+)", _output),
    ("ldm", r"middle_block\.([012])\.(.+)", _middle),
    ("bfl", r"double_blocks\.(\d{1,4})\.(.+)", _double),
    ("bfl", r"single_blocks\.(\d{1,4})\.(.+)", _single),
)
_PATTERNS = {
    flat: [
        (scheme, re.compile(pattern.replace(r"\.", "_") if flat else pattern), rename)
        for scheme, pattern, rename in _BLOCKS
    ]
    for flat in (False, True)
}
# From what is left of a flat name to the name: these few are told by their words alone.
_DOTTED = {
    name.replace(".", "_"): name
    for names in (_RESNET, _UNET, _FLUX, _DOUBLE, _SINGLE)
    for name in names
}


def to_diffusers(path: str, *, flat: bool = False) -> tuple[str, str]:
    """Return whose original name this is (``ldm``, ``bfl``) and what diffusers calls it.

    A name that is neither comes back as it is, beside an empty word. Names of modules without
    a counterpart, such as the fused q, k, v of FLUX, are left as they are.

    Parameters
    ----------
    path : str
        Within the model, without ``unet.`` and the like.
    flat : bool
        Whether the dots are underscores, before and after.

    Examples
    --------
    >>> to_diffusers("input_blocks.4.1.proj_in")
    ('ldm', 'down_blocks.1.attentions.0.proj_in')
    >>> to_diffusers("double_blocks_7_img_mlp_0", flat=True)
    ('bfl', 'transformer_blocks_7_ff_net_0_proj')
    """
    scheme, new = _looked_up(_DOTTED.get(path, path) if flat else path, flat)
    if not scheme:
        return "", path
    return scheme, new.replace(".", "_") if flat else new


def _looked_up(path: str, flat: bool) -> tuple[str, str]:
    for scheme, names in (("ldm", _UNET), ("bfl", _FLUX)):
        if path in names:
            return scheme, names[path]
    for scheme, pattern, rename in _PATTERNS[flat]:
        if match := pattern.fullmatch(path):
            *numbers, rest = match.groups()
            new = rename(*numbers, _DOTTED.get(rest, rest) if flat else rest)
            return ("", path) if new is None else (scheme, new)
    return "", path
