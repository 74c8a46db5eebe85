"""The intrinsic rank of weight updates: rank, subspace similarity, and chance beside both.

>>> import rankscope as rs
>>> rs.DenseUpdate.__name__
'DenseUpdate'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rankscope.analysis.ablation import truncate as truncate
    from rankscope.analysis.amplification import amplification as amplification
    from rankscope.analysis.compare import compare as compare
    from rankscope.analysis.extract import extract as extract
    from rankscope.analysis.formats import formats as formats
    from rankscope.analysis.info import info as info
    from rankscope.analysis.intruders import intruders as intruders
    from rankscope.analysis.join import join as join
    from rankscope.analysis.rank import rank as rank
    from rankscope.analysis.resize import resize as resize
    from rankscope.analysis.similarity import similarity as similarity
    from rankscope.analysis.spectrum import spectrum as spectrum
    from rankscope.errors import RankscopeError as RankscopeError
    from rankscope.io.sources import open_updates as open_updates
    from rankscope.io.updateset import UpdateSet as UpdateSet
    from rankscope.plots import figure_alignments as figure_alignments
    from rankscope.plots import figure_amplification as figure_amplification
    from rankscope.plots import figure_compare as figure_compare
    from rankscope.plots import figure_drift as figure_drift
    from rankscope.plots import figure_intruders as figure_intruders
    from rankscope.plots import figure_layers as figure_layers
    from rankscope.plots import figure_rank as figure_rank
    from rankscope.plots import figure_rank_map as figure_rank_map
    from rankscope.plots import figure_scores as figure_scores
    from rankscope.plots import figure_similarity as figure_similarity
    from rankscope.plots import figure_spectrum as figure_spectrum
    from rankscope.plots import plot_alignment as plot_alignment
    from rankscope.plots import plot_amplification as plot_amplification
    from rankscope.plots import plot_closeness as plot_closeness
    from rankscope.plots import plot_compare as plot_compare
    from rankscope.plots import plot_drift as plot_drift
    from rankscope.plots import plot_groups as plot_groups
    from rankscope.plots import plot_intruders as plot_intruders
    from rankscope.plots import plot_profile as plot_profile
    from rankscope.plots import plot_rank as plot_rank
    from rankscope.plots import plot_rank_map as plot_rank_map
    from rankscope.plots import plot_scores as plot_scores
    from rankscope.plots import plot_shared as plot_shared
    from rankscope.plots import plot_similarity as plot_similarity
    from rankscope.plots import plot_spectrum as plot_spectrum
    from rankscope.plots import theme as theme
    from rankscope.reporting import Report as Report
    from rankscope.reporting import report as report
    from rankscope.spectra import Auto as Auto
    from rankscope.spectra import Exact as Exact
    from rankscope.spectra import Gram as Gram
    from rankscope.spectra import Leading as Leading
    from rankscope.spectra import Spectrum as Spectrum
    from rankscope.spectra import svd as svd
    from rankscope.training import TrainingConfig as TrainingConfig
    from rankscope.training import load_trained as load_trained
    from rankscope.training import train as train
    from rankscope.updates import DenseUpdate as DenseUpdate
    from rankscope.updates import FactoredUpdate as FactoredUpdate
    from rankscope.updates import Update as Update

# Public name -> the module that owns it: imported when first used, so that
# `import rankscope` costs nothing.
_HOMES = {
    "Auto": "spectra",
    "DenseUpdate": "updates",
    "Exact": "spectra",
    "FactoredUpdate": "updates",
    "Gram": "spectra",
    "Leading": "spectra",
    "RankscopeError": "errors",
    "Report": "reporting",
    "Spectrum": "spectra",
    "TrainingConfig": "training",
    "Update": "updates",
    "UpdateSet": "io.updateset",
    "amplification": "analysis.amplification",
    "compare": "analysis.compare",
    "extract": "analysis.extract",
    "figure_alignments": "plots",
    "figure_amplification": "plots",
    "figure_compare": "plots",
    "figure_drift": "plots",
    "figure_intruders": "plots",
    "figure_layers": "plots",
    "figure_rank": "plots",
    "figure_rank_map": "plots",
    "figure_scores": "plots",
    "figure_similarity": "plots",
    "figure_spectrum": "plots",
    "formats": "analysis.formats",
    "info": "analysis.info",
    "intruders": "analysis.intruders",
    "join": "analysis.join",
    "load_trained": "training",
    "open_updates": "io.sources",
    "plot_alignment": "plots",
    "plot_amplification": "plots",
    "plot_closeness": "plots",
    "plot_compare": "plots",
    "plot_drift": "plots",
    "plot_groups": "plots",
    "plot_intruders": "plots",
    "plot_profile": "plots",
    "plot_rank": "plots",
    "plot_rank_map": "plots",
    "plot_scores": "plots",
    "plot_shared": "plots",
    "plot_similarity": "plots",
    "plot_spectrum": "plots",
    "rank": "analysis.rank",
    "report": "reporting",
    "resize": "analysis.resize",
    "similarity": "analysis.similarity",
    "spectrum": "analysis.spectrum",
    "svd": "spectra",
    "theme": "plots",
    "train": "training",
    "truncate": "analysis.ablation",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'rankscope' has no attribute {name!r}")
    value: object = getattr(import_module(f"rankscope.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
