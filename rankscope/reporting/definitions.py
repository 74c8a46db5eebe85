"""What every number of a report is called, what it means, and how it is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["Definition", "definition", "definitions"]


@dataclass(frozen=True)
class Definition:
    """One measure: its name in words, what it means, its formula, and how it is rounded.

    Attributes
    ----------
    label : str
        The heading of its column.
    words, formula : str
        What it means; empty for what a table explains by itself.
    form : str
        ``count``, ``share`` (a percentage), ``p`` (a probability), ``norm`` (three digits),
        ``text``, or how many decimals: ``1`` to ``3``.
    """

    label: str
    words: str = ""
    formula: str = ""
    form: str = "text"


_D = Definition

_COMMON = {
    "module": _D("module"),
    "kind": _D("kind"),
    "layer": _D("layer", form="count"),
    "expert": _D("expert", form="count"),
    "side": _D("side", "The input side holds the directions that ΔW reads (right singular "
               "vectors, the LoRA paper's), the output side those that it writes (left)."),
    "source": _D("source"),
    "shape": _D("shape"),
}  # fmt: skip

_INFO = {
    "format": _D("format"),
    "modules": _D("modules", form="count"),
    "rank": _D("rank", form="count"),
    "alpha": _D("alpha", form="norm"),
    "scale": _D("scale", "What multiplies B·A, as α/r.", form="norm"),
    "dtype": _D("stored as"),
    "base_model": _D("base model"),
    "parameters": _D("parameters", form="count"),
    "bytes": _D("bytes", form="count"),
    "unread": _D("other tensors", form="count"),
}

_RANK = {
    "ceiling": _D("ceiling", "The largest rank that the form of the update allows.",
                  "min(out, in, r)", "count"),
    "frobenius": _D("‖ΔW‖", "Frobenius norm, in the unit of the weight.", "√Σσ²", "norm"),
    "spectral": _D("σ₁", "The largest singular value.", "σ₁", "norm"),
    "relative_norm": _D("‖ΔW‖/‖W‖", "The update's norm beside that of the base weight.",
                        "‖ΔW‖ / ‖W‖", "3"),
    "effective_rank": _D("effective rank", "Roy and Vetterli's: the exponential of the entropy "
                         "of the singular values; k equal ones give k.",
                         "exp(−Σ p ln p),  p = σ/Σσ", "1"),
    "stable_rank": _D("stable rank", "The energy in units of the first direction's.",
                      "Σσ² / σ₁²", "1"),
    "participation_rank": _D("participation rank", "How many directions share the energy, by its "
                             "second moment.", "(Σσ²)² / Σσ⁴", "1"),
    "energy_entropy_rank": _D("energy entropy rank", "As the effective rank, of the energies.",
                              "exp(−Σ e ln e),  e = σ²/Σσ²", "1"),
    "nuclear_rank": _D("nuclear rank", "The nuclear norm beside the Frobenius norm.",
                       "(Σσ)² / Σσ²", "1"),
    "energy_rank_90": _D("90 % energy", "The fewest directions that hold 90 % of the energy.",
                         "min k: Σᵢ₌₁..ₖ σᵢ² ≥ 0.90 Σσ²", "count"),
    "energy_rank_95": _D("95 % energy", "The same for 95 %.", "", "count"),
    "energy_rank_99": _D("99 % energy", "The same for 99 %.", "", "count"),
    "top1_energy": _D("first direction's energy", "The share of the first direction.",
                      "σ₁² / Σσ²", "share"),
    "numerical_rank": _D("numerical rank", "The number of singular values above rounding in "
                         "double precision. It counts the noise of the storage as well.",
                         "#{σ > max(out, in)·ε·σ₁}", "count"),
    "rank_above_noise": _D("rank above noise", "The number of directions that the rounding of "
                           "the stored checkpoints does not explain.", "", "count"),
    "noise_share": _D("noise share", "The share of the energy that the rounding of the storage "
                      "explains.", "", "share"),
    "noise_edge": _D("noise edge", "The largest singular value that the rounding of the storage "
                     "makes alone.", "", "norm"),
    "noise_gain": _D("kept by the storage", "The part of the update that its rounding left.",
                     "", "share"),
    "noise_affected": _D("affected by noise", "The measures that tell of the rounding as much as "
                         "of the update."),
    "unchanged_fraction": _D("unchanged entries", "The share of entries that are exactly equal "
                             "before and after.", "", "share"),
    "bulk_edge": _D("bulk edge", "Where the bulk of the update's own spectrum ends, from its "
                    "median singular value.", "", "norm"),
    "bulk_edge_rank": _D("rank above bulk", "The number of directions above that edge.", "",
                         "count"),
    "hard_threshold_rank": _D("hard threshold rank", "Gavish and Donoho's optimal threshold.",
                              "#{σ > ω(β) median σ}", "count"),
    "base_cosine": _D("cosine with W", "Of W + ΔW and W.", "", "3"),
    "relative_rank_1": _D("rank at 1 % of ‖W‖", "The fewest directions that leave an error of at "
                          "most 1 % of ‖W‖.", "", "count"),
    "rank_above_base": _D("rank above W's entries", "The number of directions above the edge of "
                          "noise as large as W's typical entries.", "", "count"),
    "decay_exponent": _D("decay exponent", "Of a power law fitted to the energies.",
                         "ρ(σ²) ∝ (σ²)⁻ᵅ", "2"),
    "decay_distance": _D("decay distance", "Kolmogorov and Smirnov's, of that fit; above about "
                         "0.1 there is no power law.", "", "2"),
    "decay_tail": _D("decay tail", "How many directions the fit covers.", "", "count"),
    "stored_dtype": _D("stored as", "The precision that the numbers really have."),
    "state": _D("state", "ok, zero (untrained), below_noise, or collapsed: the first of several "
                "possible directions holds more than 99 % of the energy."),
    "random_effective": _D("random effective rank", "The effective rank of an update without "
                           "structure of the same form, B·A with independent Gaussian entries, "
                           "or a full matrix of them. It is the null of the rank measures.", "",
                           "1"),
    "random_energy_90": _D("random 90 % energy", "The same null for 90 % of the energy.", "",
                           "count"),
}  # fmt: skip

_SPECTRUM = {
    "singular_values": _D("singular values"),
    "energy": _D("energy", "The sum of the squared singular values.", "Σσ²", "norm"),
    "noise_edge": _RANK["noise_edge"],
}

_SIMILARITY = {
    "directions": _D("directions", "How many of A's and of B's are compared."),
    "rank_a": _D("directions of A", form="count"),
    "rank_b": _D("directions of B", form="count"),
    "dimension": _D("d", "The dimension of the space that they lie in.", "", "count"),
    "phi_first": _D("φ(1, 1)", "The squared cosine of the two first directions.", "", "3"),
    "p_first": _D("p of φ(1, 1)", "How often random directions reach it.", "", "p"),
    "phi_full": _D("φ of all", "The mean squared cosine between all directions of A and of B: 1 "
                   "where the smaller span lies in the larger, 0 where they are orthogonal.",
                   "φ(i, j) = ‖UᵢᵀVⱼ‖² / min(i, j)", "3"),
    "chance_full": _D("chance", "The mean of φ over random subspaces of the same dimensions.",
                      "max(i, j) / d", "3"),
    "chance_sd": _D("chance sd", "The standard deviation of φ over random subspaces.", "", "3"),
    "z_full": _D("z", "How many standard deviations φ lies above chance.", "(φ − chance) / sd",
                 "1"),
    "p_full": _D("p", "How often random subspaces reach φ.", "", "p"),
    "p_adjusted": _D("p adjusted", "How often random subspaces reach φ, corrected over the "
                     "modules of a side (Benjamini and Hochberg). Far below 10⁻⁶ only the "
                     "exponent means something.", "", "p"),
    "shared_directions": _D("shared", "The number of principal cosines above what chance "
                            "reaches once in a thousand draws.", "", "count"),
    "shared_edge": _D("shared edge", "The 99.9 % quantile of the largest principal cosine of "
                      "random subspaces.", "", "3"),
    "floor": _D("floor", "The mean φ of A against unrelated runs.", "", "3"),
    "ceiling": _D("reference ceiling", "The mean φ of A against other seeds of its run.", "", "3"),
    "placed": _D("placed", "Where φ lies between floor and ceiling.",
                 "(φ − floor) / (ceiling − floor)", "share"),
    "reference_rank": _D("directions of references", form="count"),
    "phi_reference": _D("φ as far as references", form="3"),
    "shuffled_mean": _D("other layers", "The mean φ of A against other layers of B.", "", "3"),
    "shuffled_95": _D("other layers, 95 %", form="3"),
    "p_shuffled": _D("p of layers", "The share of other layers that reach φ.", "", "p"),
    "verdict": _D("verdict"),
    "modules": _D("modules", form="count"),
    "above_chance": _D("above chance", form="count"),
}  # fmt: skip

_COMPARE = {
    "a": _D("a"),
    "b": _D("b"),
    "phi": _SIMILARITY["phi_full"],
    "chance": _SIMILARITY["chance_full"],
    "z": _SIMILARITY["z_full"],
    "p": _SIMILARITY["p_full"],
    "p_adjusted": _SIMILARITY["p_adjusted"],
    "cosine": _D("cosine", "Of the two whole updates as vectors; about 0 by chance.",
                 "⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖ ‖ΔW₂‖)", "3"),
    "containment_a": _D("a in b", "The share of a's energy that lies in the span of b's "
                        "directions.", "", "share"),
    "chance_a": _D("a in b by chance", "k/d.", "", "share"),
    "containment_b": _D("b in a", "The share of b's energy in the span of a's.", "", "share"),
    "chance_b": _D("b in a by chance", form="share"),
    "mean_cosine": _D("mean cosine", "Of the principal angles.", "", "3"),
    "cka": _D("CKA", "Linear centred kernel alignment, without the centring.", "", "3"),
    "sources": _D("sources", form="count"),
    "directions": _D("common directions", "The number of directions that are common to more of "
                     "the sources than chance allows once in a thousand draws.", "", "count"),
    "interference": _D("interference", "How much the sources would disturb each other if they "
                       "were added, in units of as many equal ones: 0 where they are orthogonal; "
                       "those that share in part can pass 1.", "",
                       "2"),
}  # fmt: skip

_AMPLIFICATION = {
    "k": _D("k", "How many leading directions U, V of ΔW are used.", "", "count"),
    "norm_weight": _D("‖W‖", form="norm"),
    "relative_norm": _RANK["relative_norm"],
    "projection_update": _D("‖UᵀWV‖ of ΔW", "How much of W lies along ΔW's directions.",
                            "‖UᵀWV‖", "norm"),
    "projection_weight": _D("‖UᵀWV‖ of W", "The same for W's own first directions: the most "
                            "possible.", "", "norm"),
    "projection_random": _D("‖UᵀWV‖ of random", "The same for random directions.",
                            "k‖W‖ / √(out·in)", "norm"),
    "amplification": _D("amplification", "The LoRA paper's factor. Large for small k by chance "
                        "alone.", "‖ΔW‖ / ‖UᵀWV‖", "1"),
    "amplification_random": _D("random amplification", "The factor that an update of the same "
                               "norm has along random directions.", "", "1"),
    "excess": _D("excess", "How much more of W lies along ΔW's directions than along random "
                 "ones; 1 by chance.", "‖UᵀWV‖ / chance", "2"),
    "z": _D("z", "How far that lies above chance, in standard deviations.", "", "1"),
}  # fmt: skip

_INTRUDERS = {
    "k": _D("k", "How many leading directions of W + ΔW are looked at.", "", "count"),
    "epsilon": _D("ε", "The cosine below which a direction counts as new.", "", "2"),
    "epsilon_chance": _D("1 % of random", "The 1 % quantile of a random direction's largest "
                         "cosine with W's.", "", "3"),
    "chance_99": _D("99 % of random", "The 99 % quantile of the same.", "", "3"),
    "intruders": _D("intruders", "Leading directions of W + ΔW whose largest cosine with any "
                    "direction of W lies below ε. At ε = 0.5 every random direction of a large "
                    "matrix is one.", "#{maxⱼ |⟨uᵢ, wⱼ⟩| < ε}", "count"),
    "below_chance": _D("no closer than random", "Those below the 99 % quantile of random ones.",
                       "", "count"),
    "intruder_energy_share": _D("their energy", "The intruders' share of the energy of the "
                                "first k directions.", "", "share"),
}  # fmt: skip

_CUT = {
    "rank_before": _D("rank before", form="count"),
    "rank_after": _D("rank after", form="count"),
    "energy_kept": _D("energy kept", "The share of ‖ΔW‖² that is left.", "", "share"),
    "relative_error": _D("relative error", "What the cut takes away.", "‖ΔW − ΔWₖ‖ / ‖ΔW‖", "3"),
    "best_error": _D("least possible", "The error of the best update of that rank "
                     "(Eckart and Young).", "", "3"),
    "bytes": _D("bytes", form="count"),
}  # fmt: skip

_ALL: Mapping[str, Mapping[str, Definition]] = MappingProxyType(
    {
        "info": _INFO,
        "rank": _RANK,
        "spectrum": _SPECTRUM,
        "similarity": _SIMILARITY,
        "compare": _COMPARE,
        "amplification": _AMPLIFICATION,
        "intruders": _INTRUDERS,
        "resize": _CUT,
        "extract": _CUT,
    }
)


def definition(command: str, column: str) -> Definition | None:
    """Return what a command's column is, None where it is not listed here.

    Examples
    --------
    >>> definition("rank", "stable_rank").formula
    'Σσ² / σ₁²'
    """
    return _ALL.get(command, {}).get(column) or _COMMON.get(column)


def definitions(commands: Iterable[str]) -> Iterator[Definition]:
    """Yield the definitions of all measures of some commands that need words, each once."""
    groups = [_ALL[command] for command in commands if command in _ALL]
    listed = [*groups, _COMMON] if groups else []
    yield from dict.fromkeys(one for group in listed for one in group.values() if one.words)
