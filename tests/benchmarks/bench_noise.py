"""How often the planted rank comes back above the storage noise of checkpoint pairs.

Run as ``pytest tests/benchmarks/bench_noise.py`` for a small grid, or as a script for the whole
calibration: ``python tests/benchmarks/bench_noise.py --seed 0 --seed 11``, in pieces with
``--rank 1`` and so on. Times are of the processor, and none is asserted.

A planted rank r counts as *detectable* where ``2 g σ_r(Δ) / ‖X - g Δ‖₂ > MARGIN``: g is the gain
``⟨Δ, X⟩ / ‖Δ‖²``, σ_r(Δ) the weakest planted direction, and the denominator the norm of the true
noise. For square matrices of independent noise 1 is B.1's threshold of visibility,
θ > edge · (mn)^¼ / (√m + √n), half of the edge; at 2.2 the weakest direction, attenuated, is 1.1
times the noise's norm. Rank 0 is always detectable: X is then zero, or fresh rounding.
"""

import argparse
import itertools
import math
import time

import pandas as pd
import torch

from rankscope.linalg.rounding import rounded
from rankscope.measures.noise import rank_above_noise, storage_noise
from rankscope.spectra import svd
from rankscope.updates import DenseUpdate

MARGIN = 2.2
RANKS = (0, 1, 2, 4, 16, 64)
SIZES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # ‖Δ‖ / ‖W‖
COLUMNS = ("even", "lognormal")
FAMILIES = (*COLUMNS, "lognormal rows")
FORMATS = (torch.bfloat16, torch.float16)
WAYS = ("stored base", "both rounded", "finer base")


def weight(d, family, rng):
    scales = torch.randn(d, generator=rng).exp() if family != "even" else 1.0
    scaled = 0.02 * torch.randn(d, d, generator=rng) * scales
    return scaled.T.contiguous() if family == "lognormal rows" else scaled


def planted(w, rank, size, rng):
    if not rank:
        return torch.zeros_like(w)
    left, right = (torch.randn(d, rank, generator=rng) for d in w.shape)
    update = left @ right.T
    return update * (size * w.norm() / update.norm())


def stored(w, update, format, way):
    """Return the tuned and the base weight as files would hold them."""
    base = w if way == "finer base" else rounded(w, format)
    origin = base if way == "stored base" else w
    return rounded(origin + update, format), base


def spectrum_of(difference):
    return svd(DenseUpdate(difference.double()), vectors=False)


def measured(tuned, base, seed):
    """Return the noise, the rank above it, and the seconds of each."""
    spectrum = spectrum_of(tuned - base)
    times = [time.process_time()]
    noise = storage_noise(tuned, base, seed=seed)
    times.append(time.process_time())
    found = rank_above_noise(spectrum, tuned, base, noise, seed=seed)
    times.append(time.process_time())
    return noise, found, times[1] - times[0], times[2] - times[1]


def truth(update, x, rank):
    """Return the gain, the share of rounding, and the weakest direction over the threshold."""
    if not rank:
        return math.nan, math.nan, math.inf
    gain = ((update * x).sum() / update.square().sum()).item()
    edge = torch.linalg.matrix_norm(x - gain * update, 2).item()
    weakest = gain * torch.linalg.svdvals(update)[rank - 1].item()
    correlation = ((update * x).sum() / update.norm() / x.norm()).item()
    return gain, 1 - correlation**2, 2 * weakest / edge


def case(d, rank, size, family, format, way, seed):
    rng = torch.Generator().manual_seed(seed)
    w = weight(d, family, rng)
    update = planted(w, rank, size, rng)
    tuned, base = stored(w, update, format, way)
    noise, found, *seconds = measured(tuned, base, seed)
    gain, share, ratio = truth(update, tuned - base, rank)
    return {
        "family": family,
        "format": str(format).removeprefix("torch."),
        "way": way,
        "seed": seed,
        "size": size,
        "rank": rank,
        "found": found,
        "times_threshold": ratio,
        "right_way": noise.on_grid == (way == "stored base") if rank else None,
        "gain_error": abs(noise.gain - gain),
        "share_error": abs(noise.share - share),
        "seconds": sum(seconds),
    }


