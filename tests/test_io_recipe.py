"""The usual recipe, untouched: GPT-2, PEFT on its attention, AdamW, save_pretrained, rankscope."""

import copy
import json

import peft
import pytest
import torch
import transformers
from click.testing import CliRunner

import rankscope as rs
from rankscope.cli import cli

pytestmark = pytest.mark.filterwarnings("ignore")

MODULES = ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config)


def fine_tuned(seed, steps=5):
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["c_attn"])
    model = peft.get_peft_model(gpt2(), config)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        tokens = torch.randint(64, (4, 16))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds: the folders that PEFT wrote, and what it merges, (out, in)."""
    root = tmp_path_factory.mktemp("runs")
    base = gpt2()
    base.save_pretrained(root / "base")
    truths = []
    for seed in (1, 2):
        model = fine_tuned(seed)
        model.save_pretrained(root / f"seed{seed}")
        merged = copy.deepcopy(model).double().merge_and_unload(safe_merge=True)
        weights, before = merged.state_dict(), base.double().state_dict()
        truths.append({m: (weights[f"{m}.weight"] - before[f"{m}.weight"]).T for m in MODULES})
    return root, truths


def rows(*arguments):
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["rows"]


@pytest.mark.parametrize("with_base", [False, True])
def test_updates_are_what_peft_merges(runs, with_base):
    root, truths = runs
    for seed, truth in enumerate(truths, 1):
        base = root / "base" if with_base else None
        updates = rs.open_updates(root / f"seed{seed}", base, split="none")
        assert updates.names == MODULES
        assert not updates.unread
        for name, delta in truth.items():
            assert updates[name].shape == delta.shape == (96, 32)
            assert (updates[name].dense() - delta).norm() <= 1e-6 * delta.norm()


def test_info(runs):
    root, _ = runs
    (row,) = rows("info", root / "seed1", "--split", "none")
    said = {key: row[key] for key in ("format", "modules", "rank", "alpha", "scale", "dtype")}
    assert said == {
        "format": "peft",
        "modules": 2,
        "rank": 8,
        "alpha": 16,
        "scale": 2.0,
        "dtype": "float32",
    }
    assert row["unread"] == []


def test_rank(runs):
    root, truths = runs
    for row in rows("rank", root / "seed1", "--base", root / "base", "--split", "none"):
        delta = truths[0][row["module"]]
        values = torch.linalg.svdvals(delta)
        assert (row["rows"], row["columns"], row["ceiling"]) == (96, 32, 8)
        assert (row["numerical_rank"], row["layer"]) == (8, MODULES.index(row["module"]))
        assert row["frobenius"] == pytest.approx(delta.norm().item())
        assert row["spectral"] == pytest.approx(values[0].item())
        assert row["stable_rank"] == pytest.approx((values.square().sum() / values[0] ** 2).item())
        weight = gpt2().double().state_dict()[f"{row['module']}.weight"]
        assert row["relative_norm"] == pytest.approx((delta.norm() / weight.norm()).item())


def test_similarity_of_two_seeds(runs):
    root, (one, two) = runs
    found = rows("similarity", root / "seed1", root / "seed2", "--split", "none")
    assert [(row["module"], row["side"]) for row in found] == [
        (module, side) for module in MODULES for side in ("right", "left")
    ]
    for row in found:
        # Sides as (out, in) has them: the input's dimension is 32, the output's 96.
        assert row["dimension"] == {"right": 32, "left": 96}[row["side"]]
        spaces = []
        for truth in (one, two):
            u, _, vh = torch.linalg.svd(truth[row["module"]])
            spaces.append((vh.T if row["side"] == "right" else u)[:, :8])
        squares = (spaces[0].T @ spaces[1]).square()
        assert row["phi_first"] == pytest.approx(squares[0, 0].item())
        assert row["phi_full"] == pytest.approx(squares.sum().item() / 8)


def test_q_k_and_v_stand_apart_unless_told_otherwise(runs):
    root, truths = runs
    found = {row["module"]: row for row in rows("rank", root / "seed1", "--base", root / "base")}
    assert list(found) == [f"{module}.{part}" for module in MODULES for part in "kqv"]
    for module in MODULES:
        for part, delta in zip("qkv", truths[0][module].split(32), strict=True):
            row = found[f"{module}.{part}"]
            assert (row["kind"], row["rows"], row["columns"]) == (part, 32, 32)
            assert row["frobenius"] == pytest.approx(delta.norm().item())
