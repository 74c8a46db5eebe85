"""The intrinsic rank of weight updates."""

__version__ = "0.1.0"
