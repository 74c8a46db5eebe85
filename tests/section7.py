"""Runs that were never trained: planted updates in folders, and an index of invented scores."""

import pandas as pd
import torch
from oracles import gaussian, haar, write_peft
from safetensors.torch import save_file

D, LAYERS = 32, 2
KINDS = ("q", "k", "v", "o")


def modules(kinds=KINDS):
    return [f"blocks.{layer}.attn.{kind}" for layer in range(LAYERS) for kind in kinds]


def write_base(folder, rng):
    folder.mkdir(parents=True)
    weights = {f"{m}.weight": gaussian(D, D, rng=rng).float() / D**0.5 for m in modules()}
    save_file(weights, folder / "model.safetensors")
    return weights


def write_full(folder, base, rng, size=0.02):
    folder.mkdir(parents=True)
    tuned = {name: w + size * gaussian(D, D, rng=rng).float() for name, w in base.items()}
    save_file(tuned, folder / "model.safetensors")


def write_adapter(folder, rank, rng, *, tops=None, kinds=("q", "v"), size=0.3):
    """An adapter of random directions, the first one of every module `tops[module]` if given."""
    tensors = {}
    for module in modules(kinds):
        left, right = haar(D, rank, rng), haar(D, rank, rng)
        if tops is not None:
            right = torch.linalg.qr(torch.cat([tops[module], right[:, 1:]], dim=1))[0]
        s = size * 0.5 ** torch.arange(rank, dtype=torch.float64)
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_A.weight"] = right.T.float().contiguous()
        tensors[f"{key}.lora_B.weight"] = (left * s).float().contiguous()
    write_peft(folder, tensors, r=rank, lora_alpha=rank)


def row(name, folder, *, method="LoRA", rank=0, seed=0, **fields):
    trained = {"LoRA": rank * 2 * D * 2 * LAYERS, "full": D * D * 8}.get(method, 0)
    return {
        "name": name, "groups": "", "task": "sql", "method": method,
        "targets": "q,v" if method == "LoRA" else "", "rank": rank, "alpha": float(rank),
        "seed": seed, "init_seed": seed, "labels": "true", "difficulty": None, "steps": 10,
        "parameters": D * D * 8, "trained_parameters": trained, "loss": 1.0,
        "token_accuracy": 0.9, "exact_match": 0.5, "mixture_loss": 2.0, "seconds": 5.0,
        "folder": str(folder), **fields,
    }  # fmt: skip


def experiment(root, rng, *, ranks=(1, 2, 4, 8), seeds=(0, 1, 2), shared=True, scores=None):
    """The index of adapters of all ranks and seeds and a full twin per seed, on one base.

    With `shared` all have their first input direction in common; `scores` maps (rank, seed) to
    fields of the row, rank 0 being the full fine-tuning.
    """
    scores = scores or {}
    base = write_base(root / "base", rng)
    tops = {module: haar(D, 1, rng) for module in modules()} if shared else None
    rows = [row("base", root / "base", method="pre-training", task="mixture", loss=1.5)]
    for seed in seeds:
        for rank in ranks:
            name = f"sql-qv-r{rank}-s{seed}"
            write_adapter(root / name, rank, rng, tops=tops)
            fields = scores.get((rank, seed), {})
            rows.append(row(name, root / name, rank=rank, seed=seed, **fields))
        name = f"sql-full-s{seed}"
        write_full(root / name, base, rng)
        rows.append(row(name, root / name, method="full", seed=seed, **scores.get((0, seed), {})))
    return pd.DataFrame(rows)
