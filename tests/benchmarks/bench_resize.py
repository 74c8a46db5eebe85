"""Resizing and extracting against PEFT's way, a dense script, and the dense way to extract.

Run with ``pytest tests/benchmarks/bench_resize.py``; no time is asserted. All read files and
write files but where said; each ratio is of one run, on one thread unless told otherwise.
"""

import math
import time

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import rankscope as rs
from rankscope.io.write import write_adapter

RANK = 8


class Stack(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))


@pytest.fixture(params=[(768, 16, 24), (2048, 64, 4)], ids=str)
def adapter(request, tmp_path, rng):
    """A folder with an adapter of square matrices, their width and their number."""
    width, rank, depth = request.param
    tensors = {}
    for n in range(depth):
        key = f"base_model.model.layers.{n}.lora_"
        tensors[key + "A.weight"] = torch.randn(rank, width, generator=rng) / math.sqrt(width)
        tensors[key + "B.weight"] = torch.randn(width, rank, generator=rng)
    config = {
        "r": rank,
        "lora_alpha": rank,
        "target_modules": [f"layers.{n}" for n in range(depth)],
    }
    write_adapter(tmp_path / "in", tensors, config)
    return tmp_path / "in", width, depth


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def products(folder):
    return [update.dense() for update in rs.open_updates(folder)]


def best_products(folder):
    cut = []
    for matrix in products(folder):
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        cut.append((u[:, :RANK] * s[:RANK]) @ vt[:RANK])
    return cut


def resized(folder, out):
    rs.resize(folder, rank=RANK).save(out)


class TestResize:
    @pytest.mark.filterwarnings("ignore")
    def test_against_peft(self, benchmark, ratio, adapter, tmp_path):
        folder, width, depth = adapter
        outs = (tmp_path / f"out{n}" for n in range(1000))
        benchmark.pedantic(lambda: resized(folder, next(outs)), rounds=10, warmup_rounds=2)
        model = peft.PeftModel.from_pretrained(Stack(width, depth), folder)

        model.load_adapter(folder, "again")  # of one adapter alone PEFT makes no other rank

        def theirs():  # its core: neither loading the model nor writing is counted
            model.base_model.add_weighted_adapter(
                ["default", "again"], [0.5, 0.5], "small", combination_type="svd", svd_rank=RANK
            )

        ratio(f"PEFT's add_weighted_adapter, {depth} x {width}²", seconds(theirs))
        for layer, ours, best in zip(
            model.base_model.model.layers, products(tmp_path / "out0"), best_products(folder),
            strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(ours, best, atol=1e-5, rtol=1e-5)
            peft_s = layer.get_delta_weight("small").detach().double()
            torch.testing.assert_close(peft_s, best, atol=1e-3, rtol=1e-3)

    def test_against_a_dense_script(self, benchmark, ratio, adapter, tmp_path):
        folder, width, depth = adapter
        outs = (tmp_path / f"out{n}" for n in range(1000))
        benchmark.pedantic(lambda: resized(folder, next(outs)), rounds=10, warmup_rounds=2)

        def script():
            tensors = load_file(folder / "adapter_model.safetensors")
            small = {}
            for name, a in tensors.items():
                if "lora_A" in name:
                    other = name.replace("lora_A", "lora_B")
                    u, s, vt = torch.linalg.svd(tensors[other] @ a)
                    small[other] = (u[:, :RANK] * s[:RANK]).contiguous()
                    small[name] = vt[:RANK].contiguous()
            save_file(small, tmp_path / "small.safetensors")

        ratio(f"torch.linalg.svd(B @ A), {depth} x {width}²", seconds(script))


# A model of 52 million parameters, as its layers' matrices.
SHAPES = {"q": (1024, 1024), "k": (1024, 1024), "v": (1024, 1024), "o": (1024, 1024),
          "gate": (2816, 1024), "up": (2816, 1024), "down": (1024, 2816)}  # fmt: skip


@pytest.fixture
def pair(tmp_path, rng):
    """A base and a fine-tune, bfloat16: each ΔW decays over 64 directions to a flat floor."""
    base, tuned = {}, {}
    for layer in range(4):
        for kind, (out, in_) in SHAPES.items():
            name = f"model.layers.{layer}.{kind}_proj.weight"
            weight = torch.randn(out, in_, generator=rng) * 0.02
            scales = 0.003 * torch.arange(1, 65) ** -0.5
            delta = (torch.randn(out, 64, generator=rng) * scales) @ torch.randn(
                64, in_, generator=rng
            )
            base[name] = weight.bfloat16()
            tuned[name] = (weight + delta).bfloat16()
    for name, content in (("base", base), ("tuned", tuned)):
        save_file(content, tmp_path / f"{name}.safetensors")
    return tmp_path / "tuned.safetensors", tmp_path / "base.safetensors"


def test_extraction_against_a_dense_script(benchmark, ratio, pair, tmp_path):
    tuned, base = pair
    outs = (tmp_path / f"out{n}" for n in range(1000))
    benchmark.pedantic(
        lambda: rs.extract(tuned, base, rank=64).save(next(outs)), rounds=1, warmup_rounds=0
    )
    theirs = {}

    def script():
        small = {}
        with safe_open(tuned, "pt") as one, safe_open(base, "pt") as other:
            for name in one.keys():  # noqa: SIM118 - no dictionary
                delta = one.get_tensor(name).float() - other.get_tensor(name).float()
                u, s, vt = torch.linalg.svd(delta, full_matrices=False)
                small[f"{name}.up"] = (u[:, :64] * s[:64]).contiguous()
                small[f"{name}.down"] = vt[:64].contiguous()
                rest = delta - small[f"{name}.up"] @ small[f"{name}.down"]
                # Added up in float64: float32 loses a part in ten thousand.
                rest, whole = (
                    torch.linalg.vector_norm(x, dtype=torch.float64) for x in (rest, delta)
                )
                theirs[name.removesuffix(".weight")] = (rest / whole).item()
        save_file(small, tmp_path / "small.safetensors")

    ratio("torch.linalg.svd of every difference, r = 64, 52 M parameters", seconds(script))
    table = rs.extract(tuned, base, rank=64).table
    for row in table.itertuples():
        assert row.relative_error <= theirs[row.module] * 1.001
