"""Results: a tidy table, where it came from, and how it is shown, drawn and saved."""

from __future__ import annotations

from rankscope.results.amplification import AmplificationResult
from rankscope.results.base import (
    FIGURE_SUFFIXES,
    REPORT_SUFFIXES,
    TABLE_SUFFIXES,
    Result,
    drawn,
    provenance,
    unknown_suffix,
)
from rankscope.results.beside import check_beside, save_all
from rankscope.results.compare import CompareResult
from rankscope.results.info import InfoResult
from rankscope.results.rank import Advice, RankResult
from rankscope.results.resize import ExtractResult, ResizeResult
from rankscope.results.similarity import SimilarityResult
from rankscope.results.spectrum import SpectrumResult

__all__ = [
    "FIGURE_SUFFIXES",
    "REPORT_SUFFIXES",
    "TABLE_SUFFIXES",
    "Advice",
    "AmplificationResult",
    "CompareResult",
    "ExtractResult",
    "InfoResult",
    "RankResult",
    "ResizeResult",
    "Result",
    "SimilarityResult",
    "SpectrumResult",
    "check_beside",
    "drawn",
    "provenance",
    "save_all",
    "unknown_suffix",
]
