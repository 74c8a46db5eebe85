"""What the ``config.json`` beside a checkpoint says of the model, where it can be used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankscope.errors import SourceError
from rankscope.io.model_config import read_config
from rankscope.io.tensors import TensorStore

__all__ = ["configuration"]


def configuration(store: TensorStore) -> Mapping[str, Any]:
    """Return a model's configuration, the language model's where it is one of several parts.

    Empty where there is none that can be used: it only adds to what the tensors tell.
    """
    path = store.provenance.get("path")
    if path is None:
        return {}
    try:
        content, _ = read_config(Path(path).parent)
    except SourceError:
        return {}
    inner = content.get("text_config")
    return inner if isinstance(inner, dict) else content
