"""What ``config.json`` says of the quantisation, as the tensors do not tell all of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankscope.io.containers.store import printable
from rankscope.io.model_config import read_config

__all__ = ["Settings", "read_settings"]


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
    content, record = ({}, None) if folder is None else read_config(folder)
    found = content.get("quantization_config")
    return Settings(found, record) if isinstance(found, dict) else Settings()
