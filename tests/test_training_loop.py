"""Whole runs of tiny models: what is written, who can read it, and that they learn."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_runs import METHODS, SIZE, SMALL, config_of, contents

from rankscope.training import TrainingConfig, load_trained, train
from rankscope.training import loop as loop_module
from rankscope.training.data import IGNORED, batch
from rankscope.training.evaluate import evaluate, loss_of
from rankscope.training.loop import learning_rate, loss_curve
from rankscope.training.lora import add_lora, lora_layers
from rankscope.training.weights import load_model

# --- what is written -------------------------------------------------------------------------


@METHODS
def test_a_run_writes_its_record_its_log_and_its_weights(method, base, tmp_path):
    config = config_of(method, base)
    run = train(config, tmp_path / "run", progress=False)

    names = set(contents(tmp_path / "run"))
    weights = {"adapter_model.safetensors", "adapter_config.json"}
    assert names == {"log.jsonl"} | (weights if method == "lora" else {"model.safetensors"})
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record == run.record
    assert (record["schema"], record["finished"], record["step"]) == ("rankscope.train/1", True, 6)
    assert TrainingConfig.from_dict(record["config"]) == config
    assert {"python", "torch", "numpy", "safetensors", "rankscope"} == set(record["versions"])
    assert record["tokens_per_second"] == pytest.approx(6 * 2 * 128 / record["seconds"])
    scores = record["evaluation"]
    assert set(scores) == ({"mixture"} if method == "pre-training" else {"sql", "mixture"})
    assert all(
        0 < score["loss"] < 10 and 0 <= score["token_accuracy"] <= 1 for score in scores.values()
    )

    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == list(range(6))
    assert [row["lr"] for row in log] == [learning_rate(config, step) for step in range(6)]
    assert all(row["loss"] > 0 and row["grad_norm"] > 0 for row in log)


@METHODS
def test_checkpoints_are_kept_where_asked(method, base, tmp_path):
    train(config_of(method, base, save_at=(0, 3, 6)), tmp_path / "run", progress=False)

    found = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert found == ["step-000000", "step-000003", "step-000006"]
    name = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    files = [tmp_path / "run" / "checkpoints" / step / name for step in found]
    bits = [path.read_bytes() for path in files]
    assert len(set(bits)) == 3
    assert bits[-1] == (tmp_path / "run" / name).read_bytes()
    if method == "full":
        first, initial = load_file(files[0]), load_file(base / name)
        assert all(torch.equal(first[key], initial[key]) for key in initial)
    if method == "lora":
        first = load_file(files[0])
        assert all(first[key].any() == ("lora_A" in key) for key in first)
        assert (files[0].parent / "adapter_config.json").exists()


def test_the_whole_model_is_written_in_float32_with_its_size(base):
    model = load_model(base)

    assert {weight.dtype for weight in load_file(base / "model.safetensors").values()} == {
        torch.float32
    }
    assert (model.architecture.layers, model.architecture.width) == (2, 32)


def test_the_frozen_weights_stay_and_the_factors_move(base, tmp_path):
    trainer = loop_module.Trainer(config_of("lora", base), tmp_path)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    for _ in range(3):
        trainer.advance()

    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, before[name]) != ("lora_" in name)


def test_seeds_change_the_adapter(base, tmp_path):
    runs = [
        train(config_of("lora", base, seed=seed), tmp_path / str(seed), progress=False)
        for seed in (0, 1)
    ]
    first, second = (load_file(run.folder / "adapter_model.safetensors") for run in runs)
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_the_seed_of_the_beginning_is_apart_from_that_of_the_data(base, tmp_path):
    runs = [
        train(config_of("lora", base, save_at=(0,), **seeds), tmp_path / str(at), progress=False)
        for at, seeds in enumerate(({"seed": 0}, {"seed": 1, "init_seed": 0}))
    ]
    name = "adapter_model.safetensors"
    first, second = (load_file(run.folder / "checkpoints" / "step-000000" / name) for run in runs)
    assert all(torch.equal(first[key], second[key]) for key in first)
    first, second = (load_file(run.folder / name) for run in runs)
    assert not any(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("options", [{"task": "slots", "difficulty": 3}, {"labels": "shuffled"}])
def test_another_task_and_shuffled_labels_are_trained_and_scored(options, base, tmp_path):
    config = config_of("lora", base, **options)
    run = train(config, tmp_path / "run", progress=False)
    plain = train(config_of("lora", base), tmp_path / "plain", progress=False)

    assert set(run.record["evaluation"]) == {config.task, "mixture"}
    assert run.record["evaluation"][config.task]["exact_match"] is not None
    assert run.record["loss_curve"] != plain.record["loss_curve"]


@METHODS
def test_the_model_of_a_run_is_read_back(method, base, tmp_path):
    config = config_of(method, base)
    run = train(config, tmp_path / "run", progress=False)

    scores = {
        task: evaluate(load_trained(run.folder), task, config.held_out, config.precision)
        for task in run.record["evaluation"]
    }
    assert scores == run.record["evaluation"]


# --- PEFT reads it ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("alpha", [3, 12.5])
def test_peft_loads_the_adapter_and_merges_the_same_update(base, tmp_path, alpha):
    peft = pytest.importorskip("peft")
    train(config_of("lora", base, alpha=alpha, lr=0.01), tmp_path / "run", progress=False)
    plain, ours = load_model(base), load_model(base)
    add_lora(ours, rank=3, alpha=alpha, targets=("q", "up"), seed=0)
    written = load_file(tmp_path / "run" / "adapter_model.safetensors")
    for name, layer in lora_layers(ours):
        layer.lora_A.data.copy_(written[f"base_model.model.{name}.lora_A.weight"])
        layer.lora_B.data.copy_(written[f"base_model.model.{name}.lora_B.weight"])

    wrapped = peft.PeftModel.from_pretrained(load_model(base), tmp_path / "run")
    tokens = batch("sql", 0, "train", 0, 2)[0]
    # PEFT adds up in another order, in float32.
    torch.testing.assert_close(wrapped(tokens), ours.eval()(tokens), rtol=1e-4, atol=1e-5)

    merged = wrapped.merge_and_unload()
    for name, layer in lora_layers(ours):
        original = plain.get_submodule(name).weight.double()
        update = merged.get_submodule(name).weight.double() - original
        rounding = 2**-23 * original.abs().max().item()
        torch.testing.assert_close(update, layer.delta(), rtol=0, atol=2 * rounding)
        assert layer.delta().abs().max() > 100 * rounding


# --- it learns, and it counts right ----------------------------------------------------------


# The head of an almost untrained base sets the limit of adapters, which leave it as it is.
@pytest.mark.parametrize(("rank", "limit"), [(None, 0.3), ("full", 0.3), (8, 1.0)])
def test_one_batch_is_learned_by_heart(rank, limit, base, tmp_path, monkeypatch):
    fixed = batch("sql", 0, "train", 0, 2)
    monkeypatch.setattr(loop_module, "batch", lambda *_, **__: fixed)
    method = {"base": base, "rank": rank} if rank else SIZE
    every = {"targets": ("q", "k", "v", "o", "up", "down")} if rank == 8 else {}
    config = TrainingConfig(**(SMALL | method | every | {"task": "sql", "steps": 120, "lr": 0.02}))
    trainer = loop_module.Trainer(config, tmp_path)
    losses = [trainer.advance()["loss"] for _ in range(config.steps)]

    assert losses[0] > 3
    assert losses[-1] < limit


@pytest.mark.slow
def test_a_base_learns_the_mixture_and_every_method_learns_sql(tmp_path):
    small = {"steps": 150, "batch": 16, "threads": 1, "held_out": 64}
    size = {"layers": 2, "width": 64, "lr": 5e-3}
    base = train(TrainingConfig(**small, **size), tmp_path / "base", progress=False)
    assert base.record["evaluation"]["mixture"]["loss"] < 2.6  # 4.6 is a uniform guess

    before = evaluate(load_model(tmp_path / "base"), "sql", 64, "float32")["loss"]
    for rank in (8, "full"):
        config = TrainingConfig(**small, base=tmp_path / "base", rank=rank)
        after = train(config, tmp_path / str(rank), progress=False).record["evaluation"]
        assert after["sql"]["loss"] < before - 0.3
        assert after["mixture"]["loss"] < 6  # some is forgotten, not all


def test_evaluation_counts_characters_and_answers(base):
    model, (inputs, targets) = load_model(base), batch("sql", 0, "held-out", 0, 40)
    scores = evaluate(model, "sql", 40, "float32")

    logits, counted = model(inputs), targets != IGNORED
    logp = logits.log_softmax(-1)[counted].gather(-1, targets[counted][:, None])
    assert scores["loss"] == pytest.approx(-logp.mean().item(), rel=1e-5)
    hits = logits.argmax(-1) == targets
    assert scores["token_accuracy"] == pytest.approx(hits[counted].double().mean().item())
    whole = [bool(hit[c].all()) for hit, c in zip(hits, counted, strict=True)]
    assert scores["exact_match"] == sum(whole) / 40


class Oracle(torch.nn.Module):
    """Answers every question right but the first `wrong`, in their last character."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong

    def forward(self, inputs):
        targets = batch("sql", 0, "held-out", 0, len(inputs))[1].clone()
        for row in range(self.wrong):
            last = (targets[row] != IGNORED).nonzero()[-1]
            targets[row, last] = (targets[row, last] + 1) % 97
        return 20 * torch.nn.functional.one_hot(targets.clamp(min=0), 97).float()


