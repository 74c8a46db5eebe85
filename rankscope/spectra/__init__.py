"""The singular value decomposition of an update, by methods that are values."""

from rankscope.spectra.methods import Auto, Decomposition, Exact, Gram, Leading, Method
from rankscope.spectra.spectrum import DIRECTION_TOLERANCE, Spectrum, svd

__all__ = [
    "DIRECTION_TOLERANCE",
    "Auto",
    "Decomposition",
    "Exact",
    "Gram",
    "Leading",
    "Method",
    "Spectrum",
    "svd",
]
