"""Processor time of comparing sixteen adapters of a 7B model, their factors in memory.

Run with ``pytest tests/benchmarks/bench_compare.py -s``; needs 4 GB of memory. The baseline is
one pair after the other.
"""

import time

import pytest
import torch

import rankscope as rs

SOURCES, RANK = 16, 8
WIDTH, INNER, LAYERS = 4096, 11008, 32
SHAPES = {f"self_attn.{x}_proj": (WIDTH, WIDTH) for x in "qkvo"} | {
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}


def adapter(layers, rng):
    tensors = {}
    for layer in range(layers):
        for name, (out, in_) in SHAPES.items():
            key = f"model.layers.{layer}.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, in_, generator=rng)
            tensors[f"{key}.lora_B.weight"] = torch.randn(out, RANK, generator=rng)
    return tensors


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_sixteen_adapters_of_a_7b_model(capsys):
    rng = torch.Generator().manual_seed(0)
    sets = {f"{n}": rs.open_updates(adapter(LAYERS, rng), alpha=RANK) for n in range(SOURCES)}
    start = time.process_time()
    result = rs.compare(sets)
    seconds = time.process_time() - start

    one, two = sets["0"].select(layer=0), sets["1"].select(layer=0)
    start = time.process_time()
    rs.similarity(one, two)
    pairs = (time.process_time() - start) * LAYERS * SOURCES * (SOURCES - 1) / 2
    with capsys.disabled():
        print(f"\n{len(result.table)} rows in {seconds:.1f} s of processor time; ", end="")
        print(f"pair after pair, estimated from one layer of one pair: {pairs:.0f} s")
    assert len(result.table) == 2 * 120 * len(SHAPES) * LAYERS
    assert result.table.phi.mean() == pytest.approx(result.table.chance.mean(), rel=0.01)
