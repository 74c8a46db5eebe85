"""How often the planted rank comes back above the storage noise of checkpoint pairs.

Run as ``pytest tests/benchmarks/bench_noise.py`` for a small grid, or as a script for the whole
calibration: ``python tests/benchmarks/bench_noise.py --size 512 --seeds 2``, in pieces with
``--rank 1`` and so on. No time is asserted.

A planted rank r counts as *detectable* where its weakest direction, times the gain of the
storage, is `MARGIN` times what B.1's theory asks for: θ > edge · (mn)^¼ / (√m + √n), with the
norm of the true noise, X - gain · Δ, as the edge.
"""

import argparse
import itertools
import time

import pandas as pd
import torch

from rankscope.linalg.rounding import rounded
from rankscope.measures.noise import rank_above_noise, storage_noise
from rankscope.spectra import Spectrum

MARGIN = 2.2
RANKS = (1, 2, 4, 16, 64)
SIZES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # ‖Δ‖ / ‖W‖
COLUMNS = ("even", "lognormal")
FORMATS = (torch.bfloat16, torch.float16)
WAYS = ("stored base", "both rounded", "finer base")


def weight(d, columns, rng):
    scales = torch.randn(d, generator=rng).exp() if columns == "lognormal" else 1.0
    return 0.02 * torch.randn(d, d, generator=rng) * scales


def planted(w, rank, size, rng):
    left, right = (torch.randn(d, rank, generator=rng) for d in w.shape)
    update = left @ right.T
    return update * (size * w.norm() / update.norm())


def stored(w, update, format, way):
    """Return the tuned and the base weight as files would hold them."""
    base = w if way == "finer base" else rounded(w, format)
    origin = base if way == "stored base" else w
    return rounded(origin + update, format), base


def spectrum_of(difference):
    values = torch.linalg.svdvals(difference.double())
    floor = 1e-12 * values[0].item()
    energy = values.square().sum().item()
    shape = tuple(difference.shape)
    return Spectrum(values, None, None, energy, shape, min(shape), "exact", floor, floor)


def measured(tuned, base, seed):
    noise = storage_noise(tuned, base, seed=seed)
    spectrum = spectrum_of(tuned - base)
    return noise, rank_above_noise(spectrum, tuned, base, noise, seed=seed)


def case(d, rank, size, columns, format, way, seed):
    rng = torch.Generator().manual_seed(seed)
    w = weight(d, columns, rng)
    update = planted(w, rank, size, rng)
    tuned, base = stored(w, update, format, way)
    x = tuned - base
    start = time.perf_counter()
    noise, found = measured(tuned, base, seed)
    seconds = time.perf_counter() - start
    gain = ((update * x).sum() / update.square().sum()).item()
    edge = torch.linalg.matrix_norm(x - gain * update, 2).item()
    weakest = gain * torch.linalg.svdvals(update)[rank - 1].item()
    correlation = ((update * x).sum() / update.norm() / x.norm()).item()
    return {
        "columns": columns,
        "format": str(format).removeprefix("torch."),
        "way": way,
        "size": size,
        "rank": rank,
        "found": found,
        "times_threshold": 2 * weakest / edge,  # square: (mn)^¼ / (√m + √n) = ½
        "right_way": noise.on_grid == (way == "stored base"),
        "gain_error": abs(noise.gain - gain),
        "share_error": abs(noise.share - (1 - correlation**2)),
        "seconds": seconds,
    }


def grid(d, seeds, ranks=RANKS, sizes=SIZES):
    cases = itertools.product(ranks, sizes, COLUMNS, FORMATS, WAYS, range(seeds))
    return pd.DataFrame([case(d, *parameters) for parameters in cases])


def summary(table):
    table = table.assign(
        detectable=table.times_threshold > MARGIN,
        hit=table.found == table["rank"],
        over=table.found > table["rank"],
    )
    rows = []
    for key, part in [*table.groupby(["columns", "format", "way"]), (("all", "", ""), table)]:
        seen, unseen = part[part.detectable], part[~part.detectable]
        rows.append(
            {
                "columns": key[0],
                "format": key[1],
                "way": key[2],
                "detectable": len(seen),
                "right": seen.hit.mean(),
                "others": len(unseen),
                "over": unseen.over.mean(),
                "right way": part.right_way.mean(),
                "gain error": part.gain_error.mean(),
                "share error": part.share_error.mean(),
                "median s": part.seconds.median(),
            }
        )
    return pd.DataFrame(rows)


def nulls(d, draws):
    """Return, of each kind of pair without an update, the share that is called rank 0."""
    rows = []
    for columns, format in itertools.product(COLUMNS, FORMATS):
        ranks = []
        for seed in range(draws):
            w = weight(d, columns, torch.Generator().manual_seed(seed))
            ranks.append(measured(rounded(w, format), w, seed)[1])
        name = str(format).removeprefix("torch.")
        zero = torch.tensor(ranks) == 0
        rows.append({"columns": columns, "format": name, "rank 0": zero.double().mean().item()})
    return pd.DataFrame(rows)


def test_planted_ranks_come_back():
    table = summary(grid(256, seeds=1, ranks=(1, 4, 16), sizes=(1e-3, 1e-2)))
    print(table.to_string(index=False, float_format="%.3f"))
    assert table.right.iloc[-1] >= 0.95


def test_fresh_rounding_has_rank_zero():
    table = nulls(192, draws=25)
    print(table.to_string(index=False, float_format="%.3f"))
    assert table["rank 0"].mean() >= 0.99


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--nulls", type=int, default=100)
    parser.add_argument("--rank", type=int, action="append", help="all unless given")
    parser.add_argument("--csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.seeds:
        everything = grid(options.size, options.seeds, options.rank or RANKS)
        if options.csv:
            everything.to_csv(options.csv, index=False)
        print(summary(everything).to_string(index=False, float_format="%.3f"))
    if options.nulls:
        print(nulls(options.size, options.nulls).to_string(index=False, float_format="%.3f"))