def grid(d, seeds, ranks=RANKS, sizes=SIZES, families=COLUMNS):
    planned = [(rank, size) for rank in ranks for size in (sizes if rank else (0.0,))]
    cases = itertools.product(planned, families, FORMATS, WAYS, seeds)
    return pd.DataFrame([case(d, *plan, *rest) for plan, *rest in cases])


def summary(table):
    table = table.assign(
        detectable=table.times_threshold > MARGIN,
        hit=table.found == table["rank"],
        over=table.found > table["rank"],
    )
    rows = []
    for key, part in [*table.groupby(["family", "format", "way"]), (("all", "", ""), table)]:
        seen, unseen = part[part.detectable], part[~part.detectable]
        rows.append(
            {
                "family": key[0],
                "format": key[1],
                "way": key[2],
                "detectable": len(seen),
                "right": int(seen.hit.sum()),
                "others": len(unseen),
                "over": int(part.over.sum()),
                "right way": part.right_way.dropna().astype(float).mean(),
                "gain error": part.gain_error.mean(),
                "share error": part.share_error.mean(),
                "median s": part.seconds.median(),
            }
        )
    return pd.DataFrame(rows)


def missed(table):
    """Return the cases that are detectable and came out otherwise, or were over-counted."""
    wrong = (table.times_threshold > MARGIN) & (table.found != table["rank"])
    return table[wrong | (table.found > table["rank"])]


def margins(table):
    """Return how many planted ranks come back above several margins; 1 is the theory's limit."""
    table = table[table["rank"] > 0]
    rows = []
    for margin in (1.0, 1.3, 1.6, 2.0, MARGIN):
        seen = table[table.times_threshold > margin]
        hits = int((seen.found == seen["rank"]).sum())
        rows.append({"margin": margin, "of": len(seen), "right": hits})
    return pd.DataFrame(rows)


def nulls(d, seeds):
    """Return, of each kind of pair without an update, how many are called rank 0."""
    rows = []
    for family, format in itertools.product(FAMILIES, FORMATS):
        weights = (weight(d, family, torch.Generator().manual_seed(seed)) for seed in seeds)
        ranks = [
            measured(rounded(w, format), w, seed)[1]
            for w, seed in zip(weights, seeds, strict=True)
        ]
        name = str(format).removeprefix("torch.")
        rows.append({"family": family, "format": name, "of": len(ranks), "rank 0": ranks.count(0)})
    return pd.DataFrame(rows)


def speed(d, seed=0):
    """Return the seconds for one large matrix, by the way of its storage."""
    rows = []
    plans = [("stored base", 1), ("stored base", 16), ("both rounded", 16), ("finer base", 0)]
    for way, rank in plans:
        rng = torch.Generator().manual_seed(seed)
        w = weight(d, "even", rng)
        tuned, base = stored(w, planted(w, rank, 1e-2, rng), torch.bfloat16, way)
        _, found, noise, above = measured(tuned, base, seed)
        rows.append({"way": way, "rank": rank, "found": found, "noise s": noise, "rank s": above})
    return pd.DataFrame(rows)


def test_planted_ranks_come_back():
    table = summary(grid(256, seeds=[0], ranks=(0, 1, 4, 16), sizes=(1e-3, 1e-2)))
    print(table.to_string(index=False, float_format="%.3f"))
    assert table.right.iloc[-1] >= 0.95 * table.detectable.iloc[-1]


def test_fresh_rounding_has_rank_zero():
    table = nulls(192, range(25))
    print(table.to_string(index=False, float_format="%.3f"))
    assert table["rank 0"].sum() >= 0.99 * table.of.sum()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seed", type=int, action="append", default=[])
    parser.add_argument("--rank", type=int, action="append", help="all unless given")
    parser.add_argument("--family", action="append", choices=FAMILIES)
    parser.add_argument("--nulls", type=int, default=0, help="how many of each kind")
    parser.add_argument("--speed", type=int, action="append", default=[], help="rows of a square")
    parser.add_argument("--csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables = []
    if options.seed:
        planned = options.rank or RANKS, SIZES, options.family or COLUMNS
        everything = grid(options.size, options.seed, *planned)
        if options.csv:
            everything.to_csv(options.csv, index=False)
        tables += [summary(everything), margins(everything), missed(everything)]
    if options.nulls:
        tables.append(nulls(options.size, range(options.nulls)))
    for table in [*tables, *map(speed, options.speed)]:
        print(table.to_string(index=False, float_format="%.3f"), flush=True)
