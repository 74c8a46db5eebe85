"""φ(i, j) of every module that two sources share, beside what chance gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack

from rankscope.analysis.costs import cost
from rankscope.analysis.devices import resolve_device
from rankscope.analysis.engine import How, Row, Study, Task, run
from rankscope.analysis.overlap import (
    DENSE_LIMIT,
    Options,
    check_shapes,
    checked_options,
    compared,
    in_other_order,
    measure_columns,
    measured,
)
from rankscope.analysis.pairing import Pairing, paired
from rankscope.analysis.references import (
    Others,
    Reference,
    directions_of,
    layers_of,
    other_layers,
    reference_columns,
    references,
    shuffled_column,
)
from rankscope.analysis.selection import opened, short_names
from rankscope.analysis.similarity_table import caveats, random_control, similarity_table
from rankscope.analysis.starts import start_columns
from rankscope.analysis.verdicts import summaries
from rankscope.io.fused import split_alike
from rankscope.io.sources import Source
from rankscope.io.updateset import UpdateSet
from rankscope.results import SimilarityResult, provenance

__all__ = ["finish", "similarity", "similarity_study"]


def similarity(
    a: Source | UpdateSet,
    b: Source | UpdateSet,
    *,
    base: Source | None = None,
    side: Literal["right", "left", "both"] = "both",
    vectors: Literal["delta", "factor"] = "delta",
    max_i: int | None = None,
    max_j: int | None = None,
    measures: Sequence[str] = ("phi",),
    floor: Sequence[Source | UpdateSet] = (),
    ceiling: Sequence[Source | UpdateSet] = (),
    shuffle: bool = False,
    alpha: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    **how: Unpack[How],
) -> SimilarityResult:
    r"""Compare the directions of two sources, module by module.

    For every module that both update, by whatever name,
    :math:`\phi(i, j) = \|U_i^\top V_j\|_F^2 / \min(i, j)` of the first i directions of A and
    the first j of B, for all i and j, beside the level, spread and p-value that independent
    random subspaces give.

    Parameters
    ----------
    a, b : path, state dict, module or UpdateSet
        What to compare. A selection compares only its own modules.
    base : path, state dict or module, optional
        Serves whichever of the two is a full checkpoint.
    side : {"right", "left", "both"}
        Right is the input side (the paper's), left the output side.
    vectors : {"delta", "factor"}
        ``delta`` takes the singular vectors of ΔW, the same for every way to factor it;
        ``factor`` those of A alone (right) or B alone (left), as the LoRA paper did.
    max_i, max_j : int, optional
        The most directions of A and of B; 64 for a dense update unless given, otherwise all.
    measures : sequence of str
        Further columns, named as in `compare`: distances, ``mean_cosine``, ``cka``, ``cosine``,
        ``containment`` (beside its chance), of ΔW and all directions that are used.
    floor : sequence of sources
        Unrelated runs on the same base, such as adapters of other tasks or of shuffled labels:
        what A shares with anything.
    ceiling : sequence of sources
        Other seeds of A's own run: the most that can be expected.
    shuffle : bool
        Whether A is also compared with modules of the same kind in other layers of B, at most
        8 of them. That reads 8 times as much, and does not see what all layers of unrelated
        tasks share with each other layer by layer: it is no floor.
    alpha : float, optional
        LoRA's alpha, for files that do not say it. Similarity does not depend on it.
    seed : int
        Of the random control, of the layers that `shuffle` draws and of the Monte Carlo
        p-values in tiny dimensions.
    device : str
        ``cpu``, ``cuda``, ``cuda:n`` or ``auto``; the arithmetic is float64 everywhere.
    **how
        As `How`: jobs, threads, journal, progress and so on.

    Returns
    -------
    SimilarityResult
        A row per module and side: `phi` (rank_a, rank_b), `phi_first` with `p_first`,
        `phi_full` with `chance_full`, `chance_sd`, `z_full`, `p_full` and `p_adjusted`
        (Benjamini-Hochberg over the modules of the side), the principal `cosines` and how
        many of them lie above `shared_edge`, the 99.9 % chance quantile of the largest one
        (beyond the i + j - d that any two subspaces share). Modules bear A's names; notes say
        how others were matched, and q and k whose rows stand in Meta's rotary order on one
        side only have no row for the output side. `ambiguous_a` and `ambiguous_b` list the
        cuts inside a block of singular values that are equal or cannot be told apart, where φ
        means nothing. An update that is zero has rank 0 and undefined numbers.

        `floor` and `ceiling` are the mean φ of A against these sources, `phi_reference` that of
        A against B, all at (rank_a, reference_rank), the fewest directions that B and the
        references have; `placed` is (φ − floor)/(ceiling − floor), undefined where the two
        lie within three standard errors (`floor_error`, `ceiling_error`) of each other.
        `shuffled` holds φ of other layers, `shuffled_mean` and `shuffled_95` the mean and the
        95 % quantile over all modules of one kind and size, `p_shuffled` the share that
        reaches φ. `init_residue_a` and `init_residue_b` are the shares of the factors'
        directions that look like their random start (see `init_residue`), on the side of the
        factor that was drawn; `shared_init_suspected` is whether both were drawn alike, so that
        similarity on that side says nothing of training. `verdict` puts all this into words,
        and the result's `verdicts` for all modules of one side and kind.

    Raises
    ------
    SourceError
        If a source cannot be read or no module is shared.
    UpdateError
        If no shared module could be measured, or an option is out of range.

    References
    ----------
    .. [1] E. Hu et al., "LoRA: Low-rank adaptation of large language models", 2021,
       section 7.2. arXiv:2106.09685

    Examples
    --------
    >>> import torch
    >>> import rankscope as rs
    >>> one = {"h.0.q.lora_A.weight": torch.eye(9)[:1], "h.0.q.lora_B.weight": torch.ones(9, 1)}
    >>> two = {**one, "h.0.q.lora_A.weight": torch.eye(9)[1:2]}
    >>> rs.similarity(one, two).table.phi_full.round(9).tolist()  # input side, output side
    [0.0, 1.0]
    """
    # Base and alpha are for what is not open yet; where both are, opening refuses them.
    both_open = isinstance(a, UpdateSet) and isinstance(b, UpdateSet)
    set_a, set_b = (
        opened(s, None, None)
        if isinstance(s, UpdateSet) and not both_open
        else opened(s, base, alpha)
        for s in (a, b)
    )
    study = similarity_study(
        set_a,
        set_b,
        side=side,
        vectors=vectors,
        max_i=max_i,
        max_j=max_j,
        measures=measures,
        floor=[_reference(source, base, alpha) for source in floor],
        ceiling=[_reference(source, base, alpha) for source in ceiling],
        shuffle=shuffle,
        seed=seed,
        device=device,
    )
    result = run(study, how)
    assert isinstance(result, SimilarityResult)
    return result


def similarity_study(
    a: UpdateSet,
    b: UpdateSet,
    *,
    side: str = "both",
    vectors: str = "delta",
    max_i: int | None = None,
    max_j: int | None = None,
    measures: Sequence[str] = ("phi",),
    floor: Sequence[UpdateSet] = (),
    ceiling: Sequence[UpdateSet] = (),
    shuffle: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> Study:
    """Return what `similarity` does with two open sets, module by module."""
    options = checked_options(side, vectors, max_i, max_j, measures, seed)
    device = resolve_device(device)
    a, b = split_alike(a, b)
    pairing, names = paired(a, b), short_names(a, b)
    said = {
        "side": side,
        "vectors": vectors,
        "max_i": max_i,
        "max_j": max_j,
        "alpha": [a.alpha, b.alpha],
        "split": [a.split, b.split],
        "measures": list(options.measures),
        "floor": [one.source for one in floor],
        "ceiling": [one.source for one in ceiling],
        "shuffle": shuffle,
        "seed": seed,
        "modules": list(pairing.partners),
    }
    roles = {"floor": floor, "ceiling": ceiling}
    inputs = {"a": list(a.inputs), "b": list(b.inputs)} | {
        role: [record for one in sets for record in one.inputs]
        for role, sets in roles.items()
        if sets
    }
    layers = other_layers(a, b, pairing, seed) if shuffle else {}
    about = {
        "provenance": provenance("similarity", inputs, said, device),
        "notes": [
            *pairing.notes,
            *_named_notes(zip(names, (a, b), strict=True)),
            *_same_note(a, b),
            *(_cut_note(names[0], a) if max_i is None else ()),
            *(_cut_note(names[1], b) if max_j is None else ()),
            *_layers_note(layers),
        ],
        "names": list(names),
        "unmatched_a": list(pairing.unmatched_a),
        "unmatched_b": list(pairing.unmatched_b),
    }
    beside = references(a, ((role, one) for role, sets in roles.items() for one in sets))
    return Study(
        "similarity", _tasks(a, b, pairing, options, beside, layers, device), about, finish
    )


def finish(
    rows: list[Row], failures: list[dict[str, Any]], about: Mapping[str, Any]
) -> SimilarityResult:
    """Return the result of all rows."""
    said = about["provenance"]["options"]
    table = similarity_table(rows, said["measures"])
    return SimilarityResult(
        table=table,
        provenance=about["provenance"],
        notes=(*about["notes"], *caveats(about["names"], said["vectors"], table)),
        failures=tuple(failures),
        names=tuple(about["names"]),
        unmatched_a=tuple(about["unmatched_a"]),
        unmatched_b=tuple(about["unmatched_b"]),
        random=random_control(table, said["seed"]),
        verdicts=tuple(summaries(table)),
    )


def _named_notes(sets: Iterable[tuple[str, UpdateSet]]) -> list[str]:
    return [f"{name}: {note}" for name, updates in sets for note in updates.notes]


def _same_note(a: UpdateSet, b: UpdateSet) -> Iterator[str]:
    if a.inputs and a.inputs == b.inputs:
        yield "A and B are the same files: every similarity is that of an update with itself"


def _layers_note(layers: Mapping[str, Others]) -> Iterator[str]:
    alone = sum(not others.modules for others in layers.values())
    if alone:
        yield f"{alone} modules have no other layer of their kind and size to be shuffled with"


def _cut_note(name: str, updates: UpdateSet) -> Iterator[str]:
    if any(site.rank is None and min(site.shape) > DENSE_LIMIT for site in updates.sites):
        yield (
            f"{name}: of full updates the first {DENSE_LIMIT} directions are compared, unless "
            "--max-i, --max-j say how many"
        )


def _tasks(
    a: UpdateSet,
    b: UpdateSet,
    pairing: Pairing,
    options: Options,
    beside: Mapping[str, tuple[Reference, ...]],
    layers: Mapping[str, Others],
    device: str,
) -> list[Task]:
    tasks = []
    for name, other in pairing.partners.items():
        one, two, others = a.only(name), b.only(other), layers.get(name)
        mine = _input_side(options) if name in pairing.reordered else options
        read = [one, two, *(reference.updates for reference in beside[name])]
        sites = [site for part in read for site in part.sites]
        sites += others.updates.sites if others else ()
        tasks.append(
            Task(
                name,
                _rows,
                (other, one, two, mine, beside[name], others),
                device=device,
                **cost(*sites),
            )
        )
    return tasks


def _rows(
    module: str,
    other: str,
    a: UpdateSet,
    b: UpdateSet,
    options: Options,
    beside: tuple[Reference, ...],
    others: Others | None,
    *,
    device: str,
) -> Iterator[Row]:
    sites = (a.site(module), b.site(other))
    if not options.sides:
        raise in_other_order(module)
    updates = [s[name].to(device) for s, name in ((a, module), (b, other))]
    check_shapes(module, updates, options.sides)
    one, two = (
        measured(update, options, limit)
        for update, limit in zip(updates, (options.max_i, options.max_j), strict=True)
    )
    found = directions_of(one.update, beside, options)
    layers = layers_of(one.update, others, options)
    named = {name: getattr(sites[0], name) for name in ("module", "layer", "kind", "expert")}
    for side in options.sides:
        mine, theirs = one.sides[side], two.sides[side]
        yield (
            named
            | compared(side, mine, theirs, options.seed)
            | measure_columns(side, one, two, options.measures)
            | reference_columns(side, mine, theirs, found)
            | shuffled_column(side, mine, theirs, layers)
            | start_columns(side, sites, updates)
        )


def _input_side(options: Options) -> Options:
    """Return the options for updates whose rows stand in different orders."""
    return replace(options, sides=tuple(side for side in options.sides if side == "right"))


def _reference(source: Source | UpdateSet, base: Source | None, alpha: float | None) -> UpdateSet:
    is_open = isinstance(source, UpdateSet)
    return opened(source, None, None) if is_open else opened(source, base, alpha)
