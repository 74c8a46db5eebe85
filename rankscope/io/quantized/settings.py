"""What ``config.json`` says of the quantisation, as the tensors do not tell all of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankscope.errors import SourceError, os_reason
from rankscope.io.containers.store import file_record, printable

__all__ = ["Settings", "read_settings"]

_BYTES = 10_000_000


@dataclass(frozen=True)
class Settings:
    """The ``quantization_config`` of a checkpoint.

    Attributes
    ----------
    content : dict
        Empty where there is none.
    record : dict or None
        The provenance of the file it was read from.
    """

    content: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] | None = None

    @property
    def method(self) -> str:
        """The library or scheme, such as ``gptq``; empty where nothing says it."""
        return self.word("quant_method")

    def word(self, *keys: str) -> str:
        """Return the first of these entries that is there, in lower case."""
        found = (str(self.content[key]) for key in keys if self.content.get(key) is not None)
        return printable(next(found, "")).lower()[:100]

    def number(self, key: str) -> int | None:
        """Return an entry that is a whole number; None if it is anything else."""
        value = self.content.get(key)
        return value if type(value) is int else None


def read_settings(folder: Path | None) -> Settings:
    """Return the ``quantization_config`` in a folder's ``config.json``; empty without one.

    Raises
    ------
    SourceError
        If the file is there and cannot be used.
    """
    path = None if folder is None else folder / "config.json"
    try:
        if path is None or not path.is_file():
            return Settings()
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
            fix="download it again, or remove it if the weights are not quantised",
        ) from error
    found = content.get("quantization_config") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        return Settings()
    return Settings(found, file_record(path, hashlib.sha256(raw)))