@pytest.mark.parametrize("wrong", [0, 3, 8])
def test_one_wrong_character_spoils_one_answer(wrong):
    scores = evaluate(Oracle(wrong), "sql", 8, "float32")
    counted = (batch("sql", 0, "held-out", 0, 8)[1] != IGNORED).sum().item()

    assert scores["exact_match"] == 1 - wrong / 8
    assert scores["token_accuracy"] == pytest.approx(1 - wrong / counted)


def test_the_loss_ignores_what_is_not_counted():
    logits = torch.randn(1, 3, 97, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[IGNORED, 5, IGNORED]])

    assert loss_of(logits, targets).item() == pytest.approx(
        -logits[0, 1].log_softmax(-1)[5].item()
    )


def test_the_rate_rises_and_falls_to_zero():
    config = TrainingConfig(steps=100, warmup=10, lr=1e-2)
    rates = [learning_rate(config, step) for step in range(100)]

    assert max(rates) == rates[10] == pytest.approx(1e-2)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1e-2 / 90)


def test_the_curve_means_parts_of_the_log():
    rows = [{"step": step, "loss": float(step)} for step in range(41)]
    curve = loss_curve(rows)

    assert curve[0] == {"step": 3, "loss": 1.0}
    assert curve[-1] == {"step": 41, "loss": 39.5}
    assert loss_curve([]) == []
