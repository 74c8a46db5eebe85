"""Adapter families: one file each, recognised by the keys and not by the file's name.

A new format is a new file with a `Family` and one line in `FAMILIES`.
"""

from __future__ import annotations

from rankscope.io.adapters import numbered, peft
from rankscope.io.adapters.family import Context, Family, Reading

__all__ = ["FAMILIES", "Context", "Family", "Reading"]

FAMILIES: tuple[Family, ...] = (peft.FAMILY, numbered.FAMILY)
