"""The engine: what an item costs beside its own work, and two workers against one.

``pytest tests/benchmarks/bench_engine.py``; ratios and overheads are printed, and no time is
asserted. The 48 modules of 2048 x 2048 take minutes.
"""

import time

import pytest
import torch
import work
from loopback import loopback
from safetensors.torch import save_file

import rankscope as rs
from rankscope.analysis.engine import run

MODULES = [f"layers.{n}.{kind}_proj.weight" for n in range(12) for kind in "qkvo"]


@pytest.fixture(scope="module", params=[256, 1024, 2048])
def pair(request, tmp_path_factory):
    folder, d = tmp_path_factory.mktemp("pair"), request.param
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(d, d, generator=rng) / 50
    base, tuned = {}, {}
    for n, name in enumerate(MODULES):
        low = torch.randn(d, 8, generator=rng) @ torch.randn(8, d, generator=rng)
        base[name] = weight.roll(n, 0).bfloat16()
        tuned[name] = (weight.roll(n, 0) + low / 10_000).bfloat16()
    for name, tensors in (("base", base), ("tuned", tuned)):
        save_file(tensors, folder / f"{name}.safetensors")
    return folder / "tuned.safetensors", folder / "base.safetensors"


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    with loopback(tmp_path_factory.mktemp("cluster")) as file:
        yield file


def seconds(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def test_overhead_of_an_item():
    study = work.study(work.squares(1000))
    run(study, {"threads": 1})
    whole, _ = seconds(lambda: run(study, {"threads": 1}))
    print(f"\nin process: {whole:.3f} ms for each item")  # 1000 items, so s are ms


def test_overhead_of_an_item_on_dask(scheduler):
    study, how = work.study(work.squares(1000)), {"scheduler": str(scheduler)}
    run(work.study(work.squares(4)), how)  # the workers import what they need
    few, _ = seconds(lambda: run(work.study(work.squares(4)), how))
    whole, _ = seconds(lambda: run(study, how))
    print(f"\non dask: {whole - few:.3f} ms for each item, {few:.2f} s to connect")


def test_two_processes_against_one(pair):
    tuned, base = pair
    one, expected = seconds(lambda: rs.spectrum(tuned, base=base, threads=1))
    two, found = seconds(lambda: rs.spectrum(tuned, base=base, jobs=2))
    assert found.to_dict() == expected.to_dict()
    print(f"\n{len(MODULES)} modules: one process {one:.2f} s, two {two:.2f} s: {one / two:.2f}")


def test_two_workers_of_dask_against_one_process(pair, scheduler):
    tuned, base = pair
    how = {"base": base, "scheduler": str(scheduler)}
    rs.spectrum(tuned, **how)  # warm: two workers that have read what they import
    one, expected = seconds(lambda: rs.spectrum(tuned, base=base, threads=1))
    two, found = seconds(lambda: rs.spectrum(tuned, **how))
    assert found.to_dict() == expected.to_dict()
    print(f"\n{len(MODULES)} modules: one process {one:.2f} s, dask {two:.2f} s: {one / two:.2f}")
