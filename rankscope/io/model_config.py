"""What a model's ``config.json`` says of it: data from a file, of which nothing is trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankscope.errors import SourceError, os_reason
from rankscope.io.containers.store import file_record, printable

__all__ = ["ModelConfig", "read_config", "read_model_config"]

_BYTES = 10_000_000
# Where models of several parts, and of unusual attention, say what the others say at the top.
_INNER = ("text_config", "llm_config", "language_config", "attn_config")
_MULTI_QUERY = ("falcon", "RefinedWebModel", "gpt_bigcode")
_MOST = 1_000_000


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a model's attention, as far as its configuration tells them.

    Attributes
    ----------
    content : dict
        Empty where there is none.
    record : dict or None
        The provenance of the file it was read from.

    Examples
    --------
    >>> told = ModelConfig({"n_head": 4, "n_embd": 12})
    >>> told.heads, told.kv_heads, told.head_size
    (4, 4, 3)
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    record: dict[str, Any] | None = None

    def __bool__(self) -> bool:
        return bool(self.content)

    @property
    def type(self) -> str:
        """The model's family, such as ``gpt2``; empty where nothing says it."""
        return str(self._first("model_type") or "")

    @property
    def heads(self) -> int | None:
        """Heads of the queries."""
        return self.number("num_attention_heads", "n_head", "n_heads", "num_heads")

    @property
    def kv_heads(self) -> int | None:
        """Heads of the keys and values; those of the queries where nothing else is said."""
        if self.multi_query:
            return 1
        if self.flag("multi_query_attention"):
            return self.number("multi_query_group_num")
        keys = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads")
        return self.heads if self._first(*keys) is None else self.number(*keys)

    @property
    def multi_query(self) -> bool:
        """Whether all heads share one key and value, as some families do unless they deny it."""
        return not self.new_falcon and self.flag("multi_query", self.type in _MULTI_QUERY)

    @property
    def new_falcon(self) -> bool:
        """Whether it is one of the Falcons whose keys and values have heads of their own."""
        return self.flag("new_decoder_architecture", self.type == "RefinedWeb")

    @property
    def width(self) -> int | None:
        """Numbers of the residual stream."""
        return self.number("hidden_size", "n_embd", "n_embed", "d_model", "dim")

    @property
    def head_size(self) -> int | None:
        """Rows of one head; the share of the width where nothing else is said."""
        said = self.number("head_dim", "kv_channels", "d_kv")
        if said is not None or self.width is None or self.heads is None:
            return said
        return None if self.width % self.heads else self.width // self.heads

    def number(self, *keys: str) -> int | None:
        """Return the first of these entries that is said, if it is a positive whole number."""
        value = self._first(*keys)
        return value if type(value) is int and 0 < value <= _MOST else None

    def flag(self, key: str, default: bool = False) -> bool:
        """Return an entry that is true or false."""
        value = self._first(key)
        return value if isinstance(value, bool) else default

    def _first(self, *keys: str) -> Any:
        inner = (part for name in _INNER if isinstance(part := self.content.get(name), dict))
        places = (*inner, self.content)
        found = (place[key] for key in keys for place in places if place.get(key) is not None)
        return next(found, None)


def read_model_config(folders: Iterable[Path]) -> ModelConfig:
    """Return the ``config.json`` of the first folder that has one; empty if none has.

    Raises
    ------
    SourceError
        If it is there and cannot be used.
    """
    for folder in folders:
        content, record = read_config(folder)
        if content.get("model_type") is not None:
            return ModelConfig(content, record)
    return ModelConfig()


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return a folder's ``config.json`` and its provenance; empty without one.

    Raises
    ------
    SourceError
        If the file is there and cannot be used.
    """
    path = folder / "config.json"
    try:
        if not path.is_file():
            return {}, None
        if path.stat().st_size > _BYTES:
            raise ValueError(f"more than {_BYTES:,} bytes")
        raw = path.read_bytes()
        content = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(
            "config.json cannot be used",
            where=printable(str(path)),
            expected="the JSON object that was saved with the checkpoint",
            got=printable(os_reason(error) if isinstance(error, OSError) else str(error))[:200],
            fix="download it again, or remove it: unquantised weights can be read without it",
        ) from error
    if not isinstance(content, dict):
        return {}, None
    return content, file_record(path, hashlib.sha256(raw))
