"""Published adapters: every cell of φ against its definition in float64 NumPy."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

import rankscope as rs


def sam(path):
    tensors = load_file(path)
    return {n[4:]: (tensors[f"w_b_{n[4:]}"], tensors[n]) for n in tensors if n.startswith("w_a")}


def qwen(path):
    tensors = load_file(path / "adapter_model.safetensors")
    names = [n.removesuffix(".lora_A.weight") for n in tensors if n.endswith("lora_A.weight")]
    return {
        n.removeprefix("base_model.model."): (
            tensors[f"{n}.lora_B.weight"],
            tensors[f"{n}.lora_A.weight"],
        )
        for n in names
    }


def singular_vectors(up, down):
    """Right and left singular vectors of the dense product, by NumPy."""
    product = up.astype(np.float64) @ down.astype(np.float64)
    u, _, vt = np.linalg.svd(product, full_matrices=False)
    return {"right": vt[: up.shape[1]].T, "left": u[:, : up.shape[1]]}


def brute_force(a, b):
    """φ(i, j) from its definition, one cell at a time."""
    phi = np.empty((a.shape[1], b.shape[1]))
    for i, j in itertools.product(*(range(1, n + 1) for n in phi.shape)):
        phi[i - 1, j - 1] = np.linalg.norm(a[:, :i].T @ b[:, :j]) ** 2 / min(i, j)
    return phi


CASES = {
    "sam r8 r16": ("sam-vit-b/run-1/lora_rank8.safetensors",
                   "sam-vit-b/run-1/lora_rank16.safetensors", sam, 24, (8, 16)),
    "sam run-1 run-2": ("sam-vit-b/run-1/lora_rank8.safetensors",
                        "sam-vit-b/run-2/lora_rank8.safetensors", sam, 24, (8, 8)),
    "qwen steps": ("qwen2.5-0.5b/peft/checkpoint-23", "qwen2.5-0.5b/peft/final", qwen, 48, (8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_cell_is_the_definition(real, case):
    a, b, read, count, shape = case
    result = rs.similarity(real / a, real / b)
    assert len(result.table) == 2 * count
    one, two = read(real / a), read(real / b)
    for module in result.table.module.unique()[::6]:
        truth = [singular_vectors(*factors[module]) for factors in (one, two)]
        for side in ("right", "left"):
            grid = result.grid(module, side)
            assert grid.shape == shape
            np.testing.assert_allclose(
                grid, brute_force(*(vectors[side] for vectors in truth)), atol=1e-6
            )


def test_two_steps_of_one_run_share_their_directions(real):
    folder = real / "qwen2.5-0.5b" / "peft"
    table = rs.similarity(folder / "checkpoint-23", folder / "final").table
    assert (table.p_adjusted < 1e-6).all()
    assert (table.shared_directions >= 1).all()


@pytest.mark.parametrize("folder", ["roberta-base/peft-agnews", "qwen2.5-0.5b/peft/final"])
def test_info_and_rank(real, folder):
    for command in ("info", "rank", "spectrum"):
        done = subprocess.run(
            [sys.executable, "-m", "rankscope", command, str(real / folder), "--json"],
            capture_output=True,
            text=True,
            check=True,
        )
        rows = json.loads(done.stdout)["rows"]
        if command == "info":
            assert rows[0]["format"] == "peft"
            assert (rows[0]["rank"], rows[0]["scale"]) == ((4, 4) if "news" in folder else (8, 2))
        if command == "rank":
            assert len(rows) == (36 if "news" in folder else 48)
            assert {row["numerical_rank"] for row in rows} == {4 if "news" in folder else 8}


def test_rank_measures_against_numpy(real):
    updates = rs.open_updates(real / "sam-vit-b/run-2/lora_rank8.safetensors")
    table = rs.rank(updates).table.set_index("module")
    for name in updates.names[::7]:
        s = np.linalg.svd(updates[name].dense().numpy(), compute_uv=False)[:8]
        p, e = s / s.sum(), s**2 / (s**2).sum()
        row = table.loc[name]
        assert row.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)
        assert row.energy_entropy_rank == pytest.approx(np.exp(-(e * np.log(e)).sum()), rel=1e-9)
        assert row.participation_rank == pytest.approx(1 / (e**2).sum(), rel=1e-9)
        assert row.stable_rank == pytest.approx(1 / e[0], rel=1e-9)
        assert row.energy_rank_90 == np.searchsorted(np.cumsum(e), 0.9) + 1
