"""Heads that are the embedding seen from the other end, and so are stored once."""

from __future__ import annotations

import re

from rankscope.io.configuration import configuration
from rankscope.io.names import kind_of
from rankscope.io.tensors import TensorStore

__all__ = ["tied_embedding"]

_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|embed_in|wte|word_embeddings|shared|token_embd)\.weight$"
)
_GGUF = ("token_embd.weight", "output.weight")


def tied_embedding(base: TensorStore, module: str) -> str | None:
    """Return the embedding that a head shares its weight with; None where nothing says so.

    Said by ``tie_word_embeddings`` in the configuration, or by a GGUF file without a head.

    Examples
    --------
    >>> import torch
    >>> from rankscope.io.tensors import StateDict
    >>> tied_embedding(StateDict({"token_embd.weight": torch.ones(2, 2)}, "x"), "lm_head")
    'token_embd.weight'
    """
    if kind_of(module) != "head":
        return None
    embedding, head = _GGUF
    if embedding in base.tensors and head not in base.tensors:
        return embedding
    if configuration(base).get("tie_word_embeddings") is not True:
        return None
    found = [name for name in base.tensors if _EMBEDDING.search(name)]
    return found[0] if len(found) == 1 else None
