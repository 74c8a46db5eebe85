"""A bare list of factors, as the first LoRA for Stable Diffusion (cloneofsimo/lora) saved."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

__all__ = ["by_number"]

# The library's own ending of the second file that it writes.
_TEXT_ENCODER = ".text_encoder"


def by_number(content: object, path: Path) -> object:
    """Return a list ``[up0, down0, up1, …]`` under the names of the format that came after it.

    Anything else is returned as it is. The model that the numbers count through is known by
    the file's name alone, as the library gives it.

    Examples
    --------
    >>> import torch
    >>> list(by_number([torch.ones(6, 2), torch.ones(2, 4)], Path("lora.pt")))
    ['unet:0:up', 'unet:0:down']
    """
    if not isinstance(content, list) or len(content) % 2:
        return content
    pairs = list(zip(content[::2], content[1::2], strict=True))
    if not all(_chains(up, down) for up, down in pairs):
        return content
    model = "text_encoder" if path.stem.endswith(_TEXT_ENCODER) else "unet"
    sides = ("up", "down")
    return {
        f"{model}:{n}:{s}": pair[i] for n, pair in enumerate(pairs) for i, s in enumerate(sides)
    }


def _chains(up: object, down: object) -> bool:
    if not isinstance(up, Tensor) or not isinstance(down, Tensor):
        return False
    return min(up.ndim, down.ndim) >= 2 and up.shape[1] == down.shape[0]
