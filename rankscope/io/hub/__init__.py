"""Adapters and checkpoints on the Hugging Face hub: headers first, then the tensors needed.

The only place that reaches a network, and only for an address that begins with ``hf://``.
"""

from __future__ import annotations

from rankscope.io.hub.address import PREFIX, Address, origin, parse
from rankscope.io.hub.opening import open_address

__all__ = ["PREFIX", "Address", "open_address", "origin", "parse"]
