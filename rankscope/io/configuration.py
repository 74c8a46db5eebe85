"""What the ``config.json`` beside a checkpoint says of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankscope.io.tensors import TensorStore

__all__ = ["configuration"]

_BYTES = 10_000_000


def configuration(store: TensorStore) -> Mapping[str, Any]:
    """Return a model's configuration, the language model's where it is one of several parts.

    Empty where there is none that can be used: it only adds to what the tensors tell.
    """
    path = store.provenance.get("path")
    file = Path(path or "").parent / "config.json"
    try:
        if path is None or not file.is_file() or file.stat().st_size > _BYTES:
            return {}
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    inner = content.get("text_config") if isinstance(content, dict) else None
    found = inner if isinstance(inner, dict) else content
    return found if isinstance(found, dict) else {}
