"""Adapter families: one file each, recognised by the keys and not by the file's name.

A new format is a new file with a `Family` and one line in `FAMILIES`.
"""

from __future__ import annotations

from rankscope.io.adapters import (
    cloneofsimo,
    diffusers,
    generic,
    gguf,
    kohya,
    litgpt,
    loralib,
    mlx,
    numbered,
    peft,
    torchtune,
)
from rankscope.io.adapters.family import Context, Family, Reading

__all__ = ["FAMILIES", "Context", "Family", "Reading"]

# The first that recognises a file reads it: the narrower stand before the wider.
FAMILIES: tuple[Family, ...] = (
    gguf.FAMILY,
    litgpt.FAMILY,
    loralib.FAMILY,
    loralib.MERGED,
    diffusers.FAMILY,
    peft.FAMILY,
    kohya.FAMILY,
    cloneofsimo.FAMILY,
    mlx.FAMILY,
    torchtune.FAMILY,
    numbered.FAMILY,
    generic.FAMILY,
)
