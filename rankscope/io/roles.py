"""What a tensor is that is no update: a bias, a norm, a buffer, or nothing that is known."""

from __future__ import annotations

import re

from rankscope.io.tensors import TensorInfo

__all__ = ["UNKNOWN", "role_of"]

UNKNOWN = "not understood"

_BUFFER = re.compile(
    r"(^|[._])(inv_freq|position_ids|token_type_ids|num_batches_tracked|running_\w+|masked_bias"
    r"|cached_penalty_mat|relative_position_index)$"
)
_BIAS = re.compile(r"(^|[._])(bias|diff_b|b_norm)$")
# A vector of one of these names scales features one by one.
_NORM = re.compile(r"(^|\.)(\w*norm\w*\.)?(weight|scale|gamma|beta|w_norm|diff)$")
_TOKENS = re.compile(r"^<[^>]+>$|^(emb_params|clip_[lg])$")
_SETTING = re.compile(r"(^|\.)(alpha|scale|scalar|rank|on_input)$")


def role_of(name: str, info: TensorInfo) -> str:
    """Return what a tensor is that is no update, by its name, shape and dtype.

    Returns
    -------
    str
        ``bias``, ``norm`` (a vector that scales features), ``buffer`` (masks, counters,
        statistics, tables of rotations), ``tokens`` (embeddings of new words), ``setting`` (a
        number of the adapter), ``matrix`` (one without the base or the partner that would
        make it an update) or ``not understood``.

    Examples
    --------
    >>> role_of("h.0.attn.q.bias", TensorInfo("float32", (8,)))
    'bias'
    >>> role_of("h.0.attn.bias", TensorInfo("uint8", (1, 1, 64, 64)))
    'buffer'
    >>> role_of("mystery", TensorInfo("float32", (3,)))
    'not understood'
    """
    if _BUFFER.search(name) or not info.floating:
        return "buffer"
    if _TOKENS.search(name):
        return "tokens"
    if info.parameters == 1 and _SETTING.search(name):
        return "setting"
    if _BIAS.search(name):
        # GPT-2 stores its causal mask as a bias of four dimensions.
        return "buffer" if len(info.shape) > 2 else "bias"
    if len(info.shape) == 1 and _NORM.search(name):
        return "norm"
    return "matrix" if len(info.shape) > 1 and name.endswith("weight") else UNKNOWN
